"""Uploads scanned by the real clamd of Debian, with one signature of our own. ``make test-system`` installs it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.adapters.memory import MemoryStateStore
from services.common.errors import FailedPrecondition, InvalidArgument, ServiceError, Unavailable
from services.common.keys import KeyRing
from services.upload.adapters.clamd import ClamdScanner
from services.upload.domain import Upload
from services.upload.reasons import Reason
from tests.rpc.upload_fixtures import CHUNK, FILE, Mesh, chunk, running
from twotruths.upload.v1 import upload_pb2

VIRUS = b"two truths and a virus: this is found by our own signature"
MAX_FILE = 1 << 20
MAX_STREAM = 2 << 20
CONFIGURATION = """
Foreground yes
LocalSocket {folder}/clamd.ctl
DatabaseDirectory {folder}/signatures
TemporaryDirectory {folder}
AlertExceedsMax yes
MaxFileSize {max_file}
MaxScanSize {max_file}
StreamMaxLength {max_stream}
Bytecode no
"""


class Clamd:
    """The daemon as a child process; its socket is ``socket``."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("clamd") or shutil.which("clamd", path="/usr/sbin:/sbin")
        assert program, "clamd is not installed: make test-system installs it"
        signatures = folder / "signatures"
        signatures.mkdir()
        (signatures / "own.ndb").write_text(f"Twotruths.Test:0:*:{VIRUS.hex()}\n")
        config = folder / "clamd.conf"
        config.write_text(CONFIGURATION.format(folder=folder, max_file=MAX_FILE, max_stream=MAX_STREAM))
        self.socket = folder / "clamd.ctl"
        self._command = [program, f"--config-file={config}"]
        self._log = folder / "clamd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def clamd() -> Iterator[Clamd]:
    with tempfile.TemporaryDirectory(prefix="clamd") as folder:  # short: a socket's path has at most 107 bytes
        daemon = Clamd(Path(folder))
        daemon.start()
        yield daemon
        daemon.kill()


@pytest.fixture
async def mesh(clamd: Clamd, keys: KeyRing, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running(keys, tmp_path, MemoryStateStore[Upload](), clamd=str(clamd.socket)) as running_mesh:
        yield running_mesh


async def stored(mesh: Mesh, body: bytes) -> str:
    """The id of an upload that has all its chunks."""
    upload = await mesh.alice.initiate(file_size=len(body), chunk_size=max(CHUNK, len(body) // 10))
    for n in range(upload.total_chunks):
        data = body[n * upload.chunk_size : (n + 1) * upload.chunk_size]
        await mesh.alice.send(*chunk(upload.session_id, n, data))
    return upload.session_id


async def refusal(mesh: Mesh, id_: str) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        await mesh.alice.complete(id_)
    return refused.value


async def test_a_clean_file_is_let_through(mesh: Mesh) -> None:
    id_ = await mesh.alice.uploaded()
    assert (await mesh.alice.complete(id_)).status == upload_pb2.UPLOAD_STATUS_COMPLETED
    assert mesh.object(id_) == FILE


async def test_a_virus_across_two_chunks_is_found_and_the_file_is_gone(mesh: Mesh) -> None:
    body = FILE[: CHUNK - 20] + VIRUS + FILE
    id_ = await stored(mesh, body)
    error = await refusal(mesh, id_)
    assert (type(error), error.reason) == (InvalidArgument, Reason.FILE_INFECTED)
    assert "Twotruths.Test" in error.message
    assert mesh.object(id_) is None
    assert mesh.stored_parts(id_) == set()
    with pytest.raises(FailedPrecondition):
        await mesh.alice.file(id_)


@pytest.mark.parametrize("size", [MAX_FILE + 1000, MAX_STREAM + 1000])
async def test_a_file_too_large_for_the_scanner_is_not_clean(mesh: Mesh, size: int) -> None:
    id_ = await stored(mesh, (FILE * (size // len(FILE) + 1))[:size])
    error = await refusal(mesh, id_)
    assert (type(error), error.reason) == (Unavailable, Reason.SCANNER_UNAVAILABLE)
    assert (await mesh.alice.get(id_)).status == upload_pb2.UPLOAD_STATUS_IN_PROGRESS
    with pytest.raises(FailedPrecondition):
        await mesh.alice.file(id_)


async def test_while_clamd_is_dead_files_wait_and_the_sweep_lets_them_through_when_it_is_back(
    clamd: Clamd, mesh: Mesh
) -> None:
    id_ = await mesh.alice.uploaded()
    clamd.kill()
    try:
        assert (await refusal(mesh, id_)).reason == Reason.SCANNER_UNAVAILABLE
    finally:
        clamd.start()
    async with mesh.sweeping():
        async for upload in mesh.alice.watch(id_):
            status = upload.status
    assert status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_two_scans_at_once_do_not_mix(clamd: Clamd) -> None:
    async def body(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    scanner = ClamdScanner(str(clamd.socket), timeout=30)
    bodies = [FILE + VIRUS if n % 3 == 0 else FILE * (n + 1) for n in range(12)]
    verdicts = await asyncio.gather(*(scanner.scan(body(data)) for data in bodies))
    assert verdicts == ["Twotruths.Test.UNOFFICIAL" if n % 3 == 0 else "" for n in range(12)]
