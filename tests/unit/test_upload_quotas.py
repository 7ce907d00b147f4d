"""What a player may use, and that replays, races, crashes and ended uploads cost nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.codec import RecordCodec
from services.common.errors import ResourceExhausted
from services.common.state import owned_key, owner_prefix
from services.upload.domain import Upload
from services.upload.limits import Limits
from services.upload.quotas import Quotas, Usage
from services.upload.reasons import Reason
from services.upload.requests import NewFile, new_upload
from twotruths.upload.v1 import record_pb2

HOUR = timedelta(hours=1)


class World:
    """Two replicas on one store, at a time that the test sets."""

    def __init__(self, limits: Limits) -> None:
        self.now = datetime(2026, 5, 1, 23, 0, 5, tzinfo=UTC)
        self.uploads = MemoryStateStore[Upload]()
        self.usages = MemoryStateStore[Usage]()
        self.one, self.other = (
            Quotas(self.usages, self.uploads, limits=limits, ttl=86_400, clock=lambda: self.now) for _ in range(2)
        )

    async def refused(self, owner: str, sizes: dict[str, int]) -> ResourceExhausted:
        with pytest.raises(ResourceExhausted) as refusal:
            await self.other.reserve(owner, sizes)
        return refusal.value

    async def record(self, id_: str) -> Upload:
        """Writes the record of an upload that lives for an hour."""
        upload = replace(new_upload("alice", NewFile("a", 1, "video/mp4"), now=self.now, expiry=HOUR), id=id_)
        await self.uploads.create(owned_key("alice", id_), upload)
        return upload


async def test_initiates_of_a_minute_are_counted_over_all_replicas_and_for_each_player_alone() -> None:
    world = World(Limits(max_initiates_per_minute=3))
    await world.one.reserve("alice", {"a": 1, "b": 1})
    await world.other.reserve("alice", {"c": 1})
    world.now += timedelta(seconds=20)
    refusal = await world.refused("alice", {"d": 1})
    assert (refusal.reason, refusal.retry_after) == (Reason.RATE_LIMITED, 40)
    assert refusal.metadata == {
        "ratelimit_limit": "3",
        "ratelimit_remaining": "0",
        "ratelimit_reset_seconds": "40",
        "ratelimit_policy": '"initiates";q=3;w=60',
    }
    await world.one.reserve("mallory", {"d": 1})
    world.now += timedelta(seconds=40)
    await world.one.reserve("alice", {"d": 1})


async def test_bytes_of_a_day_begin_anew_at_midnight() -> None:
    world = World(Limits(max_bytes_per_day=100))
    await world.one.reserve("alice", {"a": 90})
    refusal = await world.refused("alice", {"b": 11})
    assert (refusal.reason, refusal.metadata["ratelimit_remaining"]) == (Reason.QUOTA_BYTES_PER_DAY, "10")
    assert refusal.retry_after == timedelta(minutes=59, seconds=55).total_seconds()
    await world.one.reserve("alice", {"b": 10})
    world.now += HOUR
    await world.one.reserve("alice", {"c": 100})


async def test_who_is_let_through_is_told_what_is_left_of_the_rates() -> None:
    world = World(Limits(max_bytes_per_day=100, max_open_uploads=9, max_initiates_per_minute=3))
    await world.one.reserve("alice", {"a": 30})
    world.now += timedelta(seconds=20)
    left = await world.other.reserve("alice", {"b": 20})
    assert [(allowance.policy, allowance.state) for allowance in left] == [
        ('"initiates";q=3;w=60', '"initiates";r=1;t=40'),
        ('"bytes";q=100;w=86400;qu="content-bytes"', '"bytes";r=50;t=3575'),
    ]


async def test_the_same_upload_again_costs_nothing_and_one_that_grew_what_it_grew_by() -> None:
    world = World(Limits(max_bytes_per_day=100, max_open_uploads=1, max_initiates_per_minute=1))
    for _ in range(3):
        await world.one.reserve("alice", {"a": 0})
    await world.one.reserve("alice", {"a": 60})
    await world.other.reserve("alice", {"a": 60})
    assert (await world.refused("alice", {"a": 101})).reason == Reason.QUOTA_BYTES_PER_DAY
    await world.one.reserve("alice", {"a": 100})


async def test_an_upload_that_grows_costs_what_it_grew_by_and_is_not_initiated_again() -> None:
    for open_uploads in (0, 5):  # without the latter nothing is remembered of an upload after a minute
        world = World(Limits(max_bytes_per_day=100, max_open_uploads=open_uploads, max_initiates_per_minute=1))
        await world.one.reserve("alice", {"a": 0})
        await world.one.grow("alice", "a", 0, 40)
        await world.one.grow("alice", "a", 0, 40)
        world.now += timedelta(minutes=5)
        await world.other.grow("alice", "a", 40, 60)
        with pytest.raises(ResourceExhausted) as refusal:
            await world.other.grow("alice", "a", 60, 101)
        assert refusal.value.reason == Reason.QUOTA_BYTES_PER_DAY
        await world.other.grow("alice", "a", 60, 100)
        assert (await world.refused("alice", {"b": 1})).reason == Reason.QUOTA_BYTES_PER_DAY
        world.now += HOUR  # another day
        await world.other.grow("alice", "a", 100, 150)
        assert (await world.refused("alice", {"b": 51})).metadata["ratelimit_remaining"] == "50"


async def test_a_merge_session_gets_all_its_uploads_or_none() -> None:
    world = World(Limits(max_open_uploads=3, max_bytes_per_day=1000))
    await world.one.reserve("alice", {"a": 1})
    assert (await world.refused("alice", {"b": 1, "c": 1, "d": 1})).reason == Reason.QUOTA_OPEN_UPLOADS
    await world.one.reserve("alice", {"b": 1, "c": 1})


async def test_ended_uploads_and_those_that_were_never_made_do_not_count_as_open() -> None:
    world = World(Limits(max_open_uploads=3))
    await world.record("open")
    ended = await world.record("ended")
    await world.one.reserve("alice", {"open": 1, "ended": 1, "lost": 1})
    assert (await world.refused("alice", {"new": 1})).reason == Reason.QUOTA_OPEN_UPLOADS
    entry = await world.uploads.get(owned_key("alice", "ended"))
    assert entry is not None
    await world.uploads.update(entry.key, ended.cancel(world.now), entry.revision)
    await world.other.reserve("alice", {"new": 1})
    await world.record("new")
    assert await world.refused("alice", {"newer": 1})
    world.now += timedelta(minutes=2)  # "lost" has no record by now: its initiate was cut off
    await world.other.reserve("alice", {"newer": 1})
    assert await world.refused("alice", {"newest": 1})


async def test_initiates_at_once_on_two_replicas_never_exceed_a_quota() -> None:
    world = World(Limits(max_open_uploads=5))
    calls = ([world.one, world.other][n % 2].reserve("alice", {str(n): 1}) for n in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, tuple) for outcome in outcomes) == 5
    entry = await world.usages.get(owner_prefix("alice"))
    assert entry is not None
    assert len(entry.value.open) == 5


async def test_without_quotas_nothing_is_written_and_without_one_of_open_uploads_none_is_remembered_long() -> None:
    off, rated = World(Limits()), World(Limits(max_initiates_per_minute=10))
    await off.one.reserve("alice", {"a": 1})
    assert await off.usages.get(owner_prefix("alice")) is None
    for n in range(30):
        await rated.one.reserve("alice", {str(n): 1})
        rated.now += timedelta(seconds=20)
    entry = await rated.usages.get(owner_prefix("alice"))
    assert entry is not None
    assert len(entry.value.open) <= 4


def test_the_record_is_kept_whole() -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    codec = RecordCodec(Usage, record_pb2.QuotaRecord)
    used = Usage().reserve({"a": 5_000_000_000, "b": 1}, Limits(max_open_uploads=9), now)
    assert codec.decode(codec.encode(used)) == used
    assert codec.decode(codec.encode(Usage())) == Usage()
