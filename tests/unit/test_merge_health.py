"""How the processing is doing: told whatever is away, within a bounded time, and once for all who ask at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryStateStore
from services.common.errors import Unavailable
from services.common.objects import ObjectInfo
from services.common.state import Entry
from services.merge.health import Library, ProcessingHealth, QueueLoad, WorkerReport
from services.merge.heartbeat import Heartbeat
from services.merge.messages_health import health_message

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ABLE = WorkerReport("w1", NOW, "8.1", ("h264", "hevc"), ("aac", "libx264"), (), 50.0, 100, 7)


class Gauge:
    def __init__(self) -> None:
        self.load: QueueLoad | None = QueueLoad({"high": 1, "low": 2}, 3, 4)
        self.asked = 0

    async def read(self) -> QueueLoad:
        self.asked += 1
        if self.load is None:
            raise Unavailable("away")
        return self.load


class Hanging(MemoryStateStore[WorkerReport]):
    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[WorkerReport], None]:
        await asyncio.Event().wait()
        yield  # type: ignore[misc]  # never comes to it


class Away(DirectoryObjectStore):
    async def stat(self, key: str) -> ObjectInfo:
        raise Unavailable("away")


def free() -> Mapping[str, int]:
    return {"data": 9}


def house(folder: Path, gauge: Gauge, reports: MemoryStateStore[WorkerReport]) -> ProcessingHealth:
    return ProcessingHealth(gauge, reports, DirectoryObjectStore(folder), free, clock=lambda: NOW)


async def test_a_healthy_house_tells_its_numbers_by_the_names_of_the_contract(tmp_path: Path) -> None:
    reports: MemoryStateStore[WorkerReport] = MemoryStateStore()
    for report in (ABLE, replace(ABLE, id="w2", decoders=("h264",), scratch_free_bytes=5)):
        await reports.create(report.id, report)
    gauge = Gauge()
    health = house(tmp_path, gauge, reports)
    one, other = await asyncio.gather(health.check(), health.check())
    assert one is other
    assert gauge.asked == 1, "whoever asks at once shares the answer"
    told = health_message(one, store="directory")
    queue, library, storage = told.processing_queue, told.ffmpeg_service, told.storage
    assert (queue.depth, queue.active_jobs, queue.failed_jobs_last_hour) == (3, 3, 4)
    assert dict(queue.depth_by_priority) == {"high": 1, "low": 2}
    assert (library.available, library.version, library.sandboxed) == (True, "8.1", True)
    assert dict(library.resource_usage) == {"workers": 2, "cpu_percent": 100, "rss_bytes": 200}
    assert (list(library.decoders), list(library.encoders)) == (["h264"], ["aac", "libx264"])
    assert (storage.s3_accessible, storage.cdn_accessible, storage.kind) == (True, False, "directory")
    assert dict(storage.disk_space) == {"data": 9, "scratch": 5}
    assert (told.status, list(told.problems)) == ("healthy", [])
    assert [worker.worker_id for worker in told.workers] == ["w1", "w2"]


async def test_each_part_that_is_away_is_named_and_the_rest_is_told_in_time(tmp_path: Path) -> None:
    def no_disk() -> Mapping[str, int]:
        raise OSError("gone")

    gauge = Gauge()
    gauge.load = None
    health = ProcessingHealth(gauge, Hanging(), Away(tmp_path), no_disk, clock=lambda: NOW, part_seconds=0.05)
    async with asyncio.timeout(2):
        told = health_message(await health.check(), store="s3")
    assert list(told.problems) == [f"{part}: does not answer" for part in ("disk", "queue", "store", "workers")]
    assert (told.status, told.storage.s3_accessible, told.ffmpeg_service.available) == ("degraded", False, False)


async def test_workers_that_are_missing_or_lack_something_are_a_problem(tmp_path: Path) -> None:
    reports: MemoryStateStore[WorkerReport] = MemoryStateStore()
    none = await house(tmp_path, Gauge(), reports).check()
    assert none.problems == ("workers: none is running",)
    await reports.create("w1", replace(ABLE, encoders=("aac",), sandbox_lacks=("landlock",)))
    health = await house(tmp_path, Gauge(), reports).check()
    assert health.problems == (
        "ffmpeg: no worker can decode and encode",
        "sandbox: media jobs run without landlock",
    )
    assert not health_message(health, store="s3").ffmpeg_service.sandboxed


async def test_a_worker_reports_itself_goes_on_when_its_report_is_gone_and_takes_it_back(tmp_path: Path) -> None:
    class Told(MemoryStateStore[WorkerReport]):
        def __init__(self) -> None:
            super().__init__(lambda: seconds)
            self.written = asyncio.Event()
            self.broken = True

        async def create(self, key: str, value: WorkerReport, *, ttl: float | None = None) -> Entry[WorkerReport]:
            if self.broken:
                self.broken = False
                raise RuntimeError("not foreseen")
            entry = await super().create(key, value, ttl=ttl)
            self.written.set()
            return entry

    async def describe() -> Library:
        return Library("8.1", ("h264",), ("libx264",))

    seconds = 0.0
    reports = Told()
    nowhere = tmp_path / "gone"  # the worker works on, and its jobs say what is wrong
    beat = Heartbeat(
        reports, describe, scratch=nowhere, sandbox_lacks=("seccomp",), clock=lambda: NOW, every_seconds=0.01
    )
    running = asyncio.create_task(beat.run())
    async with asyncio.timeout(30):
        await reports.written.wait()
        (entry,) = [entry async for entry in reports.list()]
        assert (entry.value.ffmpeg_version, entry.value.sandbox_lacks) == ("8.1", ("seccomp",))
        assert entry.value.rss_bytes > 1_000_000
        assert entry.value.scratch_free_bytes == 0
        reports.written.clear()
        seconds = 60.0  # the broker was away for longer than a report lasts
        await reports.written.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [entry async for entry in reports.list()] == []


_BUSY = """
import subprocess, sys, time
from services.merge.heartbeat import cpu_seconds, rss_bytes

alone, begun = rss_bytes(), time.monotonic()
child = subprocess.Popen([sys.executable, "-c", "print(flush=True)\\nwhile True: pass"], stdout=subprocess.PIPE)
child.stdout.readline()
print("memory" if rss_bytes() > alone else "")
while cpu_seconds() - time.process_time() < 0.05 and time.monotonic() - begun < 60:
    time.sleep(0.01)
child.kill()
print("processor" if time.monotonic() - begun < 60 else "")
"""


def test_what_a_job_uses_counts_while_it_runs() -> None:
    # In a process of its own, which has no other children.
    measured = subprocess.run(
        [sys.executable, "-c", _BUSY], capture_output=True, text=True, timeout=90, check=True
    )
    assert measured.stdout.split() == ["memory", "processor"]
