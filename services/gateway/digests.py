"""SHA-256 of a body in the ways that clients send it: hex, or ``Content-Digest`` (RFC 9530)."""

from __future__ import annotations

import base64
import binascii
import re

from aiohttp import web

from services.gateway.problems import FieldError, invalid

_HEX = re.compile(r"[0-9a-fA-F]{64}")
_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*(?:,|$)")


def from_hex(text: str, pointer: str) -> str:
    """A digest in hex, in lower case. Raises Problem 400 that names ``pointer``."""
    if not _HEX.fullmatch(text.strip()):
        raise invalid([FieldError(pointer, "must be a SHA-256 in 64 hex digits")])
    return text.strip().lower()


def from_headers(request: web.Request) -> str:
    """The digest that the headers promise for the body, in hex, or "". Raises Problem 400.

    Other algorithms of Content-Digest are not checked: RFC 9530 section 2 lets a recipient ignore them.
    """
    found: set[str] = set()
    if (text := request.headers.get("X-Chunk-SHA256")) is not None:
        found.add(from_hex(text, "/X-Chunk-SHA256"))
    if digest := from_digest_field(",".join(request.headers.getall("Content-Digest", [])), "Content-Digest"):
        found.add(digest)
    if len(found) > 1:
        raise invalid([FieldError("/Content-Digest", "is not the digest in X-Chunk-SHA256")])
    return found.pop() if found else ""


def header_of(request: web.Request) -> str:
    """The header that :func:`from_headers` takes the digest from."""
    return "X-Chunk-SHA256" if "X-Chunk-SHA256" in request.headers else "Content-Digest"


def from_digest_field(text: str, header: str) -> str:
    """The sha-256 in a Content-Digest or Repr-Digest, in hex, or "". Raises Problem 400 that names ``header``."""
    wrong = invalid([FieldError(f"/{header}", "must be sha-256=:…: in base64, see RFC 9530")])
    at, found = 0, ""
    while at < len(text):
        member = _MEMBER.match(text, at)
        if member is None:
            raise wrong
        if member.group(1) == "sha-256":
            try:
                digest = base64.b64decode(member.group(2), validate=True)
            except binascii.Error:
                raise wrong from None
            if len(digest) != 32:
                raise wrong
            found = digest.hex()
        at = member.end()
    return found
