"""A state store that remembers, for a process that is the only one to write its records.

The owner of a directory (flock) is that for the uploads in it. What it read or wrote last is then what is there,
so a chunk needs no round trip to the broker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from services.common.state import Entry, StateStore

T = TypeVar("T")
_MOST = 1024


class SoleWriter(Generic[T]):
    """Implements :class:`services.common.state.StateStore` over ``inner``. ``lasting``: which records have no time
    to live; others may go without anybody being told, so they are not remembered."""

    def __init__(self, inner: StateStore[T], lasting: Callable[[T], bool]) -> None:
        self._inner = inner
        self._lasting = lasting
        self._known: OrderedDict[str, Entry[T]] = OrderedDict()
        self._writes = 0

    async def get(self, key: str) -> Entry[T] | None:
        if (known := self._known.get(key)) is not None:
            return known
        writes = self._writes
        entry = await self._inner.get(key)
        if entry is not None:
            self._remember(entry, writes)
        return entry

    async def create(self, key: str, value: T, *, ttl: float | None = None) -> Entry[T]:
        with self._writing(key) as writes:
            entry = await self._inner.create(key, value, ttl=ttl)
        self._remember(entry, writes)
        return entry

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> Entry[T]:
        with self._writing(key) as writes:
            entry = await self._inner.update(key, value, revision, ttl=ttl)
        self._remember(entry, writes)
        return entry

    async def delete(self, key: str, revision: int) -> None:
        with self._writing(key):
            await self._inner.delete(key, revision)

    def list(self, prefix: str = "") -> AsyncGenerator[Entry[T], None]:
        return self._inner.list(prefix)

    @contextmanager
    def _writing(self, key: str) -> Iterator[int]:
        """Gives what ``_writes`` is afterwards if nobody else writes meanwhile. Whether a write that fails took
        effect is unknown, so what was known goes in any case."""
        self._writes += 1
        try:
            yield self._writes + 1
        finally:
            self._writes += 1
            self._known.pop(key, None)

    def _remember(self, entry: Entry[T], writes: int) -> None:
        """Unless there were other writes than these: one may have replaced the entry."""
        if writes != self._writes or not self._lasting(entry.value):
            return
        self._known[entry.key] = entry
        self._known.move_to_end(entry.key)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
