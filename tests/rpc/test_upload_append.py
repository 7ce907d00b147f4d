"""Appending over gRPC: where clients go on, broken and silent streams, checksums, lengths told late."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from services.common.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
)
from tests.rpc.upload_fixtures import (  # noqa: F401  pytest finds fixtures by name
    DIGEST,
    FILE,
    Mesh,
    answer,
    chunk,
    mesh_fixture,
    service_errors,
    small_fixture,
)
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1 import upload_service_pb2 as pb

SHA1, SHA256 = pb.CHECKSUM_ALGORITHM_SHA1, pb.CHECKSUM_ALGORITHM_SHA256


def header(session_id: str, offset: int) -> pb.AppendUploadRequest:
    return pb.AppendUploadRequest(header=pb.AppendHeader(session_id=session_id, offset=offset))


async def reached(mesh: Mesh, session_id: str, offset: int) -> None:
    async with asyncio.timeout(5):
        while (await mesh.alice.get(session_id)).upload_offset != offset:
            await asyncio.sleep(0.005)


async def test_one_upload_goes_on_over_appends_and_chunks_alike(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    begun = await mesh.alice.append(id_, 0, FILE[:700], FILE[700:1500])
    assert (begun.upload_offset, list(begun.uploaded_chunks)) == (1500, [0])
    assert begun.status == upload_pb2.UPLOAD_STATUS_IN_PROGRESS
    assert begun.progress_percent == pytest.approx(100 * 1500 / 4300)
    assert (await mesh.alice.put(id_, 1, 3)).upload.upload_offset == 2000
    over = await mesh.alice.append(id_, 2000, FILE[2000:3500])
    assert (over.upload_offset, list(over.remaining_chunks)) == (4000, [4])
    await mesh.alice.append(id_, 4000, FILE[4000:])
    done = await mesh.alice.complete(id_, DIGEST)
    assert (done.status, done.upload_offset) == (upload_pb2.UPLOAD_STATUS_COMPLETED, len(FILE))
    assert mesh.object(id_) == FILE


async def test_an_append_elsewhere_is_told_where_the_upload_stands(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    await mesh.alice.append(id_, 0, FILE[:1200])
    for offset in (-1, 0, 1199, 1201, 2**62):
        with pytest.raises(Aborted) as refusal:
            await mesh.alice.append(id_, offset, b"x")
        assert (refusal.value.reason, refusal.value.metadata["offset"]) == ("OFFSET_MISMATCH", "1200")
    assert (await mesh.alice.append(id_, 1200)).upload_offset == 1200


async def test_a_broken_append_keeps_what_came_within_a_chunk_too(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    call = mesh.alice.stub.AppendUpload(metadata=mesh.alice.metadata)
    await call.write(header(id_, 0))
    for piece in (FILE[:1000], FILE[1000:1300]):
        await call.write(pb.AppendUploadRequest(data=piece))
    await reached(mesh, id_, 1300)
    call.cancel()
    await mesh.alice.append(id_, 1300, FILE[1300:])
    await mesh.alice.complete(id_, DIGEST)
    assert mesh.object(id_) == FILE


async def test_a_newer_append_takes_over_from_a_silent_one(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    silent = mesh.alice.stub.AppendUpload(metadata=mesh.alice.metadata)
    await silent.write(header(id_, 0))
    await silent.write(pb.AppendUploadRequest(data=FILE[:600]))
    await reached(mesh, id_, 600)
    async with asyncio.timeout(3):
        assert (await mesh.alice.append(id_, 600, FILE[600:])).upload_offset == len(FILE)
        with pytest.raises(Aborted) as refusal, service_errors():
            await silent
    assert refusal.value.reason == "CHUNK_SUPERSEDED"


async def test_a_silent_append_is_cut_off_and_streams_of_both_kinds_are_bounded(small: Mesh) -> None:
    id_ = (await small.alice.initiate()).session_id
    append = small.alice.stub.AppendUpload(metadata=small.alice.metadata)
    await append.write(header(id_, 0))
    await append.write(pb.AppendUploadRequest(data=FILE[:300]))
    chunks = small.alice.stub.UploadChunks(metadata=small.alice.metadata)
    for message in chunk(id_, 2)[:2]:
        await chunks.write(message)
    await small.written(id_, 2600)
    await reached(small, id_, 300)
    with pytest.raises(ResourceExhausted) as refusal:
        await small.alice.append(id_, 300, b"x")
    assert refusal.value.reason == "TOO_MANY_STREAMS"
    for call in (append, chunks):
        with pytest.raises(DeadlineExceeded), service_errors():
            await call
    assert (await small.alice.append(id_, 300, FILE[300:])).upload_offset == len(FILE)


@pytest.mark.parametrize(("algorithm", "name"), [(SHA1, "sha1"), (SHA256, "sha256")])
async def test_with_a_checksum_bytes_count_all_or_not_at_all(small: Mesh, algorithm: int, name: str) -> None:
    id_ = (await small.alice.initiate()).session_id
    wrong = hashlib.new(name, b"other").hexdigest()
    with pytest.raises(InvalidArgument) as refusal:
        await small.alice.append(id_, 0, FILE[:1500], checksum_algorithm=algorithm, checksum=wrong)
    assert refusal.value.reason == "CHUNK_DIGEST_MISMATCH"
    assert (await small.alice.get(id_)).status == upload_pb2.UPLOAD_STATUS_PENDING
    right = hashlib.new(name, FILE[:2500]).hexdigest().upper()
    upload = await small.alice.append(
        id_, 0, FILE[:800], FILE[800:2500], checksum_algorithm=algorithm, checksum=right
    )
    assert upload.upload_offset == 2500
    for algorithm_, checksum in ((algorithm, "abc"), (0, right), (9, right)):
        with pytest.raises(InvalidArgument):
            await small.alice.append(id_, 2500, b"x", checksum_algorithm=algorithm_, checksum=checksum)
    await small.alice.append(id_, 2500, FILE[2500:])
    await small.alice.complete(id_, DIGEST)


async def test_a_length_that_is_told_late_holds_from_then_on(small: Mesh) -> None:
    upload = await small.alice.initiate(file_size=0, defer_length=True)
    id_ = upload.session_id
    assert upload.length_deferred
    assert (upload.file_size, upload.total_chunks, upload.chunk_size) == (0, 0, 1000)
    with pytest.raises(FailedPrecondition) as early:
        await small.alice.put(id_, 0)
    assert early.value.reason == "LENGTH_MISMATCH"
    assert (await small.alice.append(id_, 0, FILE[:2400])).upload_offset == 2400
    with pytest.raises(FailedPrecondition) as unknown:
        await small.alice.complete(id_)
    assert unknown.value.reason == "LENGTH_MISMATCH"
    with pytest.raises(FailedPrecondition) as short:
        await small.alice.append(id_, 2400, length=2399)
    assert short.value.reason == "LENGTH_MISMATCH"
    told = await small.alice.append(id_, 2400, FILE[2400:], length=len(FILE))
    assert (told.length_deferred, told.file_size, told.upload_offset) == (False, len(FILE), len(FILE))
    assert told.progress_percent == 100
    assert (await small.alice.append(id_, len(FILE), length=len(FILE))).upload_offset == len(FILE)
    with pytest.raises(FailedPrecondition) as other:
        await small.alice.append(id_, len(FILE), length=len(FILE) + 1)
    assert other.value.reason == "LENGTH_MISMATCH"
    await small.alice.complete(id_, DIGEST)
    assert small.object(id_) == FILE


async def test_a_length_told_after_the_last_byte_is_enough(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate(file_size=0, defer_length=True, chunk_size=20_000)).session_id
    await mesh.alice.append(id_, 0, FILE)
    await mesh.alice.append(
        id_, len(FILE), length=len(FILE), checksum_algorithm=SHA1, checksum=hashlib.sha1(b"").hexdigest()
    )
    await mesh.alice.complete(id_, DIGEST)
    assert mesh.object(id_) == FILE


async def test_limits_hold_while_the_length_is_not_told(small: Mesh) -> None:
    id_ = (await small.alice.initiate(file_size=0, defer_length=True)).session_id
    with pytest.raises(InvalidArgument) as refusal:
        await small.alice.append(id_, 0, bytes(9_000), bytes(1_001))
    assert refusal.value.reason == "FILE_TOO_LARGE"
    assert (await small.alice.get(id_)).upload_offset == 9_000
    with pytest.raises(InvalidArgument) as told:
        await small.alice.append(id_, 9_000, length=10_001)
    assert (told.value.reason, told.value.violations[0].field) == ("FILE_TOO_LARGE", "upload_length")
    with pytest.raises(InvalidArgument, match="defer_length"):
        await small.alice.initiate(defer_length=True)


async def test_a_malformed_append_is_refused(small: Mesh) -> None:
    id_ = (await small.alice.initiate()).session_id
    data = pb.AppendUploadRequest(data=b"x")
    streams = [
        [],
        [data],
        [pb.AppendUploadRequest()],
        [header(id_, 0), header(id_, 0)],
        [header(id_, 0), pb.AppendUploadRequest()],
        [header(id_, 0), pb.AppendUploadRequest(data=bytes((1 << 20) + 1))],
    ]
    for messages in streams:
        with pytest.raises(InvalidArgument) as refusal:
            await answer(small.alice.stub.AppendUpload(iter(messages), metadata=small.alice.metadata))
        assert refusal.value.reason == "STREAM_MALFORMED"
    with pytest.raises(InvalidArgument, match="session_id"):
        await small.alice.append("../../etc", 0, b"x")


WRONG: dict[str, tuple[bytes, type[ServiceError], str]] = {
    "more than the file has": (FILE + b"x", InvalidArgument, "LENGTH_EXCEEDED"),
    "other bytes over a stored chunk": (FILE[:1000] + bytes(1000), AlreadyExists, "CHUNK_CONFLICT"),
}


@pytest.mark.parametrize(("body", "code", "reason"), WRONG.values(), ids=WRONG.keys())
async def test_wrong_bytes_are_refused_and_what_was_stored_stays(
    small: Mesh, body: bytes, code: type[ServiceError], reason: str
) -> None:
    id_ = (await small.alice.initiate()).session_id
    await small.alice.put(id_, 1)
    with pytest.raises(code) as refusal:
        await small.alice.append(id_, 0, *(body[n : n + 1000] for n in range(0, len(body), 1000)))
    assert refusal.value.reason == reason
    stood = (await small.alice.get(id_)).upload_offset
    assert stood >= 2000
    await small.alice.append(id_, stood, FILE[stood:])
    await small.alice.complete(id_, DIGEST)
    with pytest.raises(FailedPrecondition) as closed:
        await small.alice.append(id_, len(FILE))
    assert closed.value.reason == "UPLOAD_CLOSED"
