"""Keys: reading the key sets that tokens are verified with, and making development keys.

A key set is a JWK Set (RFC 7517) in a file, read again within 0.2 s of a change, or at an https URL, fetched again
when it is ten minutes old or, at most every thirty seconds, when a token names a key that is not in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_FRESH_SECONDS = 600.0
_MISS_SECONDS = 30.0
_LOOK_SECONDS = 0.2  # between looks at a file; a request costs less than one
_FIRST_SECONDS = 1.0  # between attempts while no set was read yet
_MAX_BYTES = 1 << 20

MEDIA_UPLOAD, MEDIA_READ, CHALLENGE_WRITE = "media:upload", "media:read", "challenge:write"
ALL_SCOPES = (MEDIA_UPLOAD, MEDIA_READ, CHALLENGE_WRITE)

log = logging.getLogger(__name__)


class NoKeySet(Exception):
    """The key set cannot be read now and was not read before. Its text is the source."""


class KeySet:
    """The public keys of one issuer by key id. Only keys of the one algorithm are kept.

    A set that was read once stays in force while its source cannot be read or is not a key set. ``source``: a path
    or an https URL; http is for this machine alone, since whoever is on the way could give out keys. Raises
    ValueError.
    """

    def __init__(self, source: str, algorithm: str) -> None:
        if source.startswith("http://") and not _is_here(urlsplit(source).hostname or ""):
            raise ValueError(f"a key set must come by https, not from {source}")
        self._source = source
        self._algorithm = algorithm
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._loaded = False
        self._version: object = None  # of the file that was looked at last
        self._stale_at = self._miss_at = float("-inf")  # when to fetch again for a known, an unknown key id
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, key_id: str) -> jwt.PyJWK | None:
        """The key, or None when the issuer has none of this id. Raises NoKeySet."""
        if not self._source.startswith(("http://", "https://")):
            if self._due(key_id):
                self._read()
        elif self._due(key_id):
            if self._fetching is None:
                self._fetching = asyncio.create_task(self._fetch())
            elif key_id in self._keys:
                return self._keys[key_id]  # as it was, until the other caller's fetch is done
            await asyncio.shield(self._fetching)  # whoever leaves does not take it from the others, nor its times
        if not self._loaded:
            raise NoKeySet(self._source)
        return self._keys.get(key_id)

    def _read(self) -> None:
        self._stale_at = time.monotonic() + _LOOK_SECONDS  # one that is missing is looked for each time
        version: object = "unreadable"
        try:
            if _version(os.stat(self._source)) == self._version:
                return
            with open(self._source, "rb") as file:
                version = _version(os.fstat(file.fileno()))
                self._load(file.read(_MAX_BYTES + 1))
        except (OSError, ValueError) as error:
            if version != self._version:
                log.warning("key set %s cannot be read: %s", self._source, error)
        self._version = version

    def _due(self, key_id: str) -> bool:
        return time.monotonic() >= (self._stale_at if key_id in self._keys else self._miss_at)

    async def _fetch(self) -> None:
        again = _MISS_SECONDS if self._loaded else _FIRST_SECONDS
        try:
            self._load(await _get(self._source))
            again = _FRESH_SECONDS
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.warning("key set %s cannot be fetched: %r", self._source, error)
        finally:
            now = time.monotonic()
            self._stale_at, self._miss_at = now + again, now + min(again, _MISS_SECONDS)
            self._fetching = None

    def _load(self, data: bytes) -> None:
        """Takes the keys of a JWK Set without those of no use (RFC 7517 section 5). Raises ValueError."""
        try:
            document = json.loads(data) if len(data) <= _MAX_BYTES else None
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError(f"not a JWK Set of at most {_MAX_BYTES} bytes")  # noqa: TRY004  it is data
        keys = {}
        for jwk in document["keys"]:
            try:
                if jwk.get("alg", self._algorithm) == self._algorithm and jwk.get("use", "sig") == "sig":
                    keys[str(jwk["kid"])] = jwt.PyJWK(jwk, algorithm=self._algorithm)
            except (jwt.PyJWTError, KeyError, TypeError, ValueError, AttributeError) as error:
                log.warning("key set %s: a key is left out: %s", self._source, type(error).__name__)
        self._keys, self._loaded = keys, True


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def _get(url: str) -> bytes:
    """What is there, up to one byte too many. A redirect is not followed: it could lead to where anybody on the
    way gives out keys. Raises aiohttp.ClientError, OSError (TimeoutError)."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(url, allow_redirects=False, raise_for_status=True) as response,
    ):
        if response.status != 200:
            raise OSError(f"the answer is {response.status}")
        data = bytearray()
        async for piece in response.content.iter_chunked(1 << 16):
            data += piece
            if len(data) > _MAX_BYTES:
                break
        return bytes(data)


def _version(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


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
