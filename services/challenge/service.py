"""The use cases of challenges. ``player`` is always the authenticated caller.

Publishing spans two services, so it is an intent first: PUBLISHING is stored, then the merge service makes the
video public, then PUBLISHED is stored. What a crash leaves in between :meth:`ChallengeService.finish_publishing`
completes; each step may be repeated.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.challenge import domain
from services.challenge.domain import Answer, Challenge, Draft, Guess, Position, Reason, Status, Video
from services.challenge.ports import ChallengeStore, GuessLedger, Videos
from services.common.clock import Clock
from services.common.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    NotFound,
    ServiceError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shown:
    """A challenge as one player may see it: ``answer`` is None unless that player may see it."""

    challenge: Challenge
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Stats:
    """How players guessed. What tells of the lie is None for who may not see the answer."""

    challenge_id: str
    total_guesses: int
    correct_guesses: int | None
    guesses_per_statement: Sequence[int] | None


class ChallengeService:
    """Challenges over a store, a ledger of guesses and the videos of the merge service."""

    def __init__(
        self,
        challenges: ChallengeStore,
        guesses: GuessLedger,
        videos: Videos,
        *,
        clock: Clock,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        new_salt: Callable[[], str] = domain.new_salt,
    ) -> None:
        self._challenges = challenges
        self._guesses = guesses
        self._videos = videos
        self._clock = clock
        self._new_id = new_id
        self._new_salt = new_salt

    async def create(self, player: str, draft: Draft) -> Shown:
        """Makes a draft; the same request_id with the same parameters gives the same challenge.

        Raises InvalidArgument, NotFound (VIDEO_NOT_USABLE), AlreadyExists (VIDEO_IN_USE, REQUEST_ID_REUSED).
        """
        draft.check()
        id_ = domain.challenge_id(player, draft.request_id) if draft.request_id else self._new_id()
        if draft.request_id and (made := await self._challenges.get(id_)):
            return await self._made_before(made, draft)
        video = await self._usable_video(player, draft.video_id)
        draft.check_fits(video)
        answer = Answer(draft.lie_statement_index, self._new_salt())
        challenge = Challenge(
            id=id_,
            creator=player,
            title=draft.title,
            status=Status.DRAFT,
            video=video,
            commitment=domain.commitment(id_, answer),
            created_at=self._clock(),
        )
        in_the_way = await self._challenges.add(challenge, answer)
        if in_the_way is None:
            return Shown(challenge, answer)
        if in_the_way.id == id_:
            return await self._made_before(in_the_way, draft)
        raise AlreadyExists("a live challenge has this video", reason=Reason.VIDEO_IN_USE)

    async def get(self, player: str, challenge_id: str) -> Shown:
        """Raises NotFound."""
        challenge = domain.check_visible(await self._challenges.get(challenge_id), player)
        return (await self._show(player, [challenge]))[0]

    async def feed(self, player: str, limit: int, after: Position | None) -> tuple[list[Shown], Position | None]:
        """At most ``limit`` published challenges, newest first, and where the next page begins, if any."""
        found = list(await self._challenges.feed(limit + 1, after))
        page = found[:limit]
        next_ = None
        if len(found) > limit and page[-1].published_at:
            next_ = Position(page[-1].published_at, page[-1].id)
        return await self._show(player, page), next_

    async def segments(self, player: str, challenge_id: str) -> Challenge:
        """Raises NotFound."""
        return domain.check_visible(await self._challenges.get(challenge_id), player)

    async def stats(self, player: str, challenge_id: str) -> Stats:
        """Raises NotFound."""
        shown = await self.get(player, challenge_id)
        tally = await self._guesses.tally(challenge_id)
        if shown.answer is None:
            return Stats(challenge_id, sum(tally), None, None)
        return Stats(challenge_id, sum(tally), tally[shown.answer.lie_statement_index], tally)

    async def guess(self, player: str, challenge_id: str, statement_index: int) -> tuple[Guess, Answer]:
        """Guesses, once a player; the same guess again gives the same answer.

        Raises NotFound, InvalidArgument (STATEMENT_OUT_OF_RANGE), FailedPrecondition (OWN_CHALLENGE,
        NOT_PUBLISHED), AlreadyExists (ALREADY_GUESSED).
        """
        challenge = domain.check_visible(await self._challenges.get(challenge_id), player)
        domain.check_guess(challenge, player, statement_index)
        answer = (await self._challenges.answers([challenge_id]))[challenge_id]
        guess = domain.judge(challenge, answer, player, statement_index, self._clock())
        counted = await self._guesses.record(guess)
        if counted.statement_index != statement_index:
            raise AlreadyExists("the one guess was another", reason=Reason.ALREADY_GUESSED)
        return counted, answer

    async def publish(self, player: str, challenge_id: str) -> Shown:
        """Makes a challenge of the player, and its video, visible to all; again changes nothing.

        Raises NotFound, FailedPrecondition (NOT_PUBLISHED: withdrawn or removed; VIDEO_NOT_USABLE).
        """
        challenge = await self._own(player, challenge_id)
        if challenge.status is Status.DRAFT:
            await self._challenges.move(challenge_id, Status.DRAFT, Status.PUBLISHING, self._clock())
            challenge = await self._own(player, challenge_id)
        if challenge.status is Status.PUBLISHING:
            await self._finish(challenge)
            challenge = await self._own(player, challenge_id)
        if challenge.status is Status.PUBLISHED:
            return (await self._show(player, [challenge]))[0]
        if challenge.status.is_live:
            raise Aborted("someone else changed the challenge; try again")
        raise FailedPrecondition("the challenge was taken back", reason=Reason.NOT_PUBLISHED)

    async def finish_publishing(self) -> None:
        """Completes what was begun by :meth:`publish` and left. Raises Unavailable when the store is away."""
        for challenge in await self._challenges.publishing():
            try:
                await self._finish(challenge)
            except ServiceError as error:
                log.warning("publishing %s waits: %s", challenge.id, error.message)
            except Exception:  # one that cannot be finished must not keep the others waiting
                log.exception("publishing %s fails", challenge.id)

    async def _finish(self, challenge: Challenge) -> None:
        try:
            await self._videos.make_public(challenge.video.id, challenge.creator)
        except NotFound as error:
            # It can never be published: the draft is its creator's again.
            await self._challenges.move(challenge.id, Status.PUBLISHING, Status.DRAFT, self._clock())
            raise FailedPrecondition("the video is gone", reason=Reason.VIDEO_NOT_USABLE) from error
        await self._challenges.move(challenge.id, Status.PUBLISHING, Status.PUBLISHED, self._clock())

    async def _own(self, player: str, challenge_id: str) -> Challenge:
        challenge = await self._challenges.get(challenge_id)
        if challenge is None or challenge.creator != player:
            raise domain.no_such_challenge()
        return challenge

    async def _usable_video(self, player: str, video_id: str) -> Video:
        video = await self._videos.get(video_id)
        if video is None or video.owner != player:
            wrong = FieldViolation(
                "merged_video_metadata.video_file_id", "must be a completed video of the caller"
            )
            raise NotFound("no such video", reason=Reason.VIDEO_NOT_USABLE, violations=[wrong])
        return video

    async def _made_before(self, made: Challenge, draft: Draft) -> Shown:
        answer = (await self._challenges.answers([made.id]))[made.id]
        if not draft.is_of(made, answer):
            wrong = FieldViolation("request_id", "came before with other parameters")
            raise AlreadyExists(
                "the request_id came before with other parameters",
                reason=Reason.REQUEST_ID_REUSED,
                violations=[wrong],
            )
        return Shown(made, answer)

    async def _show(self, player: str, challenges: Sequence[Challenge]) -> list[Shown]:
        guessed = await self._guesses.by_player(player, [c.id for c in challenges])
        open_ = [c.id for c in challenges if domain.may_see_answer(c, player, has_guessed=c.id in guessed)]
        answers = await self._challenges.answers(open_)
        return [Shown(c, answers.get(c.id)) for c in challenges]
