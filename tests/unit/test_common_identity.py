"""Every token that does not count is refused with one text; none causes anything else."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common import identity
from services.common.context import Principal
from services.common.errors import Unauthenticated, Unavailable
from services.common.identity import SERVICE_ISSUER, ServiceTokens, TokenVerifier
from services.common.keys import ALL_SCOPES, KeyRing, key_id
from services.common.settings import CommonSettings

PEM, SPKI = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
REFUSAL = "the bearer token is not valid"


class Forge:
    """Makes tokens of every kind, byte by byte, signed with whatever key."""

    def __init__(self, keys: KeyRing) -> None:
        self.keys = keys
        self.player = _private_key(keys.directory / "players.pem")
        self.service = _private_key(keys.directory / "services.pem")

    def claims(self, **changes: Any) -> dict[str, Any]:
        """A good player's claims with changes; a claim changed to ... is left out."""
        claims = {"sub": "alice", "iss": "twotruths-dev", "aud": "twotruths", "exp": int(time.time()) + 600}
        return {name: value for name, value in (claims | changes).items() if value is not ...}

    def service_claims(self, **changes: Any) -> dict[str, Any]:
        """A good service's claims with changes."""
        good = {"iss": SERVICE_ISSUER, "sub": "service:merge", "aud": "twotruths.upload", "scope": "internal"}
        return self.claims(**(good | changes))

    def token(
        self, payload: dict[str, Any] | bytes, *, key: Ed25519PrivateKey | None = None, header: Any = None
    ) -> str:
        """A token with a true signature over whatever header and payload."""
        key = key or self.player
        header = {"alg": "EdDSA", "typ": "JWT", "kid": key_id(key.public_key())} if header is None else header
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        text = f"{_base64(json.dumps(header).encode())}.{_base64(body)}"
        return f"{text}.{_base64(key.sign(text.encode()))}"

    def header(self, **changes: Any) -> dict[str, Any]:
        """The player key's header with changes."""
        header = {"alg": "EdDSA", "typ": "JWT", "kid": key_id(self.player.public_key())} | changes
        return {name: value for name, value in header.items() if value is not ...}


def _private_key(path: Path) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _text(forge: Forge, algorithm: str) -> str:
    """Good claims under a header that names this algorithm, without a signature."""
    parts = forge.header(alg=algorithm), forge.claims()
    return ".".join(_base64(json.dumps(part).encode()) for part in parts)


def _confused(forge: Forge, public_key: bytes) -> str:
    """HS256 with the public key as the secret."""
    text = _text(forge, "HS256")
    return f"{text}.{_base64(hmac.digest(public_key, text.encode(), 'sha256'))}"


def _tampered(token: str) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{_base64(json.dumps({'sub': 'mallory', 'iss': 'twotruths-dev'}).encode())}.{signature}"


def _resigned(forge: Forge, signature: bytes) -> str:
    return forge.token(forge.claims()).rpartition(".")[0] + "." + _base64(signature)


NESTED = b'{"sub":"alice","iss":"twotruths-dev","x":' + b"[" * 2500 + b"]" * 2500 + b"}"
DUPLICATE = b'{"sub":"mallory","sub":"alice","iss":"twotruths-dev","aud":"twotruths","exp":4102444800}'

