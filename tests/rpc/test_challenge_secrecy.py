"""Nothing that a player sees before guessing depends on the lie, save the commitment; no log names it."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest

from services.challenge.domain import Answer, commitment
from services.common.keys import KeyRing
from tests.postgres import NewDatabase
from tests.rpc.challenge_fixtures import Call, House, Ids, Ticks, create_request, open_house
from twotruths.challenge.v1 import challenge_service_pb2 as pb

SALT = "5a17" * 16
VIDEO = "11111111-2222-4333-8444-555555555555"
OTHER_VIDEO = "99999999-2222-4333-8444-555555555555"


class Secret:
    """A house with one challenge; its lie is the only thing in which two of these differ."""

    def __init__(self, house: House, lie: int) -> None:
        self.house = house
        self.lie = lie
        self.id = ""

    async def create(self) -> None:
        video = self.house.videos.add("alice", id_=VIDEO)
        created = await self.house.call("CreateChallenge", create_request(video, lie=self.lie), "alice")
        self.id = created.challenge.challenge_id
        self.commitment = created.challenge.commitment
        assert self.commitment == commitment(self.id, Answer(self.lie, SALT))

    async def seen(self, player: str) -> list[Call]:
        """All that ``player`` gets out of the server without guessing."""
        requests: list[tuple[str, Any]] = [
            ("GetChallenge", pb.GetChallengeRequest(challenge_id=self.id)),
            ("ListChallenges", pb.ListChallengesRequest()),
            ("ListChallenges", pb.ListChallengesRequest(page_size=1)),
            ("GetSegments", pb.GetSegmentsRequest(challenge_id=self.id)),
            ("GetStats", pb.GetStatsRequest(challenge_id=self.id)),
            ("PublishChallenge", pb.PublishChallengeRequest(challenge_id=self.id)),
            ("SubmitGuess", pb.SubmitGuessRequest(challenge_id=self.id)),
            ("SubmitGuess", pb.SubmitGuessRequest(challenge_id=self.id, statement_index=9)),
            ("CreateChallenge", create_request(self.house.videos.videos[VIDEO], lie=0)),
            ("DeleteChallenge", pb.DeleteChallengeRequest(challenge_id=self.id)),
        ]
        return [self.blind(await self.house.raw(method, request, player)) for method, request in requests]

    def blind(self, call: Call) -> Call:
        """The call without the commitment, the one thing that may differ."""
        call.answer = call.answer.replace(self.commitment.encode(), b"commitment")
        assert self.commitment not in repr(call)
        return call


async def story(url: str, keys: KeyRing, lie: int, tokens: dict[str, str]) -> list[list[Call]]:
    """What bob sees of a draft, once it is published, after others guessed, and after another challenge."""
    async with open_house(url, keys, clock=Ticks(), new_id=Ids(), new_salt=lambda: SALT) as house:
        house._tokens = tokens
        secret = Secret(house, lie)
        await secret.create()
        views = [await secret.seen("bob")]
        publish = pb.PublishChallengeRequest(challenge_id=secret.id)
        await house.call("PublishChallenge", publish, "alice")
        views.append(await secret.seen("bob"))
        await house.guess("carol", secret.id, 0)
        await house.guess("dave", secret.id, 1)
        views.append(await secret.seen("bob"))
        other = create_request(house.videos.add("erin", id_=OTHER_VIDEO), lie=0)
        made = await house.call("CreateChallenge", other, "erin")
        publish.challenge_id = made.challenge.challenge_id
        await house.call("PublishChallenge", publish, "erin")
        views.append(await secret.seen("bob"))
        views.append(
            [secret.blind(await house.raw("GetStats", pb.GetStatsRequest(challenge_id=secret.id), "erin"))]
        )
        return views


async def test_challenges_that_differ_only_in_the_lie_answer_byte_for_byte_alike(
    new_database: NewDatabase, keys: KeyRing
) -> None:
    tokens: dict[str, str] = {}
    stories = [await story(await new_database(), keys, lie, tokens) for lie in range(3)]
    assert stories[0] == stories[1] == stories[2]
    published = stories[0][1]
    assert [call.error[:24] for call in published[:5]] == [""] * 5
    assert all(call.error for call in published[5:])
    assert b"commitment" in published[0].answer
    assert SALT.encode() not in b"".join(call.answer for view in stories[0] for call in view)


async def test_an_answer_differs_for_who_has_guessed(new_database: NewDatabase, keys: KeyRing) -> None:
    async with open_house(await new_database(), keys, new_salt=lambda: SALT) as house:
        secret = Secret(house, 1)
        await secret.create()
        await house.call("PublishChallenge", pb.PublishChallengeRequest(challenge_id=secret.id), "alice")
        await house.guess("bob", secret.id, 2)
        bob, carol = await secret.seen("bob"), await secret.seen("carol")
        for mine, others in zip(bob[:3], carol[:3], strict=True):
            assert SALT.encode() in mine.answer
            assert SALT.encode() not in others.answer


async def test_no_log_tells_the_lie_or_the_salt_even_at_debug(
    new_database: NewDatabase, keys: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines are compared, times apart, between a lie and another, and searched for the salt."""
    caplog.set_level(logging.DEBUG)
    everything = io.StringIO()
    handler = logging.StreamHandler(everything)
    logging.getLogger().addHandler(handler)
    told = []
    try:
        for lie in (0, 1):
            caplog.clear()
            async with open_house(await new_database(), keys, new_id=Ids(), new_salt=lambda: SALT) as house:
                secret = Secret(house, lie)
                await secret.create()
                await secret.seen("bob")
                await house.call("PublishChallenge", pb.PublishChallengeRequest(challenge_id=secret.id), "alice")
                await secret.seen("bob")
                await house.refusal("CreateChallenge", create_request(house.videos.videos[VIDEO], 5), "alice")
            told.append([(r.name, r.getMessage()) for r in caplog.records if r.name.startswith("services.")])
            extras = [repr(vars(record)) for record in caplog.records]
            assert SALT not in everything.getvalue() + "".join(extras)
            assert not [text for text in extras if "lie_statement_index=" in text]
    finally:
        logging.getLogger().removeHandler(handler)
    assert told[0] == told[1]
    assert told[0]
    names = {record.name for record in caplog.records}
    assert not names & {"aiosqlite", "psycopg", "sqlalchemy.engine.Engine"}  # these print rows and parameters
