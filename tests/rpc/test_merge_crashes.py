"""What happens when something dies at the worst moment: nothing is stuck, and nothing takes effect twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.adapters.jetstream_jobs import JetStreamJobQueue
from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.adapters.memory import MemoryProgressBus
from services.common.clock import utc_now
from services.common.jobs import Delivery, Job
from services.common.keys import KeyRing
from services.common.state import Entry, RevisionConflict, mutate, owned_key
from services.merge import wiring
from services.merge.board import ProgressBoard
from services.merge.cleaning import SessionCleaner
from services.merge.controller import MergeController
from services.merge.domain import JobKind, Session, UnitState, Video
from services.merge.jobs import KINDS
from services.merge.requests import NewClip, NewSession
from services.merge.scratch import Scratch
from services.merge.service import MergeSessions
from services.merge.timeline import Quality
from services.merge.transitions import claim
from services.merge.work import MergeWork
from services.merge.worker import MAX_CLAIMS, MergeWorker
from tests.rpc.merge_world import SteeredMedia, World


class Killed(BaseException):
    """The process ends here: nothing catches this."""


class Parts:
    """What controllers and workers are made of, on real stores; each can be made anew after it "died"."""

    def __init__(self, client: Client, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.sessions: JetStreamStateStore[Session] = JetStreamStateStore(client, "merges", wiring.SESSIONS)
        self.videos: JetStreamStateStore[Video] = JetStreamStateStore(client, "videos", wiring.VIDEOS)
        self.queue = JetStreamJobQueue(client, ack_wait=1)
        self.progress = MemoryProgressBus()

    def controller(self, queue: JetStreamJobQueue | None = None) -> MergeController:
        queue = queue or self.queue
        return MergeController(
            self.sessions,
            self.videos,
            self.world.uploads,
            queue,
            self.progress,
            ProgressBoard(),
            self.cleaner(queue),
            clock=utc_now,
            encode=wiring.JOBS.encode,
        )

    def cleaner(self, queue: JetStreamJobQueue) -> SessionCleaner:
        return SessionCleaner(
            self.sessions,
            self.videos,
            self.world.uploads,
            queue,
            self.world.objects,
            clock=utc_now,
            encode=wiring.JOBS.encode,
        )

    def worker(self, media: SteeredMedia, name: str, cls: type[MergeWorker] = MergeWorker) -> MergeWorker:
        work = MergeWork(self.world.objects, media, Scratch(self.folder / name))
        return cls(self.sessions, self.queue, self.progress, work, clock=utc_now, decode=wiring.JOBS.decode)

    async def session_with_one_clip(self) -> str:
        """A session whose first clip is uploaded; answers its key."""
        merges = MergeSessions(
            self.sessions, self.world.uploads, self.progress, ProgressBoard(), clock=utc_now, max_clip_seconds=60
        )
        clips = [NewClip(f"{n}.mp4", 100, 3.0, "video/mp4") for n in range(3)]
        session, _ = await merges.initiate("alice", NewSession(clips, quality=Quality.LOW))
        await self.world.uploads.complete(session.clips[0].upload_id)
        return owned_key("alice", session.id)

    async def unit(self, key: str, kind: JobKind) -> tuple[UnitState, int]:
        """State and attempt of the first clip's unit."""
        entry = await self.sessions.get(key)
        assert entry is not None
        unit = entry.value.unit(kind, 0)
        assert unit is not None
        return unit.state, unit.attempt


