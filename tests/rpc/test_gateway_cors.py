"""What a page of another site may send and read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.keys import KeyRing
from services.gateway import wiring
from services.gateway.config import GatewaySettings
from tests.rpc.gateway_world import World, open_world

OURS, LOCAL, OTHER = "https://play.example", "http://localhost:5173", "https://evil.example"
ID = "00000000-0000-4000-8000-000000000000"
# Each with what it answers a player: good ones and every kind of error, from routes of each kind.
ROUTES = [
    ("GET", "/api/v1/upload/limits", "alice", 200),
    ("GET", "/api/v1/health", "", 200),
    ("GET", "/openapi.json", "", 200),
    ("GET", "/api/v1/upload/limits?x=1", "alice", 400),
    ("GET", "/api/v1/upload/limits", "", 401),
    ("GET", f"/api/v1/media/stream/{ID}?signature=x", "", 403),
    ("GET", f"/api/v1/upload/{ID}/status", "alice", 404),
    ("GET", f"/api/v1/upload/{ID}/events", "alice", 404),
    ("GET", f"/api/v1/files/{ID}", "alice", 404),
    ("GET", "/nowhere", "", 404),
    ("PUT", "/api/v1/challenges", "alice", 405),
    ("POST", "/api/v1/tus/", "alice", 412),
    ("GET", "/" + "x" * 5000, "", 414),
    ("POST", f"/api/v1/challenges/{ID}/publish", "alice", 500),
]


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path, gateway_cors_origins=f"{OURS}, {LOCAL}") as world:
        world.challenges.publish_error = RuntimeError("a defect")
        yield world


@pytest.mark.parametrize(("method", "path", "user", "status"), ROUTES)
async def test_an_answer_may_be_read_by_the_named_sites_alone(
    world: World, method: str, path: str, user: str, status: int
) -> None:
    for origin, allowed in ((OURS, OURS), (LOCAL, LOCAL), (OTHER, None), ("null", None), (None, None)):
        headers = {"Origin": origin} if origin else {}
        async with world.call(method, path, user=user, headers=headers) as response:
            assert response.status == status
            assert response.headers.get("Access-Control-Allow-Origin") == allowed
            exposed = response.headers.get("Access-Control-Expose-Headers", "").split(", ")
            for name in ("ETag", "Accept-Post", "Accept-Patch"):
                assert (name in exposed) == (allowed is not None)
            assert "Access-Control-Allow-Credentials" not in response.headers
            assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (f"/api/v1/challenges/{ID}", "DELETE, GET, HEAD"),
        ("/api/v1/challenges", "GET, HEAD, POST"),
        (f"/api/v1/upload/{ID}/chunk/0", "POST"),
        (f"/api/v1/media/stream/{ID}", "GET, HEAD"),
        ("/api/v1/tus/", "DELETE, HEAD, PATCH, POST"),
        (f"/api/v1/rufh/{ID}", "DELETE, HEAD, PATCH, POST"),
    ],
)
async def test_a_preflight_needs_no_token_and_reaches_no_handler(world: World, path: str, methods: str) -> None:
    for server in world.servers.values():
        await server.stop(0)
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "range,x-device-type,cookie",
    }
    async with world.call("OPTIONS", path, user="", headers=asked | {"Origin": OURS}) as response:
        assert (response.status, await response.read()) == (204, b"")
        assert response.headers["Access-Control-Allow-Origin"] == OURS
        assert response.headers["Access-Control-Allow-Methods"] == methods
        assert response.headers["Access-Control-Max-Age"] == "600"
        names = {name.strip().lower() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
        assert "Tus-Version" not in response.headers
    assert {"authorization", "range", "if-range", "idempotency-key", "last-event-id"} <= names
    assert {"content-type", "upload-offset", "tus-resumable", "upload-complete", "x-device-type"} <= names
    assert "cookie" not in names
    async with world.call("OPTIONS", path, user="", headers=asked | {"Origin": OTHER}) as response:
        assert response.status == 204
        assert not [name for name in response.headers if name.startswith("Access-Control")]


async def test_other_options_are_answered_as_ever(world: World) -> None:
    async with world.call("OPTIONS", "/api/v1/tus/", user="", headers={"Origin": OURS}) as response:
        assert (response.status, response.headers["Tus-Version"]) == (204, "1.0.0")
        assert response.headers["Access-Control-Allow-Origin"] == OURS
    asked = {"Origin": OURS, "Access-Control-Request-Method": "GET"}
    async with world.call("OPTIONS", "/nowhere", user="", headers=asked) as response:
        assert response.status == 404


async def test_a_star_lets_every_page_read_and_nothing_lets_none(keys: KeyRing, tmp_path: Path) -> None:
    for setting, allowed in (("*", "*"), ("", None)):
        async with open_world(keys, tmp_path / (setting or "none"), gateway_cors_origins=setting) as world:
            asked = {"Origin": OTHER, "Access-Control-Request-Method": "GET"}
            for method, path in (("OPTIONS", "/api/v1/upload/limits"), ("GET", "/api/v1/health")):
                async with world.call(method, path, user="", headers=asked) as response:
                    assert response.headers.get("Access-Control-Allow-Origin") == allowed
                    assert "Vary" not in response.headers


@pytest.mark.parametrize(
    "origins", ["play.example", "https://play.example/", "https://a b", "null", "https://*.example"]
)
async def test_what_is_no_origin_stops_the_start(keys: KeyRing, tmp_path: Path, origins: str) -> None:
    settings = GatewaySettings(**keys.settings(), data_dir=tmp_path, gateway_cors_origins=origins)
    with pytest.raises(ValueError, match="gateway_cors_origins"):
        async with wiring.build(settings):
            pass


async def test_a_page_of_another_site_may_show_media_and_nothing_else(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path) as world:
        media, listed = f"/api/v1/media/stream/{await world.add_video(b'abc')}", "/api/v1/upload/limits"
        for path, policy in ((media, "cross-origin"), (listed, "same-origin"), ("/nowhere", "same-origin")):
            async with world.call("GET", path) as response:
                assert response.headers["Cross-Origin-Resource-Policy"] == policy
                assert "camera=()" in response.headers["Permissions-Policy"]
                assert "Strict-Transport-Security" not in response.headers


async def test_browsers_stay_with_https_where_clients_have_it(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_hsts_seconds=60) as world:
        for path in ("/api/v1/health", "/nowhere"):
            async with world.call("GET", path, user="") as response:
                assert response.headers["Strict-Transport-Security"] == "max-age=60"
