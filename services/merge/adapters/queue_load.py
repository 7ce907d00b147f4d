"""How full the job queue is, as JetStream counts it: nothing is read but counters.

What waits is what the consumers have not delivered, what runs is what they have delivered and nobody has
acknowledged. How many jobs were buried in the last hour is what a consumer that begins an hour ago has yet to
deliver; it is made for the question and removed.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.common.adapters.jetstream import AWAY, REQUEST_SECONDS, away, call
from services.common.clock import Clock
from services.merge.health import QueueLoad

_STREAM, _DEAD = "JOBS", "JOBS_DEAD"
_FORGOTTEN_AFTER_SECONDS = 5.0


class JetStreamQueueLoad:
    """Implements :class:`services.merge.health.QueueGauge`."""

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
