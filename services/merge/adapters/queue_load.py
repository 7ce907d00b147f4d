"""How full the job queue is, as JetStream counts it: nothing is read but counters.

What waits is what the consumers have not delivered, what runs is what they have delivered and nobody has
acknowledged. How many jobs were buried in the last hour is what a consumer that begins an hour ago has yet to
deliver; it is made for the question and removed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, timedelta

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from services.common.adapters.jetstream import AWAY, REQUEST_SECONDS, away, call
from services.common.clock import Clock
from services.merge.health import LaneLoad, QueueLoad, QueueState

_STREAM, _DEAD = "JOBS", "JOBS_DEAD"
_FORGOTTEN_AFTER_SECONDS = 5.0


class JetStreamQueueLoad:
    """Implements :class:`services.merge.health.QueueGauge`; tells the metrics its state."""

    def __init__(self, client: Client, *, clock: Clock) -> None:
        self._js = client.jetstream(timeout=REQUEST_SECONDS)
        self._clock = clock

    async def read(self) -> QueueLoad:
        waiting: Counter[str] = Counter()
        running = 0
        try:
            for info in await call(self._js.consumers_info(_STREAM)):
                _, _, priority, *_ = (info.config.filter_subject or "jobs.x.normal").split(".")
                waiting[priority] += info.num_pending or 0
                running += info.num_ack_pending or 0
            return QueueLoad(dict(waiting), running, await self._buried_last_hour())
        except (*AWAY, nats.js.errors.Error) as error:
            raise away("job queue") from error

    async def state(self) -> QueueState:
        """What waits and runs, by kind and priority. Raises Unavailable."""
        try:
            infos = [info for info in await call(self._js.consumers_info(_STREAM)) if info.config.filter_subject]
            lanes = await asyncio.gather(*map(self._lane, infos))
            dead = (await call(self._js.stream_info(_DEAD))).state.messages
        except (*AWAY, nats.js.errors.Error) as error:
            raise away("job queue") from error
        return QueueState(tuple(lanes), dead)

    async def _lane(self, info: ConsumerInfo) -> LaneLoad:
        subject = info.config.filter_subject or ""
        _, kind, priority, *_ = subject.split(".")
        waiting = info.num_pending or 0
        delivered = (info.delivered.stream_seq if info.delivered else 0) or 0
        oldest = await self._seconds_since(subject, delivered + 1) if waiting else 0.0
        taken = info.num_ack_pending or 0
        ended = (info.ack_floor.stream_seq if info.ack_floor else 0) or 0
        unfinished = await self._seconds_since(subject, ended + 1) if taken else oldest
        return LaneLoad(kind, priority, waiting, taken, oldest, unfinished)

    async def _seconds_since(self, subject: str, first: int) -> float:
        """The age of the first message of the subject from this sequence on."""
        try:
            message = await call(self._js.get_msg(_STREAM, seq=first, subject=subject, next=True))
        except nats.js.errors.NotFoundError:  # it was taken in between
            return 0.0
        assert message.time is not None, "the server stamps every message"
        return max(0.0, (self._clock() - message.time.astimezone(UTC)).total_seconds())

    async def _buried_last_hour(self) -> int:
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_TIME,
            opt_start_time=self._clock() - timedelta(hours=1),
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_FORGOTTEN_AFTER_SECONDS,
            num_replicas=1,
            mem_storage=True,
        )
        info = await call(self._js.add_consumer(_DEAD, config))
        await call(self._js.delete_consumer(_DEAD, info.name))
        return info.num_pending or 0
