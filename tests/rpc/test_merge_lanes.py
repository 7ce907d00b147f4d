"""Who waits behind what at a worker: no probe behind an encode, nothing urgent behind what is done ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh.clips import RED, make_clip
from services.common.adapters.memory import MemoryJobQueue
from services.common.jobs import Delivery, Job, JobPriority
from services.common.keys import KeyRing
from services.merge.lanes import Lanes
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.runner import MediaRunner
from services.merge.timeline import Canvas, ClipInfo, Quality
from tests.rpc.merge_world import DELIVERABLE, PROBED, SteeredMedia, running


async def hang(kind: str) -> None:
    if kind == "normalise":
        await asyncio.Event().wait()


async def test_a_clip_is_probed_while_another_is_encoded(
    nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path
) -> None:
    async with running(nats_url, keys, tmp_path) as world:
        await world.worker(media := SteeredMedia(hang))
        initiated = await world.initiate()
        await world.uploads.complete(initiated.upload_sessions[0].session_id)
        await media.until(lambda: media.running == ["normalise"])
        await world.uploads.complete(initiated.upload_sessions[1].session_id)
        await media.until(lambda: media.done == ["probe", "probe"])
        assert media.running == ["normalise"]


async def test_an_encode_that_is_waited_for_does_not_wait_behind_one_that_is_not(
    nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path
) -> None:
    class Media(SteeredMedia):
        ahead = ""

        async def probe(self, source: Path) -> ClipInfo:
            await super().probe(source)
            return DELIVERABLE if source.name == self.ahead else PROBED

    async def hang_once(kind: str) -> None:
        if kind == "normalise" and media.running.count("normalise") == len(media.pieces) == 1:
            await asyncio.Event().wait()

    media = Media(hang_once)
    async with running(nats_url, keys, tmp_path) as world:
        await world.worker(media)
        alices, bobs = await world.initiate("alice"), await world.initiate("bob")
        media.ahead = alices.upload_sessions[0].session_id
        await world.uploads.complete(media.ahead)
        await media.until(lambda: media.running == ["normalise"])
        await world.upload_all(bobs)
        await media.until(lambda: media.done.count("normalise") == 3)
        await media.until(lambda: "merge" in media.done)
        assert media.running == ["normalise"], "hers is not stopped for it"


class Handler:
    """Holds each job until it is let go."""

    def __init__(self) -> None:
        self.held: dict[str, asyncio.Event] = {}
        self.changed = asyncio.Condition()

    async def __call__(self, delivery: Delivery) -> None:
        self.held[delivery.job.id] = asyncio.Event()
        async with self.changed:
            self.changed.notify_all()
        await self.held[delivery.job.id].wait()
        await delivery.ack()
        del self.held[delivery.job.id]
        async with self.changed:
            self.changed.notify_all()

    async def until(self, *held: str) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: set(self.held) == set(held))


@asynccontextmanager
async def lanes(queue: MemoryJobQueue, handler: Handler, **slots: int) -> AsyncIterator[None]:
    running = asyncio.create_task(Lanes(queue, handler, **slots).run())
    try:
        yield
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def put(queue: MemoryJobQueue, id_: str, priority: JobPriority, kind: str = "normalise") -> None:
    await queue.publish(Job(kind, id_, b"", priority))


async def test_one_job_more_is_taken_while_all_slots_hold_what_nobody_waits_for() -> None:
    queue, handler = MemoryJobQueue(), Handler()
    async with lanes(queue, handler, jobs_at_once=2, probes_at_once=1):
        for n in range(3):
            await put(queue, f"low{n}", JobPriority.LOW)
        await handler.until("low0", "low1")
        for n in range(4):
            await put(queue, f"normal{n}", JobPriority.NORMAL)
        await handler.until("low0", "low1", "normal0")
        await put(queue, "probe", JobPriority.LOW, "probe")
        await handler.until("low0", "low1", "normal0", "probe")
        handler.held["low0"].set()
        await handler.until("low1", "normal0", "normal1", "probe")
        handler.held["normal0"].set()
        handler.held["probe"].set()
        await handler.until("low1", "normal1")
        handler.held["low1"].set()
        await handler.until("normal1", "normal2")
        assert await queue.fetch(("normalise",), 0, least=JobPriority.NORMAL) is not None, "the last one waits"


@pytest.mark.parametrize("probes", [0, 1, 2])
async def test_with_no_slots_for_probes_the_others_take_them(probes: int) -> None:
    queue, handler = MemoryJobQueue(), Handler()
    await put(queue, "encode", JobPriority.HIGH)
    for n in range(3):
        await put(queue, f"probe{n}", JobPriority.NORMAL, "probe")
    async with lanes(queue, handler, jobs_at_once=1, probes_at_once=probes):
        await handler.until("encode", *(f"probe{n}" for n in range(probes)))
        handler.held["encode"].set()
        await handler.until(*(f"probe{n}" for n in range(max(1, probes))))


async def test_a_probe_has_a_time_limit_of_its_own(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", seconds=1.0, colour=RED, size=(320, 180))
    runner = MediaRunner(probe_seconds=0.001)
    with pytest.raises(MediaError) as caught:
        await runner.probe(tmp_path / "clip.mp4")
    assert caught.value.error_type == ErrorType.TIME_EXCEEDED
    clip, target = tmp_path / "clip.mp4", tmp_path / "normalised.mov"
    assert (await runner.normalise(clip, target, Canvas(320, 180), Quality.LOW, lambda *_: None)).frames == 30