BAD: dict[str, Callable[[Forge], str]] = {
    "empty": lambda f: "",
    "no segments": lambda f: "token",
    "dots": lambda f: "..",
    "not base64": lambda f: "!!.??.%%",
    "lone surrogate": lambda f: "\ud800.a.b",
    "over 8 KiB": lambda f: f.token(f.claims(pad="x" * 9000)),
    "alg none": lambda f: _text(f, "none") + ".",
    "alg None": lambda f: _text(f, "None") + ".",
    "alg nOnE": lambda f: _text(f, "nOnE") + ".",
    "HS256 with the public PEM": lambda f: _confused(f, f.player.public_key().public_bytes(PEM, SPKI)),
    "HS256 with the public bytes": lambda f: _confused(f, f.player.public_key().public_bytes_raw()),
    "alg ES256 over an EdDSA signature": lambda f: f.token(f.claims(), header=f.header(alg="ES256")),
    "alg missing": lambda f: f.token(f.claims(), header=f.header(alg=...)),
    "alg a list": lambda f: f.token(f.claims(), header=f.header(alg=["EdDSA"])),
    "header a list": lambda f: f.token(f.claims(), header=[]),
    "crit": lambda f: f.token(f.claims(), header=f.header(crit=["x"], x=1)),
    "wrong key under a known kid": lambda f: f.token(
        f.claims(), key=Ed25519PrivateKey.generate(), header=f.header()
    ),
    "wrong key under its own kid": lambda f: f.token(f.claims(), key=Ed25519PrivateKey.generate()),
    "payload exchanged": lambda f: _tampered(f.token(f.claims())),
    "signature empty": lambda f: _resigned(f, b""),
    "signature zero": lambda f: _resigned(f, bytes(64)),
    "kid missing": lambda f: f.token(f.claims(), header=f.header(kid=...)),
    "kid unknown": lambda f: f.token(f.claims(), header=f.header(kid="unknown")),
    "kid a path": lambda f: f.token(f.claims(), header=f.header(kid="../../../../dev/null")),
    "kid SQL": lambda f: f.token(f.claims(), header=f.header(kid="x' UNION SELECT 'key' --")),
    "kid long": lambda f: f.token(f.claims(), header=f.header(kid="k" * 5000)),
    "kid 10 KB": lambda f: f.token(f.claims(), header=f.header(kid="k" * 10_000)),
    "kid a number": lambda f: f.token(f.claims(), header=f.header(kid=1)),
    "kid a list": lambda f: f.token(f.claims(), header=f.header(kid=["a"])),
    "kid null": lambda f: f.token(f.claims(), header=f.header(kid=None)),
    "own key in jwk": lambda f: f.token(f.claims(), **_own_key(f)),
    "exp missing": lambda f: f.token(f.claims(exp=...)),
    "iss missing": lambda f: f.token(f.claims(iss=...)),
    "aud missing": lambda f: f.token(f.claims(aud=...)),
    "sub missing": lambda f: f.token(f.claims(sub=...)),
    "exp null": lambda f: f.token(f.claims(exp=None)),
    "exp past": lambda f: f.token(f.claims(exp=time.time() - 60)),
    "exp 1e308": lambda f: f.token(f.claims(exp=1e308)),
    "exp a 400-digit number": lambda f: f.token(f.claims(exp=10**400)),
    "exp infinite": lambda f: f.token(f.claims(exp=float("inf"))),
    "exp NaN": lambda f: f.token(f.claims(exp=float("nan"))),
    "exp true": lambda f: f.token(f.claims(exp=True)),
    "exp a string": lambda f: f.token(f.claims(exp="4102444800")),
    "exp a list": lambda f: f.token(f.claims(exp=[4102444800])),
    "nbf future": lambda f: f.token(f.claims(nbf=time.time() + 60)),
    "nbf infinite": lambda f: f.token(f.claims(nbf=float("inf"))),
    "nbf no number": lambda f: f.token(f.claims(nbf="soon")),
    "iat future": lambda f: f.token(f.claims(iat=time.time() + 60)),
    "iss wrong": lambda f: f.token(f.claims(iss="somebody")),
    "iss a list": lambda f: f.token(f.claims(iss=["twotruths-dev"])),
    "iss an object": lambda f: f.token(f.claims(iss={"twotruths-dev": 1})),
    "aud a list": lambda f: f.token(f.claims(aud=["twotruths"])),
    "aud wrong": lambda f: f.token(f.claims(aud="somebody")),
    "aud of a service": lambda f: f.token(f.claims(aud="twotruths.upload")),
    "aud empty": lambda f: f.token(f.claims(aud="")),
    "sub empty": lambda f: f.token(f.claims(sub="")),
    "sub a number": lambda f: f.token(f.claims(sub=7)),
    "sub too long": lambda f: f.token(f.claims(sub="a" * 256)),
    "sub with a line break": lambda f: f.token(f.claims(sub="alice\nbob")),
    "sub a lone surrogate": lambda f: f.token(f.claims(sub="\ud800")),
    "player named as a service": lambda f: f.token(f.claims(sub="service:merge", scope="internal")),
    "duplicate claims": lambda f: f.token(DUPLICATE),
    "deep nesting": lambda f: f.token(NESTED),
    "payload a list": lambda f: f.token(b"[]"),
    "payload no JSON": lambda f: f.token(b"\xff"),
    "player's key for the mesh's issuer": lambda f: f.token(f.service_claims()),
    "player's key under a service's kid": lambda f: f.token(
        f.service_claims(), header=f.header(kid=key_id(f.service.public_key()))
    ),
    "service's key for the players' issuer": lambda f: f.token(f.claims(), key=f.service),
    "service token for another service": lambda f: f.token(
        f.service_claims(aud="twotruths.challenge"), key=f.service
    ),
    "service token for players' audience": lambda f: f.token(f.service_claims(aud="twotruths"), key=f.service),
    "service token without scope": lambda f: f.token(f.service_claims(scope=...), key=f.service),
    "service token of other scopes": lambda f: f.token(f.service_claims(scope="media:read"), key=f.service),
    "service token with a list of scopes": lambda f: f.token(f.service_claims(scope=["internal"]), key=f.service),
    "service token that names a player": lambda f: f.token(f.service_claims(sub="alice"), key=f.service),
}


