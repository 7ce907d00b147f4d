"""Progress and "look again" hints on a lossy subject: nothing depends on one arriving.

Whoever watches a thing reads its record, and reads it again on every hint and every few seconds. The latest hint
of each unit may be remembered for a while, so that who comes later shows no less than who was there before.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` (frames, bytes) of a ``unit`` of the thing ``kind``/``id``.

    An empty ``unit`` says only that the thing's record changed.
    """

    kind: str
    id: str
    unit: str = ""
    done: int = 0
    total: int = 0


class ProgressBus(Protocol):
    """Sends and receives hints. A slow receiver loses the oldest ones, never blocks a sender."""

    async def publish(self, progress: Progress) -> None:
        """Sends a hint. Never raises: a hint that cannot be sent is dropped."""

    def subscribe(self, kind: str, id_: str = "*") -> AbstractAsyncContextManager[AsyncIterator[Progress]]:
        """Hints of one thing, or of all of a kind, sent after the block was entered."""

    def latest(self, kind: str) -> AsyncGenerator[Progress, None]:
        """The latest hint of each unit of every thing of a kind, as far as they are remembered. Raises
        Unavailable."""
