"""The stores in memory, for tests: the same behaviour as in SQL, gone with the process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from services.challenge.domain import Answer, Challenge, Guess, Position, Status


@dataclass
class MemoryChallengeStore:
    """The challenge store in memory."""

    _challenges: dict[str, Challenge] = field(default_factory=dict)
    _answers: dict[str, Answer] = field(default_factory=dict)

    async def add(self, challenge: Challenge, answer: Answer) -> Challenge | None:
        if challenge.id in self._challenges:
            return self._challenges[challenge.id]
        for other in self._challenges.values():
            if other.status.is_live and other.video.id == challenge.video.id:
                return other
        self._challenges[challenge.id] = challenge
        self._answers[challenge.id] = answer
        return None

    async def get(self, challenge_id: str) -> Challenge | None:
        return self._challenges.get(challenge_id)

    async def answers(self, challenge_ids: Collection[str]) -> Mapping[str, Answer]:
        return {id_: self._answers[id_] for id_ in challenge_ids if id_ in self._answers}

    async def feed(self, limit: int, after: Position | None = None) -> Sequence[Challenge]:
        places = [
            ((challenge.published_at, challenge.id), challenge)
            for challenge in self._challenges.values()
            if challenge.status is Status.PUBLISHED and challenge.published_at is not None
        ]
        if after is not None:
            places = [place for place in places if place[0] < (after.published_at, after.challenge_id)]
        return [challenge for _, challenge in sorted(places, key=lambda p: p[0], reverse=True)][:limit]

    async def publishing(self) -> Sequence[Challenge]:
        return [c for c in self._challenges.values() if c.status is Status.PUBLISHING]

    async def move(self, challenge_id: str, before: Status, after: Status, at: datetime) -> bool:
        challenge = self._challenges.get(challenge_id)
        if challenge is None or challenge.status is not before:
            return False
        published_at = at if after is Status.PUBLISHED else challenge.published_at
        self._challenges[challenge_id] = replace(challenge, status=after, published_at=published_at)
        return True


@dataclass
class MemoryGuessLedger:
    """The guess ledger in memory, beside the challenges that it counts for."""

    _challenges: MemoryChallengeStore
    _guesses: dict[tuple[str, str], Guess] = field(default_factory=dict)
    _scores: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def record(self, guess: Guess) -> Guess:
        key = (guess.player, guess.challenge_id)
        if key not in self._guesses:
            self._scores[guess.player] += guess.points
            self._guesses[key] = replace(guess, score_after=self._scores[guess.player])
        return self._guesses[key]

    async def by_player(self, player: str, challenge_ids: Collection[str]) -> Mapping[str, Guess]:
        return {id_: self._guesses[player, id_] for id_ in challenge_ids if (player, id_) in self._guesses}

    async def tally(self, challenge_id: str) -> Sequence[int]:
        challenge = await self._challenges.get(challenge_id)
        if challenge is None:
            return []
        chosen = [g.statement_index for (_, id_), g in self._guesses.items() if id_ == challenge_id]
        return [chosen.count(segment.statement_index) for segment in challenge.video.segments]
