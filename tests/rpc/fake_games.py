"""Merge and challenge services kept in memory, for a gateway to stand before: as much of the contract as tests
look at. What the contract says is not served yet is not served here either."""

# ruff: noqa: N802  servicers have the names of their rpcs

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

from services.common import context
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.rpc.fake_uploads import LIMITS, NOW, FakeUploads, U, find
from twotruths.challenge.v1 import challenge_pb2, challenge_service_pb2, challenge_service_pb2_grpc
from twotruths.merge.v1 import (
    merge_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    video_pb2,
    video_service_pb2,
    video_service_pb2_grpc,
)


class FakeMerges(merge_service_pb2_grpc.MergeServiceServicer, video_service_pb2_grpc.VideoServiceServicer):
    def __init__(self, uploads: FakeUploads) -> None:
        self.playback: video_service_pb2.GetPlaybackResponse | None = None
        self.uploads = uploads
        self.merges: dict[str, tuple[str, merge_pb2.MergeSession]] = {}
        self.videos: dict[str, tuple[str, video_pb2.Video]] = {}
        self.initiated: list[Any] = []
        self.asked_by: list[str] = []
        self.played: list[Any] = []

    async def InitiateMerge(self, request: Any, _: Any) -> Any:
        self.initiated.append(request)
        for name in ("video_filenames", "video_file_sizes"):
            if len(getattr(request, name)) != request.video_count:
                raise InvalidArgument.field(name, "must have as many elements as video_count says")
        for name in ("video_durations", "video_mime_types"):
            if len(getattr(request, name)) not in {0, request.video_count}:
                raise InvalidArgument.field(name, "must have as many elements as video_count says, or none")
        for i, size in enumerate(request.video_file_sizes):
            LIMITS.check_size(size, f"video_file_sizes[{i}]")
        session = self.add(context.owner(), zip(request.video_filenames, request.video_file_sizes, strict=True))
        return merge_service_pb2.InitiateMergeResponse(
            merge_session_id=session.merge_session_id,
            upload_sessions=map(self._target, session.videos),
            total_videos=request.video_count,
            total_file_size_bytes=sum(request.video_file_sizes),
            total_duration_seconds=sum(d / 1000 if d > 1000 else d for d in request.video_durations),
            status="initiated",
            created_at=NOW,
        )

    def add(self, owner: str, files: Iterable[tuple[str, int]]) -> merge_pb2.MergeSession:
        """A session of files of these names and sizes."""
        session = merge_pb2.MergeSession(
            merge_session_id=str(uuid.uuid4()), overall_status=merge_pb2.MERGE_STATUS_UPLOADING
        )
        for filename, size in files:
            self._place(session.videos.add(video_index=len(session.videos)), owner, session, filename, size)
        session.total_videos = len(session.videos)
        self.merges[session.merge_session_id] = (owner, session)
        return session

    def _place(
        self, clip: merge_pb2.ClipProgress, owner: str, session: merge_pb2.MergeSession, filename: str, size: int
    ) -> None:
        """Gives the clip a new upload."""
        id_, index = session.merge_session_id, clip.video_index
        chunk_size = LIMITS.chunk_size_for(size, 0)
        upload = self.uploads.add(owner, filename, size, chunk_size, merge_session_id=id_, video_index=index)
        clip.session_id, clip.status = upload.session_id, merge_pb2.CLIP_STATUS_PENDING

    def _target(self, clip: merge_pb2.ClipProgress) -> merge_service_pb2.UploadSession:
        upload = self.uploads.uploads[clip.session_id][1]
        return merge_service_pb2.UploadSession(
            video_index=clip.video_index,
            session_id=upload.session_id,
            filename=upload.filename,
            file_size=upload.file_size,
            upload_url=f"/api/v1/challenge-videos/upload/{upload.session_id}/chunk",
            chunk_size=upload.chunk_size,
            total_chunks=upload.total_chunks,
        )

    async def ReplaceClip(self, request: Any, _: Any) -> Any:
        session = self._session(request.merge_session_id)
        if request.video_index >= session.total_videos:
            raise InvalidArgument.field("video_index", "names no clip of the session")
        LIMITS.check_size(request.file_size)
        clip = session.videos[request.video_index]
        self._place(clip, context.owner(), session, request.filename, request.file_size)
        return merge_service_pb2.ReplaceClipResponse(upload_session=self._target(clip))

    async def ListMerges(self, request: Any, _: Any) -> Any:
        if request.page_token:
            raise InvalidArgument.field("page_token", "is none of this server's")
        sessions = [session for owner, session in self.merges.values() if owner == context.owner(request.owner)]
        return merge_service_pb2.ListMergesResponse(merge_sessions=sessions[: request.page_size or 50])

    async def ListCompressionPresets(self, request: Any, _: Any) -> Any:
        return merge_service_pb2.ListCompressionPresetsResponse(presets=[merge_pb2.CompressionPreset()])

    async def GetProcessingHealth(self, request: Any, _: Any) -> Any:
        return merge_service_pb2.GetProcessingHealthResponse(
            processing_queue=merge_service_pb2.ProcessingQueue(depth=1, depth_by_priority={"high": 1}),
            ffmpeg_service=merge_service_pb2.FfmpegService(version="7.1", resource_usage={"workers": 0.5}),
            status="degraded",
            problems=["queue: does not answer"],
            workers=[merge_service_pb2.WorkerHealth(worker_id="w", reported_at=NOW)],
            checked_at=NOW,
        )

    def _session(self, id_: str) -> merge_pb2.MergeSession:
        session: merge_pb2.MergeSession = find(self.merges, id_)
        done = sum(
            self.uploads.uploads[v.session_id][1].status == U.UPLOAD_STATUS_COMPLETED for v in session.videos
        )
        session.completed_videos = done
        session.ready_for_merge = session.merge_triggered = done == session.total_videos
        return session

    async def GetMerge(self, request: Any, _: Any) -> Any:
        return merge_service_pb2.GetMergeResponse(merge_session=self._session(request.merge_session_id))

    async def WatchMerge(self, request: Any, _: Any) -> AsyncIterator[Any]:
        session = self._session(request.merge_session_id)
        for percent in (10.0, 50.0, 100.0):
            session.merge_progress_percent = percent
            yield merge_service_pb2.WatchMergeResponse(merge_session=session)
        session.overall_status = session.merge_status = merge_pb2.MERGE_STATUS_COMPLETED
        yield merge_service_pb2.WatchMergeResponse(merge_session=session)

    async def TriggerMerge(self, request: Any, _: Any) -> Any:
        session = self._session(request.merge_session_id)
        if not session.ready_for_merge:
            raise FailedPrecondition("not completely uploaded", reason="CLIPS_MISSING")
        return merge_service_pb2.TriggerMergeResponse(merge_session=session)

    async def RetryMerge(self, request: Any, _: Any) -> Any:
        find(self.merges, request.merge_session_id)
        raise FailedPrecondition("it has not failed", reason="RETRY_NOT_AVAILABLE")

    async def CancelMerge(self, request: Any, _: Any) -> Any:
        session = find(self.merges, request.merge_session_id)
        session.overall_status = merge_pb2.MERGE_STATUS_CANCELLED
        return merge_service_pb2.CancelMergeResponse(merge_session=session)

    async def GetVideo(self, request: Any, _: Any) -> Any:
        caller = context.principal()
        self.asked_by.append(caller.subject)
        owner, video = self.videos.get(request.video_file_id, ("", None))
        if video is None or not (
            caller.is_service or caller.subject == owner or video.visibility == video_pb2.VISIBILITY_PUBLIC
        ):
            raise NotFound("there is no such video", reason="VIDEO_NOT_FOUND")
        return video_service_pb2.GetVideoResponse(video=video)

    async def GetPlayback(self, request: Any, _: Any) -> Any:
        self.played.append(request)
        if self.playback is not None:
            return self.playback
        return video_service_pb2.GetPlaybackResponse(
            streaming_url=f"/api/v1/media/stream/{request.video_file_id}",
            delivery_type=video_pb2.DELIVERY_TYPE_DIRECT
            if request.HasField("prefer_signed") and not request.prefer_signed
            else video_pb2.DELIVERY_TYPE_GATEWAY_SIGNED,
            supports_range=True,
        )


