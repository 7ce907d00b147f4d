"""Complete, cancel, watch and expire, over gRPC."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
)
from services.common.keys import KeyRing
from services.common.state import owned_key
from services.upload.domain import Upload
from services.upload.grid import Part
from tests.rpc.upload_fixtures import (  # noqa: F401  pytest finds fixtures by name
    CHUNK,
    DIGEST,
    FILE,
    TOTAL,
    Mesh,
    chunk,
    clips,
    mesh_fixture,
    running,
    service_errors,
    small_fixture,
)
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1 import upload_service_pb2 as pb


async def test_the_last_clip_of_a_session_is_ready_for_merge(mesh: Mesh) -> None:
    wanted = clips()
    for upload in await mesh.merge.batch(wanted):
        await mesh.alice.send(
            pb.UploadChunksRequest(header=pb.ChunkHeader(session_id=upload.session_id)),
            pb.UploadChunksRequest(data=FILE),
            pb.UploadChunksRequest(end=pb.ChunkEnd()),
        )
    answers = [await mesh.alice.complete(clip.session_id) for clip in wanted]
    assert [(u.ready_for_merge, u.merge_triggered, u.merge_status) for u in answers] == [
        (False, False, "uploading"),
        (False, False, "uploading"),
        (True, True, "queued"),
    ]
    assert (await mesh.alice.get(wanted[0].session_id)).ready_for_merge
    mesh.clock.ahead = timedelta(days=30)
    assert (await mesh.alice.get(wanted[0].session_id)).status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_complete_names_what_is_missing_and_the_upload_stays_open(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    await mesh.alice.put(id_, 0, 2)
    with pytest.raises(FailedPrecondition, match="3 of 5 chunks are missing: 1, 3, 4") as refusal:
        await mesh.alice.complete(id_)
    assert (refusal.value.reason, refusal.value.metadata["first_missing"]) == ("CHUNKS_MISSING", "1")
    with pytest.raises(FailedPrecondition) as not_ready:
        await mesh.alice.file(id_)
    assert not_ready.value.reason == "FILE_NOT_READY"
    await mesh.alice.put(id_, 1, 3, 4)
    await mesh.alice.complete(id_)


async def test_complete_twice_and_at_once_gives_one_answer_and_one_file(mesh: Mesh) -> None:
    id_ = await mesh.alice.uploaded()
    answers = await asyncio.gather(*(mesh.alice.complete(id_) for _ in range(5)))
    answers.append(await mesh.alice.complete(id_, DIGEST))
    assert all(answer == answers[0] for answer in answers)
    with pytest.raises(InvalidArgument) as refusal:
        await mesh.alice.complete(id_, "0" * 64)
    assert refusal.value.reason == "FILE_DIGEST_MISMATCH"
    with pytest.raises(FailedPrecondition) as late:
        await mesh.alice.put(id_, 0)
    assert late.value.reason == "UPLOAD_CLOSED"
    assert mesh.object(id_) == FILE


async def test_a_wrong_claim_opens_the_upload_again_and_spoils_no_other_call(mesh: Mesh) -> None:
    id_ = await mesh.alice.uploaded()
    with pytest.raises(InvalidArgument) as refusal:
        await mesh.alice.complete(id_, "0" * 64)
    assert [v.field for v in refusal.value.violations] == ["file_hash"]
    assert (await mesh.alice.get(id_)).status == upload_pb2.UPLOAD_STATUS_IN_PROGRESS
    assert mesh.object(id_) is None
    wrong, right = await asyncio.gather(
        mesh.alice.complete(id_, "0" * 64), mesh.alice.complete(id_, DIGEST), return_exceptions=True
    )
    assert isinstance(wrong, InvalidArgument)
    assert isinstance(right, upload_pb2.Upload)
    promised = await mesh.alice.uploaded(file_hash="f" * 64)
    with pytest.raises(InvalidArgument) as broken:
        await mesh.alice.complete(promised)
    assert broken.value.reason == "FILE_DIGEST_MISMATCH"


@pytest.mark.parametrize("content", [b"#EXTM3U\n", b"\x89PNG\r\n\x1a\n", b"", b"plain text, no film"])
async def test_a_file_that_is_not_of_its_type_fails_for_good_and_leaves_no_bytes(
    small: Mesh, content: bytes
) -> None:
    body = content.ljust(900, b"\0")
    id_ = (await small.alice.initiate(file_size=900)).session_id
    await small.alice.send(*chunk(id_, 0, body))
    for _ in range(2):
        with pytest.raises(InvalidArgument) as refusal:
            await small.alice.complete(id_)
        assert (refusal.value.reason, refusal.value.violations[0].field) == ("FILE_TYPE_MISMATCH", "mime_type")
    upload = await small.alice.get(id_)
    assert (upload.status, upload.error_type) == (upload_pb2.UPLOAD_STATUS_FAILED, "file_type_mismatch")
    assert small.object(id_) is None
    assert list((small.root / "parts").iterdir()) == []


async def test_cancel_removes_the_bytes_and_stops_a_writer(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    await mesh.alice.put(id_, 0)
    call = mesh.alice.stub.UploadChunks(metadata=mesh.alice.metadata)
    for message in chunk(id_, 1)[:2]:
        await call.write(message)
    await mesh.written(id_, CHUNK + 600)
    for _ in range(2):
        assert (await mesh.alice.cancel(id_)).status == upload_pb2.UPLOAD_STATUS_CANCELLED
    with pytest.raises(FailedPrecondition) as refusal, service_errors():
        await call
    assert refusal.value.reason == "UPLOAD_CLOSED"
    for late in (mesh.alice.put(id_, 1), mesh.alice.complete(id_)):
        with pytest.raises(FailedPrecondition) as closed:
            await late
        assert closed.value.reason == "UPLOAD_CLOSED"
    assert list((mesh.root / "parts").iterdir()) == []
    done = await mesh.alice.uploaded()
    await mesh.alice.complete(done)
    with pytest.raises(FailedPrecondition) as completed:
        await mesh.merge.cancel(done, owner="alice")
    assert completed.value.reason == "UPLOAD_CLOSED"
    assert mesh.object(done) == FILE


async def test_watch_shows_each_change_and_ends_with_the_upload(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    seen: list[upload_pb2.Upload] = []
    async with asyncio.timeout(10):
        async for upload in mesh.alice.watch(id_):
            seen.append(upload)
            if upload.status == upload_pb2.UPLOAD_STATUS_PENDING:
                await mesh.alice.put(id_, 0)
            elif upload.uploaded_chunks == [0]:
                await mesh.alice.put(id_, 1, 2, 3, 4)
            elif upload.status == upload_pb2.UPLOAD_STATUS_IN_PROGRESS and not upload.remaining_chunks:
                await mesh.alice.complete(id_)
    assert [len(u.uploaded_chunks) for u in seen] == sorted(len(u.uploaded_chunks) for u in seen)
    assert seen[-1].status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_an_upload_past_its_time_takes_nothing_and_the_sweep_removes_its_bytes(mesh: Mesh) -> None:
    id_ = await mesh.alice.uploaded()
    mesh.clock.ahead = timedelta(days=1)
    for call in (mesh.alice.put(id_, 0), mesh.alice.complete(id_)):
        with pytest.raises(FailedPrecondition) as refusal:
            await call
        assert refusal.value.reason == "UPLOAD_EXPIRED"
    async with mesh.sweeping(), asyncio.timeout(5):
        while mesh.stored_parts(id_):
            await asyncio.sleep(0.02)
    assert (await mesh.alice.get(id_)).status == upload_pb2.UPLOAD_STATUS_EXPIRED


async def test_the_sweep_finishes_a_complete_that_was_cut_off(keys: KeyRing, tmp_path: Path) -> None:
    uploads = MemoryStateStore[Upload]()
    async with running(keys, tmp_path, uploads) as mesh:
        id_ = await mesh.alice.uploaded()
        key = owned_key("alice", id_)
        entry = await uploads.get(key)
        assert entry is not None
        ledger = list((mesh.root / "parts" / key).glob("*-*"))
        assert len(ledger) == TOTAL
        # What a kill between the first compare-and-set and the rest leaves behind.
        parts = sorted((int(n), d) for n, _, d in (p.name.partition("-") for p in ledger))
        manifest = tuple(Part(n, entry.value.grid.length(n), d) for n, d in parts)
        cut = entry.value.begin_assembly(manifest, DIGEST, mesh.clock())
        await uploads.update(key, cut, entry.revision)
        with pytest.raises(FailedPrecondition):
            await mesh.alice.put(id_, 0)
        async with mesh.sweeping(), asyncio.timeout(5):
            while (await mesh.alice.get(id_)).status != upload_pb2.UPLOAD_STATUS_COMPLETED:
                await asyncio.sleep(0.02)
        assert mesh.object(id_) == FILE
