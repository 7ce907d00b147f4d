"""The queue of the merge service on a real broker: who may have what in it, and what nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.clock import utc_now
from services.common.keys import KeyRing
from services.common.state import owned_key, owner_prefix
from services.merge import wiring
from services.merge.domain import Clip, Session, SessionState, UnitState
from services.merge.media.errors import ErrorType, MediaError
from services.merge.planner import ClipUpload, UploadStatus
from services.merge.status import view
from services.merge.timeline import Canvas, NormalisedClip, Piece, Quality
from tests.rpc.merge_world import SteeredMedia, World, running
from twotruths.merge.v1 import merge_pb2, merge_service_pb2

SHARE = 4
SWEEP_SECONDS = 15.0
SESSIONS = 100


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path, jobs_per_owner=SHARE, sweep_seconds=SWEEP_SECONDS) as world:
        yield world


@pytest.fixture
async def sessions(nats_client: Client, world: World) -> JetStreamStateStore[Session]:
    return JetStreamStateStore(nats_client, "merges", wiring.SESSIONS)


def uploaded(owner: str, name: str, now: datetime | None = None) -> Session:
    """A session whose two clips are in."""
    now = now or utc_now()
    clips = (Clip(i, f"{name}-{i}", f"{i}.mp4", 1, 1.0, "video/mp4", source_key="uploads/clip") for i in range(2))
    return Session(name, owner, "", "", tuple(clips), now, now, now + timedelta(hours=1), uploads_ready=True)


async def put_clip(world: World, folder: Path) -> None:
    (folder / "clip").write_bytes(b"clip")
    await world.objects.put_file("uploads/clip", folder / "clip")


async def jobs(client: Client, owner: str) -> set[str]:
    """The ids of the owner's jobs that are in the queue."""
    info = await client.jetstream().stream_info("JOBS", subjects_filter=f"jobs.*.*.{owner_prefix(owner)}.>")
    return {subject.rpartition(".")[2] for subject in info.state.subjects or {}}


async def test_one_users_hundred_sessions_do_not_delay_anothers_one(
    world: World, sessions: JetStreamStateStore[Session], nats_client: Client, tmp_path: Path
) -> None:
    await put_clip(world, tmp_path)
    for n in range(SESSIONS):
        await sessions.create(owned_key("alice", f"a{n:02}"), uploaded("alice", f"a{n:02}"))
    async with asyncio.timeout(60):
        while sum([bool(e.value.units) async for e in sessions.list(owner_prefix("alice"))]) < SESSIONS:
            await asyncio.sleep(0.05)
    queued = await jobs(nats_client, "alice")
    assert queued == {f"a{n:02}-probe{clip}-0-1" for n in (0, 1) for clip in (0, 1)}, "her oldest come first"

    await sessions.create(key := owned_key("bob", "b"), uploaded("bob", "b"))
    most = 0
    await world.worker(SteeredMedia())
    async with asyncio.timeout(60):
        while (entry := await sessions.get(key)) is not None and entry.value.state is SessionState.ACTIVE:
            most = max(most, len(await jobs(nats_client, "alice")))
    assert entry is not None
    assert entry.value.state is SessionState.COMPLETED
    done = [
        unit
        async for other in sessions.list(owner_prefix("alice"))
        for unit in other.value.units
        if unit.state is UnitState.DONE
    ]
    assert len(done) < 150, "he waited for his share's turns, not for her 200 first jobs, let alone all 500"
    assert most <= SHARE + 1, "one may be done and not acknowledged yet"


async def test_when_a_job_ends_the_owners_next_one_follows_at_once(
    world: World, sessions: JetStreamStateStore[Session], tmp_path: Path
) -> None:
    await put_clip(world, tmp_path)
    keys = [owned_key("alice", f"a{n}") for n in range(6)]
    for n, key in enumerate(keys):
        await sessions.create(key, uploaded("alice", f"a{n}", datetime(2026, 1, 1, n, tzinfo=UTC)))
    started = asyncio.get_running_loop().time()
    await world.worker(SteeredMedia())
    async with asyncio.timeout(60):
        while [e.value.state async for e in sessions.list(owner_prefix("alice"))] != [SessionState.COMPLETED] * 6:
            await asyncio.sleep(0.05)
    assert asyncio.get_running_loop().time() - started < SWEEP_SECONDS, "no job waited for a sweep"


async def test_while_the_upload_service_is_away_the_status_shows_what_is_known(
    world: World, nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path
) -> None:
    initiated = await world.initiate()
    uploads, session_id = initiated.upload_sessions, initiated.merge_session_id
    half = ClipUpload(uploads[0].session_id, UploadStatus.IN_PROGRESS, 0.5)
    world.uploads.known[half.id] = half
    before = await world.status(session_id)
    assert before.videos[0].status == merge_pb2.CLIP_STATUS_UPLOADING
    assert before.estimated_remaining_seconds > 0
    world.uploads.away = True
    for _ in range(2):
        assert await world.status(session_id) == before
    request = merge_service_pb2.WatchMergeRequest(merge_session_id=session_id)
    watch = world.merges.WatchMerge(request, metadata=world.as_player("alice"))
    async for response in watch:
        assert response.merge_session == before
        watch.cancel()
        break


