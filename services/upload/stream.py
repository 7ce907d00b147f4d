"""The streams that clients send: chunks (header, data…, end; then the next chunk) and appends (header, data…).

Reads one message at a time, so memory is bounded by one piece, and gives up on a client that sends nothing
for a while: it may be gone without a word, and its retry is on another stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TypeVar

from services.common.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from services.common.wire import Buffer
from services.upload.grid import Part
from services.upload.reasons import Reason

T = TypeVar("T")

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


Message = Header | Buffer | End


@dataclass(frozen=True, slots=True)
class AppendStart:
    """Begins an append at ``offset``. ``upload_length``: the file's size if it is told only now. ``checksum`` in
    hex, with its ``algorithm`` "sha1" or "sha256", or both empty."""

    session_id: str
    offset: int
    upload_length: int | None = None
    algorithm: str = ""
    checksum: str = ""


AppendMessage = AppendStart | Buffer


class OpenStreams:
    """How many streams are open, of ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    @property
    def count(self) -> int:
        """How many are open now."""
        return self._open

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """A stream that is open within the block. Raises ResourceExhausted (TOO_MANY_STREAMS)."""
        if self._open >= self._most:
            raise ResourceExhausted("too many streams are open", reason=Reason.TOO_MANY_STREAMS, retry_after=1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


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

    async def body(self) -> AsyncIterator[Buffer]:
        """The chunk's bytes, in pieces of 1 byte to 1 MiB. Raises InvalidArgument (STREAM_MALFORMED)."""
        while (message := await self._next()) is not None:
            if isinstance(message, End):
                self._digests += (message.sha256,)
                return
            if not isinstance(message, Buffer):
                raise malformed("a chunk ends with an end message before the next one begins")
            if _piece(message):
                yield message
        # A call that was cut off looks to grpc.aio like one that ended: only a digest says that this is the chunk.
        if self._digests == ("",):
            raise malformed("a chunk whose header has no SHA-256 ends with an end message")

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
        return await _within(self._stall, self._messages)


class AppendStream:
    """Reads ``messages``. Call :meth:`begin`, then read :meth:`body` to its end, then :meth:`verify`."""

    def __init__(self, messages: AsyncIterator[AppendMessage], *, stall_seconds: float) -> None:
        self._messages = messages
        self._stall = stall_seconds
        self._start = AppendStart("", 0)
        self._digest: hashlib._Hash | None = None

    @property
    def has_checksum(self) -> bool:
        """Whether the bytes count all or not at all."""
        return self._digest is not None

    async def begin(self) -> AppendStart:
        """Its header. Raises InvalidArgument (STREAM_MALFORMED)."""
        message = await _within(self._stall, self._messages)
        if not isinstance(message, AppendStart):
            raise malformed("an append begins with a header")
        self._start = message
        if message.algorithm:
            self._digest = hashlib.new(message.algorithm, usedforsecurity=False)
            if len(message.checksum) != 2 * self._digest.digest_size:
                raise InvalidArgument.field("checksum", f"must be a {message.algorithm} in hex")
        elif message.checksum:
            raise InvalidArgument.field("checksum_algorithm", "must be named")
        return message

    async def body(self) -> AsyncIterator[Buffer]:
        """The bytes, in pieces of 1 byte to 1 MiB. Raises InvalidArgument (STREAM_MALFORMED)."""
        while (message := await _within(self._stall, self._messages)) is not None:
            if not isinstance(message, Buffer):
                raise malformed("an append has one header")
            if _piece(message):
                if self._digest is not None:
                    await asyncio.to_thread(self._digest.update, message)
                yield message

    def verify(self) -> None:
        """Compares with the checksum, if there is one. Raises InvalidArgument (CHUNK_DIGEST_MISMATCH)."""
        if self._digest is not None and self._digest.hexdigest() != self._start.checksum.lower():
            raise InvalidArgument.field(
                "checksum",
                f"the bytes received have the {self._start.algorithm} {self._digest.hexdigest()}",
                reason=Reason.CHUNK_DIGEST_MISMATCH,
            )


async def _within(stall: float, messages: AsyncIterator[T]) -> T | None:
    """The next message, or None at the end. Raises DeadlineExceeded when none comes."""
    try:
        async with asyncio.timeout(stall):
            return await anext(messages, None)
    except TimeoutError:
        raise DeadlineExceeded(f"nothing was received for {stall:g} s") from None


def _piece(message: Buffer) -> Buffer:
    if len(message) > MAX_PIECE:
        raise malformed("a data message has at most 1 MiB")
    return message


def malformed(description: str) -> InvalidArgument:
    """The refusal of a stream that breaks the order."""
    return InvalidArgument(f"malformed stream: {description}", reason=Reason.STREAM_MALFORMED)
