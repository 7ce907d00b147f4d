"""Every token that does not count gets the same 401 over HTTP, reaches no service and makes nobody fetch a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common.keys import KeyRing, key_id
from tests.rpc.gateway_world import World, connection, open_world
from tests.rpc.raw_http import Answer, assert_healthy, exchange
from tests.unit.test_common_identity import BAD, Forge

ID = "00000000-0000-4000-8000-000000000000"
ROUTES = {
    "status": f"GET /api/v1/upload/{ID}/status",
    "events": f"GET /api/v1/upload/{ID}/events",
    "chunk": f"POST /api/v1/upload/{ID}/chunk/0",
    "initiate": "POST /api/v1/upload/initiate",
    "file": f"GET /api/v1/files/{ID}",
}
TOLD_ANEW = {"x-request-id", "date", "ratelimit"}


@dataclass
class Trap:
    """A server that a token's header names, and the ports from which it was called."""

    port: int = 0
    callers: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys.json"

    async def take(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.callers.append(writer.get_extra_info("peername")[1])
        writer.close()


def lured(**header: Any) -> Callable[[Forge], str]:
    """A good player's claims, signed with a key that only the header's address would bring."""

    def make(forge: Forge) -> str:
        key = Ed25519PrivateKey.generate()
        jwk = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
        own = {"kid": key_id(key.public_key())} if "kid" not in header else {}
        filled = {name: jwk if value is ... else value for name, value in header.items()}
        return forge.token(forge.claims(), key=key, header=forge.header(**(own | filled)))

    return make


def lures(url: str) -> dict[str, Callable[[Forge], str]]:
    return {
        "jku": lured(jku=url),
        "x5u": lured(x5u=url),
        "jku and a known kid": lambda f: f.token(
            f.claims(), key=Ed25519PrivateKey.generate(), header=f.header(jku=url, x5u=url)
        ),
        "jku and the key itself": lured(jku=url, jwk=...),
        "kid an address": lured(kid=url),
        "iss an address": lambda f: f.token(f.claims(iss=url.removesuffix("/keys.json"))),
        "jku of an HMAC": lambda f: f.token(f.claims(), header={"alg": "HS256", "kid": url, "jku": url}),
    }


@pytest.fixture(scope="module")
def forge(keys: KeyRing) -> Forge:
    return Forge(keys)


@pytest.fixture(scope="module")
async def world(keys: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path_factory.mktemp("tokens")) as world:
        yield world


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    trap = Trap()
    async with await asyncio.start_server(trap.take, "127.0.0.1", 0) as server:
        trap.port = server.sockets[0].getsockname()[1]
        yield trap


async def ask(world: World, route: str, token: str) -> Answer:
    head = f"{ROUTES[route]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    body = b"Content-Length: 2\r\n\r\n{}" if ROUTES[route].startswith("POST") else b"\r\n"
    bearer = b"Authorization: Bearer " + token.encode(errors="surrogatepass") + b"\r\n"
    return await exchange(world.port, head + bearer + body)


def told(got: Answer) -> tuple[int, dict[str, Any], dict[str, str]]:
    """All that an answer tells a client, save what is the request's own."""
    document = {name: value for name, value in got.problem.items() if name not in {"request_id", "instance"}}
    headers = {name: value for name, value in got.headers.items() if name not in TOLD_ANEW | {"content-length"}}
    return got.status, document, headers


async def refusal(world: World, route: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """What a token is told that is plainly none."""
    found = told(await ask(world, route, "x"))
    assert found[0] == 401
    assert found[1]["detail"] == "the bearer token is not valid"
    assert found[2]["www-authenticate"] == 'Bearer realm="twotruths", error="invalid_token"'
    return found


@pytest.mark.parametrize("case", sorted(BAD.keys() - {"empty"}))
async def test_a_token_that_does_not_count_is_told_no_more_than_that(
    world: World, forge: Forge, case: str
) -> None:
    token = BAD[case](forge)
    for route in ("status", "chunk"):
        assert told(await ask(world, route, token)) == await refusal(world, route)
    assert (world.uploads.metadata, world.uploads.call_begun.is_set()) == ([], False)
    await assert_healthy(world.port)


async def test_no_address_in_a_token_is_called(world: World, forge: Forge, trap: Trap) -> None:
    for case, make in lures(trap.url).items():
        assert told(await ask(world, "status", make(forge))) == await refusal(world, "status"), case
    async with connection(trap.port) as (reader, writer):
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert trap.callers == [writer.get_extra_info("sockname")[1]], "the first that calls is this test"


async def test_every_route_refuses_alike(world: World, forge: Forge) -> None:
    texts = set()
    for route in ROUTES:
        for case in ("alg none", "exp past", "kid unknown", "aud a list", "duplicate claims"):
            status, document, headers = told(await ask(world, route, BAD[case](forge)))
            texts.add((status, str(document), headers["www-authenticate"]))
    assert len(texts) == 1
    assert world.uploads.initiated == []


async def test_no_token_is_asked_for_one(world: World) -> None:
    status, document, headers = told(await ask(world, "status", ""))
    assert (status, document["detail"]) == (401, "a bearer token is required")
    assert headers["www-authenticate"] == 'Bearer realm="twotruths"'


async def test_a_good_token_passes_where_the_bad_ones_did_not(world: World, forge: Forge) -> None:
    scoped = forge.claims(scope="media:read media:upload")
    assert (await ask(world, "status", forge.token(scoped))).problem["reason"] == "UPLOAD_NOT_FOUND"
    world.uploads.metadata.clear()
