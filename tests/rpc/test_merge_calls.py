"""Merge sessions over gRPC: asking for the merge, lists, lost answers, services that name the owner, qualities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from services.common.keys import KeyRing
from services.merge.media.errors import ErrorType, MediaError
from services.merge.planner import UploadStatus
from tests.rpc.merge_world import SteeredMedia, World, refusal, running
from twotruths.merge.v1 import merge_pb2, merge_service_pb2


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as world:
        yield world


async def trigger(world: World, session_id: str, user: str = "alice") -> merge_pb2.MergeSession:
    request = merge_service_pb2.TriggerMergeRequest(merge_session_id=session_id)
    return (await world.merges.TriggerMerge(request, metadata=world.as_player(user))).merge_session


async def retry(world: World, session_id: str, request_id: str = "") -> merge_pb2.MergeSession:
    request = merge_service_pb2.RetryMergeRequest(merge_session_id=session_id, request_id=request_id)
    return (await world.merges.RetryMerge(request, metadata=world.as_player("alice"))).merge_session


async def listed(world: World, user: str = "alice", **fields: object) -> merge_service_pb2.ListMergesResponse:
    request = merge_service_pb2.ListMergesRequest(**fields)  # type: ignore[arg-type]  # by name
    return await world.merges.ListMerges(request, metadata=world.as_player(user))


async def test_trigger_names_the_clips_that_are_missing_and_starts_nothing(world: World) -> None:
    begun = await world.initiate()
    id_ = begun.merge_session_id
    await world.uploads.complete(begun.upload_sessions[1].session_id)
    error = await refusal(trigger(world, id_))
    assert (type(error), error.reason) == (FailedPrecondition, "CLIPS_MISSING")
    assert error.metadata == {"missing_clips": "0,2"}
    assert "clip 1, 3" in error.message
    await world.upload_all(begun)
    # No worker runs and the controller may not have seen the uploads yet: all the same nothing is missing.
    for _ in range(2):
        asked = await trigger(world, id_)
        assert asked.merge_session_id == id_
        assert asked.overall_status in {merge_pb2.MERGE_STATUS_UPLOADING, merge_pb2.MERGE_STATUS_QUEUED}
    assert isinstance(await refusal(trigger(world, id_, "bob")), NotFound)


async def test_trigger_of_a_session_that_ended_says_how(world: World) -> None:
    await world.worker(SteeredMedia())
    done = await world.initiate()
    await world.upload_all(done)
    await world.until(done.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    assert (await trigger(world, done.merge_session_id)).merged_video.video_file_id

    given_up = (await world.initiate()).merge_session_id
    cancel = merge_service_pb2.CancelMergeRequest(merge_session_id=given_up)
    await world.merges.CancelMerge(cancel, metadata=world.as_player("alice"))
    assert (await refusal(trigger(world, given_up))).reason == "MERGE_CANCELLED"

    lost = await world.initiate()
    upload = lost.upload_sessions[0].session_id
    world.uploads.known[upload] = replace(world.uploads.known[upload], status=UploadStatus.EXPIRED)
    await world.until(lost.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
    error = await refusal(trigger(world, lost.merge_session_id))
    assert (type(error), error.reason) == (FailedPrecondition, "MERGE_FAILED")
    assert error.metadata == {"error_type": "clip_expired", "retry_available": "false"}


async def test_sessions_are_listed_page_by_page_newest_first(world: World) -> None:
    made = [(await world.initiate()).merge_session_id for _ in range(5)]
    await world.initiate("bob")
    cancel = merge_service_pb2.CancelMergeRequest(merge_session_id=made[1])
    await world.merges.CancelMerge(cancel, metadata=world.as_player("alice"))  # written last, yet not newest
    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        answer = await listed(world, page_size=2, page_token=token)
        pages.append([session.merge_session_id for session in answer.merge_sessions])
        token = answer.next_page_token
    assert pages == [[made[4], made[3]], [made[2], made[1]], [made[0]]]
    whole = await listed(world)
    assert [s.merge_session_id for s in whole.merge_sessions] == made[::-1]
    assert whole.merge_sessions[3].overall_status == merge_pb2.MERGE_STATUS_CANCELLED
    assert (await listed(world, page_size=5)).next_page_token == ""
    assert list((await listed(world, "carol")).merge_sessions) == []


@pytest.mark.parametrize("token", ["x", "eHh4", "MDAwMS0wMS0wMVQwMDowMDowMCB4", "ä"])
async def test_a_page_token_that_nobody_gave_is_refused(world: World, token: str) -> None:
    error = await refusal(listed(world, page_token=token))
    assert (type(error), error.reason) == (InvalidArgument, "PAGE_TOKEN_INVALID")
    assert error.violations[0].field == "page_token"


async def test_a_retry_whose_answer_was_lost_is_not_a_second_one(world: World) -> None:
    failures = [MediaError(ErrorType.WORKER_FAILED, "killed")] * 3
    may_go_on = asyncio.Event()

    async def fail_thrice(kind: str) -> None:
        if kind == "merge":
            if failures:
                raise failures.pop()
            await may_go_on.wait()

    await world.worker(SteeredMedia(fail_thrice))
    begun = await world.initiate()
    id_ = begun.merge_session_id
    assert (await refusal(retry(world, id_))).reason == "RETRY_NOT_AVAILABLE"
    await world.upload_all(begun)
    await world.until(id_, merge_pb2.MERGE_STATUS_FAILED)
    for request_id in ("one", "one", "", "two"):
        assert (await retry(world, id_, request_id)).retry_count == 1
    may_go_on.set()
    await world.until(id_, merge_pb2.MERGE_STATUS_COMPLETED)
    again = await retry(world, id_)
    assert (again.retry_count, again.overall_status) == (1, merge_pb2.MERGE_STATUS_COMPLETED)


async def test_a_retry_that_failed_once_more_is_not_repeated_by_its_own_replay(world: World) -> None:
    failures = [MediaError(ErrorType.WORKER_FAILED, "killed")] * 3

    def fail(kind: str) -> None:
        raise failures.pop() if failures else MediaError(ErrorType.NO_VIDEO_STREAM, "there is no picture in it")

    await world.worker(SteeredMedia(fail))
    begun = await world.initiate()
    id_ = begun.merge_session_id
    await world.uploads.complete(begun.upload_sessions[0].session_id)
    await world.until(id_, merge_pb2.MERGE_STATUS_FAILED)
    await retry(world, id_, "one")
    await world.until(id_, merge_pb2.MERGE_STATUS_FAILED)
    replayed = await retry(world, id_, "one")
    assert (replayed.retry_count, replayed.overall_status) == (1, merge_pb2.MERGE_STATUS_FAILED)
    assert (await refusal(retry(world, id_, "two"))).reason == "RETRY_NOT_AVAILABLE"


async def test_a_replayed_initiate_makes_no_upload_anew_that_has_gone(world: World) -> None:
    first = await world.initiate(request_id="once")
    world.uploads.known.clear()
    again = await world.initiate(request_id="once")
    assert world.uploads.known == {}
    assert again.merge_session_id == first.merge_session_id
    assert [u.session_id for u in again.upload_sessions] == [u.session_id for u in first.upload_sessions]


async def test_a_service_that_names_the_owner_sees_and_ends_a_session(world: World) -> None:
    begun = await world.initiate()
    id_, service = begun.merge_session_id, world.as_service()
    M, merges = merge_service_pb2, world.merges  # noqa: N806  as short as an alias
    named = {"merge_session_id": id_, "owner": "alice"}
    assert (await merges.GetMerge(M.GetMergeRequest(**named), metadata=service)).merge_session.total_videos == 3
    watch = merges.WatchMerge(M.WatchMergeRequest(**named), metadata=service)
    seen = await anext(aiter(watch))
    assert seen.merge_session.overall_status == merge_pb2.MERGE_STATUS_UPLOADING
    page = await merges.ListMerges(M.ListMergesRequest(owner="alice"), metadata=service)
    assert [s.merge_session_id for s in page.merge_sessions] == [id_]
    missing = await refusal(merges.TriggerMerge(M.TriggerMergeRequest(**named), metadata=service))
    assert missing.reason == "CLIPS_MISSING"
    assert isinstance(
        await refusal(merges.CancelMerge(M.CancelMergeRequest(**named), metadata=world.as_player("bob"))),
        PermissionDenied,
    )
    unnamed = await refusal(merges.CancelMerge(M.CancelMergeRequest(merge_session_id=id_), metadata=service))
    assert (type(unnamed), unnamed.reason) == (PermissionDenied, "INTERNAL_ONLY")
    other = M.CancelMergeRequest(merge_session_id=id_, owner="bob")
    assert isinstance(await refusal(merges.CancelMerge(other, metadata=service)), NotFound)
    await merges.CancelMerge(M.CancelMergeRequest(**named), metadata=service)
    async with asyncio.timeout(30):
        async for seen in watch:
            last = seen.merge_session.overall_status
    assert last == merge_pb2.MERGE_STATUS_CANCELLED


async def test_the_qualities_are_told_with_words_and_parameters(world: World) -> None:
    request = merge_service_pb2.ListCompressionPresetsRequest()
    presets = (await world.merges.ListCompressionPresets(request, metadata=world.as_player("alice"))).presets
    assert [merge_pb2.Quality.Name(p.quality) for p in presets] == [
        "QUALITY_LOW",
        "QUALITY_MEDIUM",
        "QUALITY_HIGH",
    ]
    assert [p.is_default for p in presets] == [False, True, False]
    medium = presets[1]
    assert (medium.encoder_preset, medium.crf, medium.audio_bitrate) == ("medium", 23, 128_000)
    assert presets[0].crf > medium.crf > presets[2].crf
    assert all(p.name and p.description for p in presets)
