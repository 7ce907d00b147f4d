"""Whose requests the gateway counts, and what it says to one who makes too many."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import Unauthenticated
from services.common.identity import ServiceTokens
from services.common.keys import KeyRing
from services.gateway import callers
from services.gateway.buckets import SECOND
from tests.rpc.fake_uploads import NOW
from tests.rpc.gateway_world import World, open_world
from tests.unit.test_common_identity import BAD, REFUSAL, Forge

URL = "/api/v1/upload/limits"
TIGHT: dict[str, Any] = {
    "gateway_requests_per_second_user": 0.5,
    "gateway_burst_user": 2,
    "gateway_requests_per_second_address": 0.25,
    "gateway_burst_address": 3,
}
NO_TOKENS = {"empty", "lone surrogate"}  # the one is none at all, the other no header can carry


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


async def statuses(world: World, count: int, user: str = "alice", url: str = URL, **kwargs: Any) -> list[int]:
    found = []
    for _ in range(count):
        async with world.call("GET", url, user=user, **kwargs) as response:
            found.append(response.status)
    return found


async def test_who_makes_too_many_requests_waits_as_long_as_told_and_nobody_else_does(
    keys: KeyRing, tmp_path: Path
) -> None:
    clock = Clock()
    async with open_world(keys, tmp_path, ticks=clock, **TIGHT) as world:
        async with world.call("GET", URL) as response:
            assert response.status == 200
            assert response.headers["RateLimit"] == '"user";r=1;t=2'
            assert response.headers["RateLimit-Policy"] == '"user";q=2;w=4'
        assert await statuses(world, 1) == [200]
        async with world.call("GET", URL) as response:
            document = json.loads(await response.text())
            assert (response.status, document["reason"]) == (429, "TOO_MANY_REQUESTS")
            assert response.content_type == "application/problem+json"
            assert response.headers["RateLimit"] == '"user";r=0;t=2'
            wait = int(response.headers["Retry-After"])
        assert await statuses(world, 2, "bob") == [200, 200]
        clock.now += wait * SECOND - 1
        assert await statuses(world, 1) == [429]
        clock.now += 1
        assert await statuses(world, 2) == [200, 429]


async def test_what_a_service_says_of_its_limits_stays(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, ticks=Clock(), **TIGHT) as world:
        world.uploads.trailers = (
            ("ratelimit", '"initiates";r=29;t=60'),
            ("ratelimit-policy", '"initiates";q=30;w=60'),
        )
        body = {"filename": "a.mp4", "file_size": 10, "mime_type": "video/mp4"}
        async with world.call("POST", "/api/v1/upload/initiate", json=body) as response:
            assert response.headers["RateLimit"] == '"initiates";r=29;t=60, "user";r=1;t=2'
            assert response.headers["RateLimit-Policy"] == '"initiates";q=30;w=60, "user";q=2;w=4'


async def test_who_has_no_token_that_counts_uses_up_nothing_but_the_address(keys: KeyRing, tmp_path: Path) -> None:
    clock = Clock()
    async with open_world(keys, tmp_path, ticks=clock, **TIGHT) as world:
        forged = {"Authorization": world.auth("alice")["Authorization"][:-8] + "AAAAAAAA"}
        assert await statuses(world, 2, headers=forged) == [401, 401]
        assert await statuses(world, 1, "") == [401]
        assert await statuses(world, 1, "", "/openapi.json") == [429]
        assert await statuses(world, 1, headers=forged) == [429]
        assert await statuses(world, 2) == [200, 200]
        assert await statuses(world, 5, "", "/api/v1/health") == [200] * 5
        clock.now += 4 * SECOND
        assert await statuses(world, 1, "", "/openapi.json") == [200]


@pytest.mark.parametrize(("proxies", "last"), [("127.0.0.1/32", 200), ("", 429)])
async def test_clients_of_one_proxy_are_told_apart_if_it_is_trusted(
    proxies: str, last: int, keys: KeyRing, tmp_path: Path
) -> None:
    async with open_world(keys, tmp_path, ticks=Clock(), gateway_trusted_proxies=proxies, **TIGHT) as world:
        for address in ("2001:db8::1", "2001:db8::2", "2001:db8::ffff:3"):
            told = {"X-Forwarded-For": address}
            assert await statuses(world, 1, "", "/openapi.json", headers=told) == [200]
        told = {"X-Forwarded-For": "2001:db8::4"}  # the same /64
        assert await statuses(world, 1, "", "/openapi.json", headers=told) == [429]
        told = {"X-Forwarded-For": "2001:db8:0:1::1"}
        assert await statuses(world, 1, "", "/openapi.json", headers=told) == [last]


@pytest.mark.parametrize("proxies", ["", "127.0.0.0/8"])
async def test_the_access_log_names_the_client(
    proxies: str, keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_world(keys, tmp_path, gateway_trusted_proxies=proxies) as world:
        await statuses(world, 1, headers={"X-Forwarded-For": "6.6.6.6, 198.51.100.1"})
    lines = [getattr(record, "data", {}) for record in caplog.records if record.getMessage() == "request"]
    found = [line["client"] for line in lines if "client" in line]
    assert found == ["198.51.100.1" if proxies else "127.0.0.1"]


async def test_resumable_uploads_are_put_off_in_a_way_that_their_clients_survive(
    keys: KeyRing, tmp_path: Path
) -> None:
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "4"}
    rufh = {"Upload-Complete": "?0", "Upload-Length": "4", "Content-Type": "video/mp4"}
    async with open_world(keys, tmp_path, ticks=Clock(), **TIGHT) as world:
        for url, headers in (
            ("/api/v1/tus", tus),
            ("/api/v1/rufh", rufh),
            ("/api/v1/tus/", tus),
            ("/api/v1/rufh/", rufh),
        ):
            async with world.call("POST", url, user=url, headers=headers) as response:
                assert response.status == 201
            async with world.call("HEAD", f"{url.rstrip('/')}/x", user=url, headers=headers) as response:
                assert response.status == 404
            async with world.call("POST", url, user=url, headers=headers) as response:
                document = json.loads(await response.text())
                assert (response.status, document["reason"]) == (503, "TOO_MANY_REQUESTS")
                assert response.headers["Retry-After"] == "2"
                assert response.headers["RateLimit"] == '"user";r=0;t=2'
                assert response.headers.get("Tus-Resumable") == headers.get("Tus-Resumable")


async def test_a_token_that_does_not_count_is_refused_alike_whatever_is_wrong_and_no_service_hears_of_it(
    keys: KeyRing, tmp_path: Path
) -> None:
    async with open_world(keys, tmp_path) as world:
        for server in world.servers.values():
            await server.stop(0)
        assert await statuses(world, 1) == [503]
        forge, answers = Forge(keys), set()
        bad = {case: make(forge) for case, make in BAD.items() if case not in NO_TOKENS}
        for audience in ("gateway", "upload"):
            bad[f"service token for {audience}"] = ServiceTokens(keys.directory / "services.pem", "merge").token(
                audience
            )
        for case, token in bad.items():
            headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "the-same-one"}
            async with world.call("GET", URL, headers=headers) as response:
                assert response.status == 401, case
                answers.add((await response.read(), response.headers["WWW-Authenticate"]))
        (answer,) = answers
        document = json.loads(answer[0])
        assert (document["reason"], document["detail"]) == ("UNAUTHENTICATED", REFUSAL)
        assert document["detail"] == Unauthenticated(REFUSAL).message == callers.invalid_token().detail


async def test_while_the_gateway_has_no_key_set_services_decide(keys: KeyRing, tmp_path: Path) -> None:
    away = str(tmp_path / "none.json")
    async with open_world(keys, tmp_path, ticks=Clock(), auth_jwks=away, **TIGHT) as world:
        async with world.call("GET", URL) as response:
            assert (response.status, response.headers["RateLimit"]) == (200, '"address";r=2;t=4')
        forged = {"Authorization": world.auth("alice")["Authorization"][:-8] + "AAAAAAAA"}
        assert await statuses(world, 1, headers=forged) == [401]
        assert await statuses(world, 2, "bob") == [200, 429]


async def test_what_needs_no_token_takes_no_offence_at_a_bad_one(keys: KeyRing, tmp_path: Path) -> None:
    bad = {"Authorization": "Bearer nonsense"}
    async with open_world(keys, tmp_path) as world:
        video = await world.add_video(b"0123456789")
        query = world.signer.sign(video, now=NOW.seconds, ttl=60).query()
        for method, url, status in (
            ("GET", "/openapi.json", 200),
            ("GET", "/api/v1/health", 200),
            ("GET", f"/api/v1/media/stream/{video}?{query}", 200),
            ("GET", f"/api/v1/media/stream/{video}", 401),
            ("GET", f"{URL}?signature=x", 401),
            ("OPTIONS", "/api/v1/tus/", 204),
            ("OPTIONS", "/api/v1/rufh/", 204),
            ("GET", "/api/v1/nothing", 404),
        ):
            async with world.call(method, url, headers=bad) as response:
                assert response.status == status, (method, url)


async def test_limits_can_be_switched_off(keys: KeyRing, tmp_path: Path) -> None:
    off = TIGHT | {"gateway_requests_per_second_user": 0, "gateway_requests_per_second_address": 0}
    async with open_world(keys, tmp_path, ticks=Clock(), **off) as world:
        assert await statuses(world, 5) == [200] * 5
        assert await statuses(world, 5, "", "/openapi.json") == [200] * 5
        async with world.call("GET", URL) as response:
            assert "RateLimit" not in response.headers
