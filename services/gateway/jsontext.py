"""JSON as it came: what RFC 8259 leaves open (keys that come twice, half a surrogate pair, endless numbers) is
refused, not guessed at. So is what would take long to look at: reading holds up everybody else.
"""

from __future__ import annotations

import json
from typing import Any

from services.gateway.problems import Problem

_MAX_DIGITS = 4000  # Python reads 4300
_MAX_VALUES = 20_000


def parse_json(data: bytes) -> Any:
    """A JSON body as Python values. Raises Problem 400 (MALFORMED_JSON), also for keys that come twice; 413 when
    there may be more than 20,000 values, by the marks that stand before them."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_VALUES:
        raise Problem(413, "BODY_TOO_LARGE", f"the body has more than {_MAX_VALUES} values")
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_int=_int)
    except UnicodeDecodeError:
        raise Problem(400, "MALFORMED_JSON", "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem(400, "MALFORMED_JSON", f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise Problem(400, "MALFORMED_JSON", "the body is nested too deeply") from None
    except ValueError as error:  # from the hooks below
        raise Problem(400, "MALFORMED_JSON", f"the body is not JSON: {str(error)[:200]}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    for name in result:
        if not name.isascii():
            _check_text(name)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name!r} comes twice")
            seen.add(name)
    return result


def _check_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError("a key holds half a surrogate pair, which is no character") from None


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(text)


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")
