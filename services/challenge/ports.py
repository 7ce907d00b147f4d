"""What the challenge service needs from outside. Every method raises Unavailable when the other side is away."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from services.challenge.domain import Answer, Challenge, Guess, Position, Status, Video


class ChallengeStore(Protocol):
    """Challenges, and apart from them their answers."""

    async def add(self, challenge: Challenge, answer: Answer) -> Challenge | None:
        """Stores a new draft. If its id is taken, or its video by a live challenge, stores nothing and gives the
        challenge that is in the way (the one with the id first); None when it was stored."""

    async def get(self, challenge_id: str) -> Challenge | None:
        """The challenge, or None. Never stale."""

    async def answers(self, challenge_ids: Collection[str]) -> Mapping[str, Answer]:
        """The answers of these challenges by id. Ask only for those that the caller may see."""

    async def feed(self, limit: int, after: Position | None = None) -> Sequence[Challenge]:
        """At most ``limit`` published challenges, newest first, ties by descending id, beginning after a place."""

    async def publishing(self) -> Sequence[Challenge]:
        """The challenges whose publishing was begun and not ended."""

    async def move(self, challenge_id: str, before: Status, after: Status, at: datetime) -> bool:
        """Moves a challenge from one status to another; False, and no change, if it was not in the first.
        PUBLISHED sets ``published_at``; a status that is not live gives the video back."""


class GuessLedger(Protocol):
    """Guesses, one a challenge and player, with their effects: the tally of each challenge, players' scores."""

    async def record(self, guess: Guess) -> Guess:
        """Stores the guess, raises the tally and the score, all or nothing, and gives it with ``score_after``.
        If the player has guessed on this challenge before, changes nothing and gives that guess."""

    async def by_player(self, player: str, challenge_ids: Collection[str]) -> Mapping[str, Guess]:
        """The player's guesses on these challenges, by challenge id."""

    async def tally(self, challenge_id: str) -> Sequence[int]:
        """How often each statement was chosen, in order."""


class Videos(Protocol):
    """Merged videos, which the merge service owns."""

    async def get(self, video_id: str) -> Video | None:
        """The completed video, or None if there is none."""

    async def make_public(self, video_id: str, owner: str) -> None:
        """Lets every player see the video; again is no error. Raises NotFound if the owner has no such video."""