async def test_a_session_that_failed_stays_where_it_was_though_all_hints_are_lost(
    world: World, sessions: JetStreamStateStore[Session]
) -> None:
    def refuse(kind: str) -> None:
        if kind == "normalise":
            raise MediaError(ErrorType.DECODE_FAILED, "it cannot be decoded")

    await world.worker(SteeredMedia(refuse))
    initiated = await world.initiate()
    session_id = initiated.merge_session_id
    half = ClipUpload(initiated.upload_sessions[1].session_id, UploadStatus.IN_PROGRESS, 0.5)
    world.uploads.known[half.id] = half
    assert (await world.status(session_id)).videos[1].progress_percent > 0
    await world.uploads.complete(initiated.upload_sessions[0].session_id)
    entry = await sessions.get(owned_key("alice", session_id))
    assert entry is not None
    await sessions.update(entry.key, replace(entry.value, title="look"), entry.revision)  # wakes the controller
    failed = await world.until(session_id, merge_pb2.MERGE_STATUS_FAILED)
    assert [clip.status for clip in failed.videos] == [
        merge_pb2.CLIP_STATUS_FAILED,
        merge_pb2.CLIP_STATUS_UPLOADING,
        merge_pb2.CLIP_STATUS_PENDING,
    ]
    entry = await sessions.get(owned_key("alice", session_id))
    assert entry is not None
    afterwards = view(entry.value, {}, lambda *_: 0.0)  # as another replica sees it, with the upload service away
    assert afterwards.overall_percent == failed.overall_progress_percent > 0
    assert [clip.percent for clip in afterwards.clips] == [clip.progress_percent for clip in failed.videos]
    assert not failed.HasField("estimated_remaining_seconds")


class StepByStep(SteeredMedia):
    """Normalises in six steps and fails once in the middle of one clip."""

    failures = 1

    async def normalise(
        self,
        source: Path,
        target: Path,
        canvas: Canvas,
        quality: Quality,
        on_progress: Callable[[int, int], None],
        piece: Piece | None = None,
    ) -> NormalisedClip:
        for step in range(6):
            on_progress(15 * step, 90)
            await asyncio.sleep(0.2)
            if step == 4 and self.failures:
                self.failures -= 1
                raise MediaError(ErrorType.WORKER_FAILED, "killed")
        return await super().normalise(source, target, canvas, quality, lambda *_: None)


async def test_progress_never_falls_whoever_looks_and_whatever_is_tried_again(
    nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path
) -> None:
    async with running(nats_url, keys, tmp_path, worker_jobs=3) as world:
        await world.worker(StepByStep())
        initiated = await world.initiate()
        await world.upload_all(initiated)
        request = merge_service_pb2.WatchMergeRequest(merge_session_id=initiated.merge_session_id)
        seen: list[merge_pb2.MergeSession] = []
        async with asyncio.timeout(30):
            async for response in world.merges.WatchMerge(request, metadata=world.as_player("alice")):
                seen += [response.merge_session, await world.status(initiated.merge_session_id)]
    assert seen[-1].overall_status == merge_pb2.MERGE_STATUS_COMPLETED
    assert_never_falls(rows := figures(seen))
    between = {clip for row in rows for clip in row[2:] if 50 < clip < 100}
    assert len(between) >= 3, "frames are told as they are done, not only the end"
    assert all(s.estimated_remaining_seconds > 0 for s in seen[:-2] if s.HasField("estimated_remaining_seconds"))


def figures(seen: list[merge_pb2.MergeSession]) -> list[tuple[float, ...]]:
    return [
        (s.overall_progress_percent, s.merge_progress_percent, *(clip.progress_percent for clip in s.videos))
        for s in seen
    ]


def assert_never_falls(rows: list[tuple[float, ...]]) -> None:
    for column in zip(*rows, strict=True):
        assert list(column) == sorted(column)
        assert column[-1] == 100


async def test_progress_does_not_fall_with_a_controller_that_has_heard_nothing(
    nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path
) -> None:
    class Halfway(SteeredMedia):
        """Stays where it is at six tenths of each clip, until it may go on."""

        go_on = asyncio.Event()

        async def normalise(
            self,
            source: Path,
            target: Path,
            canvas: Canvas,
            quality: Quality,
            on_progress: Callable[[int, int], None],
            piece: Piece | None = None,
        ) -> NormalisedClip:
            on_progress(54, 90)
            await self.go_on.wait()
            return await super().normalise(source, target, canvas, quality, lambda *_: None)

    async with running(nats_url, keys, tmp_path, worker_jobs=3) as world:
        await world.worker(media := Halfway())
        initiated = await world.initiate()
        await world.upload_all(initiated)
        seen = [await world.status(initiated.merge_session_id)]
        async with asyncio.timeout(20):
            while [clip.progress_percent for clip in seen[-1].videos] != [80.0] * 3:
                seen.append(await world.status(initiated.merge_session_id))
        for _ in range(2):
            await world.restart()
            seen.append(await world.status(initiated.merge_session_id))
            assert [clip.progress_percent for clip in seen[-1].videos] == [80.0] * 3, "at once"
        media.go_on.set()
        request = merge_service_pb2.WatchMergeRequest(merge_session_id=initiated.merge_session_id)
        async with asyncio.timeout(20):
            async for response in world.merges.WatchMerge(request, metadata=world.as_player("alice")):
                seen.append(response.merge_session)
    assert_never_falls(figures(seen))
