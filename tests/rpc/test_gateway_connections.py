"""A connection costs a stranger more than it costs us: heads have their time, connections their number."""

from __future__ import annotations

import asyncio
import resource
from asyncio import StreamReader, StreamWriter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from services.common.keys import KeyRing
from services.gateway.server import connections_allowed
from tests.rpc.gateway_world import World, connection, open_world
from tests.rpc.raw_http import HEALTH, answer, ended, exchange

PART = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\nX-Sl"
LONG = 60.0


async def refused(reader: StreamReader, status: int, reason: str) -> dict[str, str]:
    """Reads a problem behind which the connection ends."""
    got = await answer(reader)
    assert (got.status, got.problem["reason"]) == (status, reason)
    assert got.headers["connection"] == "close"
    assert await ended(reader) == b""
    return got.headers


async def late_head(world: World) -> None:
    """As long as a head may take: one has its time out."""
    async with connection(world.port) as (reader, writer):
        writer.write(PART)
        await refused(reader, 408, "HEAD_TIMEOUT")


async def test_a_head_that_drips_is_408(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_head_seconds=0.5) as world:
        async with connection(world.port) as (reader, writer):
            writer.write(PART)

            async def drip() -> None:
                while True:
                    writer.write(b"o")
                    await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            await refused(reader, 408, "HEAD_TIMEOUT")
            dripping.cancel()
        async with connection(world.port) as (reader, writer):
            writer.write(HEALTH)
            assert (await answer(reader)).status == 200
            writer.write(PART)  # the next one on a connection has no more time than the first
            await refused(reader, 408, "HEAD_TIMEOUT")


async def test_who_asks_nothing_is_told_nothing(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_head_seconds=0.2) as world:
        async with connection(world.port) as (reader, writer):
            assert await ended(reader) == b""
        async with connection(world.port) as (reader, writer):
            writer.write(b"\r\n")
            assert await ended(reader) == b""


async def test_an_idle_connection_ends_but_not_within_a_head(keys: KeyRing, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"gateway_keepalive_seconds": 0.2, "gateway_head_seconds": LONG}
    async with (
        open_world(keys, tmp_path, **limits) as world,
        connection(world.port) as (reader, writer),
        connection(world.port) as (idle, other),
    ):
        writer.write(HEALTH)
        assert (await answer(reader)).status == 200
        writer.write(PART)
        other.write(HEALTH)
        assert (await answer(idle)).status == 200
        assert await ended(idle) == b""
        writer.write(b"ow: 1\r\n\r\n")
        assert (await answer(reader)).status == 200


async def test_streams_and_bodies_outlast_the_time_of_a_head(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_head_seconds=0.5) as world:
        upload = world.uploads.add("alice", "a.mp4", 4, 4)
        url = f"/api/v1/upload/{upload.session_id}"
        token = f"Host: x\r\nAuthorization: {world.auth()['Authorization']}\r\n"
        async with connection(world.port) as (events, asking), connection(world.port) as (reader, writer):
            asking.write(f"GET {url}/events HTTP/1.1\r\n{token}\r\n".encode())
            await asyncio.wait_for(events.readuntil(b'"status":"pending"'), 10)
            writer.write(f"POST {url}/chunk/0 HTTP/1.1\r\n{token}Content-Length: 4\r\n".encode())
            writer.write(b"Content-Type: application/octet-stream\r\n\r\nab")
            await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
            await late_head(world)
            writer.write(b"cd")
            assert (await answer(reader)).status == 200
            await asyncio.wait_for(events.readuntil(b'"status":"in_progress"'), 10)


async def watching(stack: AsyncExitStack, world: World) -> StreamWriter:
    """A connection that does not idle: it has an event stream."""
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    reader, writer = await stack.enter_async_context(connection(world.port))
    token = f"Host: x\r\nAuthorization: {world.auth()['Authorization']}\r\n"
    writer.write(f"GET /api/v1/upload/{upload.session_id}/events HTTP/1.1\r\n{token}\r\n".encode())
    await asyncio.wait_for(reader.readuntil(b'"status":"pending"'), 10)
    return writer


async def idling(stack: AsyncExitStack, world: World) -> tuple[StreamReader, StreamWriter]:
    """A connection that has had its answer."""
    reader, writer = await stack.enter_async_context(connection(world.port))
    writer.write(HEALTH)
    assert (await answer(reader)).status == 200
    return reader, writer


async def test_one_connection_too_many_is_503_until_another_ends(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_max_connections=2) as world, AsyncExitStack() as stack:
        writers = [await watching(stack, world) for _ in range(2)]
        for _ in range(200):  # more than are refused at once: each is let go
            async with connection(world.port) as (reader, writer):
                writer.write(HEALTH)
                headers = await refused(reader, 503, "TOO_MANY_CONNECTIONS")
                assert headers["retry-after"].isdigit()
                assert headers["cache-control"] == "no-store"
        for _ in range(20):  # who is still sending hears it too: nothing resets the connection under the answer
            async with connection(world.port) as (reader, writer):
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n" + bytes(4 << 20))
                await refused(reader, 503, "TOO_MANY_CONNECTIONS")
        writers[1].close()
        async with asyncio.timeout(10):
            status = 503
            while status == 503:
                async with connection(world.port) as (reader, writer):
                    writer.write(HEALTH)
                    status = (await answer(reader)).status
        assert status == 200


