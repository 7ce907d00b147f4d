"""What is looked at when most uploads are over, and that a kill between two writes leaves nothing behind."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.adapters.memory import MemoryStateStore
from services.common.codec import RecordCodec
from services.common.context import CallContext, Principal, serving
from services.common.errors import AlreadyExists, Unavailable
from services.common.state import Entry, mutate, owned_key
from services.upload.config import UploadSettings
from services.upload.domain import Upload, UploadState
from services.upload.grid import Part
from services.upload.index import Noted
from services.upload.requests import NewFile, NewWhole, new_upload
from tests.unit.test_upload_sweep import BODY, DIGEST, House, objects, store
from twotruths.upload.v1 import record_pb2

MANY = 300
HOUR = timedelta(hours=1)
FILE = NewFile("a.mp4", len(BODY), "video/mp4", chunk_size=len(BODY), sha256=DIGEST)


class Counted(MemoryStateStore[Upload]):
    """Counts the records that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: Counter[str] = Counter()

    async def get(self, key: str) -> Entry[Upload] | None:
        self.read[key] += 1
        return await super().get(key)

    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[Upload], None]:
        async for entry in super().list(prefix):
            self.read[entry.key] += 1
            yield entry


class Entries(MemoryStateStore[Noted]):
    """An index that can be away, and counts what is read of its lists."""

    away = False
    listed = 0

    async def get(self, key: str) -> Entry[Noted] | None:
        if self.away:
            raise Unavailable("away")
        return await super().get(key)

    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[Noted], None]:
        async for entry in super().list(prefix):
            self.listed += 1
            yield entry

    async def keys(self) -> set[str]:
        return {entry.key async for entry in super().list()}


@pytest.fixture
def entries() -> Entries:
    return Entries()


@pytest.fixture
def records() -> Counted:
    return Counted()


@pytest.fixture
def house(tmp_path: Path, records: Counted, entries: Entries) -> House:
    return House(tmp_path, records, index=entries, at_once=10)


@pytest.fixture(autouse=True)
def alice() -> Iterator[None]:
    with serving(CallContext(Principal("alice"))):
        yield


async def completed(house: House) -> str:
    """The record key of an upload of alice's that was completed."""
    upload = new_upload("alice", FILE, now=house.now, expiry=HOUR)
    key = owned_key("alice", upload.id)
    await house.uploads.create(key, upload)
    part = Part(0, len(BODY), DIGEST)
    await mutate(house.uploads, key, lambda u: u.begin_assembly((part,), "", house.now))
    await mutate(
        house.uploads, key, lambda u: replace(u, state=UploadState.COMPLETED, object_key=f"uploads/{key}")
    )
    return key


async def test_what_is_completed_is_read_by_no_sweep_list_or_search(
    house: House, records: Counted, entries: Entries
) -> None:
    for _ in range(MANY):
        await completed(house)
    open_ids = {(await house.service.initiate(replace(FILE, sha256="")))[0].upload.id for _ in range(5)}
    assert len(await entries.keys()) == 5
    records.read.clear()
    await house.sweep.run()
    assert records.read.total() == 0
    assert entries.listed == 1  # the first is not due, so the others are not either
    views, _ = await house.service.list_open(0, "")
    assert {view.upload.id for view in views} == open_ids
    assert records.read.total() == 5
    records.read.clear()
    made, _ = await house.service.initiate(FILE)
    assert made.upload.id not in open_ids
    assert set(records.read) == {owned_key("alice", made.upload.id)}


async def test_a_page_of_open_uploads_reads_no_more_than_the_page(house: House, records: Counted) -> None:
    for _ in range(50):
        await house.service.initiate(replace(FILE, sha256=""))
    records.read.clear()
    views, token = await house.service.list_open(3, "")
    assert (len(views), bool(token), records.read.total()) == (3, True, 4)


async def test_a_sweep_looks_at_a_bounded_number_of_files_and_goes_on_where_it_stopped(
    house: House, records: Counted
) -> None:
    for _ in range(25):
        await store(house, f"uploads/{await completed(house)}")
    orphan = f"uploads/{owned_key('alice', str(uuid.uuid4()))}"
    await store(house, orphan)
    seen: Counter[str] = Counter()
    for _ in range(3):
        records.read.clear()
        await house.sweep.run()
        assert records.read.total() <= 10
        seen += records.read
    assert (len(seen), set(seen.values())) == (26, {1})
    removed = 0
    for _ in range(6):
        house.now += timedelta(minutes=30)
        removed += (await house.sweep.run()).objects
    assert removed == 1
    assert len(await objects(house)) == 25
    assert orphan not in await objects(house)


async def test_a_sweep_looks_at_a_bounded_number_of_uploads_with_parts(house: House, records: Counted) -> None:
    for _ in range(25):
        upload = (await house.service.initiate(replace(FILE, sha256="")))[0].upload
        await house.put(owned_key("alice", upload.id), upload)
    seen: Counter[str] = Counter()
    for _ in range(3):
        records.read.clear()
        await house.sweep.run()
        seen += records.read
    assert (len(seen), set(seen.values())) == (25, {1})