@pytest.fixture
async def parts(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> Parts:
    parts = Parts(nats_client, World(nats_url, keys, tmp_path), tmp_path / "scratch")
    await parts.sessions.ensure()
    await parts.videos.ensure()
    await parts.queue.ensure(KINDS)
    return parts


async def until_idle(worker: MergeWorker, parts: Parts) -> None:
    """Lets a worker do all jobs that there are."""
    running = asyncio.create_task(worker.run())
    js = parts.sessions._js  # the broker knows when nothing is left
    async with asyncio.timeout(20):
        while (await js.stream_info("JOBS")).state.messages:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_controller_killed_between_record_and_publish_leaves_nothing_stuck(parts: Parts) -> None:
    class KilledBeforePublish(JetStreamJobQueue):
        async def publish(self, job: Job) -> bool:
            raise Killed

    key = await parts.session_with_one_clip()
    dying = KilledBeforePublish(parts.queue._nc, ack_wait=1)
    with pytest.raises(Killed):
        await parts.controller(dying).reconcile(key)
    assert await parts.unit(key, JobKind.PROBE) == (UnitState.QUEUED, 1), "the record was written"
    assert await parts.queue.fetch(KINDS, 0.1) is None, "the job was not"
    await parts.controller().reconcile(key)
    await until_idle(parts.worker(media := SteeredMedia(), "w"), parts)
    assert await parts.unit(key, JobKind.PROBE) == (UnitState.DONE, 1)
    assert media.done == ["probe"]


async def test_reconciling_many_times_at_once_queues_each_job_once(parts: Parts) -> None:
    key = await parts.session_with_one_clip()
    await asyncio.gather(*(parts.controller().reconcile(key) for _ in range(5)))
    await until_idle(parts.worker(media := SteeredMedia(), "w"), parts)
    assert media.done == ["probe"]
    await parts.controller().reconcile(key)
    assert await parts.unit(key, JobKind.PROBE) == (UnitState.DONE, 1)


async def test_a_worker_killed_after_its_result_was_written_makes_no_second_one(parts: Parts) -> None:
    class KilledBeforeAck(MergeWorker):
        async def _handle(self, delivery: Delivery) -> None:
            async def die() -> None:
                raise Killed

            delivery.ack = die  # type: ignore[method-assign]  # the last step never happens
            await super()._handle(delivery)

    key = await parts.session_with_one_clip()
    await parts.controller().reconcile(key)
    first, second = SteeredMedia(), SteeredMedia()
    with pytest.raises(BaseExceptionGroup):
        await parts.worker(first, "killed", KilledBeforeAck).run()
    assert await parts.unit(key, JobKind.PROBE) == (UnitState.DONE, 1)
    await until_idle(parts.worker(second, "other"), parts)
    assert (first.done, second.done) == (["probe"], []), "the redelivered job is acknowledged without work"


async def test_a_result_whose_answer_was_lost_keeps_its_file_though_others_wrote_since(parts: Parts) -> None:
    class AnswerLost(JetStreamStateStore[Session]):
        lost = False

        async def update(
            self, key: str, value: Session, revision: int, *, ttl: float | None = None
        ) -> Entry[Session]:
            entry = await super().update(key, value, revision, ttl=ttl)
            if not self.lost and value.done(JobKind.NORMALISE, 0) is not None:
                self.lost = True  # the write is there, its answer is not, and the next writer was quick
                await super().update(key, replace(value, title="changed"), entry.revision)
                raise RevisionConflict(key)
            return entry

    key = await parts.session_with_one_clip()
    await parts.controller().reconcile(key)
    await until_idle(parts.worker(SteeredMedia(), "prober"), parts)
    await parts.controller().reconcile(key)
    parts.sessions = AnswerLost(parts.queue._nc, "merges", wiring.SESSIONS)
    await until_idle(parts.worker(SteeredMedia(), "w"), parts)
    entry = await parts.sessions.get(key)
    assert entry is not None
    assert entry.value.title == "changed"
    outcome = entry.value.done(JobKind.NORMALISE, 0)
    assert outcome is not None
    assert (await parts.world.objects.stat(outcome.object_key)).size == outcome.size


async def test_a_zombies_result_does_not_count_and_its_file_is_deleted(parts: Parts) -> None:
    class Zombie(MergeWorker):
        async def _until_claim_is_lost(self, *_: object) -> None:
            await asyncio.Event().wait()  # it neither keeps its job nor notices that another took it

    thawed = asyncio.Event()

    async def freeze(kind: str) -> None:
        if kind == "normalise":
            await thawed.wait()

    key = await parts.session_with_one_clip()
    await parts.controller().reconcile(key)
    await until_idle(parts.worker(SteeredMedia(), "prober"), parts)
    await parts.controller().reconcile(key)
    zombie, media, other = SteeredMedia(freeze), SteeredMedia(), None
    frozen = asyncio.create_task(parts.worker(zombie, "zombie", Zombie).run())
    await zombie.until(lambda: zombie.running == ["normalise"])
    other = asyncio.create_task(parts.worker(media, "other").run())  # gets the job after ack_wait
    await media.until(lambda: media.done == ["normalise"])
    async with asyncio.timeout(10):
        while await parts.unit(key, JobKind.NORMALISE) != (UnitState.DONE, 1):
            await asyncio.sleep(0.02)
    thawed.set()
    await zombie.until(lambda: zombie.done == ["normalise"])
    entry = await parts.sessions.get(key)
    assert entry is not None
    outcome = entry.value.done(JobKind.NORMALISE, 0)
    assert outcome is not None
    async with asyncio.timeout(10):
        while True:
            kept = [info.key async for info in parts.world.objects.list(f"merges/{entry.value.id}/")]
            if kept == [outcome.object_key]:
                break
            await asyncio.sleep(0.02)
    for task in (frozen, other):
        task.cancel()
    await asyncio.gather(frozen, other, return_exceptions=True)


async def test_a_job_that_kills_every_worker_is_given_up(parts: Parts) -> None:
    key = await parts.session_with_one_clip()
    await parts.controller().reconcile(key)
    for n in range(MAX_CLAIMS):
        await mutate(parts.sessions, key, lambda s: claim(s, s.units[0].ref, f"died{n}", utc_now()))  # noqa: B023
    await until_idle(parts.worker(media := SteeredMedia(), "w"), parts)
    assert media.done == []
    entry = await parts.sessions.get(key)
    assert entry is not None
    unit = entry.value.unit(JobKind.PROBE, 0)
    assert unit is not None
    assert (unit.state, unit.error_type, unit.retryable) == (UnitState.FAILED, "worker_lost", True)


async def test_a_worker_that_is_told_to_stop_gives_its_job_back_at_once(parts: Parts) -> None:
    async def hang(kind: str) -> None:
        await asyncio.Event().wait()

    key = await parts.session_with_one_clip()
    await parts.controller().reconcile(key)
    hanging, quick = SteeredMedia(hang), SteeredMedia()
    stopping = asyncio.create_task(parts.worker(hanging, "stopping").run())
    await hanging.until(lambda: hanging.running == ["probe"])
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    assert hanging.cancelled == ["probe"]
    async with asyncio.timeout(0.9):
        await until_idle(parts.worker(quick, "quick"), parts)
    assert quick.done == ["probe"]
