"""The state store: one record per key, written by compare-and-set on its revision.

A record's whole value is replaced at each write, and a write names the revision it was computed from, so
nobody's write is lost. :func:`mutate` is the loop around that. Keys of things that players own are
``<hash(owner)>.<id>``: a caller who is not the owner looks under another key and finds nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.common.errors import Aborted

T = TypeVar("T")


class RevisionConflict(Exception):
    """The key is not at the revision the write was computed from (or exists already, for create)."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A record as read: its key, its value and the revision to name when replacing it."""

    key: str
    value: T
    revision: int


class StateStore(Protocol[T]):
    """Records of one kind. Every method raises Unavailable when the store does not answer."""

    async def get(self, key: str) -> Entry[T] | None:
        """The record, or None. Never stale: a write that was acknowledged before the call is seen."""

    async def create(self, key: str, value: T, *, ttl: float | None = None) -> Entry[T]:
        """Writes a key that has no record. ``ttl`` in seconds. Raises RevisionConflict if it has one."""

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> Entry[T]:
        """Replaces the record read at ``revision``. Without ``ttl`` it stays for ever, whatever the record
        before had. Raises RevisionConflict if the key is at another revision."""

    async def delete(self, key: str, revision: int) -> None:
        """Removes the record read at ``revision``. Raises RevisionConflict; a missing key is one."""

    def list(self, prefix: str = "") -> AsyncGenerator[Entry[T], None]:
        """The records whose key begins with the whole tokens of ``prefix`` ("" is all), the one that was last
        written longest ago first, read as they are asked for. One that cannot be read is logged and left out.
        Close it (contextlib.aclosing) where reading may stop before the end."""


def owner_prefix(owner: str) -> str:
    """The first token of the keys of an owner's things: 128 bits of SHA-256 in hex."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


def owned_key(owner: str, id_: str) -> str:
    """The key of the thing ``id_`` of ``owner``."""
    return f"{owner_prefix(owner)}.{id_}"


async def mutate(
    store: StateStore[T],
    key: str,
    change: Callable[[T], T],
    *,
    ttl: Callable[[T], float | None] = lambda _: None,
    attempts: int = 20,
) -> Entry[T] | None:
    """Applies the pure function ``change`` to the record by compare-and-set, again when someone else was faster.

    Answers the record as it is afterwards, None when there is none. A ``change`` that answers its argument
    writes nothing; one that raises changes nothing. Raises Aborted after ``attempts`` lost races.
    """
    for attempt in range(attempts):
        entry = await store.get(key)
        if entry is None:
            return None
        value = change(entry.value)
        if value is entry.value:
            return entry
        try:
            return await store.update(key, value, entry.revision, ttl=ttl(value))
        except RevisionConflict:
            # Full jitter: without it, writers that collided once collide again.
            await asyncio.sleep(random.uniform(0, 0.005 * 2 ** min(attempt, 6)))  # noqa: S311  not a secret
    raise Aborted("too many writers at once; try again")
