"""The merge service's videos over gRPC, as the service challenge (not as the player who calls)."""

from __future__ import annotations

import grpc

from services.challenge.domain import Segment, Video
from services.common.errors import Cancelled, DeadlineExceeded, NotFound, ServiceError, Unavailable
from services.common.status import remote_errors
from twotruths.merge.v1 import video_pb2, video_service_pb2, video_service_pb2_grpc


class VideoClient:
    """Videos over ``channel``, which must add service tokens for the audience "merge"."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = video_service_pb2_grpc.VideoServiceStub(channel)

    async def get(self, video_id: str) -> Video | None:
        request = video_service_pb2.GetVideoRequest(video_file_id=video_id)
        try:
            with remote_errors():
                response = await self._stub.GetVideo(request)
        except NotFound:
            return None
        except ServiceError as error:
            raise _outward(error) from error
        return _video(response.video)

    async def make_public(self, video_id: str, owner: str) -> None:
        request = video_service_pb2.SetVisibilityRequest(
            video_file_id=video_id, owner=owner, visibility=video_pb2.VISIBILITY_PUBLIC
        )
        try:
            with remote_errors():
                await self._stub.SetVisibility(request)
        except ServiceError as error:
            raise _outward(error) from error


def _outward(error: ServiceError) -> Exception:
    """What our caller may be told. That merge refuses *our* token or request is our fault, not the player's."""
    if isinstance(error, NotFound | Unavailable | DeadlineExceeded | Cancelled):
        return error
    return RuntimeError(f"the merge service refused: {error.code} {error.reason}: {error.message}")


def _video(message: video_pb2.Video) -> Video:
    return Video(
        id=message.video_file_id,
        owner=message.owner,
        total_duration=message.total_duration,
        segments=tuple(
            Segment(
                statement_index=segment.statement_index,
                start_time=segment.start_time,
                end_time=segment.end_time,
                duration=segment.duration,
                start_frame=segment.start_frame,
                frame_count=segment.frame_count,
            )
            for segment in message.segments
        ),
        compression_applied=message.compression_applied,
    )
