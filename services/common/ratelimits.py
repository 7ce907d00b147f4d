"""What a service tells a player of the limits, beside an answer: header fields of
draft-ietf-httpapi-ratelimit-headers-10, in lower case, as trailing metadata of the call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

POLICY, STATE = "ratelimit-policy", "ratelimit"

Fields = tuple[tuple[str, str], ...]


def told(trailing: Iterable[tuple[str, str | bytes]] | None) -> Fields:
    """The fields in the trailing metadata of a call."""
    return tuple(
        (key, value) for key, value in trailing or () if key in {POLICY, STATE} and isinstance(value, str)
    )


def tell(rpc: grpc.aio.ServicerContext[Any, Any], fields: Fields) -> None:
    """Sends them with the answer of the call being served."""
    if fields:
        # What is set replaces what is there: the request id.
        rpc.set_trailing_metadata((*(rpc.trailing_metadata() or ()), *fields))
