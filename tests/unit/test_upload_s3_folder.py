"""What upload services that share a bucket do to each other's objects, at the worst moments."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any, ParamSpec, TypeVar

import pytest

from services.common.adapters.s3_objects import S3ObjectStore
from services.common.errors import Aborted, AlreadyExists
from services.upload.adapters.s3_folder import Draft, S3Folder
from services.upload.adapters.s3_parts import S3PartStore
from services.upload.domain import Whole
from services.upload.grid import Grid, Part
from tests.memory_bucket import MemoryBucket, writer

P = ParamSpec("P")
T = TypeVar("T")

GRID = Grid(8, 4)


def named(name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose requests are those of this writer."""

    async def run() -> T:
        writer.set(name)
        return await work

    return asyncio.create_task(run())


def draft(body: bytes) -> Draft:
    return Draft(1, io.BytesIO(body), len(body), hashlib.sha256(body).hexdigest())


def part_store(bucket: MemoryBucket) -> S3PartStore:
    return S3PartStore(bucket, S3ObjectStore(bucket))


async def append(store: S3PartStore, body: bytes, *, at: int | None = None) -> int:
    async def admit(offset: int) -> Grid:
        if at not in {None, offset}:
            raise Aborted("elsewhere")
        return GRID

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    return await store.append_tail("u", GRID, admit, pieces(), lambda: asyncio.sleep(0))


async def put(store: S3PartStore, number: int, body: bytes) -> bool:
    async def agree(_: Part) -> None:
        """Confirms it."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    return (await store.put_part("u", GRID, number, pieces(), agree)).existed


async def test_of_several_that_store_the_same_tail_at_once_one_tail_stays() -> None:
    bucket = MemoryBucket()
    holds = [bucket.hold(name, "list", 2) for name in "abc"]  # all have put before one looks
    writers = [named(name, S3Folder(bucket, "u").add(Draft(0, io.BytesIO(b"tail"), 4))) for name in "abc"]
    for there, go_on in holds:
        await there.wait()
        go_on.set()
    assert await asyncio.gather(*writers) == [False] * 3
    assert list(bucket.objects.values()) == [b"tail"]


@pytest.mark.parametrize("way", ["replay", "append"])
async def test_what_was_acknowledged_stays_when_the_first_writer_of_the_same_takes_its_own_back(way: str) -> None:
    """One puts a part, and another what contradicts it; a third who came between may not count on the first."""
    bucket = MemoryBucket()
    wrong_puts, wrong_looks = bucket.hold("wrong", "put"), bucket.hold("wrong", "list", 2)
    first_looks = bucket.hold("first", "list", 2)
    wrong = named("wrong", S3Folder(bucket, "u").add(draft(b"bbbb")))
    await wrong_puts[0].wait()
    first = named("first", S3Folder(bucket, "u").add(draft(b"aaaa")))
    await first_looks[0].wait()
    if way == "replay":
        assert await put(part_store(bucket), 1, b"aaaa")
    else:
        assert await append(part_store(bucket), b"ccccaaaa") == 8  # its second part is there already
    wrong_puts[1].set()
    await wrong_looks[0].wait()
    first_looks[1].set()
    outcomes = [(await asyncio.wait([first]))[0].pop().exception()]
    wrong_looks[1].set()
    outcomes.append((await asyncio.wait([wrong]))[0].pop().exception())
    assert [type(outcome) for outcome in outcomes] == [AlreadyExists, AlreadyExists]
    assert [body for key, body in bucket.objects.items() if "/1-" in key] == [b"aaaa"]


async def test_the_same_part_again_and_again_leaves_few_objects_and_one_part() -> None:
    bucket = MemoryBucket()
    store = part_store(bucket)
    assert [await put(store, 1, b"aaaa") for _ in range(100)] == [False, *[True] * 99]
    assert len((await store.list_parts("u", GRID)).parts) == 1
    assert len(bucket.objects) < 30  # some five: whose key is less removes those before it


async def test_a_file_is_made_of_what_replays_put_in_the_place_of_its_parts_meanwhile() -> None:
    bucket = MemoryBucket()
    store = part_store(bucket)
    await put(store, 0, b"cccc")
    await put(store, 1, b"aaaa")
    bucket.objects = {
        key[:-16] + "f" * 16: body for key, body in bucket.objects.items()
    }  # others come before them
    manifest = GRID.manifest((await store.list_parts("u", GRID)).parts)
    reads = bucket.hold("assembly", "read")

    def accept(whole: Whole) -> None:
        assert whole.size == 8

    made = named("assembly", store.assemble("u", GRID, manifest, "file", accept))
    await reads[0].wait()
    await put(store, 0, b"cccc")
    await put(store, 1, b"aaaa")
    assert not any(key.endswith("f" * 16) for key in bucket.objects)
    reads[1].set()
    await made
    assert bucket.objects["objects/file"] == b"ccccaaaa"


async def test_an_append_whose_tail_is_replaced_before_it_is_read_is_told_so() -> None:
    bucket = MemoryBucket()
    assert await append(part_store(bucket), b"cc") == 2
    reads = bucket.hold("slow", "read")
    slow = named("slow", append(part_store(bucket), b"cc"))
    await reads[0].wait()
    assert await append(part_store(bucket), b"c") == 3
    reads[1].set()
    with pytest.raises(Aborted, match="took over"):
        await slow


class ShakyBucket(MemoryBucket):
    """Requests take their turns at random."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random

    async def _pass(self, request: str) -> None:
        for _ in range(self._random.randrange(8)):
            await asyncio.sleep(0)


async def at_once(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In the place of a thread, whose speed would be another chance."""
    return call(*args, **kwargs)


async def test_whatever_replicas_do_to_one_part_in_whatever_order_what_was_acknowledged_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    monkeypatch.setattr(S3PartStore, "_run", lambda _, *args: at_once(*args))
    acknowledged_in_all = refused = 0
    for seed in range(1500):
        random = Random(seed)
        bucket = ShakyBucket(random)
        acknowledged: list[bytes] = []

        async def write(bucket: ShakyBucket, random: Random, acknowledged: list[bytes]) -> None:
            body = random.choice([b"aaaa", b"aaaa", b"aabb"])
            if random.random() < 0.5:
                await put(part_store(bucket), 0, body)
            else:
                body = body[: random.randint(1, 4)]
                await append(part_store(bucket), body, at=0)
            acknowledged.append(body)

        outcomes = await asyncio.gather(
            *(write(bucket, random, acknowledged) for _ in range(random.randint(2, 5))), return_exceptions=True
        )
        assert all(isinstance(o, AlreadyExists | Aborted) for o in outcomes if o is not None), (seed, outcomes)
        for body in acknowledged:
            assert any(stored.startswith(body) for stored in bucket.objects.values()), (seed, acknowledged)
            assert all(a.startswith(body) or body.startswith(a) for a in acknowledged), (seed, acknowledged)
        acknowledged_in_all += len(acknowledged)
        refused += len(outcomes) - len(acknowledged)
    assert min(acknowledged_in_all, refused) > 1000
