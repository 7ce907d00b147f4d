"""The servicer of VideoService: proto ⇄ domain, nothing else."""

from __future__ import annotations

from typing import Any

import grpc

from services.common import context
from services.common.errors import PermissionDenied
from services.common.timestamps import timestamp
from services.merge.domain import Reason, Video, Visibility
from services.merge.messages import segment_message, sidecars_message, storyboard_urls
from services.merge.ports import Delivery
from services.merge.timeline import FPS, segments
from services.merge.videos import MergedVideos
from twotruths.merge.v1 import video_pb2, video_service_pb2, video_service_pb2_grpc

VIDEO_SERVICE = video_service_pb2.DESCRIPTOR.services_by_name["VideoService"].full_name
_CHALLENGE = "service:challenge"

Rpc = grpc.aio.ServicerContext[Any, Any]


class VideoServicer(video_service_pb2_grpc.VideoServiceServicer):
    """twotruths.merge.v1.VideoService."""

    def __init__(self, videos: MergedVideos) -> None:
        self._videos = videos

    async def GetVideo(  # noqa: N802  the contract's name
        self, request: video_service_pb2.GetVideoRequest, rpc: Rpc
    ) -> video_service_pb2.GetVideoResponse:
        video = await self._videos.get(context.principal(), request.video_file_id)
        return video_service_pb2.GetVideoResponse(video=_video(video))

    async def GetPlayback(  # noqa: N802  the contract's name
        self, request: video_service_pb2.GetPlaybackRequest, rpc: Rpc
    ) -> video_service_pb2.GetPlaybackResponse:
        signed = request.prefer_signed if request.HasField("prefer_signed") else True
        playback = await self._videos.playback(
            context.principal(), request.video_file_id, signed=signed, device=request.device_type
        )
        response = video_service_pb2.GetPlaybackResponse(
            streaming_url=playback.url,
            delivery_type=video_pb2.DeliveryType.Value(playback.delivery),
            supports_range=True,
            global_delivery=playback.delivery is Delivery.CDN_SIGNED,
            expires_at=timestamp(playback.expires_at),
            rendition=video_pb2.RenditionType.Value(playback.form),
            decided_by=playback.decided_by,
            rendition_url=playback.rendition_url,
        )
        if playback.sidecars is not None:
            response.posters.extend(playback.sidecars.posters)
            response.storyboard.CopyFrom(storyboard_urls(playback.sidecars))
            response.hls_url = playback.sidecars.hls
        return response

    async def SetVisibility(  # noqa: N802  the contract's name
        self, request: video_service_pb2.SetVisibilityRequest, rpc: Rpc
    ) -> video_service_pb2.SetVisibilityResponse:
        if context.principal().subject != _CHALLENGE:
            raise PermissionDenied("challenge alone says who may see a video", reason=Reason.INTERNAL_ONLY)
        visibility = Visibility(video_pb2.Visibility.Name(request.visibility))
        video = await self._videos.set_visibility(request.owner, request.video_file_id, visibility)
        return video_service_pb2.SetVisibilityResponse(video=_video(video))

    async def DeleteVideo(  # noqa: N802  the contract's name
        self, request: video_service_pb2.DeleteVideoRequest, rpc: Rpc
    ) -> video_service_pb2.DeleteVideoResponse:
        await self._videos.delete(context.owner(request.owner), request.video_file_id)
        return video_service_pb2.DeleteVideoResponse()


def _video(video: Video) -> video_pb2.Video:
    return video_pb2.Video(
        video_file_id=video.id,
        owner=video.owner,
        merge_session_id=video.merge_session_id,
        visibility=video_pb2.Visibility.Value(video.visibility),
        object_key=video.object_key,
        size=video.size,
        sha256=video.sha256,
        mime_type="video/mp4",
        width=video.width,
        height=video.height,
        fps=FPS,
        frame_count=sum(video.frames),
        total_duration=sum(video.frames) / FPS,
        segments=[segment_message(segment) for segment in segments(video.frames)],
        compression_applied=video.transcoded,
        created_at=timestamp(video.created_at),
        sidecars=sidecars_message(video.sidecars) if video.sidecars is not None else None,
    )
