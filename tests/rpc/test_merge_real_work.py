"""Real encodes by real workers that are cancelled, frozen and thawed: what is left of them, and how soon."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh.clips import RED, make_clip
from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.keys import KeyRing
from services.common.state import owned_key
from services.merge import wiring
from services.merge.domain import JobKind, Session, Unit, UnitState
from services.merge.planner import UploadStatus
from tests.rpc.merge_world import World, running
from twotruths.merge.v1 import merge_pb2, merge_service_pb2


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as world:
        yield world


@pytest.fixture
async def sessions(nats_client: Client, world: World) -> JetStreamStateStore[Session]:
    return JetStreamStateStore(nats_client, "merges", wiring.SESSIONS)


async def begin(world: World, folder: Path, canvas: tuple[int, int], quality: merge_pb2.Quality.ValueType) -> str:
    """A session whose first clip is uploaded and has a picture; its id."""
    make_clip(folder / "clip.mp4", seconds=2.0, colour=RED, size=(320, 180))
    width, height = canvas
    initiated = await world.initiate(canvas={"width": width, "height": height}, quality=quality)
    upload = initiated.upload_sessions[0].session_id
    await world.objects.put_file(f"uploads/{upload}", folder / "clip.mp4")
    world.uploads.known[upload] = replace(
        world.uploads.known[upload],
        status=UploadStatus.COMPLETED,
        progress=1.0,
        object_key=f"uploads/{upload}",
        completed_at=datetime.now(UTC),
    )
    return initiated.merge_session_id


async def unit_that(
    sessions: JetStreamStateStore[Session], session_id: str, condition: Callable[[Unit], bool]
) -> Unit:
    """Waits until the first clip's normalising is as wanted."""
    async with asyncio.timeout(30):
        while True:
            entry = await sessions.get(owned_key("alice", session_id))
            unit = entry.value.unit(JobKind.NORMALISE, 0) if entry is not None else None
            if unit is not None and condition(unit):
                return unit
            await asyncio.sleep(0.002)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def encoders(scratch: Path) -> set[int]:
    """The processes that have a file of a worker's scratch folder open."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if path.readlink().is_relative_to(scratch) and path.readlink().suffix:
                found.add(int(path.parts[2]))
        except OSError:
            continue  # it ended meanwhile
    return found


async def test_cancel_stops_a_running_encode_within_two_seconds_and_removes_its_files(
    world: World, sessions: JetStreamStateStore[Session], tmp_path: Path
) -> None:
    await world.worker(None)
    session_id = await begin(world, tmp_path, (1920, 1080), merge_pb2.QUALITY_HIGH)
    await unit_that(sessions, session_id, lambda unit: unit.state is UnitState.CLAIMED)
    scratch, objects = world.settings.scratch_dir, world.settings.data_dir / "objects" / "merges" / session_id
    await until(lambda: bool(encoders(scratch)))
    encoding = encoders(scratch)

    started = time.monotonic()
    request = merge_service_pb2.CancelMergeRequest(merge_session_id=session_id)
    await world.merges.CancelMerge(request, metadata=world.as_player("alice"))
    await until(
        lambda: (
            not any(Path(f"/proc/{pid}").exists() for pid in encoding)
            and not list(scratch.glob("*/*"))
            and not list(objects.glob("*"))
        )
    )
    assert time.monotonic() - started < 2.0


async def test_a_hostile_clip_is_named_leaves_nothing_and_harms_no_other_session(
    world: World, tmp_path: Path
) -> None:
    async def upload(upload_id: str, clip: Path) -> None:
        shutil.copy(clip, copy := tmp_path / upload_id)
        await world.objects.put_file(f"uploads/{upload_id}", copy)
        world.uploads.known[upload_id] = replace(
            world.uploads.known[upload_id],
            status=UploadStatus.COMPLETED,
            progress=1.0,
            object_key=f"uploads/{upload_id}",
            completed_at=datetime.now(UTC),
        )

    (secret := tmp_path / "secret").write_text("not for players")
    (hostile := tmp_path / "hostile.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    make_clip(good := tmp_path / "good.mp4", seconds=1.0, colour=RED, size=(320, 180))
    await world.worker(None)
    quick = {"canvas": {"width": 320, "height": 180}, "quality": merge_pb2.QUALITY_LOW}
    spoilt, sound = await world.initiate(**quick), await world.initiate(**quick)

    await upload(spoilt.upload_sessions[1].session_id, hostile)
    failed = await world.until(spoilt.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
    assert (failed.error_type, failed.retry_available) == ("not_a_video", False)
    assert failed.videos[1].status == merge_pb2.CLIP_STATUS_FAILED
    objects = world.settings.data_dir / "objects"
    assert not list(world.settings.scratch_dir.glob("*/*"))
    assert [path.name for path in objects.rglob("*") if path.is_file()] == [spoilt.upload_sessions[1].session_id]

    for one in sound.upload_sessions:
        await upload(one.session_id, good)
    done = await world.until(sound.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    assert [segment.frame_count for segment in done.merged_video.segments] == [30, 30, 30]


@asynccontextmanager
async def worker_process(world: World) -> AsyncIterator[Process]:
    """A worker as the process it is."""
    settings = {**world.keys.settings(), "nats_url": world.settings.nats_url, "data_dir": world.settings.data_dir}
    settings |= {"job_ack_wait_seconds": 1, "worker_listen": "127.0.0.1:0"}
    environment = os.environ | {f"TWOTRUTHS_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.merge", "worker"), env=environment, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def test_of_two_workers_on_one_job_one_outcome_counts_and_the_losers_file_goes(
    world: World, sessions: JetStreamStateStore[Session], nats_client: Client, tmp_path: Path
) -> None:
    async with worker_process(world) as zombie:
        session_id = await begin(world, tmp_path, (320, 180), merge_pb2.QUALITY_LOW)
        first = await unit_that(sessions, session_id, lambda unit: unit.state is UnitState.CLAIMED)
        zombie.send_signal(signal.SIGSTOP)  # its child goes on, and its job is no longer kept
        async with worker_process(world) as other:
            done = await unit_that(sessions, session_id, lambda unit: unit.state is UnitState.DONE)
            assert done.claim_token != first.claim_token
            assert done.deliveries > 1
            zombie.send_signal(signal.SIGCONT)
            assert done.outcome is not None
            kept = world.settings.data_dir / "objects" / done.outcome.object_key
            await until(lambda: not list(world.settings.scratch_dir.glob("*/*")))
            js = nats_client.jetstream()
            async with asyncio.timeout(30):
                while (await js.stream_info("JOBS")).state.messages:
                    await asyncio.sleep(0.02)
            await until(lambda: [p for p in kept.parent.rglob("*") if p.is_file()] == [kept])
            assert await unit_that(sessions, session_id, lambda unit: True) == done
            assert (zombie.returncode, other.returncode) == (None, None)
