"""Clients that people use, against the real gateway and upload service: tus-js-client and tuspy."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tusclient.client import TusClient

from services.common.keys import KeyRing
from tests.conftest import NatsServer
from tests.fault_proxy import Fault, Proxy, proxy_to
from tests.processes import Pair, running

HERE = Path(__file__).parent
HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
CHUNK = 300_000
SIZE = 2_500_001
METADATA = {"filename": "clip.mp4", "filetype": "video/mp4"}
pytestmark = pytest.mark.xdist_group("tus-clients")


@pytest.fixture(name="pair", scope="session")
async def pair_fixture(
    keys: KeyRing, tmp_path_factory: pytest.TempPathFactory, new_nats_server: Callable[[], NatsServer]
) -> AsyncIterator[Pair]:
    folder, broker = tmp_path_factory.mktemp("clients"), new_nats_server()
    async with running(keys, folder, broker.url, log_level="WARNING") as pair:
        yield pair


@pytest.fixture(name="proxy")
async def proxy_fixture(pair: Pair) -> AsyncIterator[Proxy]:
    async with proxy_to(pair.gateway.port) as proxy:
        yield proxy


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(HEAD + random.randbytes(SIZE - len(HEAD)))
    return path


async def by_tus_js(pair: Pair, file: Path, port: int = 0, **settings: object) -> dict[str, object]:
    node = shutil.which("node")
    assert node is not None, "make test-system installs it"
    job = {
        "endpoint": f"http://127.0.0.1:{port or pair.gateway.port}/api/v1/tus/",
        "token": pair.keys.player_token("alice"),
        "file": str(file),
        "chunkSize": CHUNK,
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        node, HERE / "upload.js", json.dumps(job), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    answer: dict[str, object] = json.loads(output)
    return answer


def stored(pair: Pair, url: object) -> bytes:
    return pair.file(str(url).rpartition("/")[2])


async def test_tus_js_uploads_a_file(pair: Pair, file: Path) -> None:
    answer = await by_tus_js(pair, file)
    assert stored(pair, answer["url"]) == file.read_bytes()


async def test_tus_js_uploads_three_parts_at_once_and_concatenates_them(pair: Pair, file: Path) -> None:
    answer = await by_tus_js(pair, file, parallelUploads=3)
    assert stored(pair, answer["url"]) == file.read_bytes()


async def test_tus_js_takes_up_an_upload_that_it_left(pair: Pair, file: Path) -> None:
    answer = await by_tus_js(pair, file, cutAfter=3 * CHUNK)
    assert stored(pair, answer["url"]) == file.read_bytes()
    assert answer["sent"] < SIZE - CHUNK  # type: ignore[operator]  # an integer


async def test_tus_js_goes_on_after_its_connection_was_cut(pair: Pair, file: Path, proxy: Proxy) -> None:
    proxy.set(Fault.RESET, after=4 * CHUNK)
    upload = asyncio.create_task(by_tus_js(pair, file, proxy.port))
    async with asyncio.timeout(60):
        await proxy.struck.wait()
    proxy.heal()
    answer = await upload
    assert stored(pair, answer["url"]) == file.read_bytes()
    assert proxy.passed < SIZE + CHUNK  # since the cut: it did not begin anew


async def test_the_python_client_uploads_a_file(pair: Pair, file: Path) -> None:
    client = TusClient(f"{pair.url}/api/v1/tus/", headers=pair.bearer("alice"))
    with file.open("rb") as stream:  # given a path, it would leave the file open
        uploader = client.uploader(file_stream=stream, chunk_size=CHUNK, metadata=METADATA, upload_checksum=True)
        await asyncio.to_thread(uploader.upload)
    assert stored(pair, uploader.url) == file.read_bytes()


async def test_the_python_client_takes_up_an_upload_from_its_url(pair: Pair, file: Path) -> None:
    client = TusClient(f"{pair.url}/api/v1/tus/", headers=pair.bearer("alice"))
    with file.open("rb") as stream:
        first = client.uploader(file_stream=stream, chunk_size=CHUNK, metadata=METADATA)
        await asyncio.to_thread(first.upload, stop_at=3 * CHUNK)
    with file.open("rb") as stream:
        second = client.uploader(file_stream=stream, chunk_size=CHUNK, url=first.url)
        assert second.offset == 3 * CHUNK
        await asyncio.to_thread(second.upload)
    assert stored(pair, first.url) == file.read_bytes()
