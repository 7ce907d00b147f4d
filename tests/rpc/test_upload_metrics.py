"""What the upload service counts and tells, looked at after a real flow."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from services.common.keys import KeyRing
from services.common.metrics import exposed
from services.upload.domain import Upload
from tests.rpc.upload_fixtures import CHUNK, FILE, TOTAL, Mesh, chunk, running
from twotruths.upload.v1 import upload_service_pb2 as pb


@pytest.fixture
async def mesh(keys: KeyRing, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running(keys, tmp_path, MemoryStateStore[Upload](), upload_max_open=4) as running_mesh:
        yield running_mesh


async def scraped(mesh: Mesh) -> dict[str, float]:
    """``name{label}`` → value of the service's own metrics that are not 0."""
    with exposed(mesh.app.metrics, "127.0.0.1:0") as port:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
    return {
        sample.name.removeprefix("twotruths_") + "".join(f"{{{v}}}" for v in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("twotruths_upload")
        and not sample.name.endswith(("_created", "_bucket", "_seconds_sum", "_second_sum"))
        and sample.value
    }


async def test_a_flow_is_counted_step_by_step(mesh: Mesh) -> None:
    assert await scraped(mesh) == {}
    first = await mesh.alice.initiate(network_type="wifi", device_type="toaster")
    await mesh.alice.put(first.session_id, *range(TOTAL))
    await mesh.alice.put(first.session_id, 1)
    with pytest.raises(AlreadyExists):
        await mesh.alice.send(*chunk(first.session_id, 2, b"x" * CHUNK))
    for _ in range(2):
        await mesh.alice.complete(first.session_id)
    cancelled = await mesh.alice.initiate()
    for _ in range(2):
        await mesh.alice.cancel(cancelled.session_id)
    text = await mesh.alice.initiate(network_type="carrier pigeon", chunk_size=0, file_size=4)
    await mesh.alice.send(*chunk(text.session_id, 0, b"text"))
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            await mesh.alice.complete(text.session_id)
    for _ in range(4):
        await mesh.alice.initiate()
    with pytest.raises(ResourceExhausted):
        await mesh.alice.initiate()
    assert await scraped(mesh) == {
        "uploads_started_total": 7,
        "uploads_completed_total": 1,
        "uploads_cancelled_total": 1,
        "uploads_failed_total{file_type_mismatch}": 1,
        "upload_received_bytes_total": len(FILE) + 2 * CHUNK + 4,
        "upload_parts_stored_total": TOTAL + 1,
        "upload_parts_replayed_total": 1,
        "upload_conflicts_total": 1,
        "upload_quota_refusals_total{QUOTA_OPEN_UPLOADS}": 1,
        "upload_duration_seconds_count{wifi}": 1,
        "upload_bytes_per_second_count{other}{wifi}": 1,
    }


async def test_appended_bytes_and_pieces_of_a_file_are_counted_once(mesh: Mesh) -> None:
    first, second = [
        (await mesh.alice.initiate(file_size=size, partial=True)).session_id for size in (2500, len(FILE) - 2500)
    ]
    await mesh.alice.append(first, 0, FILE[:1500])
    checksum = hashlib.sha256(FILE[1500:2500]).hexdigest()
    algorithm = pb.CHECKSUM_ALGORITHM_SHA256
    await mesh.alice.append(first, 1500, FILE[1500:2500], checksum_algorithm=algorithm, checksum=checksum)
    await mesh.alice.append(second, 0, FILE[2500:])
    for piece in (first, second):
        await mesh.alice.complete(piece)
    await mesh.alice.concat(first, second)
    counted = await scraped(mesh)
    assert counted["upload_received_bytes_total"] == len(FILE)
    assert counted["upload_parts_stored_total"] == 3 + 2
    assert (counted["uploads_started_total"], counted["uploads_completed_total"]) == (3, 3)
    assert "uploads_cancelled_total" not in counted


async def test_sweeps_and_what_they_expire_are_counted(mesh: Mesh) -> None:
    id_ = await mesh.alice.uploaded()
    mesh.clock.ahead = timedelta(days=2)
    async with mesh.sweeping(), asyncio.timeout(20):
        while (counted := await scraped(mesh)).get("upload_sweeps_total", 0) < 2:
            await asyncio.sleep(0.01)
    assert (counted["uploads_expired_total"], counted["upload_orphans_removed_total{parts}"]) == (1, 1)
    assert mesh.stored_parts(id_) == set()


async def test_open_streams_are_shown(mesh: Mesh) -> None:
    id_ = (await mesh.alice.initiate()).session_id
    call = mesh.alice.stub.UploadChunks(metadata=mesh.alice.metadata)
    for message in chunk(id_, 0)[:2]:
        await call.write(message)
    await mesh.written(id_, 1)
    assert (await scraped(mesh))["upload_streams_open"] == 1
    call.cancel()
    async with asyncio.timeout(20):
        while "upload_streams_open" in await scraped(mesh):
            await asyncio.sleep(0.01)


async def test_how_a_completed_upload_went_is_told_once(mesh: Mesh) -> None:
    upload = await mesh.alice.initiate(network_type="4g", device_type="phone")
    assert (upload.network_type, upload.device_type) == ("4g", "phone")
    await mesh.alice.put(upload.session_id, *range(TOTAL))
    await mesh.alice.put(upload.session_id, 0)
    await mesh.alice.put(upload.session_id, 3)
    mesh.clock.ahead = timedelta(seconds=100)
    for _ in range(2):
        await mesh.alice.complete(upload.session_id)
    (event,) = mesh.events.kept
    assert (event.upload_id, event.bytes, event.chunks) == (upload.session_id, len(FILE), TOTAL)
    assert (event.replayed_chunks, event.network_type, event.device_type) == (2, "4g", "phone")
    assert 100 <= event.seconds < 110
    assert event.bytes_per_second == pytest.approx(len(FILE) / event.seconds)
