"""What a store takes is counted as its own time, whatever its caller does meanwhile, and how it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.common import metering
from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryStateStore
from services.common.errors import NotFound
from services.common.metering import KvMetrics, MeteredObjects, StoreMetrics
from services.common.state import RevisionConflict
from services.common.wire import Buffer
from services.upload.adapters.memory_parts import MemoryPartStore
from services.upload.grid import Grid, Part
from services.upload.timing import TimedParts


class Time:
    """Stands still but for what a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    still = Time()
    monkeypatch.setattr(metering, "time", still)
    return still


def told(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"twotruths_{name}", labels)


async def test_a_reader_that_takes_its_time_does_not_make_the_store_slow(tmp_path: Path, time: Time) -> None:
    registry = CollectorRegistry()
    inner = DirectoryObjectStore(tmp_path / "data")
    store = MeteredObjects(inner, StoreMetrics(registry))
    source = tmp_path / "source"
    source.write_bytes(bytes(3 << 20))
    await store.put_file("a/b", source)
    async with aclosing(store.read("a/b")) as pieces:
        async for _ in pieces:
            time.now += 100
    async with aclosing(store.read("a/b")) as pieces:
        await anext(pieces)
        time.now += 100
    assert [info.key async for info in store.list("a/")] == ["a/b"]
    with pytest.raises(NotFound):
        await store.stat("a/c")
    assert store.local_path("a/b") == inner.local_path("a/b")
    for operation, count in (("put_file", 1), ("read", 2), ("list", 1), ("stat", 1)):
        assert told(registry, "store_operation_duration_seconds_count", operation=operation) == count
        assert told(registry, "store_operation_duration_seconds_sum", operation=operation) == 0
    assert told(registry, "store_operation_errors_total", operation="stat", code="NOT_FOUND") == 1


async def test_a_client_that_sends_slowly_does_not_make_the_store_slow(tmp_path: Path, time: Time) -> None:
    registry, grid = CollectorRegistry(), Grid(size=8, chunk_size=8)
    parts = TimedParts(MemoryPartStore(DirectoryObjectStore(tmp_path)), StoreMetrics(registry))

    async def drip() -> AsyncIterator[Buffer]:
        for _ in range(2):
            time.now += 50
            yield b"1234"

    async def confirm(_: Part) -> None:
        time.now += 50

    stored = await parts.put_part("a.b", grid, 0, drip(), confirm)
    assert not stored.existed
    assert time.now == 150
    assert told(registry, "store_operation_duration_seconds_sum", operation="put_part") == 0
    assert told(registry, "store_operation_duration_seconds_count", operation="put_part") == 1


async def test_lost_races_are_told_apart_from_failures_by_bucket(time: Time) -> None:
    registry = CollectorRegistry()
    store = KvMetrics(registry).around("things", MemoryStateStore[str]())
    entry = await store.create("a.b", "one")
    await store.update("a.b", "two", entry.revision)
    with pytest.raises(RevisionConflict):
        await store.update("a.b", "three", entry.revision)
    assert [each.value async for each in store.list()] == ["two"]
    found = await store.get("a.b")
    assert found is not None
    await store.delete("a.b", found.revision)
    counts = {"create": 1, "update": 2, "get": 1, "list": 1, "delete": 1}
    for operation, count in counts.items():
        labels = {"bucket": "things", "operation": operation}
        assert told(registry, "kv_operation_duration_seconds_count", **labels) == count
    assert told(registry, "kv_operation_errors_total", bucket="things", operation="update", code="CONFLICT") == 1
