"""Conditional requests (RFC 9110 section 13) on a representation with a strong ETag and a modification time."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

_TAG = re.compile(r'[\s,]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')  # a list may have empty elements
_NAMES = ("If-Match", "If-Unmodified-Since", "If-None-Match", "If-Modified-Since")


class Headers(Protocol):
    """Header fields, of which one may come in several lines."""

    def __contains__(self, name: object, /) -> bool: ...

    def get(self, name: str, /) -> str | None: ...

    def getall(self, name: str, default: list[str], /) -> list[str]: ...


def evaluate(headers: Headers, etag: str, modified: datetime | None) -> int | None:
    """304 or 412 when the preconditions of a GET or HEAD say so, else None, in the order of section 13.2.2.

    ``etag`` is the opaque part, without quotes; ``modified`` has whole seconds; where it is
    None, dates do not count (section 13.1.3).
    """
    if not any(name in headers for name in _NAMES):
        return None
    if (tags := _list(headers, "If-Match")) is not None:
        if not _matches(tags, etag, weak=False):
            return 412
    elif modified and (until := _date(headers.get("If-Unmodified-Since"))) is not None and modified > until:
        return 412
    if (tags := _list(headers, "If-None-Match")) is not None:
        return 304 if _matches(tags, etag, weak=True) else None
    since = _date(headers.get("If-Modified-Since"))
    return 304 if since is not None and modified is not None and modified <= since else None


def range_holds(header: str | None, etag: str, modified: datetime) -> bool:
    """Whether a Range header counts under this If-Range (section 13.1.5): the strong tag or the exact date."""
    if header is None:
        return True
    if '"' in header:
        return header.strip() == f'"{etag}"'
    return _date(header) == modified


def _list(headers: Headers, name: str) -> str | None:
    """A list that may come in several lines (RFC 9110 section 5.3)."""
    lines = headers.getall(name, [])
    return ",".join(lines) if lines else None


def _matches(header: str, etag: str, *, weak: bool) -> bool:
    if header.strip() == "*":
        return True
    at = 0
    while match := _TAG.match(header, at):
        if match.group(2) == etag and (weak or not match.group(1)):
            return True
        at = match.end()
        if at >= len(header):
            break
    return False


def _date(header: str | None) -> datetime | None:
    """An HTTP date; one that is malformed counts as absent."""
    if header is None:
        return None
    try:
        date = parsedate_to_datetime(header)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
