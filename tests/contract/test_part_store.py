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
from services.common.adapters.s3_objects import S3ObjectStore
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
from services.common.objects import ObjectStore
from services.upload.adapters import upload_folder
from services.upload.adapters.directory_parts import DirectoryPartStore
from services.upload.adapters.memory_parts import MemoryPartStore
from services.upload.adapters.s3_parts import S3PartStore
from services.upload.domain import Whole
from services.upload.grid import Grid, Part, Tail
from services.upload.ports import PartStore, StoredPart
from services.upload.reasons import Reason

UPLOAD = "0123456789abcdef0123456789abcdef.6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11"
KEY = "uploads/6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c11"
GRID = Grid(size=2500, chunk_size=1000)
PATIENCE = 10.0
"""Seconds for what is over in milliseconds, however busy the machine is: reached only when a guard is gone."""
BODY = bytes(i * 7 % 251 for i in range(GRID.size))


STORES = ["memory", "directory", "directory fsync=part", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))]


@pytest.fixture
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("store") == "s3":
        return S3ObjectStore(request.getfixturevalue("s3_bucket"))
    return DirectoryObjectStore(tmp_path)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, objects: ObjectStore) -> Iterator[PartStore]:
    if request.param == "memory":
        yield MemoryPartStore(objects)
    elif isinstance(objects, S3ObjectStore):
        with S3PartStore(request.getfixturevalue("s3_bucket"), objects) as bucket:
            yield bucket
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


async def read(objects: ObjectStore) -> bytes:
    return b"".join([piece async for piece in objects.read(KEY)])


async def numbers(store: PartStore) -> list[int]:
    return sorted(part.number for part in (await store.list_parts(UPLOAD, GRID)).parts)


async def append(
    store: PartStore,
    data: bytes,
    *,
    at: int | None = None,
    at_once: bool = False,
    size: int = 300,
    grid: Grid = GRID,
) -> int:
    """Appends where the upload stands, which must be ``at`` if that is given."""

    async def admit(offset: int) -> Grid:
        assert at in {None, offset}
        return grid

    return await store.append_tail(UPLOAD, grid, admit, pieces_of(data, size), count, at_once=at_once)


async def count() -> None:
    """Lets appended bytes count."""


async def tail(store: PartStore) -> Tail | None:
    return (await store.list_parts(UPLOAD, GRID)).tail


async def test_parts_in_any_order_become_the_file(store: PartStore, objects: ObjectStore) -> None:
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
    store: PartStore, objects: ObjectStore
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
    store: PartStore, objects: ObjectStore, data: bytes
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


async def test_a_silent_writer_never_blocks_its_own_retry(store: PartStore, objects: ObjectStore) -> None:
    silent = Client(store)
    await silent.send(bytes(400))
    async with asyncio.timeout(PATIENCE):
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


async def test_late_part_cannot_change_a_finished_file(store: PartStore, objects: ObjectStore) -> None:
    parts = await put_all(store)
    late = Client(store)
    await late.send(bytes(500))
    await store.assemble(UPLOAD, GRID, parts, KEY, accept)
    await late.send(bytes(500), None)
    with pytest.raises(ServiceError):
        await late.put
    assert await read(objects) == BODY


async def test_a_refused_file_does_not_appear_and_its_parts_stay(store: PartStore, objects: ObjectStore) -> None:
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


async def test_assembling_again_gives_the_same_file(store: PartStore, objects: ObjectStore) -> None:
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


async def test_appended_bytes_fill_the_tail_and_become_the_parts(store: PartStore, objects: ObjectStore) -> None:
    assert await append(store, BODY[:250], at=0) == 250
    ledger = await store.list_parts(UPLOAD, GRID)
    assert (ledger.parts, ledger.tail, ledger.offset(GRID)) == ((), Tail(0, 250), 250)
    assert ledger.changed_at is not None
    assert await append(store, b"", at=250) == 250
    assert await append(store, BODY[250:2100], at=250, size=700) == 2100
    assert (await numbers(store), await tail(store)) == ([0, 1], Tail(2, 100))
    assert await append(store, BODY[2100:], at=2100) == 2500
    assert await tail(store) is None
    parts = await manifest(store)
    assert [p.sha256 for p in parts] == [hashlib.sha256(chunk(n)).hexdigest() for n in range(3)]
    await store.assemble(UPLOAD, GRID, parts, KEY, accept)
    assert await read(objects) == BODY


