"""Keys: reading the key sets that tokens are verified with, and making development keys.

A key set is a JWK Set (RFC 7517) in a file, re-read when it changes, or at an https URL, fetched again when
it is ten minutes old or, at most every thirty seconds, when a token names a key that is not in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_FRESH_SECONDS = 600.0
_MISS_SECONDS = 30.0
_MAX_BYTES = 1 << 20

MEDIA_UPLOAD, MEDIA_READ, CHALLENGE_WRITE = "media:upload", "media:read", "challenge:write"
ALL_SCOPES = (MEDIA_UPLOAD, MEDIA_READ, CHALLENGE_WRITE)


class KeySet:
    """The public keys of one issuer by key id. Only keys of the one algorithm are kept."""

    def __init__(self, source: str, algorithm: str) -> None:
        self._source = source
        self._algorithm = algorithm
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._version: object = None
        self._loaded_at = float("-inf")

    async def key(self, key_id: str) -> jwt.PyJWK | None:
        """The key, or None when the issuer has none of this id. Raises OSError, aiohttp.ClientError or
        ValueError when the set cannot be read and none was read before."""
        age = time.monotonic() - self._loaded_at
        if self._source.startswith(("http://", "https://")):
            if age > _FRESH_SECONDS or (key_id not in self._keys and age > _MISS_SECONDS):
                await self._fetch()
        else:
            self._read()
        return self._keys.get(key_id)

    def _read(self) -> None:
        path = Path(self._source)
        stat = path.stat()
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if version != self._version:
            self._parse(path.read_bytes())
            self._version = version

    async def _fetch(self) -> None:
        self._loaded_at = time.monotonic()  # also when it fails: misses must not become a flood
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(self._source) as response:
                response.raise_for_status()
                self._parse(await response.content.read(_MAX_BYTES))
        except (aiohttp.ClientError, TimeoutError, ValueError):
            if not self._keys:
                raise

    def _parse(self, data: bytes) -> None:
        keys = {}
        for jwk in json.loads(data)["keys"]:
            if jwk.get("alg", self._algorithm) == self._algorithm and jwk.get("use", "sig") == "sig":
                keys[str(jwk["kid"])] = jwt.PyJWK(jwk, algorithm=self._algorithm)
        self._keys = keys


class KeyRing:
    """Development keys in a directory: one that signs players' tokens, one that signs services', one that
    signs playback URLs. Production has its own issuer and mounts the key sets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def create(cls, directory: Path) -> KeyRing:
        """Makes the keys that are missing (readable by this user alone)."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("players", "services"):
            if not (directory / f"{name}.pem").exists():
                _make_pair(directory, name)
        playback = directory / "playback.json"
        if not playback.exists():
            _write_secret(playback, json.dumps({secrets.token_hex(4): secrets.token_hex(32)}).encode())
        return cls(directory)

    def settings(self) -> dict[str, Any]:
        """The settings of CommonSettings that point to these keys."""
        return {
            "auth_jwks": str(self.directory / "players.jwks.json"),
            "service_jwks": str(self.directory / "services.jwks.json"),
            "service_key_file": self.directory / "services.pem",
            "playback_keys_file": self.directory / "playback.json",
        }

    def player_token(
        self,
        user: str,
        *,
        scopes: Sequence[str] = ALL_SCOPES,
        ttl: float = 86_400,
        issuer: str = "twotruths-dev",
        audience: str = "twotruths",
        **claims: Any,
    ) -> str:
        """A token of a player, valid for ``ttl`` seconds; ``claims`` replace or add."""
        now = time.time()
        payload = {
            "sub": user,
            "iss": issuer,
            "aud": audience,
            "iat": now,
            "exp": now + ttl,
            "scope": " ".join(scopes),
        }
        return sign(self.directory / "players.pem", payload | claims)


def sign(private_key: Path, payload: Mapping[str, Any]) -> str:
    """A JWT over ``payload``, signed with a PEM key; the key id is that of the public key."""
    key = serialization.load_pem_private_key(private_key.read_bytes(), password=None)
    algorithm = {"Ed25519PrivateKey": "EdDSA", "ECPrivateKey": "ES256"}.get(
        type(key).__name__.lstrip("_"), "RS256"
    )
    return jwt.encode(dict(payload), key, algorithm=algorithm, headers={"kid": key_id(key.public_key())})  # type: ignore[arg-type]  # PEM may hold keys that jwt refuses at run time


def key_id(public_key: Any) -> str:
    """A short name of a public key: the first 16 hex digits of SHA-256 over its DER form."""
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def _make_pair(directory: Path, name: str) -> None:
    key = Ed25519PrivateKey.generate()
    jwk = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    jwk |= {"kid": key_id(key.public_key()), "alg": "EdDSA", "use": "sig"}
    _write_secret(directory / f"{name}.jwks.json", json.dumps({"keys": [jwk]}, indent=2).encode())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_secret(directory / f"{name}.pem", pem)  # last: its presence says that the pair is whole


def _write_secret(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    temporary.rename(path)
