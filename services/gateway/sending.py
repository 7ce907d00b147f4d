"""Sends an object's bytes: by sendfile(2) from a local file, else piece by piece as the store gives them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from aiohttp import web

from services.common.objects import ObjectStore
from services.gateway import problems
from services.gateway.byteranges import Body, Part
from services.gateway.openfiles import OpenFile, OpenFiles
from services.gateway.problems import Problem
from services.gateway.readers import Pace, Readers

log = logging.getLogger(__name__)

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
    """Sends objects of ``store``; ``readers`` take turns where that is a remote one."""

    def __init__(self, store: ObjectStore, readers: Readers) -> None:
        self._store = store
        self._files = OpenFiles()
        self._readers = readers

    def close(self) -> None:
        """Lets go of the files that stay open between requests."""
        self._files.close()

    async def send(self, request: web.Request, answer: Answer, key: str, size: int, body: Body) -> None:
        """Sends ``body``, of the object ``key`` that has ``size`` bytes by its record. Raises, while nothing is
        sent, Problem (429, 503: too many read) and NotFound; EOFError if the object ends before its record."""
        file = await self._local(key)
        if file is not None:
            with file:
                if file.size != size:
                    log.error("an object has another size than its record", extra={"data": {"object": key}})
                    raise problems.internal()
                await _send_file(request, answer, file, body)
        else:
            async with self._readers.turn(request) as pace:
                await self._send_pieces(request, answer, key, body, pace)

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

    async def _send_pieces(self, request: web.Request, answer: Answer, key: str, body: Body, pace: Pace) -> None:
        for part in body.parts:
            async with contextlib.aclosing(self._store.read(key, part.start, part.end)) as pieces:
                first = await anext(pieces, b"")  # NotFound comes here, while an answer is still possible
                if not first and part.end > part.start:
                    raise EOFError("the object ended before its record does")
                if not answer.prepared:
                    await answer.prepare(request)
                first = part.head + first if part.head else first
                pace.give(len(first))
                await answer.send(first)
                async for piece in pieces:
                    pace.give(len(piece))
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
