"""Files made of partial uploads, over gRPC: exactly once, whatever is cut off."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from itertools import pairwise

import pytest

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tests.rpc.upload_fixtures import (  # noqa: F401  pytest finds fixtures by name
    DIGEST,
    FILE,
    Mesh,
    mesh_fixture,
    small_fixture,
)
from twotruths.upload.v1 import upload_pb2

CUTS = (0, 700, 3100, len(FILE))


async def partial(mesh: Mesh, body: bytes) -> str:
    made = await mesh.alice.initiate(partial=True, file_size=len(body), mime_type="application/octet-stream")
    await mesh.alice.append(made.session_id, 0, body)
    assert (await mesh.alice.complete(made.session_id)).purpose == upload_pb2.UPLOAD_PURPOSE_PARTIAL
    return made.session_id


async def partials(mesh: Mesh) -> list[str]:
    return [await partial(mesh, FILE[a:b]) for a, b in pairwise(CUTS)]


async def test_partial_uploads_become_one_file_in_the_order_named(mesh: Mesh) -> None:
    first, second, third = await partials(mesh)
    made = await mesh.alice.concat(first, second, third, metadata={"take": "2"})
    assert (made.status, made.file_size, made.file_hash) == (
        upload_pb2.UPLOAD_STATUS_COMPLETED,
        len(FILE),
        DIGEST,
    )
    assert (made.filename, dict(made.metadata)) == ("whole.mp4", {"take": "2"})
    assert mesh.object(made.session_id) == FILE
    assert (await mesh.alice.file(made.file_id)).sha256 == DIGEST
    for id_ in (first, second, third):  # they have gone into the file
        assert mesh.object(id_) is None
        assert (await mesh.alice.get(id_)).status == upload_pb2.UPLOAD_STATUS_CANCELLED


async def test_concatenating_again_under_one_request_id_gives_the_same_file(mesh: Mesh) -> None:
    ids = await partials(mesh)
    name = uuid.uuid4().hex
    answers = await asyncio.gather(*(mesh.alice.concat(*ids, request_id=name) for _ in range(3)))
    answers.append(await mesh.alice.concat(*ids, request_id=name))
    assert all(answer == answers[0] for answer in answers)
    with pytest.raises(AlreadyExists) as reused:
        await mesh.alice.concat(*reversed(ids), request_id=name)
    assert reused.value.reason == "REQUEST_ID_REUSED"


async def test_only_completed_partial_uploads_of_the_caller_can_be_used(small: Mesh) -> None:
    done = await partial(small, FILE[:700])
    open_ = (await small.alice.initiate(partial=True, file_size=10)).session_id
    generic = await small.alice.uploaded()
    await small.alice.complete(generic)
    for other in (open_, generic):
        with pytest.raises(FailedPrecondition) as refusal:
            await small.alice.concat(done, other)
        assert (refusal.value.reason, refusal.value.violations[0].field) == (
            "PARTIAL_NOT_USABLE",
            "session_ids[1]",
        )
    with pytest.raises(NotFound):
        await small.mallory.concat(done)
    with pytest.raises(InvalidArgument) as kind:
        await small.alice.concat(done, mime_type="text/plain")
    assert kind.value.reason == "FILE_TYPE_NOT_ALLOWED"
    with pytest.raises(InvalidArgument) as size:
        await small.alice.concat(*[await partial(small, bytes(6000)) for _ in range(2)])
    assert size.value.reason == "FILE_TOO_LARGE"
    assert small.object(done) == FILE[:700]


async def test_the_whole_file_must_be_of_its_type(small: Mesh) -> None:
    text = await partial(small, b"plain text, no film".ljust(500))
    with pytest.raises(InvalidArgument) as refusal:
        await small.alice.concat(text)
    assert refusal.value.reason == "FILE_TYPE_MISMATCH"


async def test_a_partial_upload_that_nobody_uses_expires_with_its_bytes(small: Mesh) -> None:
    id_ = await partial(small, FILE[:700])
    small.clock.ahead = timedelta(days=1)
    assert (await small.alice.get(id_)).status == upload_pb2.UPLOAD_STATUS_EXPIRED
    with pytest.raises(FailedPrecondition):
        await small.alice.concat(id_)
    async with small.sweeping(), asyncio.timeout(5):
        while small.object(id_) is not None:
            await asyncio.sleep(0.01)


async def test_a_partial_upload_may_be_given_up_after_it_is_completed(small: Mesh) -> None:
    id_ = await partial(small, FILE[:700])
    assert (await small.alice.cancel(id_)).status == upload_pb2.UPLOAD_STATUS_CANCELLED
    assert small.object(id_) is None
