"""Bytes on their way to a service: a client-streaming call fed from an HTTP body in pieces, never held whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Generic, TypeVar

import grpc

from services.common.outcome import Outcome
from services.gateway import problems
from services.gateway.problems import Problem

PIECE_BYTES = 512 << 10
# A phone may need minutes for a piece. What came is passed on after this long all the same, or the upload service
# would take the call for one whose client is gone.
HELD_SECONDS = 1.0

Request = TypeVar("Request")
Response = TypeVar("Response")


class Uplink(Generic[Request, Response]):
    """A call that takes messages of a stream. ``piece`` makes a message of bytes; ``names``: what the message's
    fields are called in the HTTP request."""

    def __init__(self, call: Any, piece: Callable[[bytes], Request]) -> None:
        self._call = call
        self._outcome = Outcome(call)
        self._piece = piece
        self.names: Mapping[str, str] = {}

    async def send(self, message: Request) -> None:
        """Raises Problem when the service refuses the stream."""
        try:
            await self._call.write(message)
        except asyncio.InvalidStateError:  # the service has answered already: it refuses the rest
            await self.answer()
            raise Problem(409, "CHUNK_NOT_TAKEN", "the upload took no more of the body") from None
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(await self._outcome.error(error), names=self.names) from error

    async def data(self, source: AsyncIterator[bytes], *, keep: bool = False) -> None:
        """Sends all of ``source``. ``keep``: if that breaks off, what came of it is sent first. Raises Problem."""
        buffer, now = bytearray(), asyncio.get_running_loop().time
        passed_on = now()
        try:
            async for piece in source:
                buffer += piece
                while len(buffer) >= PIECE_BYTES or (buffer and now() - passed_on >= HELD_SECONDS):
                    data = bytes(memoryview(buffer)[:PIECE_BYTES])
                    del buffer[: len(data)]
                    await self.send(self._piece(data))
                    passed_on = now()
        except Problem:
            if not keep:
                raise
            with contextlib.suppress(Problem):
                await self._flush(buffer)
            raise
        await self._flush(buffer)

    async def answer(self) -> Response:
        """The service's answer to all that was sent. Raises Problem."""
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # the service has answered already
                await self._call.done_writing()
            response: Response = await self._call
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(await self._outcome.error(error), names=self.names) from error
        return response

    async def _flush(self, buffer: bytearray) -> None:
        if buffer:
            await self.send(self._piece(bytes(buffer)))
