"""Merge sessions over gRPC: every call, every refusal, and what cannot be lost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from nats.aio.client import Client

from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from services.common.keys import KeyRing
from services.common.playback import PlaybackSigner
from services.merge.media.errors import ErrorType, MediaError
from services.merge.timeline import FPS, CutClip, Piece
from tests.rpc.merge_world import DELIVERABLE, FRAMES, SteeredMedia, World, refusal, running, three_clips
from twotruths.merge.v1 import merge_pb2, merge_service_pb2, video_pb2, video_service_pb2


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as world:
        yield world


async def test_initiate_gives_an_upload_for_each_clip(world: World) -> None:
    answer = await world.initiate(challenge_title="guess")
    assert [u.video_index for u in answer.upload_sessions] == [0, 1, 2]
    assert [u.duration_seconds for u in answer.upload_sessions] == [3.0, 2.5, 3.5]
    assert answer.upload_sessions[1].upload_url.endswith(f"/{answer.upload_sessions[1].session_id}/chunk")
    assert (answer.total_videos, answer.total_file_size_bytes, answer.status) == (3, 600, "initiated")
    status = await world.status(answer.merge_session_id)
    assert status.overall_status == merge_pb2.MERGE_STATUS_UPLOADING
    assert status.challenge_title == "guess"
    assert not status.HasField("merged_video")


async def test_what_the_upload_service_tells_of_the_limits_is_passed_on(world: World) -> None:
    world.uploads.rate_limits = (("ratelimit", '"initiates";r=27;t=60'),)
    call = world.merges.InitiateMerge(three_clips(), metadata=world.as_player("alice"))
    await call
    trailing = dict(await call.trailing_metadata())
    assert trailing["ratelimit"] == '"initiates";r=27;t=60'
    assert trailing["x-request-id"]


async def test_the_same_request_id_is_the_same_session(world: World) -> None:
    first = await world.initiate(request_id="once")
    assert (await world.initiate(request_id="once")) == first
    assert (await world.initiate("bob", request_id="once")).merge_session_id != first.merge_session_id
    error = await refusal(world.initiate(request_id="once", challenge_title="other"))
    assert (type(error), error.reason) == (AlreadyExists, "REQUEST_ID_REUSED")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"video_count": 2}, "video_filenames"),
        ({"video_file_sizes": [1, 2]}, "video_file_sizes"),
        ({"video_durations": [1.0]}, "video_durations"),
        ({"video_mime_types": ["video/mp4"]}, "video_mime_types"),
        ({"video_durations": [3.0, 90.0, 3.0]}, "video_durations[1]"),
        ({"video_durations": [3.0, 3.0, 900_000]}, "video_durations[2]"),
        ({"video_file_sizes": [100, 0, 300]}, "video_file_sizes[1]"),
        ({"video_mime_types": ["video/mp4", "image/png", "video/mp4"]}, "video_mime_types[1]"),
        ({"video_count": 1}, "video_count"),
        ({"canvas": {"width": 333, "height": 200}}, "canvas"),
        ({"canvas": {"width": 64, "height": 200}}, "canvas"),
        ({"challenge_title": "x" * 201}, "challenge_title"),
        ({"quality": 7}, "quality"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_made(
    world: World, changes: dict[str, object], field: str
) -> None:
    error = await refusal(world.initiate("alice", **changes))
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == field
    assert world.uploads.known == {}


async def test_what_the_upload_service_refuses_comes_in_the_callers_names(world: World) -> None:
    world.uploads.refuse = InvalidArgument(
        "too large", reason="FILE_TOO_LARGE", violations=[FieldViolation("clips[1].file_size", "too large")]
    )
    error = await refusal(world.initiate(request_id="again"))
    assert (error.violations[0].field, error.reason) == ("video_file_sizes[1]", "FILE_TOO_LARGE")
    world.uploads.refuse = None
    await world.initiate(request_id="again", video_file_sizes=[1, 2, 3])


async def test_a_session_over_the_owners_quota_is_refused_and_nothing_is_made(world: World) -> None:
    world.uploads.refuse = ResourceExhausted("too many", reason="QUOTA_OPEN_UPLOADS", retry_after=60)
    error = await refusal(world.initiate(request_id="again"))
    assert (type(error), error.reason, error.retry_after) == (ResourceExhausted, "QUOTA_OPEN_UPLOADS", 60)
    world.uploads.refuse = None
    await world.initiate(request_id="again", video_file_sizes=[1, 2, 3])


async def test_a_foreign_session_is_not_found(world: World) -> None:
    session_id = (await world.initiate()).merge_session_id
    bob = world.as_player("bob")
    messages, merges = merge_service_pb2, world.merges
    for call in (
        merges.GetMerge(messages.GetMergeRequest(merge_session_id=session_id), metadata=bob),
        merges.RetryMerge(messages.RetryMergeRequest(merge_session_id=session_id), metadata=bob),
        merges.CancelMerge(messages.CancelMergeRequest(merge_session_id=session_id), metadata=bob),
    ):
        error = await refusal(call)
        assert (type(error), error.reason) == (NotFound, "MERGE_NOT_FOUND")
    watch = world.merges.WatchMerge(merge_service_pb2.WatchMergeRequest(merge_session_id=session_id), metadata=bob)
    assert isinstance(await refusal(watch.read()), NotFound)
    named = merge_service_pb2.GetMergeRequest(merge_session_id=session_id, owner="alice")
    error = await refusal(world.merges.GetMerge(named, metadata=bob))
    assert (type(error), error.reason) == (PermissionDenied, "INTERNAL_ONLY")
    status = await world.merges.GetMerge(named, metadata=world.as_service())
    assert status.merge_session.merge_session_id == session_id


async def test_three_uploads_become_one_video_with_tiled_segments(world: World) -> None:
    await world.worker(SteeredMedia())
    initiated = await world.initiate()
    await world.upload_all(initiated)
    done = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    assert done.overall_progress_percent == 100
    assert [s.frame_count for s in done.merged_video.segments] == list(FRAMES)
    assert [s.start_frame for s in done.merged_video.segments] == [0, 90, 165]
    assert done.merged_video.total_duration == sum(FRAMES) / FPS
    video_id = done.merged_video.video_file_id
    assert done.merged_video_metadata.video_file_id == video_id
    request = video_service_pb2.GetVideoRequest(video_file_id=video_id)
    video = (await world.videos.GetVideo(request, metadata=world.as_player("alice"))).video
    assert (await world.objects.stat(video.object_key)).size == video.size
    beside = video.sidecars
    files = [*beside.posters, beside.storyboard.file, beside.rendition.file]
    kept = {info.key: info.size async for info in world.objects.list(f"videos/{initiated.merge_session_id}/")}
    assert kept == {video.object_key: video.size} | {file.object_key: file.size for file in files}
    for file in files:
        path = world.objects.local_path(file.object_key)
        assert path is not None
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


async def test_what_lies_beside_a_video_is_told_with_the_permission_that_the_video_has(world: World) -> None:
    await world.worker(SteeredMedia())
    initiated = await world.initiate()
    await world.upload_all(initiated)
    merged = (await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)).merged_video
    assert [(c.title, c.start_time, c.end_time) for c in merged.chapters] == [
        (f"Statement {s.statement_index + 1}", s.start_time, s.end_time) for s in merged.segments
    ]
    base = merged.merged_video_url
    assert list(merged.posters) == [f"{base}/posters/{n}.jpg" for n in range(3)]
    assert (merged.storyboard.image_url, merged.storyboard.vtt_url, merged.hls_url) == (
        f"{base}/storyboard.jpg",
        f"{base}/storyboard.vtt",
        f"{base}/hls.m3u8",
    )
    request = video_service_pb2.GetPlaybackRequest(video_file_id=merged.video_file_id)
    playback = await world.videos.GetPlayback(request, metadata=world.as_player("alice"))
    query = playback.streaming_url.removeprefix(base)
    assert query.startswith("?")
    assert list(playback.posters) == [url + query for url in merged.posters]
    assert playback.storyboard.image_url == merged.storyboard.image_url + query
    assert playback.storyboard.vtt_url == merged.storyboard.vtt_url + query
    assert playback.hls_url == merged.hls_url + query


async def test_what_could_not_be_made_beside_a_video_is_tried_once_more(world: World) -> None:
    def fail(kind: str) -> None:
        if kind == "beside":
            raise MediaError(ErrorType.WORKER_FAILED, "no")

    media = SteeredMedia(fail)
    await world.worker(media)
    initiated = await world.initiate()
    await world.upload_all(initiated)
    merged = (await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)).merged_video
    assert (len(merged.posters), merged.HasField("storyboard"), bool(merged.hls_url)) == (3, True, True)
    assert (media.done.count("merge"), media.done.count("sidecars")) == (1, 1)


async def test_a_video_whose_sidecars_cannot_be_made_goes_out_without_them(world: World) -> None:
    def fail(kind: str) -> None:
        if kind in {"beside", "sidecars"}:
            raise MediaError(ErrorType.WORKER_FAILED, "no")

    await world.worker(SteeredMedia(fail))
    initiated = await world.initiate()
    await world.upload_all(initiated)
    merged = (await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)).merged_video
    assert (list(merged.posters), merged.HasField("storyboard"), merged.hls_url) == ([], False, "")
    assert len(merged.chapters) == 3
    get = video_service_pb2.GetVideoRequest(video_file_id=merged.video_file_id)
    video = (await world.videos.GetVideo(get, metadata=world.as_player("alice"))).video
    assert not video.HasField("sidecars")
    assert [info.key async for info in world.objects.list("videos/")] == [video.object_key]


async def test_clips_that_can_be_delivered_as_they_are_are_copied(world: World) -> None:
    media = SteeredMedia(info=DELIVERABLE)
    initiated = await world.initiate()
    await world.upload_all(initiated)
    await world.worker(media)
    done = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    assert [(p.video_index, p.action) for p in done.plan] == [(i, merge_pb2.PLAN_ACTION_COPY) for i in range(3)]
    assert "merge" not in media.done
    assert not done.merged_video.compression_applied
    request = video_service_pb2.GetVideoRequest(video_file_id=done.merged_video.video_file_id)
    video = (await world.videos.GetVideo(request, metadata=world.as_player("alice"))).video
    assert not video.compression_applied
    assert (video.width, video.height) == (720, 1280)


async def test_a_long_clip_is_encoded_by_several_workers_and_joined(
    nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path
) -> None:
    world = World(nats_url, keys, tmp_path)
    world.settings = world.settings.model_copy(update={"chunk_seconds": 2.0})  # the clips last three
    media = SteeredMedia()
    async with world.stack:
        await world.start()
        for _ in range(2):
            await world.worker(media)
        initiated = await world.initiate()
        await world.upload_all(initiated)
        await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    assert media.done.count("normalise") == 9
    assert set(media.pieces) == {Piece("0/1", 0, 30), Piece("0/1", 30, 60), Piece("0/1", 60)}
    clips = [clip for clip in media.merged if isinstance(clip, CutClip)]
    assert [len(clip.chunks) for clip in clips] == [3, 3, 3]
    assert [clip.source.name for clip in clips] == [upload.session_id for upload in initiated.upload_sessions]


async def test_a_copy_that_is_not_right_becomes_an_encoded_video(world: World) -> None:
    refused, looked = asyncio.Event(), asyncio.Event()

    async def refuse(kind: str) -> None:
        if kind == "copy":
            refused.set()
            raise MediaError(ErrorType.VERIFICATION_FAILED, "not right")
        if refused.is_set():
            await looked.wait()

    media = SteeredMedia(refuse, info=DELIVERABLE)
    await world.worker(media)
    initiated = await world.initiate()
    await world.upload_all(initiated)
    await media.until(lambda: refused.is_set() and "normalise" in media.running)
    status = await world.status(initiated.merge_session_id)
    assert status.overall_progress_percent >= 90, "to join them was all that was left, and progress never falls"
    looked.set()
    done = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    assert {p.action for p in done.plan} == {merge_pb2.PLAN_ACTION_TRANSCODE}
    assert "not right" in done.plan[0].reason
    assert done.merged_video.compression_applied
    assert media.done.count("normalise") >= 3


async def test_a_video_is_its_owners_until_a_service_makes_it_public(world: World) -> None:
    await world.worker(SteeredMedia())
    initiated = await world.initiate()
    await world.upload_all(initiated)
    done = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    video_id = done.merged_video.video_file_id
    get = video_service_pb2.GetVideoRequest(video_file_id=video_id)
    bob = world.as_player("bob")
    assert isinstance(await refusal(world.videos.GetVideo(get, metadata=bob)), NotFound)
    publish = video_service_pb2.SetVisibilityRequest(
        video_file_id=video_id, owner="alice", visibility=video_pb2.VISIBILITY_PUBLIC
    )
    as_player = await refusal(world.videos.SetVisibility(publish, metadata=world.as_player("alice")))
    assert isinstance(as_player, PermissionDenied)
    publish.owner = "bob"
    foreign = await refusal(world.videos.SetVisibility(publish, metadata=world.as_service()))
    assert isinstance(foreign, NotFound)
    publish.owner = "alice"
    await world.videos.SetVisibility(publish, metadata=world.as_service())
    assert (await world.videos.GetVideo(get, metadata=bob)).video.visibility == video_pb2.VISIBILITY_PUBLIC


async def test_playback_is_a_url_that_carries_its_own_permission(world: World) -> None:
    await world.worker(SteeredMedia())
    initiated = await world.initiate()
    await world.upload_all(initiated)
    done = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    request = video_service_pb2.GetPlaybackRequest(video_file_id=done.merged_video.video_file_id)
    playback = await world.videos.GetPlayback(request, metadata=world.as_player("alice"))
    assert playback.delivery_type == video_pb2.DELIVERY_TYPE_GATEWAY_SIGNED
    query = dict(pair.split("=") for pair in playback.streaming_url.partition("?")[2].split("&"))
    signer = PlaybackSigner.from_file(world.settings.playback_keys_file)
    signer.verify(request.video_file_id, **query, now=playback.expires_at.seconds)
    request.prefer_signed = False
    direct = await world.videos.GetPlayback(request, metadata=world.as_player("alice"))
    assert direct.delivery_type == video_pb2.DELIVERY_TYPE_DIRECT
    assert direct.streaming_url == done.merged_video_url


async def test_work_on_a_clip_starts_before_the_others_are_there(world: World) -> None:
    media = SteeredMedia()
    await world.worker(media)
    initiated = await world.initiate()
    await world.uploads.complete(initiated.upload_sessions[2].session_id)
    await media.until(lambda: media.done == ["probe", "normalise"])
    status = await world.status(initiated.merge_session_id)
    assert status.overall_status == merge_pb2.MERGE_STATUS_UPLOADING
    assert (status.canvas.width, status.canvas.height) == (1280, 720)


async def test_bad_input_fails_for_good_and_its_job_is_kept_among_the_dead(
    world: World, nats_client: Client
) -> None:
    def refuse(kind: str) -> None:
        raise MediaError(ErrorType.NO_VIDEO_STREAM, "there is no picture in it")

    await world.worker(SteeredMedia(refuse))
    initiated = await world.initiate()
    await world.uploads.complete(initiated.upload_sessions[1].session_id)
    failed = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
    assert (failed.error_type, failed.retry_available) == ("no_video_stream", False)
    assert failed.videos[1].status == merge_pb2.CLIP_STATUS_FAILED
    assert "there is no picture in it" in failed.error_message
    request = merge_service_pb2.RetryMergeRequest(merge_session_id=initiated.merge_session_id)
    error = await refusal(world.merges.RetryMerge(request, metadata=world.as_player("alice")))
    assert (type(error), error.reason) == (FailedPrecondition, "RETRY_NOT_AVAILABLE")
    dead = f"dead.jobs.probe.{initiated.merge_session_id}-probe1-0-1"
    async with asyncio.timeout(10):
        while (await nats_client.jetstream().stream_info("JOBS_DEAD")).state.messages == 0:
            await asyncio.sleep(0.05)  # the controller buries it after the status shows the failure
    message = await nats_client.jetstream().get_last_msg("JOBS_DEAD", dead)
    assert message.headers is not None
    assert message.headers["Twotruths-Reason"].startswith("no_video_stream")


async def test_a_transient_failure_is_retried_by_itself_and_then_by_the_player(world: World) -> None:
    failures = [MediaError(ErrorType.WORKER_FAILED, "killed")] * 3

    def fail_thrice(kind: str) -> None:
        if kind == "merge" and failures:
            raise failures.pop()

    media = SteeredMedia(fail_thrice)
    await world.worker(media)
    initiated = await world.initiate()
    await world.upload_all(initiated)
    failed = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
    assert (failed.error_type, failed.retry_available, failures) == ("worker_failed", True, [])
    request = merge_service_pb2.RetryMergeRequest(merge_session_id=initiated.merge_session_id)
    await world.merges.RetryMerge(request, metadata=world.as_player("alice"))
    done = await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    assert done.retry_count == 1
    assert media.done.count("normalise") == 3, "what was done is kept"


async def test_cancel_ends_the_running_work_and_leaves_nothing(world: World, nats_client: Client) -> None:
    async def hang(kind: str) -> None:
        if kind == "normalise":
            await asyncio.Event().wait()

    media = SteeredMedia(hang)
    await world.worker(media)
    initiated = await world.initiate()
    await world.upload_all(initiated)
    await media.until(lambda: media.running == ["normalise"])
    request = merge_service_pb2.CancelMergeRequest(merge_session_id=initiated.merge_session_id)
    for _ in range(2):
        answer = await world.merges.CancelMerge(request, metadata=world.as_player("alice"))
        assert answer.merge_session.overall_status == merge_pb2.MERGE_STATUS_CANCELLED
    async with asyncio.timeout(2):
        await media.until(lambda: media.cancelled == ["normalise"])
    async with asyncio.timeout(10):
        while len(world.uploads.discarded) < 3:
            await asyncio.sleep(0.05)  # the controller cleans up on its own
    assert [i.key async for i in world.objects.list(f"merges/{initiated.merge_session_id}/")] == []
    assert (await nats_client.jetstream().stream_info("JOBS")).state.messages == 0
    assert list(world.settings.scratch_dir.glob("*/*")) == []


async def test_a_finished_session_cannot_be_cancelled(world: World) -> None:
    await world.worker(SteeredMedia())
    initiated = await world.initiate()
    await world.upload_all(initiated)
    await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    request = merge_service_pb2.CancelMergeRequest(merge_session_id=initiated.merge_session_id)
    error = await refusal(world.merges.CancelMerge(request, metadata=world.as_player("alice")))
    assert (type(error), error.reason) == (FailedPrecondition, "ALREADY_COMPLETED")


async def test_scopes_are_asked_for(world: World) -> None:
    reader = (("authorization", f"Bearer {world.keys.player_token('alice', scopes=['media:read'])}"),)
    error = await refusal(world.merges.InitiateMerge(three_clips(), metadata=reader))
    assert (type(error), error.metadata) == (PermissionDenied, {"scope": "media:upload"})
    assert grpc.StatusCode.PERMISSION_DENIED.name == error.code
