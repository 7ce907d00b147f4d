"""What the sweep and the use cases do with what others left: cut-off completes, lost bytes, orphans, rivals."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryProgressBus, MemoryStateStore
from services.common.context import CallContext, Principal, serving
from services.common.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from services.common.objects import ObjectInfo
from services.common.state import Entry, mutate, owned_key
from services.upload.adapters.memory_events import MemoryEvents
from services.upload.adapters.memory_parts import MemoryPartStore
from services.upload.analytics import Analytics, Replays
from services.upload.assembly import Assembly, Retention
from services.upload.domain import DATA_LOST, INFECTED, NOT_SCANNED, PARTIAL_GONE, Upload, UploadState, Whole
from services.upload.gathering import Gathering
from services.upload.grid import Grid, Part
from services.upload.index import IndexedUploads, Noted, UploadIndex
from services.upload.limits import Limits
from services.upload.ports import Scanner
from services.upload.quotas import Quotas, Usage
from services.upload.reasons import Reason
from services.upload.records import UploadRecords
from services.upload.requests import NewClip, NewFile, NewWhole, new_upload, new_whole, settled
from services.upload.scanning import Quarantine
from services.upload.service import Policy, UploadService
from services.upload.sweeping import Sweep

BODY = b"\x00\x00\x00\x20ftypisom".ljust(100, b".")
DIGEST = hashlib.sha256(BODY).hexdigest()
ORPHAN = f"uploads/{owned_key('alice', str(uuid.uuid4()))}"


class House:
    """The use cases on stores in memory, at a time that the test sets."""

    def __init__(
        self,
        root: Path,
        records: MemoryStateStore[Upload],
        scanner: Scanner | None = None,
        *,
        index: MemoryStateStore[Noted] | None = None,
        patience: float = 60,
        at_once: int = 1000,
    ) -> None:
        self.root = root
        self.now = datetime(2026, 5, 1, tzinfo=UTC)
        self.entries = index or MemoryStateStore[Noted]()
        self.index = UploadIndex(self.entries, clock=self.clock)
        self.uploads = uploads = IndexedUploads(records, self.index)
        self.objects = DirectoryObjectStore(root)
        self.parts = MemoryPartStore(self.objects, clock=self.clock)
        hints = MemoryProgressBus()
        self.events = MemoryEvents()
        retention = Retention(records=60, orphans=3600)
        self.assembly = Assembly(
            uploads,
            self.index,
            self.parts,
            self.objects,
            hints,
            Quarantine(self.objects, scanner),
            Analytics(self.events, Replays()),
            retention=retention,
            clock=self.clock,
        )
        self.sweep = Sweep(
            uploads,
            self.index,
            self.parts,
            self.objects,
            hints,
            self.assembly,
            retention=retention,
            clock=self.clock,
            patience=patience,
            at_once=at_once,
        )
        self.records = UploadRecords(
            uploads, self.index, self.parts, hints, ttl=self.assembly.ttl, clock=self.clock
        )
        quotas = Quotas(MemoryStateStore[Usage](), uploads, limits=Limits(), ttl=60, clock=self.clock)
        self.service = UploadService(
            self.records, self.parts, hints, self.assembly, quotas, policy=Policy(), clock=self.clock
        )

    def clock(self) -> datetime:
        return self.now

    async def put(self, key: str, upload: Upload) -> Part:
        async def body() -> AsyncIterator[bytes]:
            yield BODY

        async def agree(part: Part) -> None:
            """Confirms it."""

        return (await self.parts.put_part(key, upload.grid, 0, body(), agree)).part

    async def cut_off(self, *, claimed: str = DIGEST, stored: bool = True) -> str:
        """The key of an upload whose complete call was killed after it had fixed the manifest."""
        file = NewFile("a.mp4", len(BODY), "video/mp4", chunk_size=len(BODY))
        upload = new_upload("alice", file, now=self.now, expiry=timedelta(hours=1))
        key = owned_key("alice", upload.id)
        part = await self.put(key, upload) if stored else Part(0, len(BODY), DIGEST)
        await self.uploads.create(key, upload.begin_assembly((part,), claimed, self.now))
        return key

    async def state(self, key: str) -> UploadState:
        return (await self.record(key)).state

    async def record(self, key: str) -> Upload:
        entry = await self.uploads.get(key)
        assert entry is not None
        return entry.value


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, MemoryStateStore[Upload]())


@pytest.fixture
def as_service() -> Iterator[None]:
    with serving(CallContext(Principal("service:merge", is_service=True))):
        yield


async def test_the_sweep_finishes_a_cut_off_complete_once(house: House) -> None:
    key = await house.cut_off()
    await house.sweep.run()
    done = await house.record(key)
    assert (done.state, done.sha256) == (UploadState.COMPLETED, DIGEST)
    assert (await house.objects.stat(done.object_key)).size == len(BODY)
    house.now += timedelta(days=30)
    await house.sweep.run()
    assert await house.record(key) == done


async def test_the_sweep_holds_a_cut_off_complete_to_the_digest_it_was_called_with(house: House) -> None:
    key = await house.cut_off(claimed="0" * 64)
    await house.sweep.run()
    assert await house.state(key) is UploadState.OPEN
    assert (await house.parts.list_parts(key, (await house.record(key)).grid)).parts


async def test_an_upload_whose_bytes_are_gone_fails_instead_of_hanging(house: House) -> None:
    key = await house.cut_off(stored=False)
    await house.sweep.run()
    lost = await house.record(key)
    assert (lost.state, lost.error_type) == (UploadState.FAILED, DATA_LOST)


async def test_parts_without_a_record_are_kept_for_the_grace_period_alone(house: House) -> None:
    upload = new_upload("alice", NewFile("a", 100, "video/mp4", 100), now=house.now, expiry=timedelta(hours=1))
    await house.put("orphan.key", upload)
    await house.sweep.run()
    assert [s.upload async for s in house.parts.list_uploads()] == ["orphan.key"]
    house.now += timedelta(hours=1, seconds=1)
    await house.sweep.run()
    assert [s async for s in house.parts.list_uploads()] == []


async def test_an_upload_that_the_disk_refuses_does_not_keep_the_sweep_from_the_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = await house.cut_off(), await house.cut_off()
    orphan = new_upload("alice", NewFile("a", 100, "video/mp4", 100), now=house.now, expiry=timedelta(hours=1))
    for name in ("broken.orphan", "sound.orphan"):
        await house.put(name, orphan)
    put_file, discard = house.objects.put_file, house.parts.discard

    async def put(key: str, source: Path) -> ObjectInfo:
        if key == f"uploads/{broken}":
            raise PermissionError(key)
        return await put_file(key, source)

    async def throw_away(upload: str) -> None:
        if upload == "broken.orphan":
            raise PermissionError(upload)
        await discard(upload)

    monkeypatch.setattr(house.objects, "put_file", put)
    monkeypatch.setattr(house.parts, "discard", throw_away)
    house.now += timedelta(hours=1, seconds=1)
    await house.sweep.run()
    assert await house.state(broken) is UploadState.ASSEMBLING
    assert await house.state(sound) is UploadState.COMPLETED
    assert {s.upload async for s in house.parts.list_uploads()} == {broken, "broken.orphan"}


async def store(house: House, key: str, body: bytes = BODY) -> None:
    file = house.root / "file"
    file.write_bytes(body)
    await house.objects.put_file(key, file)


async def objects(house: House) -> set[str]:
    return {info.key async for info in house.objects.list("")}


async def test_files_without_a_record_go_after_they_were_seen_so_for_the_grace_period(house: House) -> None:
    await store(house, ORPHAN)
    await store(house, "uploads/of-others")
    await store(house, "videos/of-others")
    key = await house.cut_off()
    kept = {f"uploads/{key}", "uploads/of-others", "videos/of-others"}
    for minutes in (0, 30, 30):  # however old the file is: what counts is how long nobody has known it
        house.now += timedelta(minutes=minutes)
        assert (await house.sweep.run()).objects == 0
    house.now += timedelta(minutes=30)
    assert (await house.sweep.run()).objects == 1
    assert await objects(house) == kept
    house.now += timedelta(days=30)
    await house.sweep.run()
    assert await objects(house) == kept


async def test_on_an_empty_database_no_file_is_touched(house: House) -> None:
    await store(house, ORPHAN)
    for _ in range(10):
        house.now += timedelta(hours=1)
        await house.sweep.run()
    assert await objects(house) == {ORPHAN}


@pytest.mark.usefixtures("as_service")
async def test_a_file_that_a_cut_off_cancel_left_goes_at_once(house: House) -> None:
    key = await house.cut_off()
    await house.sweep.run()
    upload = await house.record(key)
    await mutate(house.uploads, key, lambda u: replace(u, state=UploadState.CANCELLED))
    house.now += timedelta(hours=1)
    assert (await house.sweep.run()).objects == 1
    assert upload.object_key not in await objects(house)


class SteeredScanner:
    """Finds what the test says; None is away."""

    found: str | None = None

    async def scan(self, pieces: AsyncIterator[bytes]) -> str:
        assert b"".join([piece async for piece in pieces]) == BODY
        if self.found is None:
            raise Unavailable("away", reason=Reason.SCANNER_UNAVAILABLE)
        return self.found


@pytest.fixture
def scanner() -> SteeredScanner:
    return SteeredScanner()


@pytest.fixture
def guarded(tmp_path: Path, scanner: SteeredScanner) -> House:
    return House(tmp_path, MemoryStateStore[Upload](), scanner)


async def test_a_file_stays_in_quarantine_until_the_scanner_says_it_is_clean(
    guarded: House, scanner: SteeredScanner
) -> None:
    key = await guarded.cut_off()
    for _ in range(3):
        await guarded.sweep.run()
        assert await guarded.state(key) is UploadState.ASSEMBLING
    assert guarded.events.kept == []
    scanner.found = ""
    await guarded.sweep.run()
    done = await guarded.record(key)
    assert (done.state, done.sha256) == (UploadState.COMPLETED, DIGEST)
    assert [event.upload_id for event in guarded.events.kept] == [done.id]


async def test_an_infected_file_fails_its_upload_and_is_gone(guarded: House, scanner: SteeredScanner) -> None:
    scanner.found = "Test.Virus"
    key = await guarded.cut_off()
    await guarded.sweep.run()
    failed = await guarded.record(key)
    assert (failed.state, failed.error_type) == (UploadState.FAILED, INFECTED)
    assert await objects(guarded) == set()
    assert [s async for s in guarded.parts.list_uploads()] == []


async def test_a_file_that_is_never_scanned_is_given_up_when_its_upload_expires(guarded: House) -> None:
    key = await guarded.cut_off()
    guarded.now += timedelta(hours=1)
    await guarded.sweep.run()
    failed = await guarded.record(key)
    assert (failed.state, failed.error_type) == (UploadState.FAILED, NOT_SCANNED)
    assert await objects(guarded) == set()


class SilentScanner:
    """Takes a file and says nothing until it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.let_go = asyncio.Event()

    async def scan(self, pieces: AsyncIterator[bytes]) -> str:
        self.asked += 1
        await self.let_go.wait()
        return ""


