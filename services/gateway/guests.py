"""POST /api/v1/guest: a player's token for whoever asks. For development alone, where no issuer is to log in at.

Whoever has the route can be any number of new players, past every limit that goes by player. So it exists only
where an operator names a key to sign with, and an address gets few tokens.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web

from services.common.keys import CHALLENGE_WRITE, MEDIA_READ, MEDIA_UPLOAD, sign
from services.gateway import admission, encode, statuses
from services.gateway.buckets import Buckets, Ticks
from services.gateway.config import GatewaySettings

URL = "/api/v1/guest"
_SCOPES = (MEDIA_UPLOAD, MEDIA_READ, CHALLENGE_WRITE)
_AT_ONCE = 10

log = logging.getLogger(__name__)


class GuestRoutes:
    """Signs with ``settings.gateway_guest_key_file``. Raises OSError or ValueError when that is no key, or one for
    another algorithm than that of players' tokens."""

    def __init__(self, settings: GatewaySettings, ticks: Ticks) -> None:
        self._settings = settings
        per_second = settings.gateway_guests_per_minute_address / 60
        self._guests = Buckets("guests", per_second=per_second, burst=_AT_ONCE, ticks=ticks)
        algorithm = jwt.get_unverified_header(self._token("guest-of-nobody"))["alg"]
        if algorithm != settings.auth_algorithm:
            raise ValueError(
                f"gateway_guest_key_file is for {algorithm}, auth_algorithm is {settings.auth_algorithm}"
            )
        log.warning("ANYONE MAY BECOME A PLAYER: %s gives tokens to whoever asks (gateway_guest_key_file)", URL)

    async def post(self, request: web.Request) -> web.Response:
        """A new guest. Raises Problem 429."""
        admission.charge(request, self._guests, admission.address(request))
        user = f"guest-{uuid.uuid4()}"
        lifetime = self._settings.gateway_guest_seconds
        document = {"token": self._token(user), "expires_in": lifetime, "user_id": user}
        return web.Response(body=encode.dumps(document), content_type="application/json")

    def _token(self, user: str) -> str:
        now = int(time.time())
        claims = {
            "sub": user,
            "iss": self._settings.auth_issuer,
            "aud": self._settings.auth_audience,
            "iat": now,
            "exp": now + self._settings.gateway_guest_seconds,
            "scope": " ".join(_SCOPES),
        }
        return sign(Path(self._settings.gateway_guest_key_file), claims)


PATHS: Mapping[str, Mapping[str, Any]] = {
    URL: {
        "post": {
            "operationId": "MakeGuest",
            "tags": ["Development"],
            "summary": "Makes a player and a token that speaks for it. Never in production.",
            "security": [{}],
            "responses": {
                "200": {
                    "description": "A new player.",
                    "headers": statuses.headers(*statuses.OF_ANSWERS),
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["token", "expires_in", "user_id"],
                                "properties": {
                                    "token": {"type": "string", "description": "A bearer token."},
                                    "expires_in": {"type": "integer", "description": "Seconds it counts for."},
                                    "user_id": {"type": "string", "description": "Its subject."},
                                },
                            }
                        }
                    },
                }
            },
            "x-problems": {500: "", 503: ""},
        }
    }
}
