"""How much of a database server one process takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a server a process takes: connections at most, beside the one that asks whether it is there;
    seconds to connect, to wait for a connection that is free, and for a statement (locks included)."""

    connections: int = 10
    connect_seconds: float = 5.0
    statement_seconds: float = 10.0


DEFAULT_LIMITS = Limits()
