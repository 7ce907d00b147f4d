"""Every answer of the gateway is counted once, under the route that gave it and nothing that a client named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from services.common.keys import KeyRing
from services.gateway.metering import BROKEN_OFF, CUT_OFF
from tests.rpc.gateway_world import World, connection, open_world

CONTENT = bytes(range(256)) * 1024
MERGE = "/api/v1/challenge-videos/merge-session/{merge_session_id}"
STREAM = "/api/v1/media/stream/{video_file_id}"


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path, remote=True) as opened:
        yield opened


def requests(world: World) -> dict[tuple[str, str, str], float]:
    """(route, method, status) → answers."""
    return {
        (sample.labels["route"], sample.labels["method"], sample.labels["status"]): sample.value
        for family in world.gateway.metrics.collect()
        for sample in family.samples
        if sample.name == "twotruths_http_requests_total"
    }


async def until(world: World, *answer: str) -> None:
    """An answer is counted a moment after its client has it."""
    async with asyncio.timeout(20):
        while answer not in requests(world):
            await asyncio.sleep(0.01)


async def raw(world: World, head: bytes) -> None:
    async with connection(world.port) as (reader, writer):
        writer.write(head)
        await asyncio.wait_for(reader.read(), 20)


async def test_answers_are_counted_by_route_method_and_status(world: World) -> None:
    video = await world.add_video(CONTENT)
    for path, status, *headers in (
        (STREAM.replace("{video_file_id}", video), 200),
        (STREAM.replace("{video_file_id}", video), 206, ("Range", "bytes=0-99")),
        (STREAM.replace("{video_file_id}", "nobody's"), 400),
        (MERGE.replace("{merge_session_id}", "6f1c6a52-2f5b-4c3e-9d35-0f2d6a1b7c11") + "/status", 404),
        ("/api/v1/health", 200),
        ("/wp-login.php", 404),
        ("/api/v1/admin?route=x", 404),
    ):
        async with world.call("GET", path, headers=dict(headers)) as response:
            assert response.status == status
            await response.read()
    async with world.call("DELETE", "/api/v1/health") as response:
        assert response.status == 405
    async with world.call("PROPFIND", "/api/v1/tus/") as response:
        assert response.status == 405
    await raw(world, b"no request\r\n\r\n")
    await until(world, "unreadable", "other", "400")
    counted = requests(world)
    assert counted == {
        (STREAM, "GET", "200"): 1,
        (STREAM, "GET", "206"): 1,
        (STREAM, "GET", "400"): 1,
        (MERGE + "/status", "GET", "404"): 1,
        ("/api/v1/health", "GET", "200"): 1,
        ("unmatched", "GET", "404"): 2,
        ("unmatched", "DELETE", "405"): 1,
        ("/api/v1/tus/", "other", "405"): 1,
        ("unreadable", "other", "400"): 1,
    }
    labels = {"route": STREAM, "method": "GET"}
    value = world.gateway.metrics.get_sample_value
    assert value("twotruths_http_request_duration_seconds_count", labels) == 3
    assert value("twotruths_http_request_duration_seconds_bucket", labels | {"le": "+Inf"}) == 3
    sent = value("twotruths_http_sent_bytes_total", labels)
    assert sent is not None
    assert len(CONTENT) + 100 < sent < len(CONTENT) + 2000


async def test_whom_a_client_leaves_alone_is_counted_as_cut_off(world: World) -> None:
    video = await world.add_video(bytes(64 << 20))
    path = STREAM.replace("{video_file_id}", video)
    async with connection(world.port) as (reader, writer):
        token = world.auth()["Authorization"]
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        await asyncio.wait_for(reader.readexactly(1000), 20)
        writer.transport.abort()
    await until(world, STREAM, "GET", str(CUT_OFF))
    sent = world.gateway.metrics.get_sample_value(
        "twotruths_http_sent_bytes_total", {"route": STREAM, "method": "GET"}
    )
    assert sent is not None
    assert 1000 <= sent < 64 << 20


async def test_an_answer_that_we_break_off_is_no_success(world: World) -> None:
    video = await world.add_video(bytes(4 << 20))
    world.merges.videos[video][1].size += 1  # the object ends before its record does
    with pytest.raises(aiohttp.ClientPayloadError):
        async with world.call("GET", STREAM.replace("{video_file_id}", video)) as response:
            await response.read()
    await until(world, STREAM, "GET", str(BROKEN_OFF))
    assert (STREAM, "GET", "200") not in requests(world)
