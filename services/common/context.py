"""Who calls, under which request id and until when: the facts of the call being served.

The gRPC server and the gateway set them; use cases read :func:`principal`. They live in a context
variable, so every task that a call starts sees the same.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from services.common.errors import PermissionDenied, Unauthenticated


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: a player, or a service of the mesh (``subject`` "service:merge"). ``until``: when
    the token stops to count, in seconds since the epoch."""

    subject: str
    scopes: frozenset[str] = frozenset()
    is_service: bool = False
    until: float = field(default=math.inf, compare=False)


@dataclass(frozen=True, slots=True)
class CallContext:
    """The call being served. ``deadline`` is a :func:`time.monotonic` value in seconds, or None."""

    principal: Principal | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    deadline: float | None = None


_current: ContextVar[CallContext | None] = ContextVar("call", default=None)


def current() -> CallContext | None:
    """The call being served, or None outside of one."""
    return _current.get()


@contextmanager
def serving(call: CallContext) -> Iterator[CallContext]:
    """Makes ``call`` the current one within the block."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


def principal() -> Principal:
    """The authenticated caller. Raises Unauthenticated when there is none."""
    call = _current.get()
    if call is None or call.principal is None:
        raise Unauthenticated("a bearer token is required")
    return call.principal


def owner(named: str = "") -> str:
    """Whose things this call is about: the caller's own, or those of the owner that a service names.

    Raises PermissionDenied (reason INTERNAL_ONLY) when a player names an owner, or a service names none.
    """
    caller = principal()
    if caller.is_service:
        if not named:
            raise PermissionDenied("a service must name the owner", reason="INTERNAL_ONLY")
        return named
    if named and named != caller.subject:
        raise PermissionDenied("only a service may name an owner", reason="INTERNAL_ONLY")
    return caller.subject


def require_service() -> Principal:
    """The calling service. Raises PermissionDenied (reason INTERNAL_ONLY) when a player calls."""
    caller = principal()
    if not caller.is_service:
        raise PermissionDenied("only services of the mesh may call this", reason="INTERNAL_ONLY")
    return caller