async def test_what_was_appended_before_the_bytes_broke_off_stays(store: PartStore) -> None:
    async def breaking(start: int = 0) -> AsyncIterator[bytes]:
        yield BODY[start : start + 1200]
        yield BODY[start + 1200 : 1300]
        raise ConnectionResetError

    async def admit(offset: int) -> Grid:
        return GRID

    with pytest.raises(ConnectionResetError):
        await store.append_tail(UPLOAD, GRID, admit, breaking(), count)
    assert (await numbers(store), await tail(store)) == ([0], Tail(1, 300))
    with pytest.raises(ConnectionResetError):
        await store.append_tail(UPLOAD, GRID, admit, breaking(1300), count, at_once=True)
    assert (await numbers(store), await tail(store)) == ([0], Tail(1, 300))
    assert await append(store, BODY[1300:], at=1300) == 2500


async def test_bytes_that_count_at_once_count_all_or_not_at_all(store: PartStore, objects: ObjectStore) -> None:
    async def refuse() -> None:
        raise ValueError("wrong checksum")

    async def admit(offset: int) -> Grid:
        assert offset == 400
        return GRID

    await append(store, BODY[:400])
    with pytest.raises(ValueError, match="wrong checksum"):
        await store.append_tail(UPLOAD, GRID, admit, pieces_of(bytes(1700)), refuse, at_once=True)
    assert await append(store, b"", at=400) == 400
    assert (await numbers(store), await tail(store)) == ([], Tail(0, 400))
    assert await append(store, BODY[400:2100], at=400, at_once=True) == 2100
    assert (await numbers(store), await tail(store)) == ([0, 1], Tail(2, 100))
    await append(store, BODY[2100:], at=2100, at_once=True)
    await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert await read(objects) == BODY


async def test_a_part_over_a_tail_must_begin_with_its_bytes(store: PartStore, objects: ObjectStore) -> None:
    await append(store, BODY[:1400])
    with pytest.raises(AlreadyExists) as refusal:
        await put(store, 1, chunk(1)[:399] + bytes(601))
    assert refusal.value.reason == Reason.CHUNK_CONFLICT
    with pytest.raises(InvalidArgument):
        await put(store, 1, chunk(1)[:999])
    assert await tail(store) == Tail(1, 400)
    assert not (await put(store, 1)).existed
    assert await tail(store) is None
    assert await append(store, BODY[2000:2100], at=2000) == 2100
    assert await tail(store) == Tail(2, 100)
    assert not (await put(store, 2)).existed
    await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert await read(objects) == BODY


async def test_bytes_appended_over_a_stored_part_must_be_its_bytes(store: PartStore) -> None:
    await put(store, 1)
    with pytest.raises(AlreadyExists) as refusal:
        await append(store, BODY[:1200] + bytes(100), at=0)
    assert refusal.value.reason == Reason.CHUNK_CONFLICT
    assert (await numbers(store), (await store.list_parts(UPLOAD, GRID)).offset(GRID)) == ([0, 1], 2000)
    other = "other.upload"
    await store.put_part(other, GRID, 1, pieces_of(chunk(1)), agree)

    async def admit(offset: int) -> Grid:
        return GRID

    for at_once in (False, True):  # one that ends within the stored part has reached that part's end
        assert await store.append_tail(other, GRID, admit, pieces_of(BODY[:1200]), count, at_once=at_once) == 2000
        await store.discard(other)
        await store.put_part(other, GRID, 1, pieces_of(chunk(1)), agree)


async def test_more_bytes_than_the_file_has_are_refused_and_those_before_stay(store: PartStore) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await append(store, BODY + bytes(300))
    assert refusal.value.reason == Reason.LENGTH_EXCEEDED
    assert await append(store, BODY[2400:], at=2400) == 2500
    with pytest.raises(InvalidArgument):
        await append(store, b"x", at=2500)
    await manifest(store)


async def test_a_tail_that_turns_out_to_be_the_last_part_becomes_it(
    store: PartStore, objects: ObjectStore
) -> None:
    unbounded = Grid(1 << 40, GRID.chunk_size)
    assert await append(store, BODY, grid=unbounded) == 2500

    async def told(offset: int) -> Grid:
        assert offset == 2500
        return GRID

    assert await store.append_tail(UPLOAD, unbounded, told, pieces_of(b""), count) == 2500
    await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert await read(objects) == BODY


async def test_a_refused_append_leaves_everything_as_it_was(store: PartStore) -> None:
    await append(store, BODY[:100])

    async def refuse(offset: int) -> Grid:
        raise Aborted(str(offset))

    async def closed() -> None:
        raise FailedPrecondition("closed meanwhile")

    async def admit(offset: int) -> Grid:
        return GRID

    with pytest.raises(Aborted, match="100"):
        await store.append_tail(UPLOAD, GRID, refuse, pieces_of(b"x"), count)
    with pytest.raises(FailedPrecondition, match="closed meanwhile"):
        await store.append_tail(UPLOAD, GRID, admit, pieces_of(BODY[100:1000]), closed)
    assert await numbers(store) == []
    rest = BODY[(await store.list_parts(UPLOAD, GRID)).offset(GRID) :]
    assert await append(store, rest) == 2500
    assert len(await manifest(store)) == 3


