"""How long the database takes for the challenge service, by decorators around its ports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from services.challenge.domain import Answer, Challenge, Guess, Position, Status
from services.challenge.ports import ChallengeStore, GuessLedger
from services.common.metering import DatabaseMetrics


class MeteredChallenges:
    """A :class:`ChallengeStore` whose operations are timed."""

    def __init__(self, inner: ChallengeStore, metrics: DatabaseMetrics) -> None:
        self._inner = inner
        self._timed = metrics.timed

    async def add(self, challenge: Challenge, answer: Answer) -> Challenge | None:
        with self._timed("add"):
            return await self._inner.add(challenge, answer)

    async def get(self, challenge_id: str) -> Challenge | None:
        with self._timed("get"):
            return await self._inner.get(challenge_id)

    async def answers(self, challenge_ids: Collection[str]) -> Mapping[str, Answer]:
        with self._timed("answers"):
            return await self._inner.answers(challenge_ids)

    async def feed(self, limit: int, after: Position | None = None) -> Sequence[Challenge]:
        with self._timed("feed"):
            return await self._inner.feed(limit, after)

    async def publishing(self) -> Sequence[Challenge]:
        with self._timed("publishing"):
            return await self._inner.publishing()

    async def move(self, challenge_id: str, before: Status, after: Status, at: datetime) -> bool:
        with self._timed("move"):
            return await self._inner.move(challenge_id, before, after, at)


class MeteredGuesses:
    """A :class:`GuessLedger` whose operations are timed."""

    def __init__(self, inner: GuessLedger, metrics: DatabaseMetrics) -> None:
        self._inner = inner
        self._timed = metrics.timed

    async def record(self, guess: Guess) -> Guess:
        with self._timed("record"):
            return await self._inner.record(guess)

    async def by_player(self, player: str, challenge_ids: Collection[str]) -> Mapping[str, Guess]:
        with self._timed("by_player"):
            return await self._inner.by_player(player, challenge_ids)

    async def tally(self, challenge_id: str) -> Sequence[int]:
        with self._timed("tally"):
            return await self._inner.tally(challenge_id)
