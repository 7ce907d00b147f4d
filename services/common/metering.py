"""How long the stores take and how they fail, by decorators around their ports.

What an operation's caller does in between (sends the bytes of a part, takes those of an object) is not counted as
the store's time.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.common.errors import ServiceError
from services.common.objects import ObjectInfo, ObjectStore
from services.common.state import Entry, RevisionConflict, StateStore

T = TypeVar("T")
_STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_RECORD_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Stopwatch:
    """The time of one operation, without that of the blocks in which it is :meth:`paused`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Somebody else takes this time."""
        at = time.perf_counter()
        try:
            yield
        finally:
            self._began += time.perf_counter() - at

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began


class OperationMetrics:
    """Duration and errors of the operations of one sort of store, ``what`` in words. The operation is the last
    label, behind those in ``labels``."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        what: str,
        buckets: Sequence[float],
        labels: Sequence[str] = (),
    ) -> None:
        self._seconds = Histogram(
            f"twotruths_{name}_operation_duration_seconds",
            f"What {what} took for one operation, failed ones too.",
            [*labels, "operation"],
            buckets=buckets,
            registry=registry,
        )
        self._errors = Counter(
            f"twotruths_{name}_operation_errors",
            f"Operations on {what} that raised, by the code of the error.",
            [*labels, "operation", "code"],
            registry=registry,
        )

    @contextmanager
    def timed(self, *labels: str) -> Iterator[Stopwatch]:
        """Counts what happens in the block as this operation."""
        watch = Stopwatch()
        try:
            yield watch
        except Exception as error:
            self._errors.labels(*labels, code_of(error)).inc()
            raise
        finally:
            self._seconds.labels(*labels).observe(watch.seconds)


class StoreMetrics(OperationMetrics):
    """Of the store of parts and objects: a directory, or S3."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, "store", "the store of bytes", _STORE_SECONDS)


class KvMetrics(OperationMetrics):
    """Of the buckets of the state store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, "kv", "the state store", _RECORD_SECONDS, ["bucket"])

    def around(self, bucket: str, store: StateStore[T]) -> MeteredState[T]:
        """The store, timed as this bucket."""
        return MeteredState(store, bucket, self)


class DatabaseMetrics(OperationMetrics):
    """Of a database."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, "database", "the database", _RECORD_SECONDS)


def code_of(error: Exception) -> str:
    """What an error is counted as: one of few words."""
    if isinstance(error, ServiceError):
        return error.code
    return "CONFLICT" if isinstance(error, RevisionConflict) else "INTERNAL"


class MeteredState(Generic[T]):
    """A :class:`StateStore` whose operations are timed."""

    def __init__(self, inner: StateStore[T], bucket: str, metrics: KvMetrics) -> None:
        self._inner = inner
        self._bucket = bucket
        self._metrics = metrics

    async def get(self, key: str) -> Entry[T] | None:
        with self._metrics.timed(self._bucket, "get"):
            return await self._inner.get(key)

    async def create(self, key: str, value: T, *, ttl: float | None = None) -> Entry[T]:
        with self._metrics.timed(self._bucket, "create"):
            return await self._inner.create(key, value, ttl=ttl)

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> Entry[T]:
        with self._metrics.timed(self._bucket, "update"):
            return await self._inner.update(key, value, revision, ttl=ttl)

    async def delete(self, key: str, revision: int) -> None:
        with self._metrics.timed(self._bucket, "delete"):
            await self._inner.delete(key, revision)

    async def list(self, prefix: str = "") -> AsyncGenerator[Entry[T], None]:
        async with aclosing(self._inner.list(prefix)) as entries:
            with self._metrics.timed(self._bucket, "list") as watch:
                async for entry in entries:
                    with watch.paused():
                        yield entry


class MeteredObjects:
    """An :class:`ObjectStore` whose operations are timed. ``local_path`` asks no store."""

    def __init__(self, inner: ObjectStore, metrics: StoreMetrics) -> None:
        self._inner = inner
        self._metrics = metrics
        self.local_path = inner.local_path

    async def put_file(self, key: str, source: Path) -> ObjectInfo:
        with self._metrics.timed("put_file"):
            return await self._inner.put_file(key, source)

    async def stat(self, key: str) -> ObjectInfo:
        with self._metrics.timed("stat"):
            return await self._inner.stat(key)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._inner.read(key, start, end)) as pieces:
            with self._metrics.timed("read") as watch:
                async for piece in pieces:
                    with watch.paused():
                        yield piece

    async def delete(self, key: str) -> None:
        with self._metrics.timed("delete"):
            await self._inner.delete(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        with self._metrics.timed("list") as watch:
            async for info in self._inner.list(prefix):
                with watch.paused():
                    yield info