async def test_of_two_that_append_the_newer_goes_on_where_the_older_was(store: PartStore) -> None:
    waits = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        yield BODY[:1300]
        waits.set()
        await asyncio.Event().wait()

    async def admit(offset: int) -> Grid:
        return GRID

    for _ in range(2):
        older = asyncio.create_task(store.append_tail(UPLOAD, GRID, admit, silent(), count))
        await waits.wait()
        waits.clear()
        async with asyncio.timeout(PATIENCE):
            if await numbers(store) == [0]:
                assert await append(store, BODY[1300:1400], at=1300) == 1400
            with pytest.raises((Aborted, FailedPrecondition)):
                await older
        await store.discard(UPLOAD)
    assert await numbers(store) == []


# The directory alone: what a process leaves behind when it is killed, and what a disk refuses.


CRASHES = {
    "between data and receipt": "confirm",
    "within an append": "append",
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
                if number == 1 and point == "append":
                    async def admit(offset):
                        return grid

                    async def breaking():
                        yield body[2000:2300]
                        die("append")

                    await store.append_tail(upload, grid, admit, breaking(), None)
            manifest = grid.manifest((await store.list_parts(upload, grid)).parts)
            await store.assemble(upload, grid, manifest, key, lambda whole: die("check"))

    asyncio.run(main())
"""


@pytest.mark.parametrize("point", CRASHES.values(), ids=CRASHES.keys())
async def test_a_kill_loses_no_acknowledged_part_and_complete_can_be_done_again(
    tmp_path: Path, objects: ObjectStore, point: str
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
        assert await numbers(store) == acknowledged == ([0, 1] if point in {"confirm", "append"} else [0, 1, 2])
        if point == "append":
            assert await append(store, BODY[2300:], at=2300) == 2500
        if point == "confirm":
            assert not (await put(store, 2)).existed
        whole = await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert whole.sha256 == hashlib.sha256(BODY).hexdigest()
    assert await read(objects) == BODY


async def test_two_processes_cannot_own_one_directory(tmp_path: Path, objects: ObjectStore) -> None:
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


async def test_a_tail_is_taken_up_after_a_restart(tmp_path: Path, objects: ObjectStore) -> None:
    for start in range(0, GRID.size, 130):
        with DirectoryPartStore(tmp_path, objects) as store:
            assert await append(store, BODY[start : start + 130], at=start) == min(start + 130, GRID.size)
    with DirectoryPartStore(tmp_path, objects) as store:
        await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert await read(objects) == BODY


async def test_a_full_disk_keeps_the_tail_and_goes_on_when_there_is_room(
    tmp_path: Path, objects: ObjectStore
) -> None:
    with DirectoryPartStore(tmp_path, objects) as store:
        with disk_limit(1500), pytest.raises(ResourceExhausted) as refusal:
            await append(store, BODY, size=400)
        assert refusal.value.reason == Reason.STORAGE_FULL
        assert await tail(store) == Tail(1, 200)
        assert await append(store, BODY[1200:], at=1200) == 2500
        await store.assemble(UPLOAD, GRID, await manifest(store), KEY, accept)
    assert await read(objects) == BODY


async def test_a_full_disk_keeps_earlier_parts_and_works_again_when_there_is_room(
    tmp_path: Path, objects: ObjectStore
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
    tmp_path: Path, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
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
        await store.discard(UPLOAD)
        await append(store, BODY[:1700])
        await put_all(store)
        await append(store, b"")
    assert written == 2 * GRID.size


async def test_a_cancelled_writer_lets_go_only_when_its_thread_has_ended(
    tmp_path: Path, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    pwrite = os.pwrite

    def slow(descriptor: int, data: bytes, offset: int) -> int:
        writing.set()
        go_on.wait(PATIENCE)
        return pwrite(descriptor, data, offset)

    with DirectoryPartStore(tmp_path, objects) as store:
        monkeypatch.setattr(os, "pwrite", slow)
        writer = asyncio.create_task(put(store, 0))
        await asyncio.to_thread(writing.wait, PATIENCE)
        writer.cancel()
        retry = asyncio.create_task(put(store, 0))
        await asyncio.wait([writer, retry], timeout=0.1)
        assert not writer.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await writer
        assert not (await retry).existed


async def test_what_is_discarded_is_freed_by_a_thread_and_not_by_the_event_loop(
    tmp_path: Path, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, held = upload_folder.remove, list[str]()

    def watched(folder: Path) -> None:
        descriptors = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        held.extend(path for path in descriptors if path.startswith(f"{folder}/"))
        remove(folder)

    monkeypatch.setattr(upload_folder, "remove", watched)
    with DirectoryPartStore(tmp_path, objects) as store:
        await put(store, 0)
        await store.discard(UPLOAD)
        assert await numbers(store) == []
    assert held == []
