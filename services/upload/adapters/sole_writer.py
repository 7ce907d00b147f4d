"""A state store that remembers, for a process that is the only one to write its records.

The owner of a directory (flock) is that for the uploads in it. What it read or wrote last is then what is there,
so a chunk needs no round trip to the broker.

A write of which nobody knows what became, because the broker did not answer in time or the caller went away, may
still take effect after a later read. Its record is not remembered until a write that rules that out succeeds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from services.common.state import Entry, RevisionConflict, StateStore

T = TypeVar("T")
_MOST = 1024


class SoleWriter(Generic[T]):
    """Implements :class:`services.common.state.StateStore` over ``inner``. ``lasting``: which records have no time
    to live; others may go without anybody being told, so they are not remembered."""

    def __init__(self, inner: StateStore[T], lasting: Callable[[T], bool]) -> None:
        self._inner = inner
        self._lasting = lasting
        self._known: OrderedDict[str, Entry[T]] = OrderedDict()
        self._doubtful: OrderedDict[str, int] = OrderedDict()
        """The keys of such records, and the revision that the write would replace."""
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
        with self._writing(key, 0) as writes:
            entry = await self._inner.create(key, value, ttl=ttl)
        self._remember(entry, writes)
        return entry

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> Entry[T]:
        with self._writing(key, revision) as writes:
            entry = await self._inner.update(key, value, revision, ttl=ttl)
        self._remember(entry, writes)
        return entry

    async def delete(self, key: str, revision: int) -> None:
        with self._writing(key, revision):
            await self._inner.delete(key, revision)

    def list(self, prefix: str = "") -> AsyncGenerator[Entry[T], None]:
        return self._inner.list(prefix)

    @contextmanager
    def _writing(self, key: str, revision: int) -> Iterator[int]:
        """Gives what ``_writes`` is afterwards if nobody else writes meanwhile. Whether a write that fails took
        effect is unknown, so what was known goes in any case."""
        self._writes += 1
        try:
            yield self._writes + 1
        except RevisionConflict:
            raise
        except BaseException:
            self._doubtful[key] = max(revision, self._doubtful.pop(key, 0))
            _trim(self._doubtful)
            raise
        else:
            if revision >= self._doubtful.get(key, 0):
                self._doubtful.pop(key, None)
        finally:
            self._writes += 1
            self._known.pop(key, None)

    def _remember(self, entry: Entry[T], writes: int) -> None:
        """Unless there were other writes than these: one may have replaced the entry."""
        if writes != self._writes or entry.key in self._doubtful or not self._lasting(entry.value):
            return
        self._known[entry.key] = entry
        self._known.move_to_end(entry.key)
        _trim(self._known)


def _trim(entries: OrderedDict[str, Any]) -> None:
    while len(entries) > _MOST:
        entries.popitem(last=False)
