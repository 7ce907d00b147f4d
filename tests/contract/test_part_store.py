"""What every part store must do, and what a kill at any step must leave behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    ServiceError,
)
from services.upload.adapters.directory_parts import DirectoryPartStore
from services.upload.adapters.memory_parts import MemoryPartStore
from services.upload.domain import Whole
from services.upload.grid import Grid, Part
from services.upload.ports import PartStore, StoredPart
from services.upload.reasons import Reason

UPLOAD = "0123456789abcdef0123456789abcdef.6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11"
KEY = "uploads/6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11"
GRID = Grid(size=2500, chunk_size=1000)
BODY = bytes(i * 7 % 251 for i in range(GRID.size))


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryObjectStore:
    return DirectoryObjectStore(tmp_path)


@pytest.fixture(params=["memory", "directory", "directory fsync=part"])
def store(request: pytest.FixtureRequest, tmp_path: Path, objects: DirectoryObjectStore) -> Iterator[PartStore]:
    if request.param == "memory":
        yield MemoryPartStore(objects)
    else:
        with DirectoryPartStore(
            tmp_path, objects, fsync="part" if request.param.endswith("part") else "complete"
        ) as directory:
            yield directory


async def agree(part: Part) -> None:
    """Confirms any part."""


def accept(whole: Whole) -> None:
    """Takes any file."""


async def pieces_of(data: bytes, size: int = 300) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def chunk(number: int) -> bytes:
    start, end = GRID.bounds(number)
    return BODY[start:end]


async def put(store: PartStore, number: int, data: bytes | None = None) -> StoredPart:
    return await store.put_part(UPLOAD, GRID, number, pieces_of(chunk(number) if data is None else data), agree)


async def put_all(store: PartStore, numbers: Iterable[int] = (2, 0, 1)) -> tuple[Part, ...]:
    await asyncio.gather(*(put(store, n) for n in numbers))
    return await manifest(store)


async def manifest(store: PartStore) -> tuple[Part, ...]:
    return GRID.manifest((await store.list_parts(UPLOAD, GRID)).parts)


async def read(objects: DirectoryObjectStore) -> bytes:
    return b"".join([piece async for piece in objects.read(KEY)])


async def numbers(store: PartStore) -> list[int]:
    return sorted(part.number for part in (await store.list_parts(UPLOAD, GRID)).parts)


async def test_parts_in_any_order_become_the_file(store: PartStore, objects: DirectoryObjectStore) -> None:
    assert (await store.list_parts(UPLOAD, GRID)).changed_at is None
    parts = await put_all(store)
    assert [p.sha256 for p in parts] == [hashlib.sha256(chunk(n)).hexdigest() for n in range(3)]
    changed = (await store.list_parts(UPLOAD, GRID)).changed_at
    assert changed is not None
    assert abs(datetime.now(UTC) - changed) < timedelta(minutes=1)
    whole = await store.assemble(UPLOAD, GRID, parts, KEY, accept)
    assert whole == Whole(GRID.size, hashlib.sha256(BODY).hexdigest(), BODY[:64])
    assert await read(objects) == BODY


async def test_the_same_bytes_again_exist_already_and_other_bytes_never_replace_them(
    store: PartStore, objects: DirectoryObjectStore
) -> None:
    first = await put(store, 0)
    again = await put(store, 0)
    assert (first.existed, again.existed, again.part) == (False, True, first.part)
    with pytest.raises(AlreadyExists) as refusal:
        await put(store, 0, bytes(1000))
    assert refusal.value.reason == Reason.CHUNK_CONFLICT
    parts = await put_all(store, (1, 2))
    await store.assemble(UPLOAD, GRID, parts, KEY, accept)
    assert await read(objects) == BODY


@pytest.mark.parametrize("data", [b"", bytes(999), bytes(1001), bytes(5000)])
async def test_a_part_of_another_length_is_refused_and_touches_no_neighbour(
    store: PartStore, objects: DirectoryObjectStore, data: bytes
) -> None:
    await put(store, 2)
    await put(store, 0)
    with pytest.raises(InvalidArgument) as refusal:
        await put(store, 1, data)
    assert refusal.value.reason == Reason.CHUNK_SIZE_MISMATCH
    assert await numbers(store) == [0, 2]
    await put(store, 1)
    await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert await read(objects) == BODY


@pytest.mark.parametrize("number", [-1, 3])
async def test_a_number_outside_the_grid_is_out_of_range(store: PartStore, number: int) -> None:
    with pytest.raises(OutOfRange):
        await store.put_part(UPLOAD, GRID, number, pieces_of(b"x"), agree)
    assert [s async for s in store.list_uploads()] == []


async def test_a_part_that_is_not_confirmed_does_not_exist(store: PartStore) -> None:
    async def refuse(part: Part) -> None:
        assert part == Part(0, 1000, hashlib.sha256(bytes(1000)).hexdigest())
        raise FailedPrecondition("closed meanwhile")

    with pytest.raises(FailedPrecondition, match="closed meanwhile"):
        await store.put_part(UPLOAD, GRID, 0, pieces_of(bytes(1000)), refuse)
    assert await numbers(store) == []
    assert not (await put(store, 0)).existed


class Client:
    """A client whose bytes arrive when the test says so."""

    def __init__(self, store: PartStore, number: int = 0) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._waits = asyncio.Event()
        self.put = asyncio.create_task(store.put_part(UPLOAD, GRID, number, self._body(), agree))

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            if self._pieces.empty():
                self._waits.set()
            piece = await self._pieces.get()
            if piece is None:
                return
            yield piece

    async def send(self, *pieces: bytes | None) -> None:
        """Sends pieces (None ends the body) and waits until the store wants more."""
        self._waits.clear()
        for piece in pieces:
            self._pieces.put_nowait(piece)
        waits = asyncio.create_task(self._waits.wait())
        await asyncio.wait({waits, self.put}, return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()


async def test_a_silent_writer_never_blocks_its_own_retry(store: PartStore, objects: DirectoryObjectStore) -> None:
    silent = Client(store)
    await silent.send(bytes(400))
    async with asyncio.timeout(5):
        assert not (await put(store, 0)).existed
        with pytest.raises(Aborted) as refusal:
            await silent.put
    assert refusal.value.reason == Reason.CHUNK_SUPERSEDED
    await store.assemble(UPLOAD, GRID, await put_all(store, (1, 2)), KEY, accept)
    assert await read(objects) == BODY


async def test_of_many_writers_of_one_part_the_newest_wins_and_all_others_are_told(store: PartStore) -> None:
    clients = []
    for _ in range(5):
        client = Client(store)
        await client.send(bytes(100))
        clients.append(client)
    clients[3].put.cancel()
    await clients[4].send(chunk(0)[100:], None)
    outcomes = await asyncio.gather(*(c.put for c in clients), return_exceptions=True)
    assert [type(o) for o in outcomes[:3]] == [Aborted, Aborted, Aborted]
    assert isinstance(outcomes[4], StoredPart)
    expected = hashlib.sha256(bytes(100) + chunk(0)[100:]).hexdigest()
    assert (await store.list_parts(UPLOAD, GRID)).parts == (Part(0, 1000, expected),)


async def test_a_writer_that_was_cancelled_leaves_nothing(store: PartStore) -> None:
    client = Client(store)
    await client.send(bytes(1000))
    client.put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.put
    assert await numbers(store) == []
    assert not (await put(store, 0)).existed


async def test_late_part_cannot_change_a_finished_file(store: PartStore, objects: DirectoryObjectStore) -> None:
    parts = await put_all(store)
    late = Client(store)
    await late.send(bytes(500))
    await store.assemble(UPLOAD, GRID, parts, KEY, accept)
    await late.send(bytes(500), None)
    with pytest.raises(ServiceError):
        await late.put
    assert await read(objects) == BODY


async def test_a_refused_file_does_not_appear_and_its_parts_stay(
    store: PartStore, objects: DirectoryObjectStore
) -> None:
    parts = await put_all(store)

    def refuse(whole: Whole) -> None:
        raise ValueError(whole.sha256)

    with pytest.raises(ValueError, match=hashlib.sha256(BODY).hexdigest()):
        await store.assemble(UPLOAD, GRID, parts, KEY, refuse)
    with pytest.raises(NotFound):
        await objects.stat(KEY)
    assert await manifest(store) == parts
    await store.assemble(UPLOAD, GRID, parts, KEY, accept)
    assert await read(objects) == BODY


async def test_assembling_again_gives_the_same_file(store: PartStore, objects: DirectoryObjectStore) -> None:
    parts = await put_all(store)
    first = await store.assemble(UPLOAD, GRID, parts, KEY, accept)
    assert await store.assemble(UPLOAD, GRID, parts, KEY, accept) == first
    assert await read(objects) == BODY


async def test_a_manifest_that_the_parts_do_not_match_is_data_loss(store: PartStore) -> None:
    parts = await put_all(store)
    with pytest.raises(DataLoss, match="chunk 1"):
        await store.assemble(UPLOAD, GRID, (parts[0], Part(1, 1000, "0" * 64), parts[2]), KEY, accept)
    with pytest.raises(DataLoss):
        await store.assemble("other.upload", GRID, parts, KEY, accept)


async def test_discard_stops_writers_and_leaves_nothing(store: PartStore) -> None:
    await put(store, 1)
    writer = Client(store)
    await writer.send(bytes(10))
    assert [s.upload async for s in store.list_uploads()] == [UPLOAD]
    await store.discard(UPLOAD)
    with pytest.raises(FailedPrecondition) as refusal:
        await writer.put
    assert refusal.value.reason == Reason.UPLOAD_CLOSED
    assert [s async for s in store.list_uploads()] == []
    assert await numbers(store) == []
    await store.discard(UPLOAD)


async def test_a_part_confirmed_while_its_upload_is_discarded_does_not_count(store: PartStore) -> None:
    confirming, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(part: Part) -> None:
        confirming.set()
        await go_on.wait()

    writer = asyncio.create_task(store.put_part(UPLOAD, GRID, 0, pieces_of(chunk(0)), slowly))
    await confirming.wait()
    discard = asyncio.create_task(store.discard(UPLOAD))
    go_on.set()
    await asyncio.gather(writer, discard, return_exceptions=True)
    assert await numbers(store) == []


# The directory alone: what a process leaves behind when it is killed, and what a disk refuses.


CRASHES = {
    "between data and receipt": "confirm",
    "between assembling and rename": "check",
    "after the rename": "renamed",
}
SCRIPT = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from services.common.adapters.directory_objects import DirectoryObjectStore
    from services.upload.adapters.directory_parts import DirectoryPartStore
    from services.upload.grid import Grid

    root, point, upload, key = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    body, grid = sys.stdin.buffer.read(), Grid(2500, 1000)

    def die(at):
        if point == at:
            os.kill(os.getpid(), signal.SIGKILL)

    class Objects(DirectoryObjectStore):
        async def put_file(self, key, source):
            await super().put_file(key, source)
            die("renamed")

    async def main():
        with DirectoryPartStore(root, Objects(root)) as store:
            for number in range(grid.total):
                async def pieces():
                    start, end = grid.bounds(number)
                    yield body[start:end]

                async def confirm(part):
                    if part.number == 2:
                        die("confirm")

                await store.put_part(upload, grid, number, pieces(), confirm)
                print(number, flush=True)
            manifest = grid.manifest((await store.list_parts(upload, grid)).parts)
            await store.assemble(upload, grid, manifest, key, lambda whole: die("check"))

    asyncio.run(main())
"""


