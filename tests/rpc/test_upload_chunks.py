"""Chunks over gRPC: any order, broken and silent streams, wrong bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, timedelta

import pytest

from services.common.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    ServiceError,
)
from services.common.state import owned_key
from tests.rpc.upload_fixtures import (  # noqa: F401  pytest finds fixtures by name
    CHUNK,
    DIGEST,
    FILE,
    TOTAL,
    Mesh,
    answer,
    chunk,
    mesh_fixture,
    service_errors,
    small_fixture,
)
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1 import upload_service_pb2 as pb


async def test_chunks_over_parallel_streams_in_any_order_become_the_file(mesh: Mesh) -> None:
    upload = await mesh.alice.initiate(metadata={"take": "2"}, file_hash=DIGEST.upper())
    assert (upload.total_chunks, upload.chunk_size, upload.status) == (5, CHUNK, upload_pb2.UPLOAD_STATUS_PENDING)
    assert (list(upload.remaining_chunks), upload.progress_percent) == ([0, 1, 2, 3, 4], 0)
    assert upload.expires_at.ToDatetime(UTC) - upload.created_at.ToDatetime(UTC) == timedelta(days=1)
    assert not upload.HasField("video_index")
    id_ = upload.session_id
    answers = await asyncio.gather(*(mesh.alice.put(id_, *ns) for ns in ([4, 0], [2], [3, 1])))
    assert [[c.chunk_number for c in a.chunks] for a in answers] == [[4, 0], [2], [3, 1]]
    assert {c.status for a in answers for c in a.chunks} == {upload_pb2.CHUNK_STATUS_UPLOADED}
    now = await mesh.alice.get(id_)
    assert (now.status, now.progress_percent) == (upload_pb2.UPLOAD_STATUS_IN_PROGRESS, 100)
    assert not now.remaining_chunks
    done = await mesh.alice.complete(id_, DIGEST)
    assert (done.status, done.file_hash, done.file_id) == (upload_pb2.UPLOAD_STATUS_COMPLETED, DIGEST, id_)
    assert (dict(done.metadata), done.merge_status) == ({"take": "2"}, "")
    assert mesh.object(id_) == FILE
    assert mesh.stored_parts(id_) == set()
    file = await mesh.alice.file(id_)
    assert (file.size, file.sha256, file.object_key) == (len(FILE), DIGEST, f"uploads/{owned_key('alice', id_)}")


async def test_a_broken_stream_keeps_its_ended_chunks_and_the_upload_goes_on(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    call = mesh.alice.stub.UploadChunks(metadata=mesh.alice.metadata)
    for message in [*chunk(id_, 0), *chunk(id_, 3), *chunk(id_, 1)[:2]]:
        await call.write(message)
    async with asyncio.timeout(5):
        while (await mesh.alice.get(id_)).uploaded_chunks != [0, 3]:
            await asyncio.sleep(0.01)
    call.cancel()
    upload = await mesh.alice.get(id_)
    again = await mesh.alice.put(id_, *upload.remaining_chunks, 0)
    assert [c.status for c in again.chunks] == [upload_pb2.CHUNK_STATUS_UPLOADED] * 3 + [
        upload_pb2.CHUNK_STATUS_ALREADY_EXISTS
    ]
    await mesh.alice.complete(id_)
    assert mesh.object(id_) == FILE


WRONG = {
    "number below the grid": (-1, None, "", OutOfRange, "CHUNK_OUT_OF_RANGE", "chunk_number"),
    "number beyond the grid": (TOTAL, None, "", OutOfRange, "CHUNK_OUT_OF_RANGE", "chunk_number"),
    "huge number": (2**31 - 1, None, "", OutOfRange, "CHUNK_OUT_OF_RANGE", "chunk_number"),
    "empty chunk": (1, b"", "", InvalidArgument, "CHUNK_SIZE_MISMATCH", "data"),
    "short chunk": (1, bytes(999), "", InvalidArgument, "CHUNK_SIZE_MISMATCH", "data"),
    "long chunk": (1, bytes(1001), "", InvalidArgument, "CHUNK_SIZE_MISMATCH", "data"),
    "long last chunk": (4, bytes(1000), "", InvalidArgument, "CHUNK_SIZE_MISMATCH", "data"),
    "wrong digest": (1, None, "0" * 64, InvalidArgument, "CHUNK_DIGEST_MISMATCH", "sha256"),
    "no digest at all": (1, None, "zzz", InvalidArgument, "CHUNK_DIGEST_MISMATCH", "sha256"),
    "wrong digest of a stored chunk": (0, None, "0" * 64, InvalidArgument, "CHUNK_DIGEST_MISMATCH", "sha256"),
    "other bytes at a stored chunk": (0, bytes(1000), "", AlreadyExists, "CHUNK_CONFLICT", "chunk_number"),
}


@pytest.mark.parametrize(("number", "data", "sha256", "code", "reason", "field"), WRONG.values(), ids=WRONG.keys())
async def test_a_wrong_chunk_is_named_stores_nothing_and_loses_nothing(
    small: Mesh, number: int, data: bytes | None, sha256: str, code: type[ServiceError], reason: str, field: str
) -> None:
    id_ = (await small.alice.initiate()).session_id
    await small.alice.put(id_, 0)
    with pytest.raises(code) as refusal:
        await small.alice.send(*chunk(id_, 2), *chunk(id_, number, data, sha256))
    assert (refusal.value.reason, refusal.value.domain) == (reason, "upload.twotruths")
    assert [v.field for v in refusal.value.violations] == [field]
    assert small.stored_parts(id_) == {0, 2}
    await small.alice.put(id_, *range(TOTAL))
    await small.alice.complete(id_, DIGEST)
    assert small.object(id_) == FILE


async def test_the_end_of_a_stream_ends_its_last_chunk_when_that_has_a_digest(small: Mesh) -> None:
    id_ = (await small.alice.initiate()).session_id
    header, *data, end = chunk(id_, 0)
    promised = pb.UploadChunksRequest(header=pb.ChunkHeader(session_id=id_, sha256=end.end.sha256))
    for messages, reason in (
        ([header, *data], "STREAM_MALFORMED"),
        ([promised, data[0]], "CHUNK_SIZE_MISMATCH"),
        ([promised, data[1], data[0]], "CHUNK_DIGEST_MISMATCH"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            await small.alice.send(*messages)
        assert refusal.value.reason == reason
    assert small.stored_parts(id_) == set()
    await small.alice.send(*chunk(id_, 1), promised, *data)
    assert small.stored_parts(id_) == {0, 1}


async def test_a_chunk_whose_client_gives_up_before_it_told_the_digest_is_not_stored(small: Mesh) -> None:
    uploads = [(await small.alice.initiate()).session_id for _ in range(10)]
    for id_ in uploads:
        call = small.alice.stub.UploadChunks(metadata=small.alice.metadata)
        for message in chunk(id_, 0, bytes(CHUNK))[:3]:
            await call.write(message)
        await small.written(id_, CHUNK)
        call.cancel()
        await asyncio.sleep(0.05)
    assert not any(map(small.stored_parts, uploads))
    assert (await small.alice.put(uploads[0], 0)).chunks[0].status == upload_pb2.CHUNK_STATUS_UPLOADED


async def test_a_chunk_that_begins_after_its_upload_is_over_is_refused_on_any_stream(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    await mesh.alice.put(id_, *range(1, TOTAL))

    async def stream() -> AsyncIterator[pb.UploadChunksRequest]:
        for message in chunk(id_, 0):
            yield message
        async with asyncio.timeout(5):
            while 0 not in mesh.stored_parts(id_):
                await asyncio.sleep(0.005)
        await mesh.alice.complete(id_)
        for message in chunk(id_, 1, bytes(CHUNK)):
            yield message

    with pytest.raises(FailedPrecondition) as refused:
        await answer(mesh.alice.stub.UploadChunks(stream(), metadata=mesh.alice.metadata))
    assert refused.value.reason == "UPLOAD_CLOSED"
    assert mesh.stored_parts(id_) == set()


async def test_a_malformed_stream_is_refused(small: Mesh) -> None:
    id_ = (await small.alice.initiate()).session_id
    other = (await small.alice.initiate()).session_id
    header, data, _, end = chunk(id_, 0)
    streams = [
        [],
        [data],
        [end],
        [pb.UploadChunksRequest()],
        [header, header],
        [header, pb.UploadChunksRequest(data=bytes((1 << 20) + 1))],
        [*chunk(id_, 0), *chunk(other, 1)],
    ]
    for messages in streams:
        with pytest.raises(InvalidArgument) as refusal:
            await small.alice.send(*messages)
        assert refusal.value.reason == "STREAM_MALFORMED"
    with pytest.raises(InvalidArgument, match="session_id"):
        await small.alice.put("../../etc", 0)
    assert small.stored_parts(id_) == {0}
    assert small.stored_parts(other) == set()


async def test_a_silent_stream_is_cut_off_and_streams_are_bounded(small: Mesh) -> None:
    id_ = (await small.alice.initiate()).session_id
    calls = [small.alice.stub.UploadChunks(metadata=small.alice.metadata) for _ in range(2)]
    for number, call in enumerate(calls):
        for message in chunk(id_, number)[:2]:
            await call.write(message)
        await small.written(id_, number * CHUNK + 600)
    with pytest.raises(ResourceExhausted) as refusal:
        await small.alice.put(id_, 2)
    assert (refusal.value.reason, refusal.value.retry_after) == ("TOO_MANY_STREAMS", 1)
    for call in calls:
        with pytest.raises(DeadlineExceeded), service_errors():
            await call
    await small.alice.put(id_, 0, 1)


async def test_the_retry_of_a_chunk_takes_over_from_its_silent_stream(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    silent = mesh.alice.stub.UploadChunks(metadata=mesh.alice.metadata)
    for message in chunk(id_, 0)[:2]:
        await silent.write(message)
    await mesh.written(id_, 600)
    async with asyncio.timeout(3):
        retry = await mesh.alice.put(id_, 0)
        with pytest.raises(Aborted) as refusal, service_errors():
            await silent
    assert refusal.value.reason == "CHUNK_SUPERSEDED"
    assert retry.chunks[0].status == upload_pb2.CHUNK_STATUS_UPLOADED


async def test_a_chunk_whose_upload_ends_while_its_bytes_come_in_is_not_stored(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    call = mesh.alice.stub.UploadChunks(metadata=mesh.alice.metadata)
    messages = chunk(id_, 0)
    for message in messages[:2]:
        await call.write(message)
    await mesh.written(id_, 600)
    mesh.clock.ahead = timedelta(days=1)
    for message in messages[2:]:
        await call.write(message)
    await call.done_writing()
    with pytest.raises(FailedPrecondition) as refusal, service_errors():
        await call
    assert refusal.value.reason == "UPLOAD_EXPIRED"
    assert mesh.stored_parts(id_) == set()
