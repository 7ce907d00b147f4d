"""The stream of chunks that a client sends: header, data…, end; then the next chunk.

Reads one message at a time, so memory is bounded by one piece, and gives up on a client that sends nothing
for a while: it may be gone without a word, and its retry is on another stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.common.errors import DeadlineExceeded, InvalidArgument
from services.upload.grid import Part
from services.upload.reasons import Reason

MAX_PIECE = 1 << 20
"""The most bytes a data message may have."""


@dataclass(frozen=True, slots=True)
class Header:
    """Begins a chunk. ``session_id`` may be empty in later headers of a stream, ``sha256`` (hex) always."""

    session_id: str
    number: int
    sha256: str


@dataclass(frozen=True, slots=True)
class End:
    """Ends a chunk."""

    sha256: str


Message = Header | bytes | End


class ChunkStream:
    """Reads ``messages``. Call :meth:`next_chunk`, then read :meth:`body` to its end, then :meth:`verify`."""

    def __init__(self, messages: AsyncIterator[Message], *, stall_seconds: float) -> None:
        self._messages = messages
        self._stall = stall_seconds
        self._digests: tuple[str, ...] = ()

    async def next_chunk(self) -> Header | None:
        """The next chunk's header, or None at the end of the stream. Raises InvalidArgument (STREAM_MALFORMED)."""
        message = await self._next()
        if message is not None and not isinstance(message, Header):
            raise malformed("a chunk begins with a header")
        self._digests = (message.sha256,) if message is not None else ()
        return message

    async def body(self) -> AsyncIterator[bytes]:
        """The chunk's bytes, in pieces of 1 byte to 1 MiB. Raises InvalidArgument (STREAM_MALFORMED)."""
        while not isinstance(message := await self._next(), End):
            if not isinstance(message, bytes):
                raise malformed("a chunk ends with an end message")
            if len(message) > MAX_PIECE:
                raise malformed("a data message has at most 1 MiB")
            if message:
                yield message
        self._digests += (message.sha256,)

    def verify(self, part: Part) -> None:
        """Compares with the digests that came with the chunk. Raises InvalidArgument (CHUNK_DIGEST_MISMATCH)."""
        for digest in self._digests:
            if digest and digest.lower() != part.sha256:
                raise InvalidArgument.field(
                    "sha256",
                    f"the bytes received for chunk {part.number} have the SHA-256 {part.sha256}",
                    reason=Reason.CHUNK_DIGEST_MISMATCH,
                )

    async def _next(self) -> Message | None:
        try:
            async with asyncio.timeout(self._stall):
                return await anext(self._messages, None)
        except TimeoutError:
            raise DeadlineExceeded(f"nothing was received for {self._stall:g} s") from None


def malformed(description: str) -> InvalidArgument:
    """The refusal of a stream that breaks the order."""
    return InvalidArgument(f"malformed stream: {description}", reason=Reason.STREAM_MALFORMED)