def _own_key(forge: Forge) -> dict[str, Any]:
    key = Ed25519PrivateKey.generate()
    jwk = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {"key": key, "header": forge.header(jwk=jwk)}


@pytest.fixture(scope="module")
def forge(keys: KeyRing) -> Forge:
    return Forge(keys)


@pytest.fixture
def verifier(keys: KeyRing) -> TokenVerifier:
    return TokenVerifier.from_settings(CommonSettings(**keys.settings()), service="upload")


@pytest.mark.parametrize("case", BAD)
async def test_a_token_that_does_not_count_is_refused_with_one_text(
    case: str, forge: Forge, verifier: TokenVerifier
) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await verifier.verify(BAD[case](forge))
    error = refused.value
    assert (error.message, error.reason, error.violations, error.metadata) == (REFUSAL, "", (), {})


async def test_good_tokens_pass(forge: Forge, keys: KeyRing, verifier: TokenVerifier) -> None:
    assert await verifier.verify(forge.token(forge.claims())) == Principal("alice")
    assert await verifier.verify(keys.player_token("bob")) == Principal("bob", frozenset(ALL_SCOPES))
    skewed = forge.claims(exp=time.time() - 3, nbf=time.time() + 3, iat=time.time() + 3)
    assert await verifier.verify(forge.token(skewed)) == Principal("alice")
    tokens = ServiceTokens(keys.directory / "services.pem", "merge")
    merge = Principal("service:merge", frozenset({"internal"}), is_service=True)
    assert await verifier.verify(tokens.token("upload")) == merge
    assert await verifier.verify(forge.token(forge.service_claims(), key=forge.service)) == merge


async def test_a_player_cannot_claim_the_internal_scope(keys: KeyRing, verifier: TokenVerifier) -> None:
    caller = await verifier.verify(keys.player_token("alice", scopes=["media:read", "internal"]))
    assert caller == Principal("alice", frozenset({"media:read"}))


async def test_a_service_token_serves_one_audience_and_is_made_once(keys: KeyRing) -> None:
    tokens = ServiceTokens(keys.directory / "services.pem", "merge")
    assert tokens.token("upload") == tokens.token("upload") != tokens.token("challenge")


async def test_a_retired_key_stops_counting_and_its_successor_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.keys._LOOK_SECONDS", 0.0)
    old, new = KeyRing.create(tmp_path / "old"), KeyRing.create(tmp_path / "new")
    verifier = TokenVerifier.from_settings(CommonSettings(**old.settings()), service="upload")
    token = old.player_token("alice")
    assert (await verifier.verify(token)).subject == "alice"
    (new.directory / "players.jwks.json").replace(old.directory / "players.jwks.json")
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)
    assert (await verifier.verify(new.player_token("alice"))).subject == "alice"


async def test_a_token_that_was_good_is_refused_once_it_has_expired(forge: Forge, verifier: TokenVerifier) -> None:
    expiry = int(time.time()) - 6
    almost = forge.token(forge.claims(exp=expiry))
    assert (await verifier.verify(almost)).subject == "alice"
    await asyncio.sleep(expiry + 10 - time.time())  # ten seconds of grace
    with pytest.raises(Unauthenticated):
        await verifier.verify(almost)


async def test_of_the_tokens_that_were_verified_those_used_last_are_remembered(
    keys: KeyRing, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    decode = jwt.decode

    def counting(token: str, *arguments: Any, **options: Any) -> Any:
        verified.append(token)
        return decode(token, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", counting)
    monkeypatch.setattr(identity, "_REMEMBERED", 2)
    alice, bob, carol = (keys.player_token(user) for user in ("alice", "bob", "carol"))
    for token in (alice, bob, alice, carol, alice, bob):
        await verifier.verify(token)
    assert verified == [alice, bob, carol, bob]


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"keys": 1}'])
async def test_without_a_readable_key_set_the_fault_is_ours(tmp_path: Path, content: str | None) -> None:
    keys = KeyRing.create(tmp_path)
    token = keys.player_token("alice")
    jwks = tmp_path / "players.jwks.json"
    jwks.unlink()
    if content is not None:
        jwks.write_text(content)
    verifier = TokenVerifier.from_settings(CommonSettings(**keys.settings()), service="upload")
    with pytest.raises(Unavailable):
        await verifier.verify(token)
