"""ReplaceClip over gRPC: one statement is recorded anew, and only that one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.adapters.nats_progress import NatsProgressBus
from services.common.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from services.common.keys import KeyRing
from services.common.progress import Progress
from services.merge import service
from services.merge.media.errors import ErrorType, MediaError
from services.merge.planner import UploadStatus
from tests.rpc.merge_world import SteeredMedia, World, refusal, running
from twotruths.merge.v1 import merge_pb2, merge_service_pb2


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as world:
        yield world


def request(session_id: str, index: int = 1, **changes: object) -> merge_service_pb2.ReplaceClipRequest:
    fields: dict[str, object] = {
        "merge_session_id": session_id,
        "video_index": index,
        "filename": "again.mp4",
        "file_size": 50,
        "mime_type": "video/mp4",
        "duration_seconds": 2500,
    }
    return merge_service_pb2.ReplaceClipRequest(**(fields | changes))  # type: ignore[arg-type]  # by name


async def replaced(
    world: World, session_id: str, index: int = 1, **changes: object
) -> merge_service_pb2.UploadSession:
    call = world.merges.ReplaceClip(request(session_id, index, **changes), metadata=world.as_player("alice"))
    return (await call).upload_session


async def discarded(world: World, upload_id: str) -> None:
    async with asyncio.timeout(30):
        while upload_id not in world.uploads.discarded:
            await asyncio.sleep(0.02)  # the controller does it on its own


async def test_only_the_replaced_clip_is_done_anew_while_its_worker_stops(world: World) -> None:
    joining = asyncio.Event()

    async def hang_once(kind: str) -> None:
        if kind == "merge" and not joining.is_set():
            joining.set()
            await asyncio.Event().wait()

    media = SteeredMedia(hang_once)
    await world.worker(media)
    begun = await world.initiate()
    id_ = begun.merge_session_id
    await world.upload_all(begun)
    async with asyncio.timeout(30):
        await joining.wait()
    canvas = (await world.status(id_)).canvas
    new = await replaced(world, id_)
    assert (new.video_index, new.filename, new.duration_seconds, new.total_chunks) == (1, "again.mp4", 2.5, 1)
    assert new.upload_url == f"/api/v1/challenge-videos/upload/{new.session_id}/chunk"
    assert new.session_id != begun.upload_sessions[1].session_id
    await media.until(lambda: media.cancelled == ["merge"])
    status = await world.status(id_)
    assert status.overall_status == merge_pb2.MERGE_STATUS_UPLOADING
    assert [v.status for v in status.videos] == [
        merge_pb2.CLIP_STATUS_COMPLETED,
        merge_pb2.CLIP_STATUS_PENDING,
        merge_pb2.CLIP_STATUS_COMPLETED,
    ]
    assert status.videos[1].progress_percent == 0
    assert status.canvas == canvas
    await discarded(world, begun.upload_sessions[1].session_id)
    await world.uploads.complete(new.session_id)
    done = await world.until(id_, merge_pb2.MERGE_STATUS_COMPLETED)
    assert media.done.count("probe") == media.done.count("normalise") == 4, "the others are kept"
    assert done.videos[1].session_id == new.session_id
    error = await refusal(replaced(world, id_))
    assert (type(error), error.reason) == (FailedPrecondition, "ALREADY_COMPLETED")


@pytest.mark.parametrize("status", [UploadStatus.CANCELLED, UploadStatus.EXPIRED, UploadStatus.FAILED])
async def test_a_session_that_lost_a_clip_goes_on_with_another(world: World, status: UploadStatus) -> None:
    await world.worker(SteeredMedia())
    begun = await world.initiate()
    id_, lost = begun.merge_session_id, begun.upload_sessions[1].session_id
    for other in (0, 2):
        await world.uploads.complete(begun.upload_sessions[other].session_id)
    world.uploads.known[lost] = replace(world.uploads.known[lost], status=status)
    failed = await world.until(id_, merge_pb2.MERGE_STATUS_FAILED)
    assert (failed.error_type, failed.retry_available) == (
        {"CANCELLED": "clip_cancelled", "EXPIRED": "clip_expired", "FAILED": "clip_rejected"}[status.name],
        False,
    )
    new = await replaced(world, id_)
    status_now = await world.status(id_)
    assert status_now.overall_status == merge_pb2.MERGE_STATUS_UPLOADING
    assert (status_now.error_type, status_now.retry_count) == ("", 0)
    await world.uploads.complete(new.session_id)
    await world.until(id_, merge_pb2.MERGE_STATUS_COMPLETED)


async def test_a_clip_with_no_picture_is_recorded_anew(world: World) -> None:
    bad = [True]

    def refuse_once(kind: str) -> None:
        if bad:
            bad.clear()
            raise MediaError(ErrorType.NO_VIDEO_STREAM, "there is no picture in it")

    await world.worker(SteeredMedia(refuse_once))
    begun = await world.initiate()
    id_ = begun.merge_session_id
    await world.uploads.complete(begun.upload_sessions[1].session_id)
    await world.until(id_, merge_pb2.MERGE_STATUS_FAILED)
    new = await replaced(world, id_)
    for upload in (begun.upload_sessions[0].session_id, new.session_id, begun.upload_sessions[2].session_id):
        await world.uploads.complete(upload)
    await world.until(id_, merge_pb2.MERGE_STATUS_COMPLETED)


async def test_what_cannot_be_replaced_is_said_precisely_and_nothing_changes(world: World) -> None:
    id_ = (await world.initiate()).merge_session_id
    before = await world.status(id_)
    for changes, field in (
        ({"video_index": 3}, "video_index"),
        ({"video_index": 10}, "video_index"),
        ({"file_size": 0}, "file_size"),
        ({"mime_type": "image/png"}, "mime_type"),
        ({"duration_seconds": 90.0}, "duration_seconds"),
    ):
        error = await refusal(world.merges.ReplaceClip(request(id_, **changes), metadata=world.as_player("alice")))
        assert isinstance(error, InvalidArgument)
        assert error.violations[0].field == field
    world.uploads.refuse = InvalidArgument(
        "too large", reason="FILE_TOO_LARGE", violations=[FieldViolation("clips[0].file_size", "too large")]
    )
    error = await refusal(replaced(world, id_))
    assert (error.violations[0].field, error.reason) == ("file_size", "FILE_TOO_LARGE")
    world.uploads.refuse = None
    after = await world.status(id_)
    assert (after.videos, after.overall_status) == (before.videos, before.overall_status)
    foreign = await refusal(world.merges.ReplaceClip(request(id_), metadata=world.as_player("bob")))
    assert isinstance(foreign, NotFound)
    named = request(id_, owner="alice")
    assert isinstance(
        await refusal(world.merges.ReplaceClip(named, metadata=world.as_player("bob"))), PermissionDenied
    )
    cancel = merge_service_pb2.CancelMergeRequest(merge_session_id=id_)
    await world.merges.CancelMerge(cancel, metadata=world.as_player("alice"))
    assert (await refusal(replaced(world, id_))).reason == "MERGE_CANCELLED"


async def test_a_replacement_that_was_cut_off_is_completed_by_the_controller(world: World) -> None:
    begun = await world.initiate()
    id_ = begun.merge_session_id
    world.uploads.refuse = Unavailable("away")
    assert isinstance(await refusal(replaced(world, id_, request_id="one")), Unavailable)
    assert (await world.status(id_)).videos[1].session_id == begun.upload_sessions[1].session_id
    world.uploads.refuse = None
    await discarded(world, begun.upload_sessions[1].session_id)
    new = (await world.status(id_)).videos[1]
    assert new.filename == "again.mp4"
    assert (await replaced(world, id_, request_id="one")).session_id == new.session_id


async def test_who_watches_is_told_of_the_new_clips_upload_as_of_the_others(
    world: World, nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_LOOK_AGAIN_SECONDS", 600.0)  # nothing is seen but what a hint tells of
    begun = await world.initiate()
    id_ = begun.merge_session_id
    watch = world.merges.WatchMerge(
        merge_service_pb2.WatchMergeRequest(merge_session_id=id_), metadata=world.as_player("alice")
    )
    async with asyncio.timeout(30):
        updates = aiter(watch)
        await anext(updates)
        new = (await replaced(world, id_)).session_id
        while (await anext(updates)).merge_session.videos[1].session_id != new:
            pass
        known = world.uploads.known[new]
        world.uploads.known[new] = replace(known, status=UploadStatus.IN_PROGRESS, progress=0.5)
        await NatsProgressBus(nats_client).publish(Progress("upload", new))
        while (await anext(updates)).merge_session.videos[1].progress_percent == 0:
            pass
    watch.cancel()
