"""The challenge service on the wire: messages to values and back, nothing else.

A page token is the place in the feed where the page before ended, with a checksum, so that what this server
did not make is refused. It needs no key: a forged one gives another place in what anyone may list.
"""

# ruff: noqa: N802  rpcs are named as in the contract

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from services.challenge.domain import Answer, Challenge, Draft, Position, Reason, Segment, Statement, Status, Video
from services.challenge.service import ChallengeService, Shown
from services.common import context
from services.common.errors import InvalidArgument, Unimplemented
from services.common.server import GrpcServer
from services.common.timestamps import timestamp
from twotruths.challenge.v1 import (
    challenge_pb2,
    challenge_service_pb2,
    challenge_service_pb2_grpc,
    moderation_service_pb2,
    moderation_service_pb2_grpc,
)
from twotruths.merge.v1 import video_pb2

CHALLENGE_SERVICE = challenge_service_pb2.DESCRIPTOR.services_by_name["ChallengeService"].full_name
MODERATION_SERVICE = moderation_service_pb2.DESCRIPTOR.services_by_name["ModerationService"].full_name

_DEFAULT_PAGE = 20
_STREAM_PATH = "/api/v1/media/stream/"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = struct.Struct(">q16s")
_STATUSES = {
    Status.DRAFT: challenge_pb2.CHALLENGE_STATUS_DRAFT,
    Status.PUBLISHING: challenge_pb2.CHALLENGE_STATUS_DRAFT,
    Status.PUBLISHED: challenge_pb2.CHALLENGE_STATUS_PUBLISHED,
    Status.WITHDRAWN: challenge_pb2.CHALLENGE_STATUS_WITHDRAWN,
    Status.REMOVED: challenge_pb2.CHALLENGE_STATUS_REMOVED,
}


class ChallengeServicer(challenge_service_pb2_grpc.ChallengeServiceServicer):
    """Translates for :class:`ChallengeService`."""

    def __init__(self, service: ChallengeService) -> None:
        self._service = service

    async def CreateChallenge(self, request: Any, _: Any) -> challenge_service_pb2.CreateChallengeResponse:
        shown = await self._service.create(context.owner(), _draft(request))
        return challenge_service_pb2.CreateChallengeResponse(challenge=_shown(shown))

    async def GetChallenge(self, request: Any, _: Any) -> challenge_service_pb2.GetChallengeResponse:
        shown = await self._service.get(context.owner(), request.challenge_id.lower())
        return challenge_service_pb2.GetChallengeResponse(challenge=_shown(shown))

    async def ListChallenges(self, request: Any, _: Any) -> challenge_service_pb2.ListChallengesResponse:
        after = place(request.page_token) if request.page_token else None
        page, next_ = await self._service.feed(context.owner(), request.page_size or _DEFAULT_PAGE, after)
        return challenge_service_pb2.ListChallengesResponse(
            challenges=map(_shown, page), next_page_token=page_token(next_) if next_ else ""
        )

    async def GetSegments(self, request: Any, _: Any) -> challenge_service_pb2.GetSegmentsResponse:
        challenge = await self._service.segments(context.owner(), request.challenge_id.lower())
        return challenge_service_pb2.GetSegmentsResponse(
            challenge_id=challenge.id,
            video_file_id=challenge.video.id,
            total_duration=challenge.video.total_duration,
            segments=_segments(challenge.video),
        )

    async def SubmitGuess(self, request: Any, _: Any) -> challenge_service_pb2.SubmitGuessResponse:
        guess, answer = await self._service.guess(
            context.owner(), request.challenge_id.lower(), request.statement_index
        )
        return challenge_service_pb2.SubmitGuessResponse(
            challenge_id=guess.challenge_id,
            statement_index=guess.statement_index,
            correct=guess.correct,
            answer=_answer(answer),
            points=guess.points,
            total_score=guess.score_after,
            guessed_at=timestamp(guess.guessed_at),
        )

    async def GetStats(self, request: Any, _: Any) -> challenge_service_pb2.GetStatsResponse:
        stats = await self._service.stats(context.owner(), request.challenge_id.lower())
        return challenge_service_pb2.GetStatsResponse(
            challenge_id=stats.challenge_id,
            total_guesses=stats.total_guesses,
            correct_guesses=stats.correct_guesses,
            guesses_per_statement=stats.guesses_per_statement,
        )

    async def PublishChallenge(self, request: Any, _: Any) -> challenge_service_pb2.PublishChallengeResponse:
        shown = await self._service.publish(context.owner(), request.challenge_id.lower())
        return challenge_service_pb2.PublishChallengeResponse(challenge=_shown(shown))

    async def DeleteChallenge(self, request: Any, _: Any) -> NoReturn:
        raise Unimplemented("DeleteChallenge is not served yet")

    async def ReportChallenge(self, request: Any, _: Any) -> NoReturn:
        raise Unimplemented("ReportChallenge is not served yet")

    async def GetLeaderboard(self, request: Any, _: Any) -> NoReturn:
        raise Unimplemented("GetLeaderboard is not served yet")


