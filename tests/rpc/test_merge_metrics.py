"""What the controller and its workers count is what happened: sessions, jobs, retries, the queue."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from services.common.keys import KeyRing
from services.merge.media.errors import ErrorType, MediaError
from tests.rpc.merge_world import DELIVERABLE, SteeredMedia, World, running
from twotruths.merge.v1 import merge_pb2 as pb
from twotruths.merge.v1 import merge_service_pb2 as rpc

COMPLETED, FAILED = pb.MERGE_STATUS_COMPLETED, pb.MERGE_STATUS_FAILED


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as opened:
        yield opened


async def counted(registry: CollectorRegistry) -> dict[str, float]:
    """``name{label}`` → value of the counters and gauges of merging that are not 0, and how often the histograms
    were told something. In a thread, as it is scraped: the queue's state is asked of the event loop."""
    families = await asyncio.to_thread(lambda: list(registry.collect()))
    return {
        sample.name.removeprefix("twotruths_merge")
        + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("twotruths_merge")
        and not sample.name.endswith(("_created", "_bucket", "_seconds_sum", "_sweeps_total"))
        and sample.value
    }


async def settled(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """What is counted once this is no longer: acknowledgements come after the last word to the player."""
    async with asyncio.timeout(20):
        while name in (told := await counted(registry)):
            await asyncio.sleep(0.05)
    return told


async def test_what_waits_is_shown_by_kind_and_priority_with_its_age(world: World) -> None:
    begun = await world.initiate()
    first, second, _ = begun.upload_sessions
    for upload in (first, second):
        await world.uploads.complete(upload.session_id)
    async with asyncio.timeout(20):
        # A job that is in the queue counts as published once the broker's answer is here.
        while (told := await counted(world.app.metrics)).get("_jobs_published_total{probe}{normal}") != 2:
            await asyncio.sleep(0.05)
    assert 0 < told["_queue_oldest_age_seconds{probe}{normal}"] < 20
    assert told["_queue_depth{probe}{normal}"] == 2
    assert told["s_started_total"] == 1
    shown = await asyncio.to_thread(world.app.metrics.get_sample_value, "twotruths_merge_queue_depth", LANE)
    assert shown == 0, "what is empty is shown, too"
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        entered.set()
        await leave.wait()

    await world.worker(SteeredMedia(before=lambda _: hold()))
    async with asyncio.timeout(20):
        await entered.wait()
        while "_queue_running{probe}{normal}" not in (told := await counted(world.app.metrics)):
            await asyncio.sleep(0.05)
    assert told["_queue_running{probe}{normal}"] + told.get("_queue_depth{probe}{normal}", 0) == 2
    assert 0 < told["_queue_unfinished_age_seconds{probe}{normal}"] < 60, "what was taken ages, too"
    leave.set()
    told = await settled(world.app.metrics, "_queue_running{probe}{normal}")
    assert "_queue_unfinished_age_seconds{probe}{normal}" not in told
    assert "_queue_oldest_age_seconds{probe}{normal}" not in told


LANE = {"kind": "merge", "priority": "low"}


async def test_sessions_jobs_and_stages_are_counted_by_plan(world: World) -> None:
    worker = await world.worker(SteeredMedia())
    transcoded = await world.initiate()
    await world.upload_all(transcoded)
    await world.until(transcoded.merge_session_id, COMPLETED)
    told = await counted(worker.metrics)
    assert told == {
        "_jobs_delivered_total{probe}{normal}": 3,
        "_jobs_delivered_total{normalise}{normal}": 3,
        "_jobs_delivered_total{merge}{normal}": 1,
        "_job_duration_seconds_count{probe}{none}": 3,
        "_job_duration_seconds_count{normalise}{transcode}": 3,
        "_job_duration_seconds_count{merge}{transcode}": 1,
        "_job_attempts_total{probe}{done}": 3,
        "_job_attempts_total{normalise}{done}": 3,
        "_job_attempts_total{merge}{done}": 1,
    }
    given_up = await world.initiate(request_id="other")
    request = rpc.CancelMergeRequest(merge_session_id=given_up.merge_session_id)
    for _ in range(2):
        await world.merges.CancelMerge(request, metadata=world.as_player("alice"))
    assert await settled(world.app.metrics, "_queue_running{merge}{normal}") == {
        "s_started_total": 2,
        "s_completed_total{transcode}": 1,
        "s_cancelled_total": 1,
        "_wait_seconds_count{transcode}": 1,
        "_jobs_published_total{probe}{normal}": 3,
        "_jobs_published_total{normalise}{normal}": 3,
        "_jobs_published_total{merge}{normal}": 1,
    }


async def test_a_copy_is_counted_as_one(world: World) -> None:
    worker = await world.worker(SteeredMedia(info=DELIVERABLE))
    begun = await world.initiate()
    await world.upload_all(begun)
    await world.until(begun.merge_session_id, COMPLETED)
    assert (await counted(worker.metrics))["_job_duration_seconds_count{merge}{copy}"] == 1
    assert (await counted(world.app.metrics))["s_completed_total{copy}"] == 1


async def test_failures_retries_and_what_the_sandbox_stopped_are_counted(world: World) -> None:
    faults: list[Exception | None] = [
        MediaError(ErrorType.WORKER_FAILED, "killed", signal=signal.SIGKILL),
        MediaError(ErrorType.WORKER_FAILED, "killed", signal=signal.SIGSYS),
        MediaError(ErrorType.MEMORY_EXCEEDED, "too much"),
    ]

    def fail(kind: str) -> None:
        if kind == "merge" and faults and (fault := faults.pop(0)):
            raise fault

    worker = await world.worker(SteeredMedia(before=fail))
    begun = await world.initiate()
    await world.upload_all(begun)
    await world.until(begun.merge_session_id, FAILED)
    async with asyncio.timeout(20):
        while "_dead_jobs" not in (told := await counted(world.app.metrics)):
            await asyncio.sleep(0.05)
    assert told["s_failed_total{memory_exceeded}"] == 1
    assert told["_job_retries_total{merge}{worker_failed}"] == 2
    assert told["_dead_jobs"] == 1
    told = await counted(worker.metrics)
    kills: dict[str, Any] = {name: value for name, value in told.items() if "_sandbox_kills" in name}
    assert kills == {
        "_sandbox_kills_total{signal}": 1,
        "_sandbox_kills_total{syscall}": 1,
        "_sandbox_kills_total{memory}": 1,
    }
    assert told["_job_attempts_total{merge}{worker_failed}"] == 2
    assert told["_job_attempts_total{merge}{memory_exceeded}"] == 1


async def test_sweeps_are_counted(world: World) -> None:
    async with asyncio.timeout(20):
        while (world.app.metrics.get_sample_value("twotruths_merge_sweeps_total") or 0) < 2:
            await asyncio.sleep(0.01)
