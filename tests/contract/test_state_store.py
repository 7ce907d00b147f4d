"""What every state store holds to: the in-memory twin, the one on JetStream, and that with a memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from nats.aio.client import Client

from services.common.adapters import jetstream_pages
from services.common.adapters.jetstream import connect
from services.common.adapters.jetstream_changes import JetStreamChangeFeed
from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.adapters.memory import MemoryStateStore
from services.common.changes import ChangeFeed
from services.common.state import RevisionConflict, StateStore, mutate, owned_key, owner_prefix
from services.upload.adapters.sole_writer import SoleWriter
from tests.conftest import NatsServer
from tests.contract.no_leader import without_leader


@dataclass(frozen=True)
class Note:
    text: str


class NoteCodec:
    def encode(self, value: Note) -> bytes:
        return b"note:" + value.text.encode()  # a record is never empty

    def decode(self, data: bytes) -> Note:
        if not data.startswith(b"note:"):
            raise ValueError("no note")
        return Note(data.decode().removeprefix("note:"))


@dataclass
class Subject:
    store: StateStore[Note]
    feed: ChangeFeed[Note]


@pytest.fixture(params=["memory", "jetstream", "sole writer"])
async def subject(request: pytest.FixtureRequest, nats_client: Client) -> AsyncIterator[Subject]:
    if request.param == "memory":
        memory: MemoryStateStore[Note] = MemoryStateStore()
        yield Subject(memory, memory.feed())
        return
    store = JetStreamStateStore(nats_client, "notes", NoteCodec())
    await store.ensure()
    feed = JetStreamChangeFeed(nats_client, "notes", "reader", NoteCodec())
    await feed.ensure()
    sole = SoleWriter(store, lambda note: note.text not in {"brief", "clock"})
    yield Subject(sole if request.param == "sole writer" else store, feed)
    await feed.close()


async def test_a_record_is_read_back_at_its_revision(subject: Subject) -> None:
    assert await subject.store.get("a.1") is None
    created = await subject.store.create("a.1", Note("one"))
    assert await subject.store.get("a.1") == created
    updated = await subject.store.update("a.1", Note("two"), created.revision)
    assert updated.revision > created.revision
    assert await subject.store.get("a.1") == updated


async def test_a_write_computed_from_an_old_revision_is_refused(subject: Subject) -> None:
    created = await subject.store.create("a.1", Note("one"))
    await subject.store.update("a.1", Note("two"), created.revision)
    with pytest.raises(RevisionConflict):
        await subject.store.update("a.1", Note("lost"), created.revision)
    with pytest.raises(RevisionConflict):
        await subject.store.create("a.1", Note("lost"))
    with pytest.raises(RevisionConflict):
        await subject.store.delete("a.1", created.revision)
    entry = await subject.store.get("a.1")
    assert entry is not None
    assert entry.value == Note("two")


async def test_a_deleted_key_is_absent_and_can_be_created_again(subject: Subject) -> None:
    created = await subject.store.create("a.1", Note("one"))
    await subject.store.delete("a.1", created.revision)
    assert await subject.store.get("a.1") is None
    assert [e async for e in subject.store.list()] == []
    again = await subject.store.create("a.1", Note("again"))
    assert await subject.store.get("a.1") == again


async def test_an_expired_record_is_absent_and_can_be_created_again(subject: Subject) -> None:
    await subject.store.create("a.1", Note("brief"), ttl=1)
    async with asyncio.timeout(10):
        while await subject.store.get("a.1") is not None:
            await asyncio.sleep(0.05)  # only time makes a TTL pass
    await subject.store.create("a.1", Note("again"))


async def test_a_write_without_ttl_makes_a_record_stay(subject: Subject) -> None:
    created = await subject.store.create("a.1", Note("brief"), ttl=1)
    kept = await subject.store.update("a.1", Note("kept"), created.revision)
    await subject.store.create("b.1", Note("clock"), ttl=2)
    async with asyncio.timeout(10):
        while await subject.store.get("b.1") is not None:
            await asyncio.sleep(0.05)  # the other key's expiry says that enough time has passed
    assert await subject.store.get("a.1") == kept


async def test_list_gives_the_records_of_one_owner(subject: Subject) -> None:
    for owner in ("alice", "bob"):
        for n in range(3):
            await subject.store.create(owned_key(owner, str(n)), Note(f"{owner}{n}"))
    alice = {e.value.text async for e in subject.store.list(owner_prefix("alice"))}
    assert alice == {"alice0", "alice1", "alice2"}
    assert len([e async for e in subject.store.list()]) == 6
    assert [e async for e in subject.store.list(owner_prefix("carol"))] == []


async def test_a_list_has_what_the_replica_that_answers_has_not_heard_of(
    own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await connect(own_nats_server.url, "test")
    await (store := JetStreamStateStore(client, "notes", NoteCodec())).ensure()
    one = await store.create("a.1", Note("old"))
    await store.create("a.2", Note("2"))
    page, known = jetstream_pages._page, one.revision + 1

    async def lagging(*arguments: Any) -> tuple[Sequence[jetstream_pages.Stored], int]:
        messages, start = await page(*arguments)
        return [message for message in messages if message.sequence <= known], start

    monkeypatch.setattr(jetstream_pages, "_page", lagging)
    of_a_cluster = JetStreamStateStore(client, "notes", NoteCodec(), replicas=3)
    assert [e.value.text async for e in of_a_cluster.list("a")] == ["old", "2"]
    await store.update("a.1", Note("new"), one.revision)
    await store.create("a.3", Note("3"))
    assert [e.value.text async for e in of_a_cluster.list("a")] == ["2", "new", "3"]
    assert [e.value.text async for e in of_a_cluster.list()][-2:] == ["new", "3"]
    await client.close()


async def test_list_gives_first_what_was_written_longest_ago(subject: Subject) -> None:
    first, second = [await subject.store.create(f"a.{n}", Note(str(n))) for n in range(2)]
    await subject.store.create("a.2", Note("2"))
    await subject.store.update("a.0", Note("again"), first.revision)
    await subject.store.delete("a.1", second.revision)
    await subject.store.create("a.1", Note("anew"))
    assert [e.key async for e in subject.store.list("a")] == ["a.2", "a.0", "a.1"]


async def test_list_gives_every_record_of_a_large_bucket_once(subject: Subject) -> None:
    created = [await subject.store.create(f"many.{n}", Note(str(n))) for n in range(600)]
    await subject.store.delete("many.7", created[7].revision)
    await subject.store.create("other.1", Note("other"))
    listed = [e.value.text async for e in subject.store.list("many")]
    assert sorted(listed, key=int) == [str(n) for n in range(600) if n != 7]


async def test_mutate_loses_no_write_of_many_at_once(subject: Subject) -> None:
    await subject.store.create("a.1", Note(""))
    await asyncio.gather(
        *(
            mutate(subject.store, "a.1", lambda note, n=n: replace(note, text=note.text + str(n)))  # type: ignore[misc]  # default binds n
            for n in range(8)
        )
    )
    entry = await subject.store.get("a.1")
    assert entry is not None
    assert sorted(entry.value.text) == list("01234567")


async def test_mutate_writes_nothing_when_nothing_changes(subject: Subject) -> None:
    created = await subject.store.create("a.1", Note("one"))
    assert await mutate(subject.store, "a.1", lambda note: note) == created
    assert await mutate(subject.store, "a.2", lambda note: note) is None


async def test_the_feed_tells_of_each_changed_key_at_least_once_with_its_last_value(subject: Subject) -> None:
    created = await subject.store.create("a.1", Note("one"))
    await subject.store.update("a.1", Note("two"), created.revision)
    await subject.store.create("b.1", Note("other"))
    seen: dict[str, Note | None] = {}
    while set(seen) != {"a.1", "b.1"} or seen["a.1"] != Note("two"):
        change = await subject.feed.next(5)
        assert change is not None, seen
        seen[change.key] = change.value
        await change.ack()
    assert await subject.feed.next(0.2) is None


async def test_a_change_that_is_put_off_comes_again(subject: Subject) -> None:
    await subject.store.create("a.1", Note("one"))
    first = await subject.feed.next(5)
    assert first is not None
    await first.retry(0.05)
    second = await subject.feed.next(5)
    assert second is not None
    assert (second.key, second.value) == ("a.1", Note("one"))


async def test_a_record_that_cannot_be_read_hides_no_other_and_stops_nobody(nats_client: Client) -> None:
    store = JetStreamStateStore(nats_client, "notes", NoteCodec())
    await store.ensure()
    await nats_client.jetstream().publish("$KV.notes.a.new", b"of a newer process")
    created = await store.create("a.1", Note("one"))
    assert [entry async for entry in store.list()] == [created]
    feed = JetStreamChangeFeed(nats_client, "notes", "reader", NoteCodec())
    await feed.ensure()
    changes = [await feed.next(5), await feed.next(5)]
    assert {(c.key, c.value) for c in changes if c} == {("a.new", None), ("a.1", Note("one"))}
    await feed.close()


async def test_a_closed_feed_leaves_no_pull_behind(nats_client: Client) -> None:
    await JetStreamStateStore(nats_client, "notes", NoteCodec()).ensure()
    feed = JetStreamChangeFeed(nats_client, "notes", "reader", NoteCodec())
    await feed.ensure()
    waiting = asyncio.create_task(feed.next(30))
    async with asyncio.timeout(10):
        while feed._pull is None:
            await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    await feed.close()
    assert feed._pull.done()


async def test_a_write_waits_for_a_leader_to_be_elected(
    nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JetStreamStateStore(nats_client, "notes", NoteCodec())
    await store.ensure()
    without_leader(monkeypatch, store._js)
    assert await store.create("a.1", Note("one")) == await store.get("a.1")


async def test_writes_survive_a_killed_broker_and_are_done_once(own_nats_server: NatsServer) -> None:
    client = await connect(own_nats_server.url, "test")
    try:
        store = JetStreamStateStore(client, "notes", NoteCodec())
        await store.ensure()
        await store.create("a.1", Note(""))
        own_nats_server.kill()
        write = asyncio.create_task(mutate(store, "a.1", lambda note: Note(note.text + "x")))
        await asyncio.to_thread(own_nats_server.start)
        entry = await write
        assert entry is not None
        assert entry == await store.get("a.1")
        assert entry.value == Note("x")
    finally:
        await client.close()
