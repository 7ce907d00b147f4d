"""Quotas as callers meet them, held by two replicas that share nothing but the broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.errors import NotFound, ResourceExhausted
from services.common.keys import KeyRing
from services.upload.reasons import Reason
from tests.rpc.upload_fixtures import Mesh, clips, running


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
