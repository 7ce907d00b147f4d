"""Quotas as callers meet them, held by two replicas that share nothing but the broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import NotFound, ResourceExhausted
from services.common.keys import KeyRing
from services.upload.domain import Upload
from services.upload.reasons import Reason
from tests.rpc.upload_fixtures import Mesh, clips, running
from twotruths.upload.v1 import upload_service_pb2 as pb


@pytest.fixture
async def replicas(
    keys: KeyRing, tmp_path: Path, nats_url: str, nats_client: Client
) -> AsyncIterator[tuple[Mesh, Mesh]]:
    limits = {"nats_url": nats_url, "upload_max_open": 3}
    async with (
        running(keys, tmp_path / "one", None, **limits) as one,
        running(keys, tmp_path / "other", None, **limits) as other,
    ):
        yield one, other


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
    assert trailing["x-request-id"] == "request-of-alice"
    assert str(trailing["ratelimit"]).startswith('"initiates";r=29;t=')


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
