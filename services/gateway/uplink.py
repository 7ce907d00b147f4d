"""Bytes on their way to a service: a client-streaming call fed from an HTTP body in pieces, never held whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from services.common import wire
from services.common.outcome import Outcome
from services.gateway import problems
from services.gateway.problems import Problem

PIECE_BYTES = 1 << 20
HELD_SECONDS = 1.0
"""A phone may need minutes for a piece. What came is passed on after this long all the same, so that it is kept,
and the upload service does not take the call for one whose client is gone."""

Response = TypeVar("Response", bound=Message)


class Uplink(Generic[Response]):
    """A call of :func:`services.common.channel.client_stream`. ``data_field``: the number of the field that takes
    the bytes; ``names``: what the message's fields are called in the HTTP request."""

    def __init__(self, call: Any, data_field: int) -> None:
        self._call = call
        self._outcome = Outcome(call)
        self._data_field = data_field
        self.names: Mapping[str, str] = {}

    async def send(self, message: Message | bytes) -> None:
        """Raises Problem when the service refuses the stream."""
        try:
            await self._call.write(message)
        except asyncio.InvalidStateError:  # the service has answered already: it refuses the rest
            await self.answer()
            raise Problem(409, "CHUNK_NOT_TAKEN", "the upload took no more of the body") from None
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(await self._outcome.error(error), names=self.names) from error

    async def data(self, source: AsyncIterator[bytes], *, keep: bool = False) -> None:
        """Sends all of ``source``, which may give b"" when nothing comes for a while. ``keep``: if that breaks
        off, what came of it is sent first. Raises Problem."""
        held, now = _Held(), asyncio.get_running_loop().time
        passed_on = now()
        try:
            async for piece in source:
                held.add(piece)
                while held.size >= PIECE_BYTES or (held.size and now() - passed_on >= HELD_SECONDS):
                    await self._pass_on(held)
                    passed_on = now()
        except Problem:
            if not keep:
                raise
            with contextlib.suppress(Problem):
                await self._pass_on(held)
            raise
        await self._pass_on(held)

    async def answer(self) -> Response:
        """The service's answer to all that was sent. Raises Problem."""
        try:
            # The service has answered already, or the call broke at this moment: then how it ended is told below.
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.InternalError):
                await self._call.done_writing()
            response: Response = await self._call
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(await self._outcome.error(error), names=self.names) from error
        return response

    async def _pass_on(self, held: _Held) -> None:
        if held.size:
            await self.send(held.take(self._data_field))


class _Held:
    """Bytes that wait to be passed on."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[wire.Buffer] = []

    def add(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self.size += len(piece)

    def take(self, field: int) -> bytes:
        """Up to a piece of them, as the message that has them in this field."""
        size = missing = min(self.size, PIECE_BYTES)
        taken: list[wire.Buffer] = []
        while missing:
            piece = self._pieces.pop(0)
            if len(piece) > missing:
                view = memoryview(piece)
                piece = view[:missing]
                self._pieces.insert(0, view[missing:])
            taken.append(piece)
            missing -= len(piece)
        self.size -= size
        return wire.frame(field, taken, size)
