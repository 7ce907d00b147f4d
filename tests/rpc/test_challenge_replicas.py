"""Two challenge servers on one database, SQLite and PostgreSQL: what is asked of both at once happens once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.common.errors import Unavailable
from services.common.keys import KeyRing
from tests.postgres import NewDatabase
from tests.rpc.challenge_fixtures import AWAY, House, open_house
from twotruths.challenge.v1 import challenge_service_pb2 as pb


@pytest.fixture
async def pair(new_database: NewDatabase, keys: KeyRing) -> AsyncIterator[tuple[House, House]]:
    url = await new_database()
    async with open_house(url, keys) as one, open_house(url, keys) as two:
        two.videos.videos = one.videos.videos
        yield one, two


async def test_guesses_at_both_count_once_a_player(pair: tuple[House, House]) -> None:
    one, two = pair
    id_, other = await one.published("alice", lie=1), await two.published("alice", lie=1)
    players = [f"player {number}" for number in range(20)]
    # Each player sends the same guess to both, and at the same time a guess on another challenge.
    calls = [
        house.guess(player, challenge, 1)
        for player in players
        for house, challenge in ((one, id_), (two, id_), (two, other))
    ]
    answers = await asyncio.gather(*calls)
    for first, second, on_other in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
        assert first == second
        assert sorted((first.total_score, on_other.total_score)) == [10, 20]
    for house, challenge in ((one, other), (two, id_)):
        stats = await house.call("GetStats", pb.GetStatsRequest(challenge_id=challenge), "alice")
        assert (stats.total_guesses, stats.correct_guesses) == (20, 20)
        assert list(stats.guesses_per_statement) == [0, 20, 0]


async def test_one_of_two_different_guesses_of_a_player_counts(pair: tuple[House, House]) -> None:
    one, two = pair
    id_ = await one.published("alice", lie=1)
    players = [f"player {number}" for number in range(10)]
    calls = [
        house.call("SubmitGuess", pb.SubmitGuessRequest(challenge_id=id_, statement_index=index), player)
        for player in players
        for house, index in ((one, 0), (two, 1))
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [getattr(result, "reason", "") for result in results if isinstance(result, BaseException)]
    assert refusals == ["ALREADY_GUESSED"] * 10
    stats = await one.call("GetStats", pb.GetStatsRequest(challenge_id=id_), "alice")
    assert stats.total_guesses == sum(stats.guesses_per_statement) == 10


async def test_publishings_at_both_and_both_sweeps_publish_once(pair: tuple[House, House]) -> None:
    one, two = pair
    ids = [await one.draft("alice") for _ in range(8)]
    one.videos.failure = AWAY
    for id_ in ids[:4]:  # begun, and left half done
        with pytest.raises(Unavailable):
            await one.call("PublishChallenge", pb.PublishChallengeRequest(challenge_id=id_), "alice")
    one.videos.failure = None
    sweeps = [asyncio.create_task(house.app.background[0]()) for house in pair]
    published = await asyncio.gather(
        *(
            house.call("PublishChallenge", pb.PublishChallengeRequest(challenge_id=id_), "alice")
            for id_ in ids
            for house in pair
        )
    )
    for sweep in sweeps:
        sweep.cancel()
    await asyncio.gather(*sweeps, return_exceptions=True)
    # Both heard of one publishing: its time was set once and is the one that stays.
    assert [answer.challenge for answer in published[::2]] == [answer.challenge for answer in published[1::2]]
    feed = await two.call("ListChallenges", pb.ListChallengesRequest(), "alice")
    by_id = {challenge.challenge_id: challenge for challenge in feed.challenges}
    assert by_id == {answer.challenge.challenge_id: answer.challenge for answer in published}
    assert len(by_id) == len(feed.challenges) == 8