async def test_a_flood_does_not_hang(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_max_connections=1) as world, AsyncExitStack() as stack:
        held = await watching(stack, world)
        silent = [await stack.enter_async_context(connection(world.port)) for _ in range(200)]
        for reader, _ in silent:  # they are ended by time or number, answered or not
            async with asyncio.timeout(10):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
        held.close()
        async with asyncio.timeout(10):
            while (await exchange(world.port, HEALTH)).status != 200:
                continue


async def test_the_connection_that_idles_longest_makes_room(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_max_connections=3) as world, AsyncExitStack() as stack:
        await watching(stack, world)
        first, asking = await idling(stack, world)
        second, _ = await idling(stack, world)
        asking.write(HEALTH)  # now the other one idles longer
        assert (await answer(first)).status == 200
        assert (await exchange(world.port, HEALTH)).status == 200
        assert await ended(second) == b""
        asking.write(HEALTH)
        assert (await answer(first)).status == 200
        asking.write(PART)  # who has begun to ask does not idle
        await watching(stack, world)
        async with connection(world.port) as (reader, writer):
            writer.write(HEALTH)
            await refused(reader, 503, "TOO_MANY_CONNECTIONS")
        asking.write(b"ow: 1\r\n\r\n")
        assert (await answer(first)).status == 200


async def test_one_address_cannot_take_all_connections_but_a_proxy_may(keys: KeyRing, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"gateway_max_connections": 10, "gateway_max_connections_address": 2}
    async with open_world(keys, tmp_path / "1", **limits) as world, AsyncExitStack() as stack:
        await watching(stack, world)
        idle, _ = await idling(stack, world)
        held = await watching(stack, world)
        assert await ended(idle) == b"", "its own idle one makes room first"
        async with connection(world.port) as (reader, writer):
            writer.write(HEALTH)
            await refused(reader, 503, "TOO_MANY_CONNECTIONS")
        elsewhere = await stack.enter_async_context(connection(world.port, source="127.0.0.2"))
        elsewhere[1].write(HEALTH)
        assert (await answer(elsewhere[0])).status == 200
        held.close()
        async with asyncio.timeout(10):
            while (await exchange(world.port, HEALTH)).status != 200:
                continue
    limits["gateway_trusted_proxies"] = "127.0.0.1"
    async with open_world(keys, tmp_path / "2", **limits) as world, AsyncExitStack() as stack:
        for _ in range(5):
            await watching(stack, world)


@pytest.mark.parametrize("allowed", ["*", "https://a.example,https://b.example"])
async def test_answers_to_what_never_became_a_request_carry_what_all_do(
    keys: KeyRing, tmp_path: Path, allowed: str
) -> None:
    limits: dict[str, Any] = {"gateway_max_connections": 2, "gateway_head_seconds": 0.5}
    more: dict[str, Any] = {"gateway_hsts_seconds": 60, "gateway_cors_origins": allowed}
    page = b"Host: x\r\nOrigin: https://b.example\r\n"
    sent = {
        400: b"GET / HTTP/1.1\r\n" + page + b"Bad Header\r\n\r\n",
        408: b"GET / HTTP/1.1\r\n" + page,
        414: b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + page + b"\r\n",
        431: b"GET / HTTP/1.1\r\n" + page + b"X: " + b"a" * 17000 + b"\r\n\r\n",
        503: b"GET / HTTP/1.1\r\n" + page + b"\r\n",
    }
    async with open_world(keys, tmp_path, **limits, **more) as world, AsyncExitStack() as stack:
        for status, data in sent.items():
            if status == 503:
                for _ in range(2):
                    await watching(stack, world)
            for origin, told in ((b"b", "https://b.example"), (b"evil", None)):
                got = await exchange(world.port, data.replace(b"//b.", b"//%s." % origin))
                assert (got.status, got.problem["status"]) == (status, status)
                assert got.headers.get("access-control-allow-origin") == ("*" if allowed == "*" else told), status
                assert got.headers.get("vary") == (None if allowed == "*" else "Origin")
                assert got.headers["strict-transport-security"] == "max-age=60"
                assert got.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "raised"),
    [
        (1 << 20, 1 << 20, 4096, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, None),
        (1024, 1 << 20, 4096, 8448),
        (1024, resource.RLIM_INFINITY, 4096, 8448),
        (1024, 1024, 384, 1024),
        (64, 64, 1, 64),
    ],
)
def test_there_are_no_more_connections_than_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, allowed: int, raised: int | None
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: told.append(limits))
    assert connections_allowed(4096) == allowed
    assert told == ([] if raised is None else [(raised, hard)])