async def test_a_scanner_that_hangs_holds_up_no_sweep_and_is_asked_of_few_files_at_once(tmp_path: Path) -> None:
    scanner = SilentScanner()
    house = House(tmp_path, MemoryStateStore[Upload](), scanner, patience=0)
    keys = [await house.cut_off() for _ in range(10)]
    other = new_upload("alice", NewFile("a", 100, "video/mp4", 100), now=house.now, expiry=timedelta(hours=1))
    other_key = owned_key("alice", other.id)
    await house.uploads.create(other_key, other)
    house.now += timedelta(hours=1)
    async with asyncio.timeout(10):
        while scanner.asked < 4:
            await house.sweep.run()
            await asyncio.sleep(0.005)  # assembling is done in threads
        assert await house.state(other_key) is UploadState.EXPIRED
        for _ in range(3):
            await house.sweep.run()
        assert scanner.asked == 4
        scanner.let_go.set()
        while {await house.state(key) for key in keys} != {UploadState.COMPLETED}:
            await asyncio.sleep(0.005)


async def two_partials(house: House) -> list[str]:
    """Two completed partial uploads of half the file each."""
    sources = []
    for body in (BODY[:30], BODY[30:]):
        file = NewFile("p", len(body), "video/mp4", partial=True)
        source = settled(new_upload("alice", file, now=house.now, expiry=timedelta(hours=1)), Limits())
        manifest = (Part(0, len(body), hashlib.sha256(body).hexdigest()),)
        whole = Whole(len(body), manifest[0].sha256, body)
        source = source.begin_assembly(manifest, "", house.now).complete(whole, f"uploads/{source.id}", house.now)
        await house.uploads.create(owned_key("alice", source.id), source)
        await store(house, source.object_key, body)
        sources.append(source.id)
    return sources


