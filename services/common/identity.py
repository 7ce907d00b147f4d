"""Who a caller is: JWTs (RFC 7519) of players and of services.

Players' tokens come from one issuer, services' from another with its own keys, so that no player's token can
ever speak for a service whatever it claims. Both must be signed with the one asymmetric algorithm of the
settings and carry exp, iss, aud and sub. A service's token names the one service it is meant for.

All refusals have one identical text: it must not help to forge a better token.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import jwt.api_jws

from services.common.context import Principal
from services.common.errors import Unauthenticated, Unavailable
from services.common.keys import KeySet, NoKeySet, sign
from services.common.settings import CommonSettings

SERVICE_ISSUER = "twotruths-mesh"
INTERNAL_SCOPE = "internal"
MAX_TOKEN_BYTES = 4096  # gRPC takes 8 KiB of metadata
_MAX_KEY_ID = 128
_LEEWAY_SECONDS = 10
_REMEMBERED = 1024
_YEAR_10000 = 253_402_300_800
_REFUSED = "the bearer token is not valid"

log = logging.getLogger(__name__)


def service_audience(service: str) -> str:
    """The aud of tokens that are meant for a service. Example: "twotruths.upload"."""
    return f"twotruths.{service}"


@dataclass(frozen=True, slots=True)
class _Verified:
    """Whom a token speaks for, and the key that verified it."""

    principal: Principal
    keys: KeySet
    key_id: str
    key: jwt.PyJWK


class TokenVerifier:
    """Verifies bearer tokens for one service."""

    def __init__(
        self, *, algorithm: str, players: KeySet, issuer: str, audience: str, services: KeySet, service: str
    ) -> None:
        self._algorithm = algorithm
        self._issuers = {issuer: (players, audience), SERVICE_ISSUER: (services, service_audience(service))}
        self._verified: OrderedDict[str, _Verified] = OrderedDict()  # used longest ago first

    @classmethod
    def from_settings(cls, settings: CommonSettings, service: str) -> TokenVerifier:
        """A verifier for the service of this name."""
        return cls(
            algorithm=settings.auth_algorithm,
            players=KeySet(settings.auth_jwks, settings.auth_algorithm),
            issuer=settings.auth_issuer,
            audience=settings.auth_audience,
            services=KeySet(settings.service_jwks, settings.auth_algorithm),
            service=service,
        )

    async def verify(self, token: str) -> Principal:
        """Who the token speaks for. Raises Unauthenticated; Unavailable when no key set can be read."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(_REFUSED)
        try:
            return (await self._known(token) or await self._verify(token)).principal
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError) as error:
            log.info("token refused", extra={"data": {"why": type(error).__name__}})
            raise Unauthenticated(_REFUSED) from None
        except NoKeySet as error:
            log.error("no key set", extra={"data": {"source": str(error)}})  # noqa: TRY400  KeySet said why
            raise Unavailable("tokens cannot be verified now", retry_after=5) from error

    async def _known(self, token: str) -> _Verified | None:
        """What is remembered of the token. A phone sends the same one with every chunk: its signature is verified
        once, as long as it has not expired and its key is the one that it was verified with."""
        known = self._verified.get(token)
        if known is None:
            return None
        if known.principal.until > time.time() and await known.keys.key(known.key_id) is known.key:
            self._verified.move_to_end(token)
            return known
        self._verified.pop(token, None)
        return None

    async def _verify(self, token: str) -> _Verified:
        unverified = jwt.api_jws.decode_complete(token, options={"verify_signature": False})
        header, payload = unverified["header"], json.loads(unverified["payload"], object_pairs_hook=_unique)
        key_id, issuer = header.get("kid"), payload.get("iss") if isinstance(payload, dict) else None
        if header.get("alg") != self._algorithm or not isinstance(key_id, str) or len(key_id) > _MAX_KEY_ID:
            raise jwt.InvalidTokenError("algorithm or key id")
        if not isinstance(issuer, str) or issuer not in self._issuers:
            raise jwt.InvalidIssuerError("issuer")
        keys, audience = self._issuers[issuer]
        key = await keys.key(key_id)
        if key is None:
            raise jwt.InvalidKeyError("unknown key")
        claims = jwt.decode(
            token,
            key,
            algorithms=[self._algorithm],
            audience=audience,
            issuer=issuer,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud", "sub"], "strict_aud": True},
        )
        _check(claims)
        found = _Verified(_principal(claims), keys, key_id, key)
        self._verified[token] = found
        if len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)
        return found


def _principal(claims: dict[str, Any]) -> Principal:
    """Whom the claims of a verified token name. Raises InvalidTokenError."""
    until = claims["exp"] + _LEEWAY_SECONDS
    if claims["iss"] != SERVICE_ISSUER:
        return Principal(claims["sub"], _scopes(claims) - {INTERNAL_SCOPE}, until=until)
    if INTERNAL_SCOPE not in _scopes(claims) or not claims["sub"].startswith("service:"):
        raise jwt.InvalidTokenError("no service of the mesh")
    return Principal(claims["sub"], frozenset({INTERNAL_SCOPE}), is_service=True, until=until)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """RFC 7519 section 4: claim names are unique. Two parsers must not see two subjects."""
    claims = dict(pairs)
    if len(claims) != len(pairs):
        raise jwt.InvalidTokenError("duplicate claims")
    return claims


def _check(claims: dict[str, Any]) -> None:
    """What the library lets pass: a subject that names nobody, an expiry that is no time."""
    if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= 255 or not claims["sub"].isprintable():
        raise jwt.InvalidTokenError("sub")
    expiry = claims["exp"]
    if isinstance(expiry, bool) or not isinstance(expiry, int | float) or not expiry < _YEAR_10000:
        raise jwt.InvalidTokenError("exp")
    if claims["iss"] != SERVICE_ISSUER and claims["sub"].startswith("service:"):
        raise jwt.InvalidTokenError("a player's token cannot name a service")


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """The ``scope`` claim (RFC 8693 section 4.2): words separated by spaces."""
    scope = claims.get("scope", "")
    return frozenset(scope.split()) if isinstance(scope, str) else frozenset()


class ServiceTokens:
    """Makes this service's own tokens, short-lived, one for each service it calls."""

    _TTL_SECONDS = 300

    def __init__(self, key_file: Path, service: str) -> None:
        self._key_file = key_file
        self._service = service
        self._cache: dict[str, tuple[float, str]] = {}

    @classmethod
    def from_settings(cls, settings: CommonSettings, service: str) -> ServiceTokens:
        """Tokens of the service of this name."""
        return cls(settings.service_key_file, service)

    def token(self, audience: str) -> str:
        """A token for calling the service ``audience`` ("upload"), used for half of its life."""
        now = time.time()
        until, token = self._cache.get(audience, (0.0, ""))
        if now >= until:
            payload = {
                "iss": SERVICE_ISSUER,
                "sub": f"service:{self._service}",
                "aud": service_audience(audience),
                "scope": INTERNAL_SCOPE,
                "iat": now,
                "exp": now + self._TTL_SECONDS,
            }
            token = sign(self._key_file, payload)
            self._cache[audience] = (now + self._TTL_SECONDS / 2, token)
        return token
