"""The job queue on a JetStream work-queue stream.

Stream JOBS keeps each job until it is acknowledged, under ``jobs.<kind>.<priority>.<group>.<id>`` with at most one
message per subject: publishing a job that is there is refused (err 10077), which means it is queued. There is a
durable consumer for each kind and priority. Redelivery is unlimited: a message whose deliveries were used
up would stay, invisible, and block its subject; instead whoever gets a job sees how often it was delivered
and gives it up for good itself (docs/decisions/002).

A worker never leaves a pull request waiting at the server, because one that is abandoned takes the next job
with it for a whole ack_wait. It asks the consumers in order of priority with ``no_wait``, and when all are
empty it waits for a publish (every core subscriber of ``jobs.>`` sees it) or for the next look.
Never send Nats-Msg-Id here: after an acknowledgement it would be answered "stored" and queue nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from services.common.adapters.jetstream import (
    AWAY,
    PATIENCE_SECONDS,
    REQUEST_SECONDS,
    away,
    call,
    ensure_consumer,
    ensure_stream,
    patiently,
)
from services.common.errors import Unavailable
from services.common.jobs import Job, JobPriority, Publishes, order_of_fetch

_STREAM, _DEAD = "JOBS", "JOBS_DEAD"
_ALREADY_QUEUED = 10077
_DEAD_DAYS = 30
_LOOK_SECONDS = 1.0  # redeliveries are not published, so nothing wakes a waiting worker for them


class JetStreamJobQueue:
    """Implements :class:`services.common.jobs.JobQueue`. Call :meth:`ensure` before the first use."""

    def __init__(self, client: Client, *, ack_wait: float = 30.0, replicas: int = 1) -> None:
        self._nc = client
        self._js = client.jetstream(timeout=REQUEST_SECONDS)
        self._ack_wait = ack_wait
        self._replicas = replicas
        self._publishes = Publishes()
        self._listening = False
        self._fetches: Counter[tuple[tuple[str, ...], JobPriority]] = Counter()

    @property
    def ack_wait(self) -> float:
        return self._ack_wait

    async def ensure(self, kinds: Sequence[str]) -> None:
        """Makes the streams and the consumers of these kinds. Raises Unavailable."""
        await ensure_stream(
            self._js,
            StreamConfig(
                name=_STREAM,
                subjects=["jobs.>"],
                retention=RetentionPolicy.WORK_QUEUE,
                discard=DiscardPolicy.NEW,
                discard_new_per_subject=True,
                max_msgs_per_subject=1,
                storage=StorageType.FILE,
                num_replicas=self._replicas,
            ),
        )
        await ensure_stream(
            self._js,
            StreamConfig(
                name=_DEAD,
                subjects=["dead.jobs.>"],
                max_msgs_per_subject=1,
                max_age=_DEAD_DAYS * 86_400,
                storage=StorageType.FILE,
                num_replicas=self._replicas,
            ),
        )
        for kind in kinds:
            for priority in JobPriority:
                config = ConsumerConfig(
                    durable_name=_consumer(kind, priority),
                    filter_subject=f"jobs.{kind}.{priority}.>",
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=self._ack_wait,
                    max_deliver=-1,
                    max_ack_pending=10_000,
                )
                await ensure_consumer(self._js, _STREAM, config)

    async def publish(self, job: Job) -> bool:
        # The subject names the job, so publishing again after a lost answer cannot queue it twice.
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            try:
                await call(
                    self._js.publish(_subject(job), job.payload, stream=_STREAM, headers=dict(job.headers) or None)
                )
            except (*AWAY, nats.js.errors.APIError) as error:
                if getattr(error, "err_code", None) == _ALREADY_QUEUED:  # a 503, as "no leader" is
                    return False
                if not isinstance(error, AWAY):
                    raise
                if asyncio.get_running_loop().time() >= deadline:
                    raise away("job queue") from error
                await asyncio.sleep(0.1)
            else:
                return True

    async def fetch(
        self, kinds: Sequence[str], timeout: float, *, least: JobPriority = JobPriority.LOW
    ) -> JetStreamDelivery | None:
        await self._listen()
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            looked = self._publishes.number
            for consumer in self._in_order(kinds, least):
                message = await self._ask(consumer)
                if message is not None:
                    return JetStreamDelivery(message)
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_SECONDS)):
                    await self._publishes.after(looked)

    async def unfinished(self, group: str) -> AbstractSet[str]:
        info = await patiently(
            lambda: call(self._js.stream_info(_STREAM, subjects_filter=f"jobs.*.*.{group}.>")), "job queue"
        )
        return {subject.rpartition(".")[2] for subject in info.state.subjects or {}}

    async def drop(self, job: Job) -> None:
        try:
            message = await call(self._js.get_last_msg(_STREAM, _subject(job)))
            await call(self._js.delete_msg(_STREAM, message.seq or 0))
        except nats.js.errors.NotFoundError:
            return
        except AWAY as error:
            raise away("job queue") from error
        except nats.js.errors.APIError as error:
            if error.err_code != 10057:  # deleted by someone else in between
                raise

    async def bury(self, job: Job, reason: str) -> None:
        headers = {
            **job.headers,
            "Twotruths-Reason": " ".join(reason.split())[:500],
            "Twotruths-Priority": job.priority,
        }
        try:
            await call(
                self._js.publish(f"dead.jobs.{job.kind}.{job.id}", job.payload, stream=_DEAD, headers=headers)
            )
        except AWAY as error:
            raise away("job queue") from error

    async def _listen(self) -> None:
        if not self._listening:
            self._listening = True

            async def wake(_: Msg) -> None:
                self._publishes.tell()

            await self._nc.subscribe("jobs.>", cb=wake)

    def _in_order(self, kinds: Sequence[str], least: JobPriority) -> list[str]:
        self._fetches[lane := (tuple(kinds), least)] += 1  # others' fetches must not use up the turns of these
        return [_consumer(kind, priority) for priority, kind in order_of_fetch(self._fetches[lane], kinds, least)]

    async def _ask(self, consumer: str) -> Msg | None:
        request = asyncio.ensure_future(
            self._nc.request(
                f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.{consumer}",
                json.dumps({"batch": 1, "no_wait": True}).encode(),
                timeout=REQUEST_SECONDS,
                old_style=True,  # a job arrives under its own subject, which the shared inbox cannot route
            )
        )
        try:
            message = await asyncio.shield(request)
        except asyncio.CancelledError:
            request.add_done_callback(_give_back)
            raise
        except (*AWAY, nats.errors.Error) as error:
            raise away("job queue") from error
        status = (message.headers or {}).get("Status")
        if status is None:
            return message
        if status in {"404", "408"}:  # none waiting
            return None
        raise Unavailable(f"job queue: {(message.headers or {}).get('Description', status)}", retry_after=1)


def _give_back(request: asyncio.Future[Msg]) -> None:
    """A job that was on its way to a worker that is stopping goes back at once, not after ack_wait."""
    if request.cancelled() or request.exception() is not None:
        return
    message = request.result()
    if (message.headers or {}).get("Status") is None:
        _background.add(task := asyncio.ensure_future(JetStreamDelivery(message).release()))
        task.add_done_callback(_background.discard)


_background: set[asyncio.Future[None]] = set()  # the loop keeps only weak references to tasks


class JetStreamDelivery:
    """Implements :class:`services.common.jobs.Delivery`."""

    def __init__(self, message: Msg) -> None:
        self._message = message
        _, kind, priority, rest = message.subject.split(".", 3)
        group, _, job_id = rest.rpartition(".")
        headers = {k: v for k, v in (message.headers or {}).items() if not k.startswith("Nats-")}
        self.job = Job(kind, job_id, message.data, JobPriority(priority), headers, group)

    @property
    def count(self) -> int:
        return self._message.metadata.num_delivered

    async def keep(self) -> None:
        with contextlib.suppress(nats.errors.Error, *AWAY):
            await self._message.in_progress()

    async def ack(self) -> None:
        try:
            await call(self._message.ack_sync(timeout=REQUEST_SECONDS))
        except (*AWAY, nats.errors.Error) as error:
            raise away("job queue") from error

    async def release(self, delay: float = 0) -> None:
        with contextlib.suppress(nats.errors.Error, *AWAY):
            await self._message.nak(delay=delay or None)


def _subject(job: Job) -> str:
    return f"jobs.{job.kind}.{job.priority}.{job.group}.{job.id}"


def _consumer(kind: str, priority: JobPriority) -> str:
    return f"{kind}-{priority}"
