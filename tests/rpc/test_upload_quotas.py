"""Quotas as callers meet them, held by two replicas that share nothing but the broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import NotFound, ResourceExhausted
from services.common.keys import KeyRing
from services.upload import wiring
from services.upload.config import UploadSettings
from services.upload.domain import Upload
from services.upload.reasons import Reason
from tests.rpc.upload_fixtures import FILE, SESSION, Mesh, clips, running
from twotruths.upload.v1 import upload_service_pb2 as pb


@pytest.fixture
async def replicas(
    keys: KeyRing, tmp_path: Path, nats_url: str, nats_client: Client
) -> AsyncIterator[tuple[Mesh, Mesh]]:
    settings = UploadSettings(**keys.settings(), nats_url=nats_url)
    async with AsyncExitStack() as stack:
        meshes = []
        for name in ("one", "other"):
            shared = await wiring.open_shared(settings, stack, alone=False)
            meshes.append(
                await stack.enter_async_context(running(keys, tmp_path / name, shared, upload_max_open=3))
            )
        yield meshes[0], meshes[1]


async def test_open_uploads_are_counted_over_replicas_and_room_comes_back(replicas: tuple[Mesh, Mesh]) -> None:
    one, other = replicas
    ids = [(await one.alice.initiate(request_id=f"request-{n}")).session_id for n in range(3)]
    assert (await other.alice.initiate(request_id="request-2")).session_id == ids[2]  # a replay costs nothing
    with pytest.raises(ResourceExhausted) as refusal:
        await other.alice.initiate()
    assert (refusal.value.reason, refusal.value.domain) == (Reason.QUOTA_OPEN_UPLOADS, "upload.twotruths")
    assert refusal.value.retry_after
    assert refusal.value.metadata["ratelimit_limit"] == "3"
    await other.mallory.initiate()
    await one.alice.cancel(ids[0])
    await other.alice.initiate()


async def test_what_is_left_comes_with_the_answer_and_does_not_displace_its_request_id(
    keys: KeyRing, tmp_path: Path
) -> None:
    async with running(keys, tmp_path, MemoryStateStore[Upload](), upload_max_initiates_per_minute=30) as mesh:
        request = pb.InitiateUploadRequest(filename="a.mp4", file_size=7, mime_type="video/mp4")
        metadata = (*mesh.alice.metadata, ("x-request-id", "request-of-alice"))
        call = mesh.alice.stub.InitiateUpload(request, metadata=metadata)
        await call
        trailing = dict(await call.trailing_metadata())
        batch = pb.BatchInitiateUploadsRequest(owner="alice", merge_session_id=SESSION, clips=clips())
        of_session = mesh.merge.stub.BatchInitiateUploads(batch, metadata=mesh.merge.metadata)
        await of_session
        trailing_of_session = dict(await of_session.trailing_metadata())
    assert trailing["x-request-id"] == "request-of-alice"
    assert str(trailing["ratelimit"]).startswith('"initiates";r=29;t=')
    assert str(trailing_of_session["ratelimit"]).startswith('"initiates";r=26;t=')


async def test_a_merge_session_over_the_quota_leaves_nothing_behind(replicas: tuple[Mesh, Mesh]) -> None:
    one, other = replicas
    await one.alice.initiate()
    session = clips()
    with pytest.raises(ResourceExhausted):
        await other.merge.batch(session)
    for clip in session:
        with pytest.raises(NotFound):
            await other.alice.get(clip.session_id)
    await one.merge.batch(session, "mallory")
    assert len(await other.merge.batch(session, "mallory")) == 3


MIB = 1 << 20


@pytest.fixture
async def counting(keys: KeyRing, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A service whose players may upload 4 MiB a day and initiate 5 uploads a minute."""
    limits = {"upload_max_bytes_per_day": 4 * MIB, "upload_max_initiates_per_minute": 5}
    async with running(keys, tmp_path, MemoryStateStore[Upload](), **limits) as mesh:
        yield mesh


async def test_bytes_that_nobody_announced_count_as_they_come(counting: Mesh) -> None:
    alice = counting.alice
    id_ = (await alice.initiate(file_size=0, defer_length=True, chunk_size=MIB)).session_id
    await alice.append(id_, 0, *[bytes(MIB // 2)] * 6)
    with pytest.raises(ResourceExhausted) as refusal:
        await alice.append(id_, 3 * MIB, *[bytes(MIB // 2)] * 3)
    assert refusal.value.reason == Reason.QUOTA_BYTES_PER_DAY
    assert (await alice.get(id_)).upload_offset == 4 * MIB  # what came before counts, and stays
    with pytest.raises(ResourceExhausted):
        await alice.append(id_, 4 * MIB, length=4 * MIB + 1)
    with pytest.raises(ResourceExhausted):
        await alice.initiate(file_size=1)
    await alice.append(id_, 4 * MIB, length=4 * MIB)  # they are counted already


async def test_a_length_that_is_told_counts_but_for_what_came_before(counting: Mesh) -> None:
    alice = counting.alice
    id_ = (await alice.initiate(file_size=0, defer_length=True, chunk_size=MIB)).session_id
    await alice.append(id_, 0, FILE[:1000])
    await alice.append(id_, 1000, length=3 * MIB)
    await alice.initiate(file_size=MIB, chunk_size=0)
    with pytest.raises(ResourceExhausted):
        await alice.initiate(file_size=1)


async def test_the_bytes_of_a_concatenation_were_counted_with_its_parts(counting: Mesh) -> None:
    alice = counting.alice
    ids = []
    for body in (FILE.ljust(MIB, b"."), bytes(MIB)):
        id_ = (await alice.initiate(file_size=MIB, partial=True, chunk_size=MIB)).session_id
        await alice.append(id_, 0, body[: MIB // 2], body[MIB // 2 :])
        ids.append((await alice.complete(id_)).session_id)
    with pytest.raises(ResourceExhausted) as refusal:
        await alice.concat(*ids, *[ids[1]] * 3)  # 2 MiB that were counted, and 3 that were not
    assert refusal.value.reason == Reason.QUOTA_BYTES_PER_DAY
    assert (await alice.concat(*ids, ids[1])).file_size == 3 * MIB
    await alice.initiate(file_size=MIB, chunk_size=0)
    with pytest.raises(ResourceExhausted) as refusal:
        await alice.initiate(file_size=1)
    assert refusal.value.reason == Reason.QUOTA_BYTES_PER_DAY


async def test_concatenations_count_as_initiates(counting: Mesh) -> None:
    alice = counting.alice
    ids = []
    for _ in range(5):
        id_ = (await alice.initiate(partial=True)).session_id
        await alice.append(id_, 0, FILE)
        ids.append((await alice.complete(id_)).session_id)
    with pytest.raises(ResourceExhausted) as refusal:
        await alice.concat(*ids)
    assert refusal.value.reason == Reason.RATE_LIMITED
    counting.clock.ahead = timedelta(minutes=1)
    await alice.concat(*ids)
