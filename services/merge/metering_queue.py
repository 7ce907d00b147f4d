"""What is counted of the job queue: what passes through this process, and how full it is when Prometheus asks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.jobs import Delivery, Job, JobPriority, JobQueue
from services.merge.health import QueueState

log = logging.getLogger(__name__)
_SECONDS = 4.0  # less than a scrape may take


class QueueMetrics:
    """The metrics, in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"twotruths_merge_jobs_{name}", text, labels, registry=registry)

        self.published = counter("published", "Jobs that this process put into the queue.", "kind", "priority")
        self.delivered = counter("delivered", "Jobs that this process took from it.", "kind", "priority")
        self.redelivered = counter(
            "redelivered", "Those among them that somebody had taken before and not ended.", "kind"
        )


class MeteredQueue:
    """A :class:`JobQueue` whose jobs are counted."""

    def __init__(self, inner: JobQueue, metrics: QueueMetrics) -> None:
        self._inner = inner
        self._metrics = metrics
        self.unfinished = inner.unfinished
        self.drop = inner.drop
        self.bury = inner.bury  # may be said twice; how many are dead is asked of the broker

    @property
    def ack_wait(self) -> float:
        return self._inner.ack_wait

    async def publish(self, job: Job) -> bool:
        queued = await self._inner.publish(job)
        if queued:
            self._metrics.published.labels(job.kind, job.priority).inc()
        return queued

    async def fetch(
        self, kinds: Sequence[str], timeout: float, *, least: JobPriority = JobPriority.LOW
    ) -> Delivery | None:
        delivery = await self._inner.fetch(kinds, timeout, least=least)
        if delivery is not None:
            job = delivery.job
            self._metrics.delivered.labels(job.kind, job.priority).inc()
            if delivery.count > 1:
                self._metrics.redelivered.labels(job.kind).inc()
        return delivery


class QueueCollector(Collector):
    """Asks for the queue's state at each scrape, from the scrape's thread in this thread's event loop. While the
    broker does not answer, these metrics are absent."""

    def __init__(self, read: Callable[[], Awaitable[QueueState]]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()

    def describe(self) -> tuple[Metric, ...]:
        """The metrics without values."""
        lane = ["kind", "priority"]
        return (
            GaugeMetricFamily("twotruths_merge_queue_depth", "Jobs that wait for a worker.", labels=lane),
            GaugeMetricFamily(
                "twotruths_merge_queue_running",
                "Jobs that were taken and are not ended: they run, or their worker is gone.",
                labels=lane,
            ),
            GaugeMetricFamily(
                "twotruths_merge_queue_oldest_age_seconds",
                "For how long the one that waits longest has waited; 0 when none does.",
                labels=lane,
            ),
            GaugeMetricFamily(
                "twotruths_merge_queue_unfinished_age_seconds",
                "How long ago the oldest that is not ended was published, whether it waits or was taken.",
                labels=lane,
            ),
            GaugeMetricFamily("twotruths_merge_dead_jobs", "Jobs that are among the dead (mesh jobs dead)."),
        )

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are."""
        try:
            state = self._ask()
        except Exception as error:  # the others must be told whatever this is
            log.info("the queue's state is not known: %r", error)
            return
        depth, running, age, unfinished, dead = self.describe()
        assert isinstance(depth, GaugeMetricFamily)
        assert isinstance(running, GaugeMetricFamily)
        assert isinstance(age, GaugeMetricFamily)
        assert isinstance(unfinished, GaugeMetricFamily)
        assert isinstance(dead, GaugeMetricFamily)
        for lane in state.lanes:
            labels = (lane.kind, lane.priority)
            depth.add_metric(labels, lane.waiting)
            running.add_metric(labels, lane.running)
            age.add_metric(labels, lane.oldest_seconds)
            unfinished.add_metric(labels, lane.unfinished_seconds)
        dead.add_metric((), state.dead)
        yield from (depth, running, age, unfinished, dead)

    def _ask(self) -> QueueState:
        async def read() -> QueueState:
            async with asyncio.timeout(_SECONDS):
                return await self._read()

        asking = read()
        try:
            answer: concurrent.futures.Future[QueueState] = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the loop has ended
            asking.close()
            raise
        return answer.result(_SECONDS + 1)
