"""A client that holds its body back is told to send it only when nothing but the body can be wrong."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, connection, open_world
from tests.rpc.raw_http import answer

CHUNK = "/api/v1/upload/{}/chunk/0"
INITIATE = "/api/v1/upload/initiate"
HUGE = 5 << 30
EXPECT = "Expect: 100-continue\r\n"


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path) as world:
        yield world


def head(
    world: World, path: str, length: int, *, method: str = "POST", user: str = "alice", more: str = EXPECT
) -> bytes:
    token = f"Authorization: {world.auth(user)['Authorization']}\r\n" if user else ""
    kind = "application/json" if path == INITIATE else "application/octet-stream"
    fields = f"Host: x\r\n{token}Content-Type: {kind}\r\nContent-Length: {length}\r\n{more}"
    return f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode()


async def went_on(reader: StreamReader) -> None:
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"


async def refused(reader: StreamReader, status: int, reason: str) -> None:
    """The first thing that comes is a problem, and the connection takes no more requests."""
    got = await answer(reader)
    assert (got.status, got.problem["reason"]) == (status, reason)
    assert got.headers["connection"] == "close"


async def initiated(reader: StreamReader, writer: StreamWriter, world: World, expect: str) -> None:
    body = b'{"filename": "a.mp4", "file_size": 4, "mime_type": "video/mp4"}'
    writer.write(head(world, INITIATE, len(body), more=expect))
    await went_on(reader)
    writer.write(body)
    assert (await answer(reader)).status == 200


async def test_a_body_is_asked_for_once_and_the_connection_goes_on(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    async with connection(world.port) as (reader, writer):
        for expect in (EXPECT, "expect: 100-Continue\r\nExpect: 100-continue\r\n"):
            await initiated(reader, writer, world, expect)
        writer.write(head(world, CHUNK.format(upload.session_id), 4))
        await went_on(reader)
        writer.write(b"abcd")
        assert (await answer(reader)).status == 200
    assert world.uploads.chunks[upload.session_id] == {0: b"abcd"}


@pytest.mark.parametrize(
    ("path", "user", "length", "status", "reason"),
    [
        (CHUNK, "", HUGE, 401, "UNAUTHENTICATED"),
        (CHUNK, "alice", HUGE, 413, "BODY_TOO_LARGE"),
        ("/api/v1/upload/{}/chunk/x", "alice", 4, 400, "INVALID_ARGUMENT"),
        (INITIATE, "", 4, 401, "UNAUTHENTICATED"),
        (INITIATE, "alice", HUGE, 413, "BODY_TOO_LARGE"),
        ("/api/v1/nowhere", "alice", HUGE, 404, "ROUTE_NOT_FOUND"),
        ("/api/v1/health", "alice", HUGE, 405, "METHOD_NOT_ALLOWED"),
        ("/api/v1/rufh/", "", HUGE, 401, "UNAUTHENTICATED"),
    ],
)
async def test_a_body_that_cannot_be_taken_is_refused_before_it_is_sent(
    world: World, path: str, user: str, length: int, status: int, reason: str
) -> None:
    id_ = world.uploads.add("alice", "a.mp4", 4, 4).session_id
    async with connection(world.port) as (reader, writer):
        writer.write(head(world, path.format(id_), length, user=user, more=f"{EXPECT}Upload-Complete: ?1\r\n"))
        await refused(reader, status, reason)


@pytest.mark.parametrize(
    "expect", ["200-ok", "100-continue, luck", "100-continue=1", "100-continue\r\nExpect: luck"]
)
async def test_an_unknown_expectation_is_a_problem(world: World, expect: str) -> None:
    for path in (INITIATE, "/api/v1/nowhere"):
        async with connection(world.port) as (reader, writer):
            writer.write(head(world, path, 4, more=f"Expect: {expect}\r\n"))
            got = await answer(reader)
            assert (got.status, got.problem["reason"]) == (417, "UNKNOWN_EXPECTATION")


async def test_old_clients_and_requests_without_a_body_expect_nothing(world: World) -> None:
    for line, expect in (("GET / HTTP/1.1", "100-continue"), ("POST / HTTP/1.0", "luck")):
        async with connection(world.port) as (reader, writer):
            writer.write(f"{line}\r\nHost: x\r\nExpect: {expect}\r\n\r\n".encode())
            assert (await answer(reader)).status == 404