async def test_an_upload_that_was_announced_and_never_made_is_forgotten(house: House, entries: Entries) -> None:
    upload = new_upload("alice", FILE, now=house.now, expiry=HOUR)
    await house.index.enter(owned_key("alice", upload.id), upload)  # and then a kill
    assert (await house.service.list_open(0, ""))[0] == []
    assert (await house.service.initiate(FILE))[0].upload.id != upload.id
    house.now += HOUR
    await house.sweep.run()
    assert not any(upload.id in key for key in await entries.keys())


async def test_an_entry_that_a_kill_left_of_an_ended_upload_goes(house: House, entries: Entries) -> None:
    ended = await completed(house)
    upload = (await house.uploads.get(ended)).value  # type: ignore[union-attr]  # it is there
    await house.index.enter(ended, replace(upload, state=UploadState.ASSEMBLING))  # as if never removed
    await house.sweep.run()
    assert await entries.keys() == set()


async def test_an_upload_ends_while_the_index_is_away_and_the_sweep_comes_by(
    house: House, entries: Entries
) -> None:
    key = await house.cut_off()
    assert await entries.keys() == {f"open.{key}", f"assembling.{key}"}
    entries.away = True
    await house.assembly.finish(key)
    assert await house.state(key) is UploadState.COMPLETED
    entries.away = False
    await house.sweep.run()
    assert await entries.keys() == set()


async def test_an_upload_that_was_announced_as_assembling_and_is_not_stays_open(
    house: House, entries: Entries
) -> None:
    view, _ = await house.service.initiate(FILE)
    key = owned_key("alice", view.upload.id)
    await house.index.mark(key, view.upload)  # and then a kill, or a complete call that is under way
    await house.sweep.run()
    assert await entries.keys() == {f"open.{key}", f"assembling.{key}"}
    house.now += timedelta(minutes=11)
    await house.sweep.run()
    assert await entries.keys() == {f"open.{key}"}
    assert await house.state(key) is UploadState.OPEN


async def test_an_entry_that_is_early_waits_for_the_upload(house: House, entries: Entries) -> None:
    view, _ = await house.service.initiate(FILE)  # for a day
    key = owned_key("alice", view.upload.id)
    await house.index.enter(key, replace(view.upload, expires_at=house.now + HOUR))  # from a call that was cut off
    for hours, state in ((2, UploadState.OPEN), (23, UploadState.EXPIRED)):
        house.now += timedelta(hours=hours)
        await house.sweep.run()
        assert await house.state(key) is state
    assert await entries.keys() == set()


async def test_a_partial_upload_is_looked_at_until_it_expires(house: House, entries: Entries) -> None:
    view, _ = await house.service.initiate(replace(FILE, partial=True))
    key = owned_key("alice", view.upload.id)
    await house.put(key, view.upload)
    await house.service.complete(view.upload.id, "")
    assert await entries.keys() == {f"open.{key}"}
    house.now += timedelta(days=2)
    await house.sweep.run()
    assert await house.state(key) is UploadState.EXPIRED
    assert await objects(house) == set()
    assert await entries.keys() == set()


async def test_a_request_that_was_answered_with_an_open_upload_is_answered_so_again(house: House) -> None:
    first, _ = await house.service.initiate(replace(FILE, request_id="one"))
    asked = replace(FILE, request_id="two", chunk_size=50)
    assert (await house.service.initiate(asked))[0] == first
    await house.service.cancel(first.upload.id)
    other, _ = await house.service.initiate(FILE)
    assert other.upload.id != first.upload.id
    assert (await house.service.initiate(asked))[0].upload.id == first.upload.id
    assert (await house.service.initiate(replace(FILE, request_id="one")))[0].upload.id == first.upload.id
    for changed in (replace(asked, chunk_size=60), replace(asked, filename="b.mp4"), replace(asked, sha256="")):
        with pytest.raises(AlreadyExists) as refusal:
            await house.service.initiate(changed)
        assert refusal.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(AlreadyExists):
        await house.service.concat(NewWhole([first.upload.id] * 2, "a.mp4", "video/mp4", request_id="two"))


async def test_of_two_requests_under_one_name_the_later_gets_the_answer_of_the_earlier(house: House) -> None:
    first, _ = await house.service.initiate(FILE)
    asked = new_upload("alice", replace(FILE, request_id="two"), now=house.now, expiry=HOUR)
    assert await house.records.answer(asked, first.upload) == first.upload
    rival = replace(first.upload, id=str(uuid.uuid4()))
    assert await house.records.answer(asked, rival) == first.upload


def test_the_grace_of_orphans_is_longer_than_any_file_takes_to_its_record() -> None:
    with pytest.raises(ValidationError):
        UploadSettings(upload_orphan_grace_seconds=3599)


def test_an_entry_is_kept_whole() -> None:
    codec = RecordCodec(Noted, record_pb2.UploadIndexRecord)
    now = datetime(2026, 5, 1, tzinfo=UTC)
    noted = Noted("a", now, now + HOUR, DIGEST, "f")
    assert codec.decode(codec.encode(noted)) == noted
