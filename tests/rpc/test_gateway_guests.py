"""Tokens for whoever asks: only where an operator wants them, and not many."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.keys import ALL_SCOPES, KeyRing
from services.gateway.buckets import SECOND
from tests.rpc.gateway_world import World, open_world

LIMITS: dict[str, Any] = {"gateway_requests_per_second_user": 200, "gateway_requests_per_second_address": 100}

URL = "/api/v1/guest"
GOOD = {"filename": "a.mp4", "file_size": 10, "mime_type": "video/mp4"}


async def guest(world: World, **headers: str) -> Any:
    async with world.call("POST", URL, user="", headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Cache-Control"] == "no-store"
        return json.loads(await response.text())


async def test_there_are_no_guests_unless_an_operator_wants_them(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path) as world:
        async with world.call("POST", URL, user="") as response:
            assert response.status == 404
        async with world.call("GET", "/openapi.json") as response:
            assert URL not in (await response.json())["paths"]


async def test_a_guest_is_a_player_of_its_own(
    keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = str(keys.directory / "players.pem")
    caplog.set_level(logging.INFO)
    async with open_world(
        keys, tmp_path, gateway_guest_key_file=key, gateway_guest_seconds=600, **LIMITS
    ) as world:
        assert [r.levelno for r in caplog.records if "ANYONE MAY" in r.getMessage()] == [logging.WARNING]
        one = await guest(world, Authorization="Bearer one that has run out")
        other = await guest(world)
        assert one["user_id"].startswith("guest-")
        assert (one["expires_in"], one["user_id"] != other["user_id"]) == (600, True)
        claims = jwt.decode(one["token"], options={"verify_signature": False})
        assert (claims["sub"], set(claims["scope"].split())) == (one["user_id"], set(ALL_SCOPES))
        assert 590 < claims["exp"] - time.time() <= 600
        mine, theirs = ({"Authorization": f"Bearer {made['token']}"} for made in (one, other))
        async with world.call("POST", "/api/v1/upload/initiate", json=GOOD, headers=mine) as response:
            assert (response.status, response.headers["RateLimit"].split(";")[0]) == (200, '"user"')
            session_id = (await response.json())["session_id"]
        assert world.uploads.uploads[session_id][0] == one["user_id"]
        for headers, status in ((mine, 200), (theirs, 404)):
            async with world.call("GET", f"/api/v1/upload/{session_id}/status", headers=headers) as response:
                assert response.status == status
        async with world.call("GET", "/openapi.json") as response:
            operation = (await response.json())["paths"][URL]["post"]
        assert operation["security"] == [{}]
        assert {"200", "429"} <= set(operation["responses"])


async def test_an_address_gets_few_guests(keys: KeyRing, tmp_path: Path) -> None:
    now = 0
    settings: dict[str, Any] = {
        "gateway_guest_key_file": str(keys.directory / "players.pem"),
        "gateway_trusted_proxies": "127.0.0.1/32",
    }
    async with open_world(keys, tmp_path, ticks=lambda: now, **LIMITS | settings) as world:
        for _ in range(10):
            await guest(world)
        async with world.call("POST", URL, user="") as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "10")
            assert response.headers["RateLimit"].split(", ")[1] == '"guests";r=0;t=10'
        await guest(world, **{"X-Forwarded-For": "198.51.100.1"})
        now += 10 * SECOND
        await guest(world)


async def test_a_key_that_cannot_sign_for_players_is_known_at_the_start(keys: KeyRing, tmp_path: Path) -> None:
    other, none = tmp_path / "other.pem", tmp_path / "none.pem"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, serialization.NoEncryption())
    )
    for path, error in ((other, ValueError), (keys.directory / "players.jwks.json", ValueError), (none, OSError)):
        with pytest.raises(error):
            async with open_world(keys, tmp_path, gateway_guest_key_file=str(path)):
                pass
