"""A connection costs a stranger more than it costs us: heads have their time, connections their number."""

from __future__ import annotations

import asyncio
import resource
from asyncio import StreamReader
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from services.common.keys import KeyRing
from services.gateway.server import connections_allowed
from tests.rpc.gateway_world import World, connection, open_world
from tests.rpc.raw_http import HEALTH, answer, ended

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


async def test_one_connection_too_many_is_503_until_another_ends(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_max_connections=2) as world, AsyncExitStack() as stack:
        writers = []
        for _ in range(2):
            reader, writer = await stack.enter_async_context(connection(world.port))
            writer.write(HEALTH)
            assert (await answer(reader)).status == 200
            writers.append(writer)
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
        writers[0].write(HEALTH)
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
        first, asking = await stack.enter_async_context(connection(world.port))
        asking.write(HEALTH)
        assert (await answer(first)).status == 200
        silent = [await stack.enter_async_context(connection(world.port)) for _ in range(200)]
        for reader, _ in silent:  # they are ended by time or number, answered or not
            async with asyncio.timeout(10):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
        asking.write(HEALTH)
        assert (await answer(first)).status == 200


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
