"""Making uploads, and who may see and touch them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest

from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from tests.rpc.upload_fixtures import (  # noqa: F401  pytest finds fixtures by name
    FILE,
    SESSION,
    Mesh,
    chunk,
    clips,
    mesh_fixture,
    service_errors,
    small_fixture,
)
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1 import upload_service_pb2 as pb


async def test_another_players_upload_is_not_found_whatever_is_tried(mesh: Mesh) -> None:
    id_ = await mesh.alice.uploaded()
    missing = str(uuid.uuid4())
    attempts: list[Callable[[str], Awaitable[object]]] = [
        mesh.mallory.get,
        mesh.mallory.complete,
        mesh.mallory.cancel,
        mesh.mallory.file,
        lambda id_: mesh.mallory.put(id_, 0),
        lambda id_: mesh.mallory.append(id_, 0, b"x"),
        mesh.mallory.concat,
        lambda id_: anext(mesh.mallory.watch(id_)),
    ]
    for attempt in attempts:
        texts = []
        for target in (id_, missing):
            with pytest.raises(NotFound) as refusal:
                await attempt(target)
            texts.append((refusal.value.message, refusal.value.reason))
        assert texts[0] == texts[1]
        assert texts[0][1] == "UPLOAD_NOT_FOUND"
    with pytest.raises(PermissionDenied) as denied:
        await mesh.mallory.get(id_, owner="alice")
    assert denied.value.reason == "INTERNAL_ONLY"
    assert (await mesh.merge.get(id_, owner="alice")).session_id == id_
    assert (await mesh.alice.complete(id_)).status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_a_call_without_token_or_scope_is_refused(small: Mesh) -> None:
    with pytest.raises(Unauthenticated):
        await small.nobody.initiate()
    with pytest.raises(PermissionDenied):
        await small.reader.initiate()


async def test_initiate_with_a_request_id_is_done_once(mesh: Mesh) -> None:
    name = uuid.uuid4().hex
    first, second = await asyncio.gather(*(mesh.alice.initiate(request_id=name) for _ in range(2)))
    assert first == second
    assert (await mesh.mallory.initiate(request_id=name)).session_id != first.session_id
    with pytest.raises(AlreadyExists) as refusal:
        await mesh.alice.initiate(request_id=name, file_size=7)
    assert refusal.value.reason == "REQUEST_ID_REUSED"
    assert (await mesh.alice.initiate()).session_id != (await mesh.alice.initiate()).session_id


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"file_size": 10_001}, "file_size", "FILE_TOO_LARGE"),
        ({"file_size": 0}, "file_size", ""),
        ({"mime_type": "image/png"}, "mime_type", "FILE_TYPE_NOT_ALLOWED"),
        ({"mime_type": "video"}, "mime_type", ""),
        ({"chunk_size": 10_000_001}, "chunk_size", ""),
        ({"chunk_size": -1}, "chunk_size", ""),
        ({"file_hash": "abc"}, "file_hash", ""),
        ({"filename": ""}, "filename", ""),
    ],
)
async def test_a_wrong_initiate_names_the_field(
    small: Mesh, change: dict[str, object], field: str, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await small.alice.initiate(**change)
    assert [v.field for v in refusal.value.violations] == [field]
    assert refusal.value.reason == reason


async def test_a_batch_is_made_by_services_alone_and_all_or_none(mesh: Mesh) -> None:
    wanted = clips()
    with pytest.raises(PermissionDenied) as denied:
        await mesh.alice.batch(wanted)
    assert denied.value.reason == "INTERNAL_ONLY"
    for change, field in [
        ({"mime_type": "image/png"}, "clips[2].mime_type"),
        ({"file_size": 200_000_000}, "clips[2].file_size"),
        ({"session_id": wanted[0].session_id}, "clips[2].session_id"),
    ]:
        wrong = pb.ClipUpload()
        wrong.CopyFrom(wanted[2])
        wrong.MergeFrom(pb.ClipUpload(**change))  # type: ignore[arg-type]  # test data
        with pytest.raises(InvalidArgument) as refusal:
            await mesh.merge.batch([*wanted[:2], wrong])
        assert [v.field for v in refusal.value.violations] == [field]
    for clip in wanted:
        with pytest.raises(NotFound):
            await mesh.alice.get(clip.session_id)
    made = await mesh.merge.batch(wanted)
    assert [(u.session_id, u.video_index, u.merge_session_id) for u in made] == [
        (clip.session_id, n, SESSION) for n, clip in enumerate(wanted)
    ]
    assert made == await mesh.merge.batch(wanted)
    fresh = clips()
    with pytest.raises(AlreadyExists):
        await mesh.merge.batch([fresh[0], wanted[1], fresh[2]])
    with pytest.raises(NotFound):
        await mesh.alice.get(fresh[0].session_id)
    assert (await mesh.alice.get(wanted[1].session_id)).purpose == upload_pb2.UPLOAD_PURPOSE_MERGE_CLIP


async def test_only_a_service_takes_a_completed_clip_back(mesh: Mesh) -> None:
    (made, *_) = await mesh.merge.batch(clips())
    clip = made.session_id
    await mesh.alice.send(*chunk(clip, 0, FILE[: made.file_size]))
    assert (await mesh.alice.complete(clip)).status == upload_pb2.UPLOAD_STATUS_COMPLETED
    assert mesh.object(clip) == FILE[: made.file_size]
    with pytest.raises(FailedPrecondition):
        await mesh.alice.cancel(clip)
    for _ in range(2):
        assert (await mesh.merge.cancel(clip, owner="alice")).status == upload_pb2.UPLOAD_STATUS_CANCELLED
    assert mesh.object(clip) is None
    generic = await mesh.alice.uploaded()
    await mesh.alice.complete(generic)
    with pytest.raises(FailedPrecondition):
        await mesh.merge.cancel(generic, owner="alice")


async def test_a_clip_that_takes_anothers_place_is_made_alone_and_has_its_place(mesh: Mesh) -> None:
    wanted, (new, stranger, *_) = clips(), clips()
    await mesh.merge.batch(wanted)
    siblings = [wanted[0].session_id, new.session_id, wanted[2].session_id]
    (made,) = await mesh.merge.batch([new], siblings=siblings)
    assert (made.session_id, made.video_index) == (new.session_id, 1)
    # The others may be replaced in turn: the request is still the same.
    assert [made] == await mesh.merge.batch([new], siblings=[stranger.session_id, *siblings[1:]])
    other = pb.ClipUpload(session_id=new.session_id, filename="x.mp4", file_size=1, mime_type="video/mp4")
    with pytest.raises(AlreadyExists):
        await mesh.merge.batch([other], siblings=siblings)
    with pytest.raises(InvalidArgument) as caught:
        await mesh.merge.batch([stranger], siblings=siblings)
    assert caught.value.violations[0].field == "clips[0].session_id"
    for upload in (siblings[0], siblings[2], siblings[1]):
        await mesh.alice.send(*chunk(upload, 0, FILE))
        done = await mesh.alice.complete(upload)
    assert done.ready_for_merge
