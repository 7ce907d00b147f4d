"""The files of a job, opened before the lock: nothing is opened by name after it.

A merged file needs three descriptors of its own. ``+faststart`` moves the media data back to make room for the
index and reads what it moves through a second handle; a ``dup`` would share the write offset and corrupt
the file. The third reads the result for verification.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import BinaryIO

HASH_BYTES = 1 << 20
WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    size: int
    sha256: str


def open_source(path: str) -> BinaryIO:
    """By number, so that no demuxer is chosen by the file's name."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0)


def open_target(path: str) -> BinaryIO:
    """New and ours alone. Buffered: a raw write may be short without telling the muxer."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "w+b", buffering=WRITE_BYTES)


def digest(file: BinaryIO) -> Digest:
    """Size and SHA-256 of a whole file, from its start."""
    file.flush()
    file.seek(0)
    sha256, size = hashlib.sha256(), 0
    while block := file.read(HASH_BYTES):
        sha256.update(block)
        size += len(block)
    return Digest(size, sha256.hexdigest())
