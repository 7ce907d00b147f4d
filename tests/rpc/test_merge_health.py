"""GetProcessingHealth over gRPC, with a real broker and a real worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.keys import KeyRing
from services.merge import wiring
from services.merge.media.errors import ErrorType, MediaError
from tests.rpc.merge_world import SteeredMedia, World, running
from twotruths.merge.v1 import merge_pb2, merge_service_pb2


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as world:
        yield world


async def health(world: World) -> merge_service_pb2.GetProcessingHealthResponse:
    request = merge_service_pb2.GetProcessingHealthRequest()
    return await world.merges.GetProcessingHealth(request, metadata=world.as_player("alice"))


async def test_jobs_that_wait_run_and_failed_are_counted_and_workers_come_and_go(world: World) -> None:
    waiting = await world.initiate()
    await world.upload_all(waiting)
    async with asyncio.timeout(30):
        while (told := await health(world)).processing_queue.depth != 3:
            await asyncio.sleep(0.1)  # the controller publishes on its own; an answer is remembered for a second
    assert dict(told.processing_queue.depth_by_priority)["normal"] == 3
    assert (told.processing_queue.active_jobs, told.ffmpeg_service.available) == (0, False)
    assert "workers: none is running" in told.problems
    assert told.storage.s3_accessible
    assert told.storage.disk_space["data"] > 0

    may_fail = asyncio.Event()

    async def fail(kind: str) -> None:
        await may_fail.wait()
        raise MediaError(ErrorType.NO_VIDEO_STREAM, "there is no picture in it")

    await world.worker(SteeredMedia(fail))
    async with asyncio.timeout(30):
        while (told := await health(world)).processing_queue.active_jobs != 1:
            await asyncio.sleep(0.1)
    may_fail.set()
    await world.until(waiting.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
    async with asyncio.timeout(30):
        while (told := await health(world)).processing_queue.failed_jobs_last_hour == 0:
            await asyncio.sleep(0.1)
    assert len(told.workers) == 1


async def test_a_real_worker_tells_what_it_can_do_until_it_ends(world: World) -> None:
    async with wiring.build_worker(world.settings) as app:
        loops = [asyncio.create_task(loop()) for loop in app.background]
        async with asyncio.timeout(30):
            while not (told := await health(world)).workers:
                await asyncio.sleep(0.1)
        library = told.ffmpeg_service
        assert library.available
        assert library.version.partition(".")[0].isdigit()
        assert {"h264", "hevc", "vp9"} <= set(library.decoders)
        assert {"libx264", "aac"} <= set(library.encoders)
        assert library.resource_usage["rss_bytes"] > 0
        assert library.sandboxed == (not any("sandbox" in problem for problem in told.problems))
        assert told.workers[0].scratch_free_bytes > 0
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    async with asyncio.timeout(30):
        while (await health(world)).workers:
            await asyncio.sleep(0.1)