class ModerationServicer(moderation_service_pb2_grpc.ModerationServiceServicer):
    """Not served yet."""

    async def ListReports(self, request: Any, _: Any) -> NoReturn:
        raise Unimplemented("ListReports is not served yet")

    async def ReviewChallenge(self, request: Any, _: Any) -> NoReturn:
        raise Unimplemented("ReviewChallenge is not served yet")


def add_to(server: GrpcServer, service: ChallengeService) -> None:
    """Serves challenges and moderation on ``server``."""
    add = challenge_service_pb2_grpc.add_ChallengeServiceServicer_to_server
    server.add(CHALLENGE_SERVICE, add, ChallengeServicer(service))
    add_moderation = moderation_service_pb2_grpc.add_ModerationServiceServicer_to_server
    server.add(MODERATION_SERVICE, add_moderation, ModerationServicer())


def page_token(position: Position) -> str:
    """The token of a place in the feed."""
    microseconds = (position.published_at - _EPOCH) // timedelta(microseconds=1)
    packed = _PLACE.pack(microseconds, uuid.UUID(position.challenge_id).bytes)
    return base64.urlsafe_b64encode(packed + _checksum(packed)).decode()


def place(token: str) -> Position:
    """The place that a token stands for. Raises InvalidArgument (PAGE_TOKEN_INVALID)."""
    wrong = InvalidArgument.field("page_token", "is not one of this server's", reason=Reason.PAGE_TOKEN_INVALID)
    try:
        data = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        packed, checksum = data[: _PLACE.size], data[_PLACE.size :]
        if checksum != _checksum(packed):
            raise wrong
        microseconds, id_ = _PLACE.unpack(packed)
        return Position(_EPOCH + timedelta(microseconds=microseconds), str(uuid.UUID(bytes=id_)))
    except (UnicodeEncodeError, binascii.Error, struct.error, OverflowError):
        raise wrong from None


def _checksum(packed: bytes) -> bytes:
    return hashlib.sha256(b"feed" + packed).digest()[:6]


def _draft(request: challenge_service_pb2.CreateChallengeRequest) -> Draft:
    metadata = request.merged_video_metadata
    return Draft(
        title=request.title,
        statements=tuple(Statement(s.media_file_id.lower(), s.duration_seconds) for s in request.statements),
        lie_statement_index=request.lie_statement_index,
        is_merged_video=request.is_merged_video,
        video_id=metadata.video_file_id.lower(),
        total_duration=metadata.total_duration,
        segments=tuple(
            Segment(s.statement_index, s.start_time, s.end_time, s.duration) for s in metadata.segments
        ),
        request_id=request.request_id,
    )


def _shown(shown: Shown) -> challenge_pb2.Challenge:
    challenge = shown.challenge
    return challenge_pb2.Challenge(
        challenge_id=challenge.id,
        creator_id=challenge.creator,
        title=challenge.title,
        status=_STATUSES[challenge.status],
        statements=_statements(challenge),
        is_merged_video=True,
        merged_video_metadata=video_pb2.MergedVideoMetadata(
            total_duration=challenge.video.total_duration,
            segments=_segments(challenge.video),
            video_file_id=challenge.video.id,
            compression_applied=challenge.video.compression_applied,
        ),
        merged_video_url=_STREAM_PATH + challenge.video.id,
        commitment=challenge.commitment,
        created_at=timestamp(challenge.created_at),
        published_at=timestamp(challenge.published_at) if challenge.published_at else None,
        answer=_answer(shown.answer) if shown.answer else None,
    )


def _answer(answer: Answer) -> challenge_pb2.Answer:
    return challenge_pb2.Answer(lie_statement_index=answer.lie_statement_index, salt=answer.salt)


def _statements(challenge: Challenge) -> Iterable[challenge_pb2.Statement]:
    for segment in challenge.video.segments:
        yield challenge_pb2.Statement(
            statement_index=segment.statement_index,
            media_file_id=challenge.video.id,
            duration_seconds=segment.duration,
        )


def _segments(video: Video) -> Iterable[video_pb2.Segment]:
    for segment in video.segments:
        yield video_pb2.Segment(
            statement_index=segment.statement_index,
            start_time=segment.start_time,
            end_time=segment.end_time,
            duration=segment.duration,
            start_frame=segment.start_frame,
            frame_count=segment.frame_count,
        )
