from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from services.challenge import controller
from services.challenge.adapters.memory import MemoryChallengeStore, MemoryGuessLedger
from services.challenge.domain import Draft, Reason, Segment, Statement, Status, Video
from services.challenge.service import ChallengeService
from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable

VIDEO = Video(str(uuid.UUID(int=1)), "alice", 2.0, (Segment(0, 0, 1, 1), Segment(1, 1, 2, 1)), True)
DRAFT = Draft("Title", (Statement(), Statement()), 1, True, VIDEO.id, 2.0, VIDEO.segments, request_id="r1")


@dataclass
class FakeVideos:
    """Videos that may be away, or go."""

    videos: dict[str, Video] = field(default_factory=lambda: {VIDEO.id: VIDEO})
    public: set[str] = field(default_factory=set)
    away: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, video_id: str) -> Video | None:
        self._answer()
        return self.videos.get(video_id)

    async def make_public(self, video_id: str, owner: str) -> None:
        self._answer()
        if video_id not in self.videos or self.videos[video_id].owner != owner:
            raise NotFound("no such video")
        self.public.add(video_id)

    def _answer(self) -> None:
        self.asked.set()
        if self.away:
            raise Unavailable("merge is away")


class House:
    """A service in memory whose clock ticks a second at each look."""

    def __init__(self) -> None:
        self.videos = FakeVideos()
        self.store = MemoryChallengeStore()
        self.now = datetime(2026, 5, 6, tzinfo=UTC)
        ledger = MemoryGuessLedger(self.store)
        self.service = ChallengeService(self.store, ledger, self.videos, clock=self.tick)

    def tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    async def status(self, challenge_id: str) -> Status:
        challenge = await self.store.get(challenge_id)
        assert challenge is not None
        return challenge.status


@pytest.fixture
def house() -> House:
    return House()


async def test_a_request_sent_again_gives_the_same_challenge_even_if_merge_is_away(house: House) -> None:
    first = await house.service.create("alice", DRAFT)
    house.videos.away = True
    assert await house.service.create("alice", DRAFT) == first


async def test_requests_sent_at_once_make_one_challenge(house: House) -> None:
    made = await asyncio.gather(*(house.service.create("alice", DRAFT) for _ in range(5)))
    assert all(shown == made[0] for shown in made)


@pytest.mark.parametrize(
    "changed",
    [
        replace(DRAFT, title="Other"),
        replace(DRAFT, lie_statement_index=0),
        replace(DRAFT, video_id=str(uuid.UUID(int=9))),
        replace(DRAFT, total_duration=3.0),
    ],
)
async def test_a_request_id_cannot_stand_for_two_requests(house: House, changed: Draft) -> None:
    first = await house.service.create("alice", DRAFT)
    with pytest.raises(AlreadyExists) as refused:
        await house.service.create("alice", changed)
    assert refused.value.reason == Reason.REQUEST_ID_REUSED
    assert await house.service.get("alice", first.challenge.id) == first


async def test_a_video_has_one_live_challenge(house: House) -> None:
    await house.service.create("alice", DRAFT)
    for request_id in ("", "r2"):
        with pytest.raises(AlreadyExists) as refused:
            await house.service.create("alice", replace(DRAFT, request_id=request_id))
        assert refused.value.reason == Reason.VIDEO_IN_USE


async def test_a_foreign_video_is_as_absent_as_none(house: House) -> None:
    refusals = []
    for player, video_id in (("bob", VIDEO.id), ("alice", str(uuid.UUID(int=7)))):
        with pytest.raises(NotFound) as refused:
            await house.service.create(player, replace(DRAFT, video_id=video_id))
        refusals.append((refused.value.message, refused.value.reason, refused.value.violations))
    assert refusals[0] == refusals[1]
    assert refusals[0][1] == Reason.VIDEO_NOT_USABLE


async def test_a_draft_that_does_not_fit_stores_nothing(house: House) -> None:
    with pytest.raises(InvalidArgument):
        await house.service.create("alice", replace(DRAFT, total_duration=3.0))
    await house.service.create("alice", DRAFT)


async def test_publishing_is_finished_by_the_sweep_when_merge_was_away(house: House) -> None:
    id_ = (await house.service.create("alice", DRAFT)).challenge.id
    house.videos.away = True
    with pytest.raises(Unavailable):
        await house.service.publish("alice", id_)
    await house.service.finish_publishing()
    assert await house.status(id_) is Status.PUBLISHING
    with pytest.raises(NotFound):
        await house.service.get("bob", id_)
    house.videos.away = False
    await house.service.finish_publishing()
    assert house.videos.public == {VIDEO.id}
    assert (await house.service.get("bob", id_)).challenge.status is Status.PUBLISHED


async def test_a_challenge_is_published_only_once_its_video_is_public(house: House) -> None:
    id_ = (await house.service.create("alice", DRAFT)).challenge.id
    seen: list[Status] = []

    async def make_public(video_id: str, owner: str) -> None:
        seen.append(await house.status(id_))

    house.videos.make_public = make_public  # type: ignore[method-assign]  # looks from inside the call
    await house.service.publish("alice", id_)
    assert seen == [Status.PUBLISHING]
    assert await house.status(id_) is Status.PUBLISHED


async def test_publishing_again_changes_nothing(house: House) -> None:
    id_ = (await house.service.create("alice", DRAFT)).challenge.id
    once, twice = await asyncio.gather(*(house.service.publish("alice", id_) for _ in range(2)))
    house.videos.away = True
    assert await house.service.publish("alice", id_) == once == twice
    assert once.challenge.published_at is not None


async def test_a_challenge_whose_video_is_gone_is_a_draft_again(house: House) -> None:
    id_ = (await house.service.create("alice", DRAFT)).challenge.id
    house.videos.videos.clear()
    with pytest.raises(FailedPrecondition) as refused:
        await house.service.publish("alice", id_)
    assert refused.value.reason == Reason.VIDEO_NOT_USABLE
    assert await house.status(id_) is Status.DRAFT


async def test_a_withdrawn_challenge_cannot_be_published(house: House) -> None:
    id_ = (await house.service.create("alice", DRAFT)).challenge.id
    await house.store.move(id_, Status.DRAFT, Status.WITHDRAWN, house.now)
    with pytest.raises(FailedPrecondition):
        await house.service.publish("alice", id_)


async def test_the_sweep_goes_on_after_a_failure(house: House) -> None:
    id_ = (await house.service.create("alice", DRAFT)).challenge.id
    await house.store.move(id_, Status.DRAFT, Status.PUBLISHING, house.now)
    house.videos.asked.clear()
    house.videos.away = True
    sweep = asyncio.create_task(controller.reconcile(house.service, every=0.001))
    await house.videos.asked.wait()
    house.videos.away = False
    async with asyncio.timeout(5):
        while await house.status(id_) is not Status.PUBLISHED:
            house.videos.asked.clear()
            await house.videos.asked.wait()
            await asyncio.sleep(0)
    sweep.cancel()
    await asyncio.gather(sweep, return_exceptions=True)
    assert sweep.cancelled()
