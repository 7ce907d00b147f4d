"""A key set at a URL: fetched rarely, kept through an outage, never by what a token says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common import keys as keys_module
from services.common.errors import Unauthenticated
from services.common.identity import TokenVerifier
from services.common.keys import KeyRing, KeySet, NoKeySet
from services.common.settings import CommonSettings


class Issuer:
    """A loopback issuer that counts who asks, and may be out of order."""

    def __init__(self) -> None:
        self.body: bytes = b""
        self.status = 200
        self.requests = 0
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = self.moved = ""
        self.endless = False
        self.sent = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if str(request.url) == self.moved:
            raise web.HTTPFound(self.url)
        self.requests += 1
        self.asked.set()
        await self.gate.wait()
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        half = len(self.body) // 2
        await response.write(self.body[:half])
        await asyncio.sleep(0.01)  # the rest comes in another packet
        await response.write(self.body[half:])
        while self.endless:
            await response.write(b" " * (1 << 16))
            self.sent += 1 << 16
        return response


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/{any:.*}", issuer.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        issuer.url, issuer.moved = (str(server.make_url(path)) for path in ("/jwks.json", "/moved"))
        yield issuer


class Time:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(keys_module, "time", clock)
    return clock


def _jwk(folder: Path) -> dict[str, Any]:
    path = KeyRing.create(folder).directory / "players.jwks.json"
    key: dict[str, Any] = json.loads(path.read_text())["keys"][0]
    return key


def _set(*jwks: dict[str, Any]) -> bytes:
    return json.dumps({"keys": jwks}).encode()


async def test_a_key_set_is_cached_and_unknown_keys_are_no_flood(
    issuer: Issuer, time: Time, tmp_path: Path
) -> None:
    first, second = _jwk(tmp_path / "a"), _jwk(tmp_path / "b")
    issuer.body = _set(first)
    keys = KeySet(issuer.url, "EdDSA")
    for number in range(20):
        assert await keys.key(first["kid"])
        assert await keys.key(f"unknown {number}") is None
    assert issuer.requests == 1
    issuer.body = _set(second)
    time.now += 31
    assert await keys.key(first["kid"])  # it is known: no reason to ask yet
    assert issuer.requests == 1
    assert await keys.key(second["kid"])
    assert await keys.key("unknown") is None
    assert await keys.key(first["kid"]) is None  # retired
    assert issuer.requests == 2
    time.now += 601
    assert await keys.key(second["kid"])
    assert issuer.requests == 3


async def test_callers_who_come_together_wait_for_one_fetch(issuer: Issuer, tmp_path: Path) -> None:
    jwk = _jwk(tmp_path)
    issuer.body = _set(jwk)
    issuer.gate.clear()
    keys = KeySet(issuer.url, "EdDSA")
    callers = [asyncio.create_task(keys.key(jwk["kid"])) for _ in range(10)]
    await issuer.asked.wait()
    issuer.gate.set()
    assert all(await asyncio.gather(*callers))
    assert issuer.requests == 1


async def test_a_caller_who_leaves_ends_no_fetch_and_opens_no_flood(issuer: Issuer, tmp_path: Path) -> None:
    jwk = _jwk(tmp_path)
    issuer.body = _set(jwk)
    issuer.gate.clear()
    keys = KeySet(issuer.url, "EdDSA")
    for _ in range(5):
        leaving = asyncio.create_task(keys.key("unknown"))
        await asyncio.sleep(0)  # it waits now
        await issuer.asked.wait()
        leaving.cancel()
        await asyncio.wait({leaving})
        assert leaving.cancelled()
    staying = asyncio.create_task(keys.key(jwk["kid"]))
    issuer.gate.set()
    assert await staying
    assert issuer.requests == 1


async def test_a_key_set_comes_neither_by_redirect_nor_unprotected(issuer: Issuer, tmp_path: Path) -> None:
    issuer.body = _set(_jwk(tmp_path))
    with pytest.raises(NoKeySet):
        await KeySet(issuer.moved, "EdDSA").key("any")
    assert issuer.requests == 0
    for url in ("http://issuer.example/jwks.json", "http://10.0.0.1/", "http://127.0.0.1.example/", "http:///"):
        with pytest.raises(ValueError, match="https"):
            KeySet(url, "EdDSA")


@pytest.mark.parametrize("fault", ["status", "text", "endless", "empty"])
async def test_keys_survive_an_outage_of_their_issuer(
    fault: str, issuer: Issuer, time: Time, tmp_path: Path
) -> None:
    jwk = _jwk(tmp_path)
    issuer.body = _set(jwk)
    keys = KeySet(issuer.url, "EdDSA")
    assert await keys.key(jwk["kid"])
    time.now += 601
    issuer.status, issuer.endless = 500 if fault == "status" else 200, fault == "endless"
    other = _jwk(tmp_path / "other")
    issuer.body = {
        "status": _set(other),
        "text": b"<html>",
        "endless": _set(other),
        "empty": b"",
    }[fault]
    for _ in range(5):
        assert await keys.key(jwk["kid"])
        assert await keys.key(other["kid"]) is None
    assert issuer.requests == 2
    assert issuer.sent < 32 << 20  # what sockets hold, and no more
    issuer.status, issuer.body, issuer.endless = 200, _set(other), False
    time.now += 31
    assert await keys.key(other["kid"])


async def test_an_issuer_away_from_the_start_is_asked_again_soon(
    issuer: Issuer, time: Time, tmp_path: Path
) -> None:
    jwk = _jwk(tmp_path)
    issuer.status, issuer.body = 503, b""
    keys = KeySet(issuer.url, "EdDSA")
    for _ in range(5):
        with pytest.raises(NoKeySet):
            await keys.key(jwk["kid"])
    assert issuer.requests == 1
    issuer.status, issuer.body = 200, _set(jwk)
    time.now += 2
    assert await keys.key(jwk["kid"])


async def test_nothing_that_a_token_points_to_is_fetched(issuer: Issuer, keys: KeyRing) -> None:
    mine = Ed25519PrivateKey.generate()
    jwk = jwt.algorithms.OKPAlgorithm.to_jwk(mine.public_key(), as_dict=True) | {"kid": "mine"}
    issuer.body = _set(jwk)
    verifier = TokenVerifier.from_settings(CommonSettings(**keys.settings()), service="upload")
    claims = jwt.decode(keys.player_token("mallory"), options={"verify_signature": False})
    pem = mine.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for header in ({"jku": issuer.url}, {"x5u": issuer.url}, {"jwk": jwk}, {"jku": issuer.url, "kid": issuer.url}):
        token = jwt.encode(claims, pem, algorithm="EdDSA", headers={"kid": "mine", **header})
        with pytest.raises(Unauthenticated):
            await verifier.verify(token)
    assert issuer.requests == 0
