"""Appends of one upload that reach several upload services at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryProgressBus, MemoryStateStore
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.context import CallContext, Principal, serving
from services.common.errors import Aborted, AlreadyExists
from services.common.state import owned_key
from services.upload.adapters.directory_parts import DirectoryPartStore
from services.upload.adapters.memory_parts import MemoryPartStore
from services.upload.adapters.s3_parts import S3PartStore
from services.upload.appends import Appends
from services.upload.domain import Upload
from services.upload.grid import Grid
from services.upload.index import Noted, UploadIndex
from services.upload.limits import Limits
from services.upload.ports import PartStore
from services.upload.quotas import Quotas, Usage
from services.upload.reasons import Reason
from services.upload.records import UploadRecords
from services.upload.requests import NewFile, new_upload
from services.upload.stream import AppendMessage, AppendStart, AppendStream
from tests.memory_bucket import MemoryBucket, writer

NOW = datetime(2026, 5, 1, tzinfo=UTC)
BODY = b"01234567"


@pytest.fixture
def as_alice() -> Iterator[None]:
    with serving(CallContext(Principal("alice"))):
        yield


@pytest.fixture(params=["memory", "directory", "s3"])
def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[PartStore, PartStore]]:
    """The part stores of two upload services, or the one that there can be."""
    with ExitStack() as stack:
        if request.param == "s3":
            bucket = MemoryBucket()
            objects = S3ObjectStore(bucket)
            first, second = (stack.enter_context(S3PartStore(bucket, objects)) for _ in range(2))
            yield first, second
        elif request.param == "directory":
            store = stack.enter_context(DirectoryPartStore(tmp_path, DirectoryObjectStore(tmp_path)))
            yield store, store
        else:
            memory = MemoryPartStore(DirectoryObjectStore(tmp_path))
            yield memory, memory


@pytest.mark.usefixtures("as_alice")
@pytest.mark.parametrize("late", [BODY[4:8], BODY[4:7]], ids=["a part", "a tail"])
async def test_whoever_appends_while_the_length_is_told_elsewhere_stores_nothing_of_another_length(
    replicas: tuple[PartStore, PartStore], late: bytes
) -> None:
    size = 6
    uploads = MemoryStateStore[Upload]()
    file = NewFile("a.mp4", 0, "video/mp4", defer_length=True)
    made = replace(new_upload("alice", file, now=NOW, expiry=timedelta(hours=1)), chunk_size=8)
    key = owned_key("alice", made.id)
    await uploads.create(key, made)

    def appends(parts: PartStore) -> Appends:
        hints = MemoryProgressBus()
        index = UploadIndex(MemoryStateStore[Noted](), clock=lambda: NOW)
        records = UploadRecords(uploads, index, parts, hints, ttl=lambda _: None, clock=lambda: NOW)
        quotas = Quotas(MemoryStateStore[Usage](), uploads, limits=Limits(), ttl=60, clock=lambda: NOW)
        return Appends(records, parts, hints, quotas, limits=Limits(), clock=lambda: NOW)

    async def take(parts: PartStore, messages: AsyncIterator[AppendMessage]) -> Upload:
        return await appends(parts).take(AppendStream(messages, stall_seconds=5))

    async def reached() -> int:
        return (await replicas[1].list_parts(key, made.grid)).offset(made.grid)

    holds, told = asyncio.Event(), asyncio.Event()

    async def old() -> AsyncIterator[AppendMessage]:
        yield AppendStart(made.id, 0)
        yield BODY[:4]
        holds.set()
        await told.wait()
        yield late

    async def new(*data: bytes) -> AsyncIterator[AppendMessage]:
        yield AppendStart(made.id, await reached(), size)
        for piece in data:
            yield piece

    older = asyncio.create_task(take(replicas[0], old()))
    await holds.wait()
    await take(replicas[1], new())
    told.set()
    with pytest.raises(Aborted) as refusal:
        await older
    assert refusal.value.reason == Reason.CHUNK_SUPERSEDED
    await take(replicas[1], new(BODY[await reached() : size]))
    parts = Grid(size, 8).manifest((await replicas[1].list_parts(key, Grid(size, 8))).parts)
    assert [part.length for part in parts] == [size]


async def test_an_append_is_acknowledged_for_no_byte_that_another_takes_back() -> None:
    """Nor while the other's longer tail still lies there."""
    bucket, grid = MemoryBucket(), Grid(1000, 1000)
    objects = S3ObjectStore(bucket)

    async def admit(_: int) -> Grid:
        return grid

    async def count() -> None:
        """Lets the bytes count."""

    async def append(store: S3PartStore, name: str, data: bytes) -> int:
        writer.set(name)

        async def pieces() -> AsyncIterator[bytes]:
            yield data

        return await store.append_tail("upload", grid, admit, pieces(), count)

    with S3PartStore(bucket, objects) as one, S3PartStore(bucket, objects) as two:
        await append(one, "first", b"base")
        at_put, put = bucket.hold("newer", "put")
        at_end, end = bucket.hold("older", "list", 5)
        takes_back, back = bucket.hold("newer", "delete")
        newer = asyncio.create_task(append(two, "newer", b"bbbb"))
        await at_put.wait()
        older = asyncio.create_task(append(one, "older", b"aaa"))
        await at_end.wait()
        put.set()
        await takes_back.wait()
        end.set()
        assert await older == 7
        back.set()
        with pytest.raises(AlreadyExists):
            await newer
        assert (await one.list_parts("upload", grid)).offset(grid) == 7