async def whole_of(house: House, sources: list[str]) -> str:
    """The key of an upload that is to be made of them."""
    wanted = NewWhole(sources, "a.mp4", "video/mp4")
    made = replace(new_whole("alice", wanted, now=house.now, expiry=timedelta(hours=1)), size=len(BODY))
    key = owned_key("alice", made.id)
    await house.uploads.create(key, replace(made, chunk_size=40))
    return key


async def cut_off_whole(house: House) -> tuple[str, list[str]]:
    """An upload made of two partial ones, killed while their files were put into it."""
    sources = await two_partials(house)
    key = await whole_of(house, sources)
    made = await house.record(key)

    async def admit(reached: int) -> Grid:
        return made.grid

    async def count() -> None:
        """Lets the bytes count."""

    async def pieces() -> AsyncIterator[bytes]:
        yield BODY[:50]

    await house.parts.append_tail(key, made.grid, admit, pieces(), count)
    return key, sources


async def test_the_sweep_finishes_a_cut_off_concatenation_where_it_was(house: House) -> None:
    key, sources = await cut_off_whole(house)
    await house.sweep.run()
    done = await house.record(key)
    assert (done.state, done.sha256) == (UploadState.COMPLETED, DIGEST)
    for id_ in sources:
        assert await house.state(owned_key("alice", id_)) is UploadState.CANCELLED
        with pytest.raises(NotFound):
            await house.objects.stat(f"uploads/{id_}")


