"""Structured fields (RFC 9651), as much as resumable uploads use, and the file name of Content-Disposition."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

_PARAMETERS = r"(?: *; *[a-z*][a-z0-9_.*-]*(?:=[^;,]*)?)*"
_INTEGER = re.compile(rf"(-?[0-9]{{1,15}}){_PARAMETERS}")
_BOOLEAN = re.compile(rf"\?([01]){_PARAMETERS}")
_PARAMETER = re.compile(r";\s*([A-Za-z*_-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\s\"]+))\s*")


def integer(text: str | None) -> int | None:
    """An Item that is a number from 0; None for none and for anything else, which counts as not sent."""
    found = _INTEGER.fullmatch((text or "").strip(" "))
    return int(found.group(1)) if found and not found.group(1).startswith("-") else None


def boolean(text: str | None) -> bool | None:
    """An Item that is a Boolean; None for none and for anything else, which counts as not sent."""
    found = _BOOLEAN.fullmatch((text or "").strip(" "))
    return found.group(1) == "1" if found else None


def filename(disposition: str) -> str:
    """The name in a Content-Disposition (RFC 6266): ``filename*`` before ``filename``; "" for none."""
    found: dict[str, str] = {}
    at = disposition.find(";")
    while at >= 0 and (match := _PARAMETER.match(disposition, at)):
        value = re.sub(r"\\(.)", r"\1", match.group(2)) if match.group(2) is not None else match.group(3)
        found.setdefault(match.group(1).lower(), value)
        at = match.end()
        at = at if disposition[at : at + 1] == ";" else -1
    charset, _, rest = found.get("filename*", "").partition("'")
    if charset.lower() == "utf-8" and "'" in rest:
        try:
            return unquote_to_bytes(rest.partition("'")[2]).decode()
        except UnicodeDecodeError:
            pass
    # Header bytes that are not UTF-8 came as surrogates, which no message can carry.
    return found.get("filename", "").encode(errors="replace").decode()
