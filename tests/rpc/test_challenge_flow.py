"""Challenges from draft to guess, over real servers and databases."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from services.common.errors import FailedPrecondition, NotFound, ServiceError, Unavailable
from services.common.keys import KeyRing
from tests.postgres import NewDatabase
from tests.rpc.challenge_fixtures import AWAY, House, Ticks, create_request, open_house
from twotruths.challenge.v1 import challenge_pb2
from twotruths.challenge.v1 import challenge_service_pb2 as pb
from twotruths.merge.v1 import video_pb2


@pytest.fixture
async def house(new_database: NewDatabase, keys: KeyRing) -> AsyncIterator[House]:
    async with open_house(await new_database(), keys, clock=Ticks()) as house:
        yield house


async def test_from_draft_to_guess(house: House) -> None:
    video = house.videos.add("alice")
    made = (await house.call("CreateChallenge", create_request(video, lie=1), "alice")).challenge
    assert made.status == challenge_pb2.CHALLENGE_STATUS_DRAFT
    assert (made.creator_id, made.title, made.is_merged_video) == ("alice", "Three things", True)
    assert list(made.merged_video_metadata.segments) == list(video.segments)
    assert made.merged_video_url == f"/api/v1/media/stream/{video.video_file_id}"
    assert [statement.duration_seconds for statement in made.statements] == [15.0, 12.5, 18.2]
    assert made.answer.lie_statement_index == 1
    get = pb.GetChallengeRequest(challenge_id=made.challenge_id)
    with pytest.raises(NotFound):
        await house.call("GetChallenge", get, "bob")

    publish = pb.PublishChallengeRequest(challenge_id=made.challenge_id)
    published = (await house.call("PublishChallenge", publish, "alice")).challenge
    assert published.status == challenge_pb2.CHALLENGE_STATUS_PUBLISHED
    assert house.videos.videos[video.video_file_id].visibility == video_pb2.VISIBILITY_PUBLIC

    seen = (await house.call("GetChallenge", get, "bob")).challenge
    assert not seen.HasField("answer")
    segments = await house.call("GetSegments", pb.GetSegmentsRequest(challenge_id=made.challenge_id), "bob")
    assert list(segments.segments) == list(video.segments)
    assert (segments.video_file_id, segments.total_duration) == (video.video_file_id, video.total_duration)
    stats = pb.GetStatsRequest(challenge_id=made.challenge_id)
    assert await house.call("GetStats", stats, "bob") == pb.GetStatsResponse(challenge_id=made.challenge_id)

    guess = await house.guess("bob", made.challenge_id, 1)
    assert (guess.correct, guess.points, guess.total_score, guess.answer.lie_statement_index) == (True, 10, 10, 1)
    opened = f"{made.challenge_id}:1:{guess.answer.salt}".encode()
    assert hashlib.sha256(opened).hexdigest() == made.commitment == seen.commitment
    assert await house.guess("bob", made.challenge_id, 1) == guess
    wrong = await house.guess("carol", made.challenge_id, 0)
    assert (wrong.correct, wrong.points, wrong.total_score, wrong.answer.lie_statement_index) == (False, 0, 0, 1)

    after = (await house.call("GetChallenge", get, "bob")).challenge
    assert after.answer == guess.answer
    full = pb.GetStatsResponse(
        challenge_id=made.challenge_id, total_guesses=2, correct_guesses=1, guesses_per_statement=[1, 1, 0]
    )
    for player in ("alice", "bob"):
        assert await house.call("GetStats", stats, player) == full
    outsider = pb.GetStatsResponse(challenge_id=made.challenge_id, total_guesses=2)
    assert await house.call("GetStats", stats, "dave") == outsider


async def test_the_feed_shows_published_challenges_newest_first_in_pages(house: House) -> None:
    made = [await house.published("alice", title=f"number {n}") for n in range(5)]
    await house.draft("alice")
    titles: list[str] = []
    request = pb.ListChallengesRequest(page_size=2)
    sizes = []
    while True:
        page = await house.call("ListChallenges", request, "bob")
        sizes.append(len(page.challenges))
        titles += [challenge.title for challenge in page.challenges]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert titles == [f"number {n}" for n in (4, 3, 2, 1, 0)]
    assert sizes == [2, 2, 1]
    await house.guess("bob", made[3], 0)
    everything = await house.call("ListChallenges", pb.ListChallengesRequest(), "bob")
    assert [c.challenge_id for c in everything.challenges if c.HasField("answer")] == [made[3]]


async def test_guesses_of_one_player_at_once_have_one_effect(house: House) -> None:
    id_ = await house.published("alice", lie=0)
    tries = await asyncio.gather(
        *(house.guess("bob", id_, index % 2) for index in range(8)), return_exceptions=True
    )
    refused = [error.reason for error in tries if isinstance(error, ServiceError)]
    answered = [guess for guess in tries if isinstance(guess, pb.SubmitGuessResponse)]
    assert refused == ["ALREADY_GUESSED"] * 4
    assert [guess for guess in answered if guess != answered[0]] == []
    stats = await house.call("GetStats", pb.GetStatsRequest(challenge_id=id_), "bob")
    assert stats.total_guesses == 1


async def test_a_request_id_makes_one_challenge(house: House) -> None:
    request = create_request(house.videos.add("alice"), request_id="from the phone")
    first = await house.call("CreateChallenge", request, "alice")
    assert await house.call("CreateChallenge", request, "alice") == first


async def test_ids_in_capitals_name_the_same_things(house: House) -> None:
    video = house.videos.add("alice")
    request = create_request(video)
    request.merged_video_metadata.video_file_id = video.video_file_id.upper()
    made = (await house.call("CreateChallenge", request, "alice")).challenge
    get = pb.GetChallengeRequest(challenge_id=made.challenge_id.upper())
    assert (await house.call("GetChallenge", get, "alice")).challenge == made


async def test_a_publishing_that_was_begun_survives_a_restart_and_is_finished(
    new_database: NewDatabase, keys: KeyRing
) -> None:
    url = await new_database()
    async with open_house(url, keys) as house:
        id_ = await house.draft("alice")
        videos = house.videos.videos
        house.videos.failure = AWAY
        with pytest.raises(Unavailable):
            await house.call("PublishChallenge", pb.PublishChallengeRequest(challenge_id=id_), "alice")
        get = pb.GetChallengeRequest(challenge_id=id_)
        draft = (await house.call("GetChallenge", get, "alice")).challenge
        assert draft.status == challenge_pb2.CHALLENGE_STATUS_DRAFT
    async with open_house(url, keys) as house:
        house.videos.videos = videos
        loops = [asyncio.create_task(loop()) for loop in house.app.background]
        async with asyncio.timeout(10):
            while not (await house.call("ListChallenges", pb.ListChallengesRequest(), "bob")).challenges:
                await asyncio.sleep(0.01)
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        assert [video.visibility for video in videos.values()] == [video_pb2.VISIBILITY_PUBLIC]


async def test_a_challenge_whose_video_is_gone_is_not_published(house: House) -> None:
    id_ = await house.draft("alice")
    house.videos.videos.clear()
    with pytest.raises(FailedPrecondition) as refused:
        await house.call("PublishChallenge", pb.PublishChallengeRequest(challenge_id=id_), "alice")
    assert refused.value.reason == "VIDEO_NOT_USABLE"
