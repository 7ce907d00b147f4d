"""A file and its virus scan, as callers meet it: unseen until clean, gone when infected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.common.keys import KeyRing
from services.upload.domain import Upload
from services.upload.reasons import Reason
from tests.contract.test_scanner import Clamd
from tests.rpc.test_upload_metrics import scraped
from tests.rpc.upload_fixtures import FILE, Mesh, running
from twotruths.upload.v1 import upload_pb2


@pytest.fixture
def clamd() -> Clamd:
    return Clamd()


@pytest.fixture
async def mesh(clamd: Clamd, keys: KeyRing, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with (
        clamd.listening() as address,
        running(keys, tmp_path, MemoryStateStore[Upload](), clamd=address) as running_mesh,
    ):
        yield running_mesh


async def test_nobody_can_read_a_file_before_the_scanner_has_said_that_it_is_clean(
    clamd: Clamd, mesh: Mesh
) -> None:
    clamd.answer = None
    id_ = await mesh.alice.uploaded()
    for _ in range(2):
        with pytest.raises(Unavailable) as refusal:
            await mesh.alice.complete(id_)
        assert refusal.value.reason == Reason.SCANNER_UNAVAILABLE
    with pytest.raises(FailedPrecondition) as unseen:
        await mesh.alice.file(id_)
    assert unseen.value.reason == Reason.FILE_NOT_READY
    assert (await mesh.alice.get(id_)).status == upload_pb2.UPLOAD_STATUS_IN_PROGRESS
    clamd.answer = b"stream: OK\0"
    assert (await mesh.alice.complete(id_)).status == upload_pb2.UPLOAD_STATUS_COMPLETED
    assert clamd.received == FILE
    assert (await mesh.alice.file(id_)).size == len(FILE)
    counted = await scraped(mesh)
    assert (counted["upload_scans_total{unavailable}"], counted["upload_scans_total{clean}"]) == (2, 1)


async def test_an_infected_file_is_refused_by_name_and_its_bytes_are_gone(clamd: Clamd, mesh: Mesh) -> None:
    clamd.answer = b"stream: Test.Virus FOUND\0"
    id_ = await mesh.alice.uploaded()
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=r"Test\.Virus") as refusal:
            await mesh.alice.complete(id_)
        assert refusal.value.reason == Reason.FILE_INFECTED
    failed = await mesh.alice.get(id_)
    assert (failed.status, failed.error_type) == (upload_pb2.UPLOAD_STATUS_FAILED, "file_infected")
    assert mesh.object(id_) is None
    assert mesh.stored_parts(id_) == set()
    assert (await scraped(mesh))["upload_scans_total{infected}"] == 1
