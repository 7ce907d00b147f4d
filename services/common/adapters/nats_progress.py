"""Progress hints over core NATS: subject ``progress.<kind>.<id>``, no storage, no acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.common.adapters.jetstream import AWAY, round_trip
from services.common.progress import Progress

_BUFFER = 256
_HUGE = 1 << 63  # what counts frames or bytes is less


class NatsProgressBus:
    """Implements :class:`services.common.progress.ProgressBus`."""

    def __init__(self, client: Client) -> None:
        self._nc = client

    async def publish(self, progress: Progress) -> None:
        if not self._nc.is_connected:  # nats-py would buffer it until the connection is back
            return
        body = json.dumps({"unit": progress.unit, "done": progress.done, "total": progress.total})
        with contextlib.suppress(nats.errors.Error, ValueError, *AWAY):
            await self._nc.publish(f"progress.{progress.kind}.{progress.id}", body.encode())

    @asynccontextmanager
    async def subscribe(self, kind: str, id_: str = "*") -> AsyncIterator[AsyncIterator[Progress]]:
        queue: asyncio.Queue[Progress] = asyncio.Queue(_BUFFER)

        async def received(message: Msg) -> None:
            hint = _read(kind, message)
            if hint is None:
                return
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(hint)

        subscription = await self._nc.subscribe(f"progress.{kind}.{id_}", cb=received)
        try:
            with contextlib.suppress(nats.errors.Error, *AWAY):
                await round_trip(self._nc)  # the server knows of the subscription from here on
            yield _Hints(queue)
        finally:
            with contextlib.suppress(nats.errors.Error, *AWAY):
                await subscription.unsubscribe()


def _read(kind: str, message: Msg) -> Progress | None:
    """The hint, None when it is none: whoever sent it, it must not stop whoever listens."""
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(message.data):
            case {"unit": str(unit), "done": int(done), "total": int(total)} if abs(done) + abs(total) < _HUGE:
                return Progress(kind, message.subject.rpartition(".")[2], unit, done, total)
    return None


class _Hints(AsyncIterator[Progress]):
    """Not a generator: a reader who gives up waiting for a hint (a timeout) may wait for the next."""

    def __init__(self, queue: asyncio.Queue[Progress]) -> None:
        self._queue = queue

    async def __anext__(self) -> Progress:
        return await self._queue.get()
