"""What a service says of its quotas, as the header fields RateLimit and RateLimit-Policy.

See draft-ietf-httpapi-ratelimit-headers-10: ``RateLimit-Policy: "initiates";q=30;w=60`` is the limit, and
``RateLimit: "initiates";r=0;t=12`` what is left of it and the seconds until there is more. A refusal tells the
figures in the metadata of its ErrorInfo, an answer sends the fields as they are in its trailing metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from services.common import ratelimits

_NUMBER = re.compile(r"[0-9]{1,15}")
_NAME = re.compile(r"[A-Za-z0-9_.*-]{1,64}")
_FIELD = re.compile(r"[\x20-\x7e]{1,512}")
_FROM_TRAILERS = {ratelimits.STATE: "RateLimit", ratelimits.POLICY: "RateLimit-Policy"}


def of_error(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The fields of a refusal. Metadata: ratelimit_limit, ratelimit_remaining, ratelimit_reset_seconds, and
    ratelimit_policy, which is a policy's name or the whole field."""
    policy = metadata.get("ratelimit_policy", "")
    quoted = policy.startswith('"')
    name = policy[1:].partition('"')[0] if quoted else policy or "default"
    if not _NAME.fullmatch(name):
        return
    limit = _number(metadata, "ratelimit_limit")
    if quoted and _FIELD.fullmatch(policy):
        yield "RateLimit-Policy", policy
    elif limit:
        yield "RateLimit-Policy", f'"{name}";q={limit}'
    remaining, reset = _number(metadata, "ratelimit_remaining"), _number(metadata, "ratelimit_reset_seconds")
    if remaining:
        yield "RateLimit", f'"{name}";r={remaining}' + (f";t={reset}" if reset else "")


def of_answer(trailers: Iterable[tuple[str, str | bytes]]) -> Iterator[tuple[str, str]]:
    """The fields of an answer, from the trailing metadata of its call."""
    for key, value in ratelimits.told(trailers):
        if _FIELD.fullmatch(value):
            yield _FROM_TRAILERS[key], value


def _number(metadata: Mapping[str, str], key: str) -> str:
    value = metadata.get(key, "")
    return value if _NUMBER.fullmatch(value) else ""
