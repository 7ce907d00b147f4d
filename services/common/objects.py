"""The object store: immutable files under keys, in a directory or in S3."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def require_key(key: str) -> str:
    """The key itself. Raises ValueError when it is none."""
    if not _KEY.fullmatch(key) or len(key) > 512:
        raise ValueError(f"not an object key: {key!r}")
    return key


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's size in bytes and when it was stored (UTC)."""

    key: str
    size: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Objects under keys like ``videos/<id>/<token>.mp4``: tokens of letters, digits, ``._-`` joined by ``/``.

    Every method raises ValueError for another key (keys are made by services, never by callers) and
    Unavailable when the store does not answer.
    """

    async def put_file(self, key: str, source: Path) -> ObjectInfo:
        """Stores a finished file, which is moved or copied away. The object appears whole or not at all.
        Writing a key again replaces the object. Raises ResourceExhausted when the store is full."""

    async def stat(self, key: str) -> ObjectInfo:
        """Raises NotFound."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes [start, end) in pieces of at most 1 MiB. Raises NotFound at the first piece. Close it
        (contextlib.aclosing) where reading may stop before the end: it holds a file or a connection."""

    async def delete(self, key: str) -> None:
        """Removes the object; one that is not there is no error."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """The objects whose key begins with ``prefix``, in any order."""

    def local_path(self, key: str) -> Path | None:
        """Where the object is as a file on this machine, for sendfile and decoders; None if it is not."""
