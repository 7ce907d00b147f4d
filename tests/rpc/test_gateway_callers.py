"""What phones say in headers instead of bodies, and what services say of their limits."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, open_world

INITIATE = "/api/v1/upload/initiate"
GOOD: dict[str, Any] = {"filename": "a.mp4", "file_size": 10, "mime_type": "video/mp4"}


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    # What services say is looked at here, without what the gateway adds.
    async with open_world(keys, tmp_path) as world:
        yield world


@pytest.mark.parametrize(
    ("header", "body", "request_id"),
    [
        ("8e03978e-40d5", {}, "8e03978e-40d5"),
        ('"8e03978e-40d5"', {}, "8e03978e-40d5"),
        (r'"a \"b\" \\"', {}, r'a "b" \\'.replace("\\\\", "\\")),
        ("k" * 128, {}, "k" * 128),
        ("of-the-header", {"request_id": "of the body"}, "of the body"),
    ],
)
async def test_an_idempotency_key_is_the_request_id(
    world: World, header: str, body: dict[str, str], request_id: str
) -> None:
    headers = {"Idempotency-Key": header}
    async with world.call("POST", INITIATE, json=GOOD | body, headers=headers) as response:
        assert response.status == 200, await response.text()
        session_id = (await response.json())["session_id"]
    assert world.uploads.initiated[0].request_id == request_id
    complete = f"/api/v1/upload/{session_id}/complete"
    async with world.call("POST", complete, json=body, headers=headers):
        assert world.uploads.completed[0].request_id == request_id


@pytest.mark.parametrize("key", ["", '""', '"open', 'a"b', "a b", "k" * 129, "schlüssel", '"a\\n"'])
async def test_a_key_that_is_none_is_refused_by_name(world: World, key: str) -> None:
    async with world.call("POST", INITIATE, json=GOOD, headers={"Idempotency-Key": key}) as response:
        assert (response.status, (await response.json())["errors"][0]["pointer"]) == (400, "/Idempotency-Key")
    assert world.uploads.initiated == []


async def test_kinds_of_network_and_device_come_by_header_too(world: World) -> None:
    headers = {"X-Network-Type": "4g", "X-Device-Type": "phone" * 10}
    await (await world.call("POST", INITIATE, json=GOOD, headers=headers)).read()
    await (await world.call("POST", INITIATE, json=GOOD | {"network_type": "3g"}, headers=headers)).read()
    await (await world.call("POST", INITIATE, json=GOOD, headers={"X-Network-Type": "größer"})).read()
    assert [m.network_type for m in world.uploads.initiated] == ["4g", "3g", ""]
    assert world.uploads.initiated[0].device_type == ("phone" * 10)[:32]


async def test_a_kind_of_device_that_an_rpc_does_not_know_is_no_reason_to_refuse(world: World) -> None:
    url = f"/api/v1/media/optimized/{uuid.uuid4()}"
    for kind, told in (("iPhone", ""), ("tv", "tv")):
        async with world.call("GET", url, headers={"X-Device-Type": kind}) as response:
            assert response.status == 200
        assert world.merges.played[-1].device_type == told


async def test_head_is_answered_wherever_get_is(world: World) -> None:
    url = "/api/v1/upload/limits"
    async with world.call("HEAD", url) as head, world.call("GET", url) as get:
        assert head.status == get.status == 200
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
        assert await head.read() == b""


async def test_limits_and_open_uploads_are_told(world: World) -> None:
    async with world.call("GET", "/api/v1/upload/limits", headers={"X-Network-Type": "wifi"}) as response:
        limits = await response.json()
    assert (limits["max_file_size"], limits["advised_chunk_size"], limits["allowed_types"]) == (
        1_000_000,
        2 << 20,
        ["video"],
    )
    async with world.call("GET", "/api/v1/upload/limits?network_type=3g") as response:
        assert (await response.json())["advised_chunk_size"] == 256 << 10
    upload = world.uploads.add("alice", "a.mp4", 10, 4)
    world.uploads.add("bob", "b.mp4", 10, 4)
    async with world.call("GET", "/api/v1/upload?page_size=10") as response:
        page = await response.json()
    assert [found["session_id"] for found in page["uploads"]] == [upload.session_id]
    assert (page["uploads"][0]["upload_offset"], page["next_page_token"]) == (0, "")


FIGURES = {"ratelimit_limit": "30", "ratelimit_remaining": "0", "ratelimit_reset_seconds": "12"}
ERRORS: list[tuple[ServiceError, int, dict[str, str | None]]] = [
    (
        ResourceExhausted(
            "x", reason="RATE_LIMITED", retry_after=11.2, metadata=FIGURES | {"ratelimit_policy": "initiates"}
        ),
        429,
        {"Retry-After": "12", "RateLimit": '"initiates";r=0;t=12', "RateLimit-Policy": '"initiates";q=30'},
    ),
    (
        ResourceExhausted("x", reason="QUOTA_BYTES_PER_DAY", metadata={"ratelimit_policy": '"day";q=9;w=86400'}),
        429,
        {"RateLimit-Policy": '"day";q=9;w=86400', "RateLimit": None},
    ),
    (
        ResourceExhausted("x", reason="QUOTA_OPEN_UPLOADS", metadata=FIGURES),
        429,
        {"RateLimit": '"default";r=0;t=12'},
    ),
    (
        ResourceExhausted("x", reason="RATE_LIMITED", metadata={"ratelimit_policy": "a\r\nX: y"} | FIGURES),
        429,
        {"RateLimit": None, "RateLimit-Policy": None, "X": None},
    ),
    (
        ResourceExhausted("x", reason="RATE_LIMITED", metadata={"ratelimit_remaining": "1\r\nX: y"}),
        429,
        {"RateLimit": None, "X": None},
    ),
    (FailedPrecondition("x", reason="UPLOAD_EXPIRED"), 410, {}),
    (FailedPrecondition("x", reason="FILE_INFECTED"), 422, {}),
    (Unavailable("x", reason="SCANNER_UNAVAILABLE"), 503, {"Retry-After": "2"}),
    (FailedPrecondition("x", reason="SCANNER_UNAVAILABLE", retry_after=30), 503, {"Retry-After": "30"}),
    (Aborted("x", reason="OFFSET_MISMATCH"), 409, {}),
    (InvalidArgument("x", reason="LENGTH_EXCEEDED"), 413, {}),
    (InvalidArgument("x", reason="FILE_TOO_LARGE"), 413, {}),
    (ResourceExhausted("x", reason="STORAGE_FULL"), 507, {}),
]


@pytest.mark.parametrize(("error", "status", "headers"), ERRORS)
async def test_a_refusal_has_its_status_and_says_when_to_come_back(
    world: World, error: ServiceError, status: int, headers: dict[str, str | None]
) -> None:
    world.uploads.error = error
    world.guard.off = True  # InitiateUpload has not all of these errors
    async with world.call("POST", INITIATE, json=GOOD) as response:
        document = json.loads(await response.text())
        assert (response.status, document["reason"]) == (status, error.reason)
        assert {name: response.headers.get(name) for name in headers} == headers


async def test_an_answer_says_what_is_left(world: World) -> None:
    world.uploads.trailers = (
        ("ratelimit", '"initiates";r=29;t=60'),
        ("ratelimit-policy", '"initiates";q=30;w=60'),
        ("other", "secret"),
    )
    async with world.call("POST", INITIATE, json=GOOD) as response:
        assert response.headers["RateLimit"] == '"initiates";r=29;t=60'
        assert response.headers["RateLimit-Policy"] == '"initiates";q=30;w=60'
        assert "other" not in response.headers
