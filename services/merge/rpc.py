"""The servicer of MergeService: proto ⇄ domain, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from services.common import context, ratelimits
from services.common.errors import FieldViolation, InvalidArgument
from services.common.timestamps import timestamp
from services.merge.domain import Clip, JobKind, Reason, Session
from services.merge.health import ProcessingHealth
from services.merge.messages import chapter_message, preset_message, segment_message, storyboard_urls
from services.merge.messages_health import health_message
from services.merge.planner import ClipUpload
from services.merge.presets import PRESETS
from services.merge.requests import NewClip, NewSession
from services.merge.service import MergeSessions
from services.merge.status import OverallStatus, SessionView
from services.merge.timeline import FPS, Canvas, Quality, segments
from services.merge.videos import sidecar_urls, stream_url
from twotruths.merge.v1 import (
    merge_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    video_pb2,
)

MERGE_SERVICE = merge_service_pb2.DESCRIPTOR.services_by_name["MergeService"].full_name

_MILLISECONDS_ABOVE = 1000.0  # the phone app sends either; no clip is a quarter of an hour long

Rpc = grpc.aio.ServicerContext[Any, Any]


class MergeServicer(merge_service_pb2_grpc.MergeServiceServicer):
    """twotruths.merge.v1.MergeService. ``store``: where bytes are kept, "s3" or "directory"."""

    def __init__(self, sessions: MergeSessions, health: ProcessingHealth, *, store: str) -> None:
        self._sessions = sessions
        self._health = health
        self._store = store

    async def InitiateMerge(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.InitiateMergeRequest, rpc: Rpc
    ) -> merge_service_pb2.InitiateMergeResponse:
        canvas = Canvas(request.canvas.width, request.canvas.height) if request.HasField("canvas") else None
        asked = NewSession(
            _new_clips(request),
            title=request.challenge_title,
            request_id=request.request_id,
            canvas=canvas,
            quality=Quality(merge_pb2.Quality.Name(request.quality or merge_pb2.QUALITY_MEDIUM)),
        )
        session, begun = await self._sessions.initiate(context.owner(), asked)
        ratelimits.tell(rpc, begun.rate_limits)
        return _initiated(session, begun.uploads, self._sessions.estimate(session))

    async def GetMerge(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.GetMergeRequest, rpc: Rpc
    ) -> merge_service_pb2.GetMergeResponse:
        view = await self._sessions.get(context.owner(request.owner), request.merge_session_id)
        return merge_service_pb2.GetMergeResponse(merge_session=_session(view))

    async def WatchMerge(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.WatchMergeRequest, rpc: Rpc
    ) -> AsyncIterator[merge_service_pb2.WatchMergeResponse]:
        # aclosing: a watcher that leaves takes its subscriptions along now, not when they are collected.
        async with aclosing(self._sessions.watch(context.owner(request.owner), request.merge_session_id)) as views:
            async for view in views:
                yield merge_service_pb2.WatchMergeResponse(merge_session=_session(view))

    async def RetryMerge(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.RetryMergeRequest, rpc: Rpc
    ) -> merge_service_pb2.RetryMergeResponse:
        view = await self._sessions.retry(
            context.owner(request.owner), request.merge_session_id, request.request_id
        )
        return merge_service_pb2.RetryMergeResponse(merge_session=_session(view))

    async def CancelMerge(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.CancelMergeRequest, rpc: Rpc
    ) -> merge_service_pb2.CancelMergeResponse:
        view = await self._sessions.cancel(context.owner(request.owner), request.merge_session_id)
        return merge_service_pb2.CancelMergeResponse(merge_session=_session(view))

    async def ListMerges(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.ListMergesRequest, rpc: Rpc
    ) -> merge_service_pb2.ListMergesResponse:
        owner = context.owner(request.owner)
        views, token = await self._sessions.page(owner, request.page_size, request.page_token)
        return merge_service_pb2.ListMergesResponse(
            merge_sessions=[_session(view) for view in views], next_page_token=token
        )

    async def TriggerMerge(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.TriggerMergeRequest, rpc: Rpc
    ) -> merge_service_pb2.TriggerMergeResponse:
        view = await self._sessions.trigger(context.owner(request.owner), request.merge_session_id)
        return merge_service_pb2.TriggerMergeResponse(merge_session=_session(view))

    async def ListCompressionPresets(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.ListCompressionPresetsRequest, rpc: Rpc
    ) -> merge_service_pb2.ListCompressionPresetsResponse:
        return merge_service_pb2.ListCompressionPresetsResponse(presets=[preset_message(p) for p in PRESETS])

    async def ReplaceClip(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.ReplaceClipRequest, rpc: Rpc
    ) -> merge_service_pb2.ReplaceClipResponse:
        new = NewClip(request.filename, request.file_size, _seconds(request.duration_seconds), request.mime_type)
        clip, begun = await self._sessions.replace_clip(
            context.owner(request.owner),
            request.merge_session_id,
            request.video_index,
            new,
            request_id=request.request_id,
        )
        ratelimits.tell(rpc, begun.rate_limits)
        return merge_service_pb2.ReplaceClipResponse(upload_session=_upload_session(clip, begun.uploads[0]))

    async def GetProcessingHealth(  # noqa: N802  the contract's name
        self, request: merge_service_pb2.GetProcessingHealthRequest, rpc: Rpc
    ) -> merge_service_pb2.GetProcessingHealthResponse:
        return health_message(await self._health.check(), store=self._store)


def _new_clips(request: merge_service_pb2.InitiateMergeRequest) -> list[NewClip]:
    """The clips out of the parallel lists. Raises InvalidArgument when their lengths differ."""
    count = request.video_count
    lengths = {
        "video_filenames": len(request.video_filenames),
        "video_file_sizes": len(request.video_file_sizes),
        "video_durations": len(request.video_durations) or count,  # may be left out
        "video_mime_types": len(request.video_mime_types) or count,
    }
    violations = [
        FieldViolation(name, f"must have {count} elements, as video_count says, not {length}")
        for name, length in lengths.items()
        if length != count
    ]
    if violations:
        text = f"{violations[0].field}: {violations[0].description}"
        raise InvalidArgument(text, reason=Reason.CLIP_LISTS_DIFFER, violations=violations)
    durations = list(request.video_durations) or [0.0] * count
    types = list(request.video_mime_types) or ["video/mp4"] * count
    return [
        NewClip(name, size, _seconds(duration), type_)
        for name, size, duration, type_ in zip(
            request.video_filenames, request.video_file_sizes, durations, types, strict=True
        )
    ]


def _seconds(duration: float) -> float:
    return duration / 1000 if duration > _MILLISECONDS_ABOVE else duration


def _upload_session(clip: Clip, upload: ClipUpload) -> merge_service_pb2.UploadSession:
    return merge_service_pb2.UploadSession(
        video_index=clip.index,
        session_id=clip.upload_id,
        filename=clip.filename,
        file_size=clip.size,
        duration_seconds=clip.promised_duration,
        upload_url=f"/api/v1/challenge-videos/upload/{clip.upload_id}/chunk",
        chunk_size=upload.chunk_size,
        total_chunks=upload.total_chunks,
    )


def _initiated(session: Session, uploads: Any, estimate: float) -> merge_service_pb2.InitiateMergeResponse:
    by_id: dict[str, ClipUpload] = {upload.id: upload for upload in uploads}
    return merge_service_pb2.InitiateMergeResponse(
        merge_session_id=session.id,
        upload_sessions=[_upload_session(clip, by_id[clip.upload_id]) for clip in session.clips],
        total_videos=len(session.clips),
        total_duration_seconds=sum(clip.promised_duration for clip in session.clips),
        total_file_size_bytes=sum(clip.size for clip in session.clips),
        estimated_merge_time_seconds=estimate,
        status="initiated",
        created_at=timestamp(session.created_at),
    )


def _session(view: SessionView) -> merge_pb2.MergeSession:
    session = view.session
    failure = session.failure
    status = merge_pb2.MergeStatus.Value(view.status)
    message = merge_pb2.MergeSession(
        merge_session_id=session.id,
        overall_status=status,
        overall_progress_percent=view.overall_percent,
        total_videos=len(view.clips),
        completed_videos=sum(bool(clip.clip.source_key) for clip in view.clips),
        failed_videos=sum(clip.status.endswith(("FAILED", "CANCELLED", "EXPIRED")) for clip in view.clips),
        videos=[
            merge_pb2.ClipProgress(
                session_id=clip.clip.upload_id,
                video_index=clip.clip.index,
                filename=clip.clip.filename,
                status=merge_pb2.ClipStatus.Value(clip.status),
                progress_percent=clip.percent,
                completed_at=timestamp(clip.uploaded_at),
                error_type=clip.error_type,
                error_message=clip.error_message,
            )
            for clip in view.clips
        ],
        plan=[
            merge_pb2.ClipPlan(
                video_index=clip.index, action=merge_pb2.PlanAction.Value(clip.action), reason=clip.reason
            )
            for clip in view.plan
        ],
        ready_for_merge=session.all_uploaded,
        merge_triggered=session.all_uploaded,
        merge_status=status,
        merge_progress_percent=view.merge_percent,
        error_message=failure.message if failure else "",
        error_type=failure.error_type if failure else "",
        retry_available=failure.retry_available if failure else False,
        challenge_title=session.title,
        created_at=timestamp(session.created_at),
        updated_at=timestamp(session.updated_at),
        completed_at=timestamp(session.completed_at),
        failed_at=timestamp(failure.failed_at if failure else None),
        retry_count=session.retry_count,
        estimated_remaining_seconds=view.remaining_seconds,
    )
    if session.canvas is not None:
        message.canvas.CopyFrom(merge_pb2.Canvas(width=session.canvas.width, height=session.canvas.height))
    if view.status is OverallStatus.COMPLETED:
        _add_video(message, session)
    return message


def _add_video(message: merge_pb2.MergeSession, session: Session) -> None:
    outcome = session.done(JobKind.MERGE)
    assert outcome is not None, "a session is completed once its merge is done"
    id_, url, total = session.video_id, stream_url(session.video_id), sum(outcome.frames) / FPS
    places = [segment_message(segment) for segment in segments(outcome.frames)]
    message.merged_video_url = url
    message.merged_video.CopyFrom(
        video_pb2.MergedVideo(
            video_file_id=id_,
            merged_video_url=url,
            total_duration=total,
            file_size=outcome.size,
            segments=places,
            compression_applied=not outcome.copied,
            chapters=[chapter_message(segment) for segment in segments(outcome.frames)],
        )
    )
    if (beside := sidecar_urls(id_, outcome.sidecars)) is not None:
        message.merged_video.posters.extend(beside.posters)
        message.merged_video.storyboard.CopyFrom(storyboard_urls(beside))
        message.merged_video.hls_url = beside.hls
    message.merged_video_metadata.CopyFrom(
        video_pb2.MergedVideoMetadata(
            total_duration=total, segments=places, video_file_id=id_, compression_applied=not outcome.copied
        )
    )
