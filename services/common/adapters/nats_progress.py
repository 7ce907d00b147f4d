"""Progress hints over core NATS: subject ``progress.<kind>.<id>.<unit>``, no acknowledgement; ``-`` stands for no
unit or one that is no token.

Where :meth:`NatsProgressBus.remember` was called the broker keeps the latest hint of each subject for a day, in
memory: the stream PROGRESS listens to the same subjects. Publishing knows nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from services.common.adapters.jetstream import AWAY, REQUEST_SECONDS, ensure_stream, round_trip
from services.common.adapters.jetstream_pages import stored
from services.common.progress import Progress

_STREAM = "PROGRESS"
_REMEMBERED_SECONDS, _REMEMBERED_BYTES = 86_400, 64 << 20
_TOKEN = re.compile(r"[\w-]{1,64}", re.ASCII)
_BUFFER = 256
_HUGE = 1 << 63  # what counts frames or bytes is less


class NatsProgressBus:
    """Implements :class:`services.common.progress.ProgressBus`."""

    def __init__(self, client: Client) -> None:
        self._nc = client
        self._replicated = False

    async def publish(self, progress: Progress) -> None:
        if not self._nc.is_connected:  # nats-py would buffer it until the connection is back
            return
        body = json.dumps({"unit": progress.unit, "done": progress.done, "total": progress.total})
        with contextlib.suppress(nats.errors.Error, ValueError, *AWAY):
            unit = progress.unit if _TOKEN.fullmatch(progress.unit) else "-"
            await self._nc.publish(f"progress.{progress.kind}.{progress.id}.{unit}", body.encode())

    @asynccontextmanager
    async def subscribe(self, kind: str, id_: str = "*") -> AsyncIterator[AsyncIterator[Progress]]:
        queue: asyncio.Queue[Progress] = asyncio.Queue(_BUFFER)

        async def received(message: Msg) -> None:
            hint = _read(kind, message.subject, message.data)
            if hint is None:
                return
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(hint)

        subscription = await self._nc.subscribe(f"progress.{kind}.{id_}.*", cb=received)
        try:
            with contextlib.suppress(nats.errors.Error, *AWAY):
                await round_trip(self._nc)  # the server knows of the subscription from here on
            yield _Hints(queue)
        finally:
            with contextlib.suppress(nats.errors.Error, *AWAY):
                await subscription.unsubscribe()

    async def remember(self, kind: str, *, replicas: int = 1) -> None:
        """From now on the latest hint of each unit of this kind is kept; for one kind only. Raises Unavailable."""
        config = StreamConfig(
            name=_STREAM,
            subjects=[f"progress.{kind}.*.*"],
            max_msgs_per_subject=1,
            max_age=_REMEMBERED_SECONDS,
            max_bytes=_REMEMBERED_BYTES,
            discard=DiscardPolicy.OLD,
            storage=StorageType.MEMORY,
            num_replicas=replicas,
            allow_direct=True,
        )
        await ensure_stream(self._nc.jetstream(timeout=REQUEST_SECONDS), config)
        self._replicated = replicas > 1

    async def latest(self, kind: str) -> AsyncGenerator[Progress, None]:
        async with aclosing(
            stored(self._nc, _STREAM, f"progress.{kind}.>", replicated=self._replicated)
        ) as messages:
            async for message in messages:
                hint = _read(kind, message.subject, message.data)
                if hint is not None and hint.unit:
                    yield hint


def _read(kind: str, subject: str, data: bytes) -> Progress | None:
    """The hint, None when it is none: whoever sent it, it must not stop whoever listens."""
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(data):
            case {"unit": str(unit), "done": int(done), "total": int(total)} if abs(done) + abs(total) < _HUGE:
                return Progress(kind, subject.split(".")[2], unit, done, total)
    return None


class _Hints(AsyncIterator[Progress]):
    """Not a generator: a reader who gives up waiting for a hint (a timeout) may wait for the next."""

    def __init__(self, queue: asyncio.Queue[Progress]) -> None:
        self._queue = queue

    async def __anext__(self) -> Progress:
        return await self._queue.get()
