"""A real challenge server over a real database, and a real server of videos in place of merge."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import grpc
from pydantic import SecretStr

from services.challenge import wiring
from services.challenge.config import ChallengeSettings
from services.common.context import require_service
from services.common.errors import NotFound, ServiceError, Unavailable, Unimplemented
from services.common.identity import TokenVerifier
from services.common.keys import ALL_SCOPES, KeyRing
from services.common.lifecycle import App
from services.common.server import GrpcServer
from services.common.status import from_rpc_error
from twotruths.challenge.v1 import challenge_service_pb2 as pb
from twotruths.challenge.v1 import challenge_service_pb2_grpc, moderation_service_pb2_grpc
from twotruths.merge.v1 import video_pb2, video_service_pb2, video_service_pb2_grpc

START = datetime(2026, 7, 8, 9, 10, 11, tzinfo=UTC)
REQUEST_ID = "request-0001"


class FakeVideoService(video_service_pb2_grpc.VideoServiceServicer):
    """Videos that services may see and publish, served like merge does; may be away."""

    def __init__(self) -> None:
        self.videos: dict[str, video_pb2.Video] = {}
        self.failure: Exception | None = None

    def add(self, owner: str, frames: Sequence[int] = (450, 375, 546), id_: str = "") -> video_pb2.Video:
        """A completed video at 30 frames a second."""
        id_ = id_ or str(uuid.uuid4())
        video = video_pb2.Video(video_file_id=id_, owner=owner, visibility=video_pb2.VISIBILITY_PRIVATE)
        start = 0
        for index, count in enumerate(frames):
            begin, end = start / 30, (start + count) / 30
            video.segments.add(
                statement_index=index,
                start_time=begin,
                end_time=end,
                duration=count / 30,
                start_frame=start,
                frame_count=count,
            )
            start += count
        video.total_duration = start / 30
        video.compression_applied = True
        self.videos[id_] = video
        return video

    async def GetVideo(self, request: Any, _: Any) -> video_service_pb2.GetVideoResponse:  # noqa: N802  rpc
        return video_service_pb2.GetVideoResponse(video=self._video(request.video_file_id))

    async def SetVisibility(self, request: Any, _: Any) -> video_service_pb2.SetVisibilityResponse:  # noqa: N802  rpc
        video = self._video(request.video_file_id)
        if video.owner != request.owner:
            raise NotFound("no such video")
        video.visibility = request.visibility
        return video_service_pb2.SetVisibilityResponse(video=video)

    async def GetPlayback(self, request: Any, _: Any) -> NoReturn:  # noqa: N802  rpc
        raise Unimplemented("not needed here")

    async def DeleteVideo(self, request: Any, _: Any) -> NoReturn:  # noqa: N802  rpc
        raise Unimplemented("not needed here")

    def _video(self, id_: str) -> video_pb2.Video:
        require_service()
        if self.failure is not None:
            raise self.failure
        if id_ not in self.videos:
            raise NotFound("no such video")
        return self.videos[id_]


class Ids:
    """Ids in order: the same in every house."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return str(uuid.UUID(int=self._count))


