"""The change feed of a key-value bucket: a durable pull consumer on the bucket's stream.

The stream keeps one message per key, so several changes that nobody has read yet are one message, the last;
a change that was delivered and is overwritten before its acknowledgement is replaced by its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Generic, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.common.adapters.jetstream import AWAY, REQUEST_SECONDS, away, call, ensure_consumer
from services.common.codec import Codec

log = logging.getLogger(__name__)
T = TypeVar("T")

_ACK_WAIT_SECONDS = 30
_ENSURE_EVERY = 20  # empty fetches: a consumer that was deleted only ever times out


class JetStreamChangeFeed(Generic[T]):
    """Implements :class:`services.common.changes.ChangeFeed` for one bucket and one durable name."""

    def __init__(self, client: Client, bucket: str, durable: str, codec: Codec[T]) -> None:
        self._js = client.jetstream(timeout=REQUEST_SECONDS)
        self._bucket = bucket
        self._durable = durable
        self._codec = codec
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._pull: asyncio.Future[list[Msg]] | None = None
        self._empty = 0

    async def ensure(self) -> None:
        """Makes the consumer; the bucket must exist. Raises Unavailable."""
        await ensure_consumer(
            self._js,
            f"KV_{self._bucket}",
            ConsumerConfig(
                durable_name=self._durable,
                deliver_policy=DeliverPolicy.ALL,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=_ACK_WAIT_SECONDS,
                filter_subject=f"$KV.{self._bucket}.>",
            ),
        )

    async def next(self, timeout: float) -> _Delivery[T] | None:
        try:
            if self._subscription is None:
                self._subscription = await call(self._js.pull_subscribe_bind(self._durable, f"KV_{self._bucket}"))
            self._pull = asyncio.ensure_future(self._subscription.fetch(1, timeout=timeout))
            (message,) = await call(self._pull)
        except TimeoutError:
            self._empty += 1
            if self._empty % _ENSURE_EVERY == 0:
                await self.ensure()
            return None
        except (*AWAY, nats.js.errors.Error, nats.errors.Error) as error:
            raise away(f"changes of {self._bucket}") from error
        self._empty = 0
        return _Delivery(message, message.subject.removeprefix(f"$KV.{self._bucket}."), self._codec)

    async def close(self) -> None:
        """Withdraws a pull that is under way: the server would hand the next change to nobody."""
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, *AWAY):
                await self._subscription.unsubscribe()
        if self._pull is not None:  # nobody waits for it any more; the end of the loop would be its error
            self._pull.cancel()
            await asyncio.wait([self._pull])


class _Delivery(Generic[T]):
    def __init__(self, message: Msg, key: str, codec: Codec[T]) -> None:
        self._message = message
        self.key = key
        self.value: T | None = None
        try:
            self.value = codec.decode(message.data) if message.data else None
        except ValueError:  # as a wake-up it is as good as any
            log.exception("changed record cannot be read", extra={"data": {"key": key}})

    async def ack(self) -> None:
        with contextlib.suppress(nats.errors.Error, *AWAY):
            await self._message.ack()

    async def retry(self, delay: float) -> None:
        with contextlib.suppress(nats.errors.Error, *AWAY):
            await self._message.nak(delay=delay)