class FakeChallenges(challenge_service_pb2_grpc.ChallengeServiceServicer):
    def __init__(self) -> None:
        self.created: list[Any] = []
        self.listed: list[Any] = []
        self.challenges: dict[str, challenge_pb2.Challenge] = {}
        self.publish_error: Exception | None = None

    def _find(self, id_: str) -> challenge_pb2.Challenge:
        if id_ not in self.challenges:
            raise NotFound("there is no such challenge", reason="CHALLENGE_NOT_FOUND")
        return self.challenges[id_]

    def add(self, **fields: Any) -> challenge_pb2.Challenge:
        """A draft."""
        challenge = challenge_pb2.Challenge(
            challenge_id=str(uuid.uuid4()),
            status=challenge_pb2.CHALLENGE_STATUS_DRAFT,
            is_merged_video=True,
            created_at=NOW,
            **fields,
        )
        self.challenges[challenge.challenge_id] = challenge
        return challenge

    async def CreateChallenge(self, request: Any, _: Any) -> Any:
        self.created.append(request)
        if not request.is_merged_video:
            raise InvalidArgument.field("is_merged_video", "must be true", reason="MERGED_VIDEO_REQUIRED")
        challenge = self.add(title=request.title, merged_video_metadata=request.merged_video_metadata)
        return challenge_service_pb2.CreateChallengeResponse(challenge=challenge)

    async def GetChallenge(self, request: Any, _: Any) -> Any:
        return challenge_service_pb2.GetChallengeResponse(challenge=self._find(request.challenge_id))

    async def GetSegments(self, request: Any, _: Any) -> Any:
        video = self._find(request.challenge_id).merged_video_metadata
        return challenge_service_pb2.GetSegmentsResponse(
            challenge_id=request.challenge_id, video_file_id=video.video_file_id, segments=video.segments
        )

    async def GetStats(self, request: Any, _: Any) -> Any:
        self._find(request.challenge_id)
        return challenge_service_pb2.GetStatsResponse(challenge_id=request.challenge_id, total_guesses=1)

    async def ListChallenges(self, request: Any, _: Any) -> Any:
        self.listed.append(request)
        return challenge_service_pb2.ListChallengesResponse()

    async def SubmitGuess(self, request: Any, _: Any) -> Any:
        return challenge_service_pb2.SubmitGuessResponse(
            challenge_id=request.challenge_id,
            statement_index=request.statement_index,
            guessed_at=NOW,
        )

    async def PublishChallenge(self, request: Any, _: Any) -> Any:
        if self.publish_error is not None:
            raise self.publish_error
        challenge = self._find(request.challenge_id)
        challenge.status = challenge_pb2.CHALLENGE_STATUS_PUBLISHED
        return challenge_service_pb2.PublishChallengeResponse(challenge=challenge)