class Ticks:
    """A clock that moves a second at each look."""

    def __init__(self) -> None:
        self._now = START

    def __call__(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now


@dataclass
class Call:
    """What one call brought: the whole answer or the whole refusal, and all metadata, in bytes that compare."""

    answer: bytes
    error: str
    initial: list[tuple[str, Any]]
    trailing: list[tuple[str, Any]]


@dataclass
class House:
    """A challenge server with its videos and its players."""

    app: App
    videos: FakeVideoService
    channel: grpc.aio.Channel
    keys: KeyRing
    _tokens: dict[str, str] = field(default_factory=dict)

    @property
    def stub(self) -> challenge_service_pb2_grpc.ChallengeServiceAsyncStub:
        return challenge_service_pb2_grpc.ChallengeServiceStub(self.channel)

    @property
    def moderation(self) -> moderation_service_pb2_grpc.ModerationServiceAsyncStub:
        return moderation_service_pb2_grpc.ModerationServiceStub(self.channel)

    def metadata(self, player: str, scopes: Sequence[str] = ALL_SCOPES) -> list[tuple[str, str]]:
        """As that player; the token is made once, so that calls can be compared."""
        token = self._tokens.setdefault(f"{player} {scopes}", self.keys.player_token(player, scopes=scopes))
        return [("authorization", f"Bearer {token}"), ("x-request-id", REQUEST_ID)]

    async def call(self, method: str, request: Any, player: str, scopes: Sequence[str] = ALL_SCOPES) -> Any:
        """The answer. Raises the ServiceError that a refusal stands for."""
        try:
            return await getattr(self.stub, method)(request, metadata=self.metadata(player, scopes), timeout=20)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def refusal(self, method: str, request: Any, player: str) -> tuple[str, str, list[str]]:
        """Code, reason and wrong fields of a call that must be refused."""
        try:
            await self.call(method, request, player)
        except ServiceError as error:
            return error.code, error.reason, [violation.field for violation in error.violations]
        raise AssertionError(f"{method} was not refused")

    async def raw(self, method: str, request: Any, player: str) -> Call:
        """Everything that the caller can see of a call."""
        call = getattr(self.stub, method)(request, metadata=self.metadata(player), timeout=20)
        answer, text = b"", ""
        try:
            answer = (await call).SerializeToString(deterministic=True)
        except grpc.aio.AioRpcError as error:
            text = f"{error.code()} {error.details()}"
        return Call(answer, text, list(await call.initial_metadata()), list(await call.trailing_metadata()))

    async def draft(self, creator: str, lie: int = 2, title: str = "Three things") -> str:
        """The id of a new draft on a new video."""
        request = create_request(self.videos.add(creator), lie=lie, title=title)
        return str((await self.call("CreateChallenge", request, creator)).challenge.challenge_id)

    async def published(self, creator: str, lie: int = 2, title: str = "Three things") -> str:
        """The id of a new published challenge."""
        id_ = await self.draft(creator, lie, title)
        await self.call("PublishChallenge", pb.PublishChallengeRequest(challenge_id=id_), creator)
        return id_

    async def guess(self, player: str, challenge_id: str, index: int) -> pb.SubmitGuessResponse:
        request = pb.SubmitGuessRequest(challenge_id=challenge_id, statement_index=index)
        answer: pb.SubmitGuessResponse = await self.call("SubmitGuess", request, player)
        return answer


def create_request(
    video: video_pb2.Video, lie: int = 2, title: str = "Three things", request_id: str = ""
) -> pb.CreateChallengeRequest:
    """What the phone app sends: times without frames."""
    request = pb.CreateChallengeRequest(
        title=title, lie_statement_index=lie, is_merged_video=True, request_id=request_id
    )
    metadata = request.merged_video_metadata
    metadata.video_file_id, metadata.total_duration = video.video_file_id, video.total_duration
    for segment in video.segments:
        request.statements.add(media_file_id=video.video_file_id, duration_seconds=round(segment.duration, 3))
        metadata.segments.add(
            statement_index=segment.statement_index,
            start_time=round(segment.start_time, 3),
            end_time=round(segment.end_time, 3),
            duration=round(segment.duration, 3),
        )
    return request


@asynccontextmanager
async def open_house(url: str, keys: KeyRing, **overrides: Any) -> AsyncIterator[House]:
    """A house whose database is at ``url``; opened again, it goes on with what is there."""
    settings = ChallengeSettings(
        challenge_listen="127.0.0.1:0",
        challenge_database_url=SecretStr(url),
        challenge_reconcile_seconds=0.02,
        **keys.settings(),
    )
    videos = FakeVideoService()
    verifier = TokenVerifier.from_settings(settings, service="merge")
    merge = GrpcServer(settings, name="merge", listen="127.0.0.1:0", verifier=verifier)
    name = video_service_pb2.DESCRIPTOR.services_by_name["VideoService"].full_name
    merge.add(name, video_service_pb2_grpc.add_VideoServiceServicer_to_server, videos)
    await merge.start()
    settings = settings.model_copy(update={"merge_target": f"127.0.0.1:{merge.port}"})
    async with wiring.build(settings, **overrides) as app:
        await app.server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.server.port}") as channel:
            yield House(app, videos, channel, keys)
        await app.server.stop(1)
    await merge.stop(1)


AWAY = Unavailable("merge is away")
