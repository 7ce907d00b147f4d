"""What every challenge store and guess ledger does: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.challenge.adapters.engine import Database, open_database
from services.challenge.adapters.limits import Limits
from services.challenge.adapters.memory import MemoryChallengeStore, MemoryGuessLedger
from services.challenge.adapters.migrations import migrate
from services.challenge.adapters.sql import SqlChallengeStore, SqlGuessLedger
from services.challenge.adapters.tables import answers, scores, tallies
from services.challenge.domain import Answer, Challenge, Guess, Position, Segment, Status, Video
from services.challenge.ports import ChallengeStore, GuessLedger
from services.common.errors import Unavailable
from tests.postgres import DATABASES, NewDatabase, PostgresServer, databases

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@dataclass
class Stores:
    challenges: ChallengeStore
    guesses: GuessLedger


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'new' / 'challenge.db'}"


@pytest.fixture
async def url(new_database: NewDatabase) -> str:
    return await new_database()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = open_database(url)
    yield database
    await database.close()


@pytest.fixture(params=["memory", *DATABASES])
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> AsyncIterator[Stores]:
    if request.param == "memory":
        challenges = MemoryChallengeStore()
        yield Stores(challenges, MemoryGuessLedger(challenges))
        return
    database = open_database(await databases(request.param, tmp_path, postgres_server)())
    yield sql_stores(database)
    await database.close()
    postgres_server.test_ended()


def sql_stores(database: Database) -> Stores:
    return Stores(SqlChallengeStore(database), SqlGuessLedger(database))


def a_challenge(number: int = 0, *, video_id: str = "", creator: str = "alice") -> Challenge:
    segments = (Segment(0, 0.0, 1.1, 1.1, 0, 33), Segment(1, 1.1, 2.0, 0.9, 33, 27))
    return Challenge(
        id=str(uuid.UUID(int=number)),
        creator=creator,
        title="Zwei Wahrheiten 🎭",
        status=Status.DRAFT,
        video=Video(video_id or str(uuid.UUID(int=1000 + number)), creator, 2.0, segments, True),
        commitment="c" * 64,
        created_at=START + timedelta(microseconds=number),
    )


ANSWER = Answer(1, "5" * 64)


async def published(stores: Stores, number: int, at: datetime) -> Challenge:
    challenge = a_challenge(number)
    assert await stores.challenges.add(challenge, ANSWER) is None
    assert await stores.challenges.move(challenge.id, Status.DRAFT, Status.PUBLISHED, at)
    return replace(challenge, status=Status.PUBLISHED, published_at=at)


def a_guess(challenge: Challenge, player: str, index: int, points: int = 0) -> Guess:
    return Guess(challenge.id, player, index, points > 0, points, START)


async def test_what_was_added_comes_back_equal(stores: Stores) -> None:
    challenge = a_challenge(7)
    assert await stores.challenges.add(challenge, ANSWER) is None
    assert await stores.challenges.get(challenge.id) == challenge
    assert await stores.challenges.answers([challenge.id]) == {challenge.id: ANSWER}
    assert await stores.guesses.tally(challenge.id) == [0, 0]


async def test_what_is_not_there_is_none_and_empty(stores: Stores) -> None:
    unknown = str(uuid.uuid4())
    assert await stores.challenges.get(unknown) is None
    assert await stores.challenges.answers([unknown]) == {}
    assert await stores.challenges.answers([]) == {}
    assert await stores.challenges.feed(5) == []
    assert await stores.guesses.by_player("bob", [unknown]) == {}
    assert await stores.guesses.tally(unknown) == []
    assert not await stores.challenges.move(unknown, Status.DRAFT, Status.PUBLISHED, START)


async def test_a_taken_id_or_video_stores_nothing_and_names_what_is_in_the_way(stores: Stores) -> None:
    first, second = a_challenge(1), a_challenge(2)
    await stores.challenges.add(first, ANSWER)
    await stores.challenges.add(second, ANSWER)
    same_id = replace(a_challenge(1), title="other", video=second.video)
    assert await stores.challenges.add(same_id, Answer(0, "0" * 64)) == first
    same_video = a_challenge(3, video_id=second.video.id)
    assert await stores.challenges.add(same_video, ANSWER) == second
    assert await stores.challenges.get(same_video.id) is None
    assert await stores.challenges.answers([first.id, same_video.id]) == {first.id: ANSWER}


async def test_of_challenges_added_at_once_on_one_video_one_is_stored(stores: Stores) -> None:
    video = str(uuid.uuid4())
    rivals = [a_challenge(n, video_id=video) for n in range(6)]
    obstacles = await asyncio.gather(*(stores.challenges.add(rival, ANSWER) for rival in rivals))
    winner = rivals[obstacles.index(None)]
    assert [obstacle for obstacle in obstacles if obstacle is not None] == [winner] * 5


async def test_a_withdrawn_challenge_gives_its_video_back(stores: Stores) -> None:
    old = await published(stores, 1, START)
    assert await stores.challenges.move(old.id, Status.PUBLISHED, Status.WITHDRAWN, START)
    assert await stores.challenges.add(a_challenge(2, video_id=old.video.id), ANSWER) is None
    assert await stores.challenges.feed(5) == []


async def test_a_move_from_another_status_changes_nothing(stores: Stores) -> None:
    challenge = await published(stores, 1, START)
    assert not await stores.challenges.move(
        challenge.id, Status.PUBLISHING, Status.PUBLISHED, START + timedelta(1)
    )
    assert await stores.challenges.get(challenge.id) == challenge


async def test_of_moves_at_once_one_happens(stores: Stores) -> None:
    for number in range(5):
        challenge = a_challenge(number)
        await stores.challenges.add(challenge, ANSWER)
        await stores.challenges.move(challenge.id, Status.DRAFT, Status.PUBLISHING, START)
        ends = [Status.PUBLISHED, Status.WITHDRAWN, Status.PUBLISHED, Status.DRAFT]
        moved = await asyncio.gather(
            *(stores.challenges.move(challenge.id, Status.PUBLISHING, end, START) for end in ends)
        )
        assert moved.count(True) == 1
        now = await stores.challenges.get(challenge.id)
        assert now is not None
        assert now.status is ends[moved.index(True)]


async def test_begun_publishings_are_found_until_they_end(stores: Stores) -> None:
    challenge = a_challenge(1)
    await stores.challenges.add(challenge, ANSWER)
    await stores.challenges.add(a_challenge(2), ANSWER)
    assert await stores.challenges.publishing() == []
    await stores.challenges.move(challenge.id, Status.DRAFT, Status.PUBLISHING, START)
    assert await stores.challenges.publishing() == [replace(challenge, status=Status.PUBLISHING)]
    await stores.challenges.move(challenge.id, Status.PUBLISHING, Status.PUBLISHED, START)
    assert await stores.challenges.publishing() == []


async def test_the_feed_goes_from_new_to_old_and_pages_neither_repeat_nor_lose(stores: Stores) -> None:
    tick = timedelta(microseconds=1)
    # Ids rise and fall against the times, and three were published at once.
    times = [START, START + 2 * tick, START + tick, START + tick, START + tick, START - timedelta(days=400)]
    made = [await published(stores, number, at) for number, at in enumerate(times)]
    await stores.challenges.add(a_challenge(99), ANSWER)
    wanted = [made[n] for n in (1, 4, 3, 2, 0, 5)]
    assert await stores.challenges.feed(100) == wanted
    paged: list[Challenge] = []
    while page := await stores.challenges.feed(
        2, Position(paged[-1].published_at or START, paged[-1].id) if paged else None
    ):
        paged += page
    assert paged == wanted


async def test_a_guess_raises_the_tally_and_the_score(stores: Stores) -> None:
    one, two = await published(stores, 1, START), await published(stores, 2, START)
    first = await stores.guesses.record(a_guess(one, "bob", 1, points=10))
    second = await stores.guesses.record(a_guess(two, "bob", 0))
    third = await stores.guesses.record(a_guess(one, "carol", 1, points=10))
    assert [first.score_after, second.score_after, third.score_after] == [10, 10, 10]
    assert await stores.guesses.tally(one.id) == [0, 2]
    assert await stores.guesses.tally(two.id) == [1, 0]
    assert await stores.guesses.by_player("bob", [one.id, two.id]) == {one.id: first, two.id: second}
    assert await stores.guesses.by_player("carol", [two.id]) == {}


async def test_guesses_of_one_player_at_once_have_one_effect(stores: Stores) -> None:
    challenge = await published(stores, 1, START)
    tries = [a_guess(challenge, "bob", index, points=10 * index) for index in (0, 1) * 5]
    counted = await asyncio.gather(*map(stores.guesses.record, tries))
    assert len(set(counted)) == 1
    assert sum(await stores.guesses.tally(challenge.id)) == 1
    other = await stores.guesses.record(a_guess(await published(stores, 2, START), "bob", 1, points=10))
    assert other.score_after == counted[0].points + 10


async def test_first_guesses_of_a_player_on_many_challenges_at_once_all_count(stores: Stores) -> None:
    made = [await published(stores, number, START) for number in range(4)]
    counted = await asyncio.gather(*(stores.guesses.record(a_guess(c, "bob", 1, points=10)) for c in made))
    assert sorted(guess.score_after for guess in counted) == [10, 20, 30, 40]


async def test_a_cancelled_guess_is_whole_or_absent_and_harms_nothing(database: Database) -> None:
    stores = sql_stores(database)
    challenge = await published(stores, 1, START)
    for number in range(12):
        task = asyncio.create_task(stores.guesses.record(a_guess(challenge, f"player {number}", 1, points=10)))
        for _ in range(number * 3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    players = [f"player {number}" for number in range(12)]
    counted = await asyncio.gather(*(stores.guesses.record(a_guess(challenge, p, 1, points=10)) for p in players))
    assert [guess.score_after for guess in counted] == [10] * 12
    assert await stores.guesses.tally(challenge.id) == [0, 12]


async def test_a_transaction_whose_caller_gave_up_is_still_committed(url: str) -> None:
    database = open_database(url)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(insert(scores).values(player="bob", score=7))
        begun.set()
        await go_on.wait()

    caller = asyncio.create_task(database.write(work))
    await begun.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    go_on.set()
    await database.close()
    again = open_database(url)
    assert await again.read(lambda connection: connection.scalar(select(scores.c.score))) == 7
    await again.close()


async def test_a_database_without_its_tables_is_unavailable(tmp_path: Path) -> None:
    database = open_database(sqlite_url(tmp_path))
    with pytest.raises(Unavailable):
        await SqlChallengeStore(database).get(str(uuid.uuid4()))
    await database.close()


async def test_an_answer_needs_its_challenge(database: Database) -> None:
    orphan = insert(answers).values(challenge_id=str(uuid.uuid4()), lie_statement_index=1, salt="5" * 64)
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: connection.execute(orphan))


async def test_the_file_of_sqlite_is_for_its_user_alone(tmp_path: Path) -> None:
    database = open_database(sqlite_url(tmp_path))
    await migrate(database)
    await database.write(lambda connection: connection.execute(insert(scores).values(player="bob", score=7)))
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "new").iterdir()}
    await database.close()
    assert modes == dict.fromkeys(("challenge.db", "challenge.db-wal", "challenge.db-shm"), "0o600")


async def test_no_lock_and_no_wait_for_a_connection_of_postgresql_is_endless(
    postgres_server: PostgresServer,
) -> None:
    url = await postgres_server.migrated_database()
    patient, impatient = open_database(url), open_database(url, Limits(2, 0.2, 0.2))
    stores = sql_stores(patient)
    challenge = await published(stores, 1, START)
    locked, go_on = asyncio.Event(), asyncio.Event()

    async def lock(connection: AsyncConnection) -> None:
        await connection.execute(select(tallies).with_for_update())
        locked.set()
        await go_on.wait()

    holder = asyncio.create_task(patient.write(lock))
    await locked.wait()
    ledger = SqlGuessLedger(impatient)
    waiting = [ledger.record(a_guess(challenge, f"player {number}", 1, points=10)) for number in range(5)]
    asking = asyncio.gather(*(impatient.ask() for _ in range(3)))  # busy is not away
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    await asking
    assert [(type(error), getattr(error, "retry_after", None)) for error in refused] == [(Unavailable, 1.0)] * 5
    go_on.set()
    await holder
    assert (await ledger.record(a_guess(challenge, "player 0", 1, points=10))).score_after == 10
    assert await stores.guesses.tally(challenge.id) == [0, 1]
    await patient.close()
    await impatient.close()
    postgres_server.test_ended()


async def test_a_postgresql_that_takes_no_writes_any_more_is_left(postgres_server: PostgresServer) -> None:
    database = open_database(url := await postgres_server.empty_database())
    await migrate(database)
    name = url.rpartition("/")[2]
    stores = sql_stores(database)
    await postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    demoted = open_database(url)
    with pytest.raises(Unavailable):
        await SqlChallengeStore(demoted).add(a_challenge(1), ANSWER)
    await postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    # The server says so to new connections alone.
    assert await SqlChallengeStore(demoted).add(a_challenge(1), ANSWER) is None
    assert await stores.challenges.get(a_challenge(1).id) == a_challenge(1)
    await demoted.close()
    await database.close()
