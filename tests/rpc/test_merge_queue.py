"""The queue of the merge service on a real broker: who may have what in it, and what nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
from tests.rpc.merge_world import SteeredMedia, World, running

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
    async with asyncio.timeout(20):
        while sum([bool(e.value.units) async for e in sessions.list(owner_prefix("alice"))]) < SESSIONS:
            await asyncio.sleep(0.05)
    queued = await jobs(nats_client, "alice")
    assert queued == {f"a{n:02}-probe{clip}-0-1" for n in (0, 1) for clip in (0, 1)}, "her oldest come first"

    await sessions.create(key := owned_key("bob", "b"), uploaded("bob", "b"))
    most = 0
    await world.worker(SteeredMedia())
    async with asyncio.timeout(20):
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
    async with asyncio.timeout(20):
        while [e.value.state async for e in sessions.list(owner_prefix("alice"))] != [SessionState.COMPLETED] * 6:
            await asyncio.sleep(0.05)
    assert asyncio.get_running_loop().time() - started < SWEEP_SECONDS, "no job waited for a sweep"
