"""Merged videos over gRPC: deleting one, and who says who may see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryStateStore
from services.common.clock import utc_now
from services.common.errors import FailedPrecondition, NotFound, PermissionDenied, Unavailable
from services.common.keys import KeyRing
from services.merge.domain import Video, folder_of
from services.merge.removal import VideoRemover
from tests.rpc.merge_world import SteeredMedia, World, refusal, running
from twotruths.merge.v1 import merge_pb2, video_pb2, video_service_pb2

V = video_service_pb2
WITH_SIDECARS = 6  # the video, three posters, a storyboard, an HLS rendition


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as world:
        await world.worker(SteeredMedia())
        yield world


async def video(world: World) -> tuple[str, str]:
    """A finished video: its session's id and its own."""
    begun = await world.initiate()
    await world.upload_all(begun)
    done = await world.until(begun.merge_session_id, merge_pb2.MERGE_STATUS_COMPLETED)
    return begun.merge_session_id, done.merged_video.video_file_id


async def keys_of(world: World, session_id: str) -> list[str]:
    return [info.key async for info in world.objects.list(folder_of(session_id))]


async def test_a_deleted_video_is_gone_with_all_that_lay_beside_it(world: World) -> None:
    session_id, id_ = await video(world)
    other_session, other = await video(world)
    alice, bob = world.as_player("alice"), world.as_player("bob")
    delete = V.DeleteVideoRequest(video_file_id=id_)
    assert isinstance(await refusal(world.videos.DeleteVideo(delete, metadata=bob)), NotFound)
    assert len(await keys_of(world, session_id)) == WITH_SIDECARS
    for _ in range(2):
        await world.videos.DeleteVideo(delete, metadata=alice)
    for caller in (alice, world.as_service()):
        found = world.videos.GetVideo(V.GetVideoRequest(video_file_id=id_), metadata=caller)
        assert isinstance(await refusal(found), NotFound)
    publish = V.SetVisibilityRequest(video_file_id=id_, owner="alice", visibility=video_pb2.VISIBILITY_PUBLIC)
    assert isinstance(await refusal(world.videos.SetVisibility(publish, metadata=world.as_service())), NotFound)
    async with asyncio.timeout(30):
        while await keys_of(world, session_id):
            await asyncio.sleep(0.02)  # the controller removes the files on its own
    await world.videos.GetVideo(V.GetVideoRequest(video_file_id=other), metadata=alice)
    assert len(await keys_of(world, other_session)) == WITH_SIDECARS


async def test_a_video_that_a_published_challenge_shows_stays(world: World) -> None:
    session_id, id_ = await video(world)
    delete = V.DeleteVideoRequest(video_file_id=id_, owner="alice")
    see = V.SetVisibilityRequest(video_file_id=id_, owner="alice", visibility=video_pb2.VISIBILITY_PUBLIC)
    await world.videos.SetVisibility(see, metadata=world.as_service())
    error = await refusal(world.videos.DeleteVideo(delete, metadata=world.as_service()))
    assert (type(error), error.reason) == (FailedPrecondition, "VIDEO_IN_USE")
    assert len(await keys_of(world, session_id)) == WITH_SIDECARS
    see.visibility = video_pb2.VISIBILITY_PRIVATE
    await world.videos.SetVisibility(see, metadata=world.as_service())
    await world.videos.DeleteVideo(delete, metadata=world.as_service())


async def test_challenge_alone_says_who_may_see_a_video(world: World) -> None:
    _, id_ = await video(world)
    see = V.SetVisibilityRequest(video_file_id=id_, owner="alice", visibility=video_pb2.VISIBILITY_PUBLIC)
    for caller in (world.as_player("alice"), world.as_service("upload"), world.as_service("gateway")):
        error = await refusal(world.videos.SetVisibility(see, metadata=caller))
        assert (type(error), error.reason) == (PermissionDenied, "INTERNAL_ONLY")
    await world.videos.SetVisibility(see, metadata=world.as_service("challenge"))


async def test_a_removal_that_was_cut_off_is_completed_and_the_record_then_goes(tmp_path: Path) -> None:
    class Reluctant(DirectoryObjectStore):
        async def delete(self, key: str) -> None:
            await super().delete(key)
            if key.endswith("a"):
                raise Unavailable("cut off")

    now = 0.0
    videos: MemoryStateStore[Video] = MemoryStateStore(lambda: now)
    objects = Reluctant(tmp_path)
    for name in ("a", "b"):
        file = tmp_path / name
        file.write_bytes(b"x")
        await objects.put_file(folder_of("s") + name, file)
    record = Video("v", "alice", "s", "", 1, "", (1,), 2, 2, created_at=utc_now(), deleted_at=utc_now())
    await videos.create("v", record)
    remover = VideoRemover(videos, objects)
    with pytest.raises(Unavailable):
        await remover.remove("v")
    entry = await videos.get("v")
    assert entry is not None
    assert not entry.value.cleaned
    await remover.remove("v")
    assert [info async for info in objects.list("videos/")] == []
    now = 2 * 86_400
    assert await videos.get("v") is None
