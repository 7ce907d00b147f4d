"""Challenges and guesses in a SQL database, in SQL that SQLite and PostgreSQL both speak.

What must be unique is a key in the schema; a writer that comes second gets IntegrityError, rolls back and
reads what was there first. So no statement depends on a dialect's upsert.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Update, and_, insert, literal, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.challenge.adapters.engine import Database
from services.challenge.adapters.tables import answers, challenges, guesses, scores, tallies
from services.challenge.domain import Answer, Challenge, Guess, Position, Segment, Status, Video
from services.common.errors import Aborted

_ATTEMPTS = 5


class SqlChallengeStore:
    """The challenge store on ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, challenge: Challenge, answer: Answer) -> Challenge | None:
        for _ in range(_ATTEMPTS):
            try:
                await self._database.write(partial(_insert, challenge, answer))
            except IntegrityError:
                pass
            else:
                return None
            video = challenges.c.live_video_id == challenge.video.id
            for obstacle in (challenges.c.id == challenge.id, video):
                if found := await self._one(obstacle):
                    return found
            # It gave its video back in between: the next attempt may succeed.
        raise Aborted("too many writers at once; try again")

    async def get(self, challenge_id: str) -> Challenge | None:
        return await self._one(challenges.c.id == challenge_id)

    async def answers(self, challenge_ids: Collection[str]) -> Mapping[str, Answer]:
        if not challenge_ids:
            return {}
        query = select(answers).where(answers.c.challenge_id.in_(challenge_ids))
        rows = await self._database.read(partial(_rows, query))
        return {row.challenge_id: Answer(row.lie_statement_index, row.salt) for row in rows}

    async def feed(self, limit: int, after: Position | None = None) -> Sequence[Challenge]:
        at, id_ = challenges.c.published_at, challenges.c.id
        query = select(challenges).where(challenges.c.status == Status.PUBLISHED.value)
        if after is not None:
            # One comparison of two values, which the index answers from that place on.
            place = tuple_(literal(after.published_at, at.type), literal(after.challenge_id, id_.type))
            query = query.where(tuple_(at, id_) < place)
        return await self._all(query.order_by(at.desc(), id_.desc()).limit(limit))

    async def publishing(self) -> Sequence[Challenge]:
        return await self._all(select(challenges).where(challenges.c.status == Status.PUBLISHING.value))

    async def move(self, challenge_id: str, before: Status, after: Status, at: datetime) -> bool:
        values: dict[str, Any] = {"status": after.value}
        if after is Status.PUBLISHED:
            values["published_at"] = at
        if not after.is_live:
            values["live_video_id"] = None
        change = update(challenges).where(challenges.c.id == challenge_id, challenges.c.status == before.value)
        return await self._database.write(partial(_changed, change.values(values))) == 1

    async def _one(self, condition: ColumnElement[bool]) -> Challenge | None:
        found = await self._all(select(challenges).where(condition))
        return found[0] if found else None

    async def _all(self, query: Select[*tuple[Any, ...]]) -> list[Challenge]:
        return [_challenge(row) for row in await self._database.read(partial(_rows, query))]


class SqlGuessLedger:
    """The guess ledger on ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, guess: Guess) -> Guess:
        for _ in range(_ATTEMPTS):
            try:
                return await self._database.write(partial(_count, guess))
            except IntegrityError:
                pass
            made = await self.by_player(guess.player, [guess.challenge_id])
            if guess.challenge_id in made:
                return made[guess.challenge_id]
            # The player's first two guesses, on two challenges at once: one lost the race to make the score.
        raise Aborted("too many guesses at once; try again")

    async def by_player(self, player: str, challenge_ids: Collection[str]) -> Mapping[str, Guess]:
        if not challenge_ids:
            return {}
        query = select(guesses).where(guesses.c.player == player, guesses.c.challenge_id.in_(challenge_ids))
        rows = await self._database.read(partial(_rows, query))
        return {row.challenge_id: Guess(**row._mapping) for row in rows}

    async def tally(self, challenge_id: str) -> Sequence[int]:
        query = select(tallies.c.guesses).where(tallies.c.challenge_id == challenge_id)
        rows = await self._database.read(partial(_rows, query.order_by(tallies.c.statement_index)))
        return [row.guesses for row in rows]


async def _rows(query: Select[*tuple[Any, ...]], connection: AsyncConnection) -> Sequence[Row[*tuple[Any, ...]]]:
    return (await connection.execute(query)).all()


async def _changed(change: Update, connection: AsyncConnection) -> int:
    return (await connection.execute(change)).rowcount


async def _insert(challenge: Challenge, answer: Answer, connection: AsyncConnection) -> None:
    video = challenge.video
    row = {
        "id": challenge.id,
        "creator": challenge.creator,
        "title": challenge.title,
        "status": challenge.status.value,
        "video_id": video.id,
        "live_video_id": video.id if challenge.status.is_live else None,
        "total_duration": video.total_duration,
        "segments": [asdict(segment) for segment in video.segments],
        "compression_applied": video.compression_applied,
        "commitment": challenge.commitment,
        "created_at": challenge.created_at,
        "published_at": challenge.published_at,
    }
    await connection.execute(insert(challenges).values(row))
    opened = {"lie_statement_index": answer.lie_statement_index, "salt": answer.salt}
    await connection.execute(insert(answers).values(challenge_id=challenge.id, **opened))
    zeros = [
        {"challenge_id": challenge.id, "statement_index": segment.statement_index, "guesses": 0}
        for segment in video.segments
    ]
    await connection.execute(insert(tallies), zeros)


async def _count(guess: Guess, connection: AsyncConnection) -> Guess:
    """The guess and its effects. The insert comes first: it fails before anything else when there is one."""
    row = asdict(guess)
    await connection.execute(insert(guesses).values(row))
    place = and_(tallies.c.challenge_id == guess.challenge_id, tallies.c.statement_index == guess.statement_index)
    await connection.execute(update(tallies).where(place).values(guesses=tallies.c.guesses + 1))
    mine = scores.c.player == guess.player
    raised = await connection.execute(update(scores).where(mine).values(score=scores.c.score + guess.points))
    if raised.rowcount == 0:
        await connection.execute(insert(scores).values(player=guess.player, score=guess.points))
    score = (await connection.scalars(select(scores.c.score).where(mine))).one()
    key = and_(guesses.c.challenge_id == guess.challenge_id, guesses.c.player == guess.player)
    await connection.execute(update(guesses).where(key).values(score_after=score))
    return replace(guess, score_after=score)


def _challenge(row: Row[*tuple[Any, ...]]) -> Challenge:
    video = Video(
        id=row.video_id,
        owner=row.creator,
        total_duration=row.total_duration,
        segments=tuple(Segment(**segment) for segment in row.segments),
        compression_applied=row.compression_applied,
    )
    return Challenge(
        id=row.id,
        creator=row.creator,
        title=row.title,
        status=Status(row.status),
        video=video,
        commitment=row.commitment,
        created_at=row.created_at,
        published_at=row.published_at,
    )
