"""A gateway on its way out: whoever has come gets an answer, and nobody is kept waiting."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, connection, open_world

REQUEST = b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"
CONTENT = bytes(range(256)) * 80_000  # more than socket buffers hold


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path) as world:
        yield world


@asynccontextmanager
async def draining(world: World) -> AsyncIterator[asyncio.Task[None]]:
    """The gateway drains within the block, and is done soon after it."""
    stopping = asyncio.create_task(world.gateway.server.stop(30))
    yield stopping
    await asyncio.wait_for(stopping, 20)


@asynccontextmanager
async def download(world: World) -> AsyncIterator[asyncio.StreamReader]:
    """A video whose head has come."""
    video = await world.add_video(CONTENT)
    async with connection(world.port) as (reader, writer):
        writer.write(f"GET /api/v1/media/stream/{video} HTTP/1.1\r\nHost: x\r\n".encode())
        writer.write(f"Authorization: {world.auth()['Authorization']}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"close" not in head
        yield reader


async def answer(reader: asyncio.StreamReader) -> bytes:
    """A whole answer after which the connection ends."""
    said = await asyncio.wait_for(reader.read(), 20)
    assert b"\r\nConnection: close\r\n" in said
    return said


async def test_whoever_has_connected_is_answered_and_told_that_it_is_the_end(world: World) -> None:
    async with connection(world.port) as (early, writer):
        async with world.call("GET", "/none"):
            """By now the one before is accepted."""
        late = [socket.create_connection(("127.0.0.1", world.port)) for _ in range(3)]  # these wait to be
        async with draining(world):
            writer.write(REQUEST)
            assert (await answer(early)).startswith(b"HTTP/1.1 404 ")
            for waiting in late:
                reader, other = await asyncio.open_connection(sock=waiting)
                other.write(REQUEST)
                assert (await answer(reader)).startswith(b"HTTP/1.1 404 ")
                other.close()


async def test_an_idle_connection_is_closed_while_a_download_goes_on(world: World) -> None:
    async with connection(world.port) as (idle, writer), download(world) as reader:
        writer.write(REQUEST)
        head = await idle.readuntil(b"\r\n\r\n")
        assert b"close" not in head
        async with draining(world) as stopping:
            assert (await asyncio.wait_for(idle.read(), 20)).endswith(b"}")  # the body's, then the end
            assert not stopping.done()
            assert await reader.readexactly(len(CONTENT)) == CONTENT
            assert await asyncio.wait_for(reader.read(), 20) == b""  # although its head told of no end


async def test_a_request_whose_body_is_on_its_way_is_answered(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 100_000, 100_000)
    async with connection(world.port) as (reader, writer), connection(world.port) as (idle, other):
        other.write(REQUEST)
        await idle.readuntil(b"\r\n\r\n")
        writer.write(f"POST /api/v1/upload/{upload.session_id}/chunk/0 HTTP/1.1\r\nHost: x\r\n".encode())
        writer.write(f"Authorization: {world.auth()['Authorization']}\r\nContent-Length: 100000\r\n".encode())
        writer.write(b"Content-Type: application/octet-stream\r\n\r\n" + bytes(70_000))
        await asyncio.wait_for(world.uploads.call_begun.wait(), 20)
        async with draining(world) as stopping:
            await asyncio.wait_for(idle.read(), 20)  # who is idle has been told to go
            assert not stopping.done()
            writer.write(bytes(30_000))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")


async def test_who_connects_and_asks_nothing_does_not_hold_it_up(world: World) -> None:
    async with connection(world.port) as (reader, _), draining(world):
        assert await asyncio.wait_for(reader.read(), 20) == b""
