"""What the gateway passes on of a caller: the Authorization header, unread. Services verify it."""

from __future__ import annotations

from aiohttp import web

from services.gateway.problems import Problem

Metadata = tuple[tuple[str, str], ...]


def unauthenticated() -> Problem:
    """401 for a request without a usable token."""
    return Problem(
        401,
        "UNAUTHENTICATED",
        "a bearer token is required",
        headers={"WWW-Authenticate": 'Bearer realm="twotruths"'},
    )


def metadata(request: web.Request, *, max_token: int) -> Metadata:
    """The call metadata of a request. Raises Problem 401 when no token came, or one that cannot be one."""
    values = request.headers.getall("Authorization", [])
    if len(values) != 1:
        raise unauthenticated()
    scheme, _, token = values[0].partition(" ")
    usable = token.isascii() and token.isprintable() and 0 < len(token) <= max_token
    if scheme.lower() != "bearer" or not usable:
        raise unauthenticated()
    return (("authorization", f"Bearer {token}"),)