async def test_a_concatenation_whose_source_is_gone_fails_instead_of_hanging(house: House) -> None:
    key, sources = await cut_off_whole(house)
    await house.objects.delete(f"uploads/{sources[1]}")
    await house.sweep.run()
    lost = await house.record(key)
    assert (lost.state, lost.error_type) == (UploadState.FAILED, DATA_LOST)
    assert [s async for s in house.parts.list_uploads()] == []


def hold_reads(house: House, monkeypatch: pytest.MonkeyPatch, key: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Holds whoever reads this file next. The first event: somebody is there; the second lets him go on."""
    there, go_on, read = asyncio.Event(), asyncio.Event(), house.objects.read

    async def slowly(asked: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        if asked == key and not there.is_set():
            there.set()
            await go_on.wait()
        async for piece in read(asked, start, end):
            yield piece

    monkeypatch.setattr(house.objects, "read", slowly)
    return there, go_on


async def test_partial_uploads_do_not_expire_while_a_file_is_made_of_them(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = await two_partials(house)
    house.now += timedelta(minutes=59)
    key = await whole_of(house, sources)
    there, go_on = hold_reads(house, monkeypatch, f"uploads/{sources[1]}")
    made = asyncio.create_task(house.assembly.finish(key))
    await there.wait()
    house.now += timedelta(minutes=2)
    sweep = asyncio.create_task(house.sweep.run())  # comes to the file last, and waits for it
    await asyncio.wait([sweep], timeout=0.2)
    for id_ in sources:
        assert await house.state(owned_key("alice", id_)) is UploadState.COMPLETED
    go_on.set()
    await asyncio.gather(made, sweep)
    done = await house.record(key)
    assert (done.state, done.sha256) == (UploadState.COMPLETED, DIGEST)
    assert await objects(house) == {done.object_key}


async def test_two_files_may_be_made_of_the_same_partial_uploads_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = await two_partials(house)
    keys = [await whole_of(house, sources) for _ in range(2)]
    there, go_on = hold_reads(house, monkeypatch, f"uploads/{sources[1]}")
    slow = asyncio.create_task(house.assembly.finish(keys[0]))
    await there.wait()
    await house.assembly.finish(keys[1])
    assert await house.state(owned_key("alice", sources[0])) is UploadState.COMPLETED
    go_on.set()
    await slow
    files = set()
    for key in keys:
        done = await house.record(key)
        assert (done.state, done.sha256) == (UploadState.COMPLETED, DIGEST)
        files.add(done.object_key)
    assert await objects(house) == files  # the partial uploads went with the last


async def test_a_partial_upload_that_is_given_up_fails_the_file_with_a_reason_to_send_it_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = await two_partials(house)
    key = await whole_of(house, sources)
    there, go_on = hold_reads(house, monkeypatch, f"uploads/{sources[1]}")
    with serving(CallContext(Principal("alice"))):
        made = asyncio.create_task(house.service.complete(key.rpartition(".")[2], ""))
        await there.wait()
        await house.service.cancel(sources[1])
        go_on.set()
        with pytest.raises(FailedPrecondition, match=f"partial upload {sources[1]} is gone") as refusal:
            await made
    assert refusal.value.reason == Reason.PARTIAL_NOT_USABLE
    assert (await house.record(key)).error_type == PARTIAL_GONE
    assert await house.state(owned_key("alice", sources[0])) is UploadState.COMPLETED


class Crossing(MemoryStateStore[Upload]):
    """A store in which something happens right after one record was read."""

    key = ""
    meanwhile: Callable[[], Awaitable[object]]

    async def get(self, key: str) -> Entry[Upload] | None:
        entry = await super().get(key)
        if key == self.key:
            self.key = ""
            await self.meanwhile()
        return entry


async def test_a_sweep_or_a_release_that_a_new_file_overtakes_leaves_it_its_partial_uploads(
    tmp_path: Path,
) -> None:
    crossing = Crossing()
    house = House(tmp_path, crossing)
    sources = await two_partials(house)
    until = house.now + timedelta(hours=2)

    async def hold() -> None:
        for id_ in sources:
            await mutate(house.uploads, owned_key("alice", id_), lambda u: u.hold(until, u.updated_at))

    crossing.meanwhile = hold
    gathering = Gathering(
        house.uploads, house.index, house.parts, house.objects, ttl=house.assembly.ttl, clock=house.clock
    )
    wanted = NewWhole(sources, "a.mp4", "video/mp4")
    crossing.key = owned_key("alice", sources[1])
    await gathering.release(new_whole("alice", wanted, now=house.now, expiry=timedelta(hours=1)))
    house.now += timedelta(hours=3)
    until = house.now + timedelta(hours=2)
    crossing.key = owned_key("alice", sources[0])
    await house.sweep.run()
    for id_ in sources:
        assert await house.state(owned_key("alice", id_)) is UploadState.COMPLETED
        assert f"uploads/{id_}" in await objects(house)


class Rival(MemoryStateStore[Upload]):
    """A store in which somebody else takes one key just before it is created."""

    taken = ""

    async def create(self, key: str, value: Upload, *, ttl: float | None = None) -> Entry[Upload]:
        if key == self.taken:
            other = new_upload(
                "alice", NewFile("other", 1, "video/mp4"), now=value.created_at, expiry=timedelta(hours=1)
            )
            await super().create(key, other)
        return await super().create(key, value, ttl=ttl)


@pytest.mark.usefixtures("as_service")
async def test_a_batch_that_loses_one_id_to_a_rival_takes_the_others_back(tmp_path: Path) -> None:
    house = House(tmp_path, rivals := Rival())
    clips = [NewClip(str(uuid.uuid4()), "a.mp4", 100, "video/mp4") for _ in range(3)]
    rivals.taken = owned_key("alice", clips[1].id)
    with pytest.raises(AlreadyExists):
        await house.service.initiate_batch("alice", str(uuid.uuid4()), clips)
    for index in (0, 2):
        with pytest.raises(NotFound):
            await house.service.get(clips[index].id, "alice")


class ReopeningScanner(SteeredScanner):
    """While it scans, another replica opens the upload again."""

    def __init__(self, uploads: MemoryStateStore[Upload], found: str) -> None:
        self.uploads, self.found, self.key = uploads, found, ""

    async def scan(self, pieces: AsyncIterator[bytes]) -> str:
        await mutate(self.uploads, self.key, lambda u: u.reopen(u.updated_at, DIGEST))
        return await super().scan(pieces)


@pytest.mark.parametrize("found", ["", "Test.Virus"])
async def test_an_upload_that_another_replica_opened_again_keeps_its_parts(tmp_path: Path, found: str) -> None:
    scanner = ReopeningScanner(MemoryStateStore[Upload](), found)
    house = House(tmp_path, scanner.uploads, scanner)
    scanner.key = await house.cut_off()
    await house.sweep.run()
    reopened = await house.record(scanner.key)
    assert reopened.state is UploadState.OPEN
    assert len((await house.parts.list_parts(scanner.key, reopened.grid)).parts) == 1


class NewerProcess(MemoryStateStore[Upload]):
    """A store in which one record is one that this process cannot read."""

    newer = ""

    async def get(self, key: str) -> Entry[Upload] | None:
        if key == self.newer:
            raise ValueError("no UploadRecord")
        return await super().get(key)


async def test_the_file_of_a_record_that_cannot_be_read_stays(tmp_path: Path) -> None:
    store = NewerProcess()
    house = House(tmp_path, store)
    key = await house.cut_off()
    await house.cut_off()
    await house.assembly.finish(key)
    store.newer = key
    for _ in range(3):
        house.now += timedelta(hours=2)
        await house.sweep.run()
    assert f"uploads/{key}" in await objects(house)
