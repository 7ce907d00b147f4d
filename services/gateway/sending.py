"""Sends an object's bytes: by sendfile(2) from a local file, else piece by piece as the store gives them.

Reading from a store holds one of its connections until the client has taken everything. There are not more of them
than the store's client has, and that client waits for a free one without an end; so readers queue here, briefly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

from aiohttp import web

from services.common.objects import ObjectStore
from services.gateway import problems
from services.gateway.byteranges import Body, Part
from services.gateway.openfiles import OpenFile, OpenFiles
from services.gateway.problems import Problem

log = logging.getLogger(__name__)

_RETRY_SECONDS = 2
_SLICE = 16 << 20


class Answer(web.StreamResponse):
    """A response that knows how many bytes of its body went out, those that the kernel sent by itself too; of a
    body that breaks off, to the last 16 MiB."""

    sent = 0

    @property
    def body_length(self) -> int:
        """Bytes of the body, for the access log."""
        return self.sent

    async def send(self, data: bytes) -> None:
        """Writes a piece of the body."""
        await self.write(data)
        self.sent += len(data)

    def require_all(self) -> None:
        """An object that ends before its record does. Only a broken connection tells the client: on one that is
        kept open it would take the next answer for the rest of this one. Raises EOFError."""
        if self.sent != self.content_length:
            raise EOFError(f"the object ended after {self.sent} bytes of {self.content_length}")


class Sender:
    """``readers``: how many may read from a remote store at once; ``patience``: seconds to wait for one to end."""

    def __init__(self, store: ObjectStore, *, readers: int, patience: float) -> None:
        self._store = store
        self._files = OpenFiles()
        self._readers = asyncio.Semaphore(readers)
        self._patience = patience

    def close(self) -> None:
        """Lets go of the files that stay open between requests."""
        self._files.close()

    async def send(self, request: web.Request, answer: Answer, key: str, size: int, body: Body) -> None:
        """Sends ``body``, of the object ``key`` that has ``size`` bytes by its record. Raises, while nothing is
        sent, Problem (503: too many read) and NotFound; EOFError when the object ends before its record does."""
        file = await self._local(key)
        if file is not None:
            with file:
                if file.size != size:
                    log.error("an object has another size than its record", extra={"data": {"object": key}})
                    raise problems.internal()
                await _send_file(request, answer, file, body)
        else:
            async with self._reader():
                await self._send_pieces(request, answer, key, body)

    async def _local(self, key: str) -> OpenFile | None:
        if known := self._files.known(key):
            return known
        path = self._store.local_path(key)
        if path is None:
            return None
        try:
            return await self._files.open(key, path)
        except FileNotFoundError:
            raise Problem(404, "FILE_GONE", "the file's bytes are no longer there") from None

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience):
                await self._readers.acquire()
        except TimeoutError:
            raise Problem(
                503,
                "TOO_MANY_READERS",
                "too many files are being read; try again",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            ) from None
        try:
            yield
        finally:
            self._readers.release()

    async def _send_pieces(self, request: web.Request, answer: Answer, key: str, body: Body) -> None:
        for part in body.parts:
            async with contextlib.aclosing(self._store.read(key, part.start, part.end)) as pieces:
                first = await anext(pieces, b"")  # NotFound comes here, while an answer is still possible
                if not first and part.end > part.start:
                    raise EOFError("the object ended before its record does")
                if not answer.prepared:
                    await answer.prepare(request)
                await answer.send(part.head + first if part.head else first)
                async for piece in pieces:
                    await answer.send(piece)
        await _finish(answer, body)


async def _send_file(request: web.Request, answer: Answer, file: OpenFile, body: Body) -> None:
    """Sends parts of a file without their bytes passing through Python."""
    await answer.prepare(request)
    transport = request.transport
    for part in body.parts:
        if part.head:
            await answer.send(part.head)
        if transport is None:
            raise ConnectionResetError("the client has gone")
        assert transport.get_extra_info("sslcontext") is None, "what the kernel sends by itself is not encrypted"
        await _send_part(transport, answer, file, part)
    await _finish(answer, body)


async def _send_part(transport: asyncio.Transport, answer: Answer, file: OpenFile, part: Part) -> None:
    at = part.start
    if at < part.end and not transport.get_write_buffer_size() and not transport.is_closing():
        # What the socket takes at once needs no waiting: for a short range, all.
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(BlockingIOError):
            at += os.sendfile(sock.fileno(), file.file.fileno(), at, part.end - at)
            answer.sent += at - part.start
    loop = asyncio.get_running_loop()
    while at < part.end:  # in slices: of one that breaks off nobody says how far it came
        taken = await loop.sendfile(transport, file.file, at, min(_SLICE, part.end - at))
        answer.sent += taken
        if not taken:
            break
        at += taken


async def _finish(answer: Answer, body: Body) -> None:
    if body.tail:
        await answer.send(body.tail)
    answer.require_all()