@pytest.mark.parametrize("point", CRASHES.values(), ids=CRASHES.keys())
async def test_a_kill_loses_no_acknowledged_part_and_complete_can_be_done_again(
    tmp_path: Path, objects: DirectoryObjectStore, point: str
) -> None:
    crash = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), point, UPLOAD, KEY],
        input=BODY,
        stdout=subprocess.PIPE,
        check=False,
    )
    assert crash.returncode == -signal.SIGKILL
    acknowledged = [int(line) for line in crash.stdout.split()]
    with DirectoryPartStore(tmp_path, objects) as store:
        assert await numbers(store) == acknowledged == ([0, 1] if point == "confirm" else [0, 1, 2])
        if point == "confirm":
            assert not (await put(store, 2)).existed
        whole = await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert whole.sha256 == hashlib.sha256(BODY).hexdigest()
    assert await read(objects) == BODY


async def test_two_processes_cannot_own_one_directory(tmp_path: Path, objects: DirectoryObjectStore) -> None:
    second = DirectoryPartStore(tmp_path, objects)
    with DirectoryPartStore(tmp_path, objects), pytest.raises(OSError, match="in use by another upload service"):
        second.__enter__()
    with DirectoryPartStore(tmp_path, objects) as store:
        await put(store, 0)


@contextmanager
def disk_limit(size: int) -> Iterator[None]:
    """Lets writes beyond ``size`` bytes of a file fail, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_keeps_earlier_parts_and_works_again_when_there_is_room(
    tmp_path: Path, objects: DirectoryObjectStore
) -> None:
    with DirectoryPartStore(tmp_path, objects) as store:
        await put(store, 0)
        with disk_limit(1500), pytest.raises(ResourceExhausted) as refusal:
            await put(store, 1)
        assert refusal.value.reason == Reason.STORAGE_FULL
        assert refusal.value.retry_after
        assert await numbers(store) == [0]
        await store.assemble(UPLOAD, GRID, await put_all(store, (1, 2)), KEY, accept)
    assert await read(objects) == BODY


async def test_each_byte_is_written_once(
    tmp_path: Path, objects: DirectoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    pwrite = os.pwrite

    def counted(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    with DirectoryPartStore(tmp_path, objects) as store:
        await put_all(store)
        await put_all(store)
    assert written == GRID.size


async def test_a_cancelled_writer_lets_go_only_when_its_thread_has_ended(
    tmp_path: Path, objects: DirectoryObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    pwrite = os.pwrite

    def slow(descriptor: int, data: bytes, offset: int) -> int:
        writing.set()
        go_on.wait(5)
        return pwrite(descriptor, data, offset)

    with DirectoryPartStore(tmp_path, objects) as store:
        monkeypatch.setattr(os, "pwrite", slow)
        writer = asyncio.create_task(put(store, 0))
        await asyncio.to_thread(writing.wait, 5)
        writer.cancel()
        retry = asyncio.create_task(put(store, 0))
        await asyncio.wait([writer, retry], timeout=0.1)
        assert not writer.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await writer
        assert not (await retry).existed
