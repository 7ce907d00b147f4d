"""Several ranges of one representation as ``multipart/byteranges`` (RFC 9110 section 14.6)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.ranges import ByteRange


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes [start, end) of an object, and what is sent before them."""

    start: int
    end: int
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Body:
    """Parts of one object that follow each other in an answer, and what is sent behind the last."""

    parts: Sequence[Part]
    tail: bytes = b""

    @property
    def length(self) -> int:
        """The Content-Length."""
        return sum(len(part.head) + part.end - part.start for part in self.parts) + len(self.tail)


def multipart(found: Sequence[ByteRange], mime_type: str) -> tuple[Body, str]:
    """The body with each range as a part, and its Content-Type."""
    boundary = secrets.token_hex(16)  # not to be guessed by who made the file, whose bytes could end a part else
    parts = []
    for number, one in enumerate(found):
        head = f"--{boundary}\r\nContent-Type: {mime_type}\r\nContent-Range: {one.content_range}\r\n\r\n"
        parts.append(Part(one.start, one.end, ("\r\n" * (number > 0) + head).encode()))
    return Body(parts, f"\r\n--{boundary}--\r\n".encode()), f"multipart/byteranges; boundary={boundary}"
