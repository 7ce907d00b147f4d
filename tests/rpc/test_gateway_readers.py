"""Downloads from a remote store: how many at once, what they hold, and when they end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.common.adapters.s3_bucket import S3Bucket
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.keys import KeyRing
from services.gateway import readers
from services.gateway.config import GatewaySettings
from services.gateway.openfiles import OpenFile, OpenFiles
from tests.rpc.fake_uploads import NOW
from tests.rpc.gateway_world import World, connection, open_world

CONTENT = os.urandom(1 << 20) * 16


async def begun(
    stack: AsyncExitStack, world: World, url: str, *, user: str = "alice", source: str = "127.0.0.1"
) -> asyncio.StreamWriter:
    """A download of which the first line was taken, and nothing else."""
    reader, writer = await stack.enter_async_context(connection(world.port, source=source))
    fields = "".join(f"{name}: {value}\r\n" for name, value in (world.auth(user) if user else {}).items())
    writer.write(f"GET {url} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())
    assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
    return writer


@pytest.mark.xdist_group("s3")
async def test_a_reader_too_many_is_refused_and_not_left_waiting(
    keys: KeyRing, tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    limits: dict[str, Any] = {"gateway_store_readers": 2, "gateway_store_wait_seconds": 0.2}
    store = S3ObjectStore(s3_bucket)
    async with open_world(keys, tmp_path, store=store, **limits) as world, AsyncExitStack() as stack:
        url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
        await begun(stack, world, url)
        leaving = await begun(stack, world, url)
        async with world.call("GET", url) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "2")
            assert (await response.json(content_type=None))["reason"] == "TOO_MANY_READERS"
        for method, headers, status in (("HEAD", {}, 200), ("GET", {"If-None-Match": "*"}, 304)):
            async with world.call(method, url, headers=headers) as response:
                assert response.status == status, "what reads nothing needs no turn"
        waiting = asyncio.ensure_future(world.call("GET", url, headers={"Range": "bytes=0-1"}).__aenter__())
        leaving.transport.abort()
        async with asyncio.timeout(10):
            response = await waiting
        assert (response.status, await response.read()) == (206, CONTENT[:2])
        response.release()


async def refused(world: World, url: str, user: str = "alice") -> str:
    """What somebody is told who has their part of the readers."""
    async with world.call("GET", url, user) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "2")
        document = await response.json(content_type=None)
    assert document["reason"] == "TOO_MANY_DOWNLOADS"
    return str(document["detail"])


async def test_nobody_has_more_than_their_part_of_the_readers(keys: KeyRing, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"gateway_store_readers_user": 2, "gateway_store_readers_address": 1}
    async with open_world(keys, tmp_path, remote=True, **limits) as world, AsyncExitStack() as stack:
        id_ = await world.add_video(CONTENT, public=True)
        url = f"/api/v1/media/stream/{id_}"
        signed = url + "?" + world.signer.sign(id_, now=NOW.seconds, ttl=60).query()
        leaving = await begun(stack, world, url)
        await begun(stack, world, url)
        renewed = {"Authorization": "Bearer " + keys.player_token("alice", ttl=999)}
        async with world.call("GET", url, headers=renewed) as response:
            assert response.status == 429, "another token makes no other player"
        assert "this user has 2 downloads" in await refused(world, url)
        async with world.call("HEAD", url) as response:
            assert response.status == 200
        await begun(stack, world, url, user="bob")
        await begun(stack, world, signed, user="")
        assert "this address has 1 downloads" in await refused(world, signed, "")
        await begun(stack, world, signed, user="", source="127.0.0.2")
        leaving.transport.abort()
        async with asyncio.timeout(10):
            status = 429
            while status == 429:
                async with world.call("GET", url, headers={"Range": "bytes=0-1"}) as response:
                    status = int(response.status)
        assert status == 206


async def test_who_takes_next_to_nothing_loses_the_turn(
    keys: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readers, "_PERIOD_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    limits: dict[str, Any] = {"gateway_store_readers": 1, "gateway_store_least_bytes_per_second": 100_000}
    async with open_world(keys, tmp_path, remote=True, **limits) as world, AsyncExitStack() as stack:
        url = f"/api/v1/media/stream/{await world.add_video(CONTENT * 2)}"
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1024)
        stack.callback(writer.close)
        writer.write(f"GET {url} HTTP/1.1\r\nHost: x\r\nAuthorization: ".encode())
        writer.write(world.auth()["Authorization"].encode() + b"\r\n\r\n")

        async def drip() -> None:
            while await reader.read(512):
                await asyncio.sleep(0.05)  # 10 kB/s

        dripping = asyncio.create_task(drip())
        await asyncio.wait_for(world.remote.read_ended.wait(), 20)
        dripping.cancel()
        await asyncio.wait({dripping})
        async with world.call("GET", url, headers={"Range": "bytes=0-1"}) as response:
            assert response.status == 206, "the turn is another's"
    assert any("too slow" in record.getMessage() for record in caplog.records)


async def test_who_waits_for_the_store_is_not_slow(
    keys: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, judge = asyncio.Semaphore(0), readers.Pace._judge

    def judging(pace: readers.Pace) -> None:
        judge(pace)
        judged.release()

    async def slow(*_asked: Any) -> AsyncIterator[bytes]:
        for piece in (b"ab", b"cd", b"ef"):
            yield piece
            for _ in range(3):
                await judged.acquire()

    monkeypatch.setattr(readers.Pace, "_judge", judging)
    monkeypatch.setattr(readers, "_PERIOD_SECONDS", 0.05)
    async with open_world(keys, tmp_path, remote=True, gateway_store_least_bytes_per_second=1 << 40) as world:
        url = f"/api/v1/media/stream/{await world.add_video(b'abcdef')}"
        monkeypatch.setattr(world.remote, "read", slow)
        async with asyncio.timeout(20), world.call("GET", url) as response:
            assert await response.read() == b"abcdef"


def test_there_are_always_fewer_readers_than_connections() -> None:
    assert GatewaySettings(gateway_store_readers=500).store_readers < GatewaySettings().s3_connections
    assert GatewaySettings(gateway_store_readers=500, s3_connections=8).store_readers == 4
    assert GatewaySettings(gateway_store_readers=3).store_readers == 3


@pytest.mark.xdist_group("s3")
async def test_pieces_of_a_remote_object_are_small(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    store = S3ObjectStore(s3_bucket)
    await store.put_file("videos/1", source)
    pieces = [piece async for piece in store.read("videos/1")]
    assert max(map(len, pieces)) <= 128 << 10
    assert b"".join(pieces) == CONTENT


@pytest.fixture(params=["sendfile", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def store(request: pytest.FixtureRequest) -> S3ObjectStore | None:
    """A bucket, or None for a directory."""
    return S3ObjectStore(request.getfixturevalue("s3_bucket")) if request.param == "s3" else None


async def test_a_client_that_leaves_ends_its_download_at_once_and_is_no_error(
    store: S3ObjectStore | None, keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(keys, tmp_path, store=store, gateway_store_readers=1) as world:
        url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
        for _ in range(3):  # with one turn, the next comes only when the last has ended
            async with AsyncExitStack() as stack:
                writer = await begun(stack, world, url)
                writer.transport.abort()
        # Ends once nothing is being answered: long before the write time-out of 60 seconds.
        await asyncio.wait_for(world.gateway.server.stop(30), 5)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_log_says_how_many_bytes_of_the_body_went_out(
    keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = []
    for remote in (False, True):
        async with open_world(keys, tmp_path, remote=remote) as world:
            url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
            for header in ("bytes=0-", "bytes=5-9", "bytes=5-9,1000-1009"):
                async with world.call("GET", url, headers={"Range": header}) as response:
                    expected.append(len(await response.read()))
    lines = [record.__dict__["data"] for record in caplog.records if record.getMessage() == "request"]
    assert [line["bytes"] for line in lines] == expected


async def test_a_file_stays_open_until_others_need_the_place_or_its_object_is_gone(tmp_path: Path) -> None:
    files = OpenFiles(most=2)
    paths = {name: tmp_path / name for name in "abc"}
    for name, path in paths.items():
        path.write_text(name * 3)
    a = await files.open("a", paths["a"])
    assert (files.known("a"), a.size) == (a, 3)
    b = await files.open("b", paths["b"])
    assert files.known("a") is a  # used after b
    with b:
        await files.open("c", paths["c"])
        assert files.known("b") is None
        assert not _closed(b), "somebody still sends it"
    assert _closed(b)
    paths["a"].unlink()
    assert files.known("a") is None
    assert _closed(a)
    c = files.known("c")
    assert c is not None
    paths["c"].with_name("new").write_text("new one")
    paths["c"].with_name("new").replace(paths["c"])  # as a put of the same key does
    files.sweep()
    assert _closed(c)
    assert (await files.open("c", paths["c"])).size == 7
    files.close()
    assert files.known("c") is None


async def test_requests_for_one_file_at_the_same_time_share_it_and_get_their_own_bytes(
    keys: KeyRing, tmp_path: Path
) -> None:
    async with open_world(keys, tmp_path) as world:
        url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"

        async def read(start: int) -> None:
            headers = {"Range": f"bytes={start}-{start + (1 << 20) - 1}"}
            async with world.call("GET", url, headers=headers) as response:
                assert await response.read() == CONTENT[start : start + (1 << 20)]

        await read(0)
        await asyncio.gather(*(read(start * 12345) for start in range(40)))
        names = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_open(n)]
        assert sum(name.endswith("v.mp4") for name in names) == 1


def _closed(opened: OpenFile) -> bool:
    return opened.file.closed


def _is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")
