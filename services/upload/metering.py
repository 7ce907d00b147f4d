"""What the upload service counts, and the decorators around its ports that count it.

Ends of uploads are counted where they become true: at the compare-and-set that writes them, which of all replicas
one alone wins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Set

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.errors import AlreadyExists, ServiceError
from services.common.state import Entry
from services.common.wire import Buffer
from services.upload.analytics import Replays
from services.upload.domain import Upload, UploadState, Whole
from services.upload.grid import Grid, Part
from services.upload.ports import (
    Admit,
    Check,
    Confirm,
    Counting,
    Ledger,
    PartStore,
    Scanner,
    Staged,
    StoredPart,
    UploadStore,
)
from services.upload.reasons import Reason
from services.upload.sweeping import Swept

_NETWORKS = {"wifi", "5g", "4g", "3g", "2g", "ethernet", ""}
_DEVICES = {"mobile", "phone", "tablet", "desktop", "tv", ""}
_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400)
_BYTES_PER_SECOND = tuple(16_384 * 4**step for step in range(8))


class UploadMetrics:
    """The metrics, in ``registry``; labels have few values whatever clients send."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"twotruths_{name}", text, labels, registry=registry)

        self.started = counter("uploads_started", "Uploads initiated.")
        self.completed = counter("uploads_completed", "Uploads whose file is whole.")
        self.failed = counter("uploads_failed", "Uploads whose file was refused.", "error_type")
        self.expired = counter("uploads_expired", "Uploads given up after their expires_at.")
        self.cancelled = counter("uploads_cancelled", "Uploads given up before their file was whole.")
        self.bytes = counter("upload_received_bytes", "Bytes of chunks received, whatever became of them.")
        self.parts = counter("upload_parts_stored", "Chunks that became stored.")
        self.replayed = counter("upload_parts_replayed", "Chunks that came again with the same bytes.")
        self.conflicts = counter("upload_conflicts", "Chunks refused because other bytes are stored.")
        self.sweeps = counter("upload_sweeps", "Sweeps that came to their end.")
        self.orphans = counter("upload_orphans_removed", "Unusable bytes that sweeps removed.", "kind")
        self.refusals = counter("upload_quota_refusals", "Initiates refused by a quota.", "reason")
        self.scans = counter("upload_scans", "Virus scans by what came of them.", "verdict")
        self.streams = Gauge("twotruths_upload_streams_open", "Chunk streams open now.", registry=registry)
        self.seconds = Histogram(
            "twotruths_upload_duration_seconds",
            "From initiate to the whole file, by the kind of network that the client named.",
            ["network_type"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.speed = Histogram(
            "twotruths_upload_bytes_per_second",
            "A file's size by the time from initiate until it was whole, by the kinds of network and device that "
            "the client named.",
            ["network_type", "device_type"],
            buckets=_BYTES_PER_SECOND,
            registry=registry,
        )

    def swept(self, swept: Swept) -> None:
        """Counts a sweep."""
        self.sweeps.inc()
        self.orphans.labels("parts").inc(swept.parts)
        self.orphans.labels("objects").inc(swept.objects)

    def refused(self, reason: str) -> None:
        """Counts a refusal by a quota."""
        self.refusals.labels(reason).inc()

    def written(self, upload: Upload) -> None:
        """Counts the end of an upload, when that is what was just written."""
        if upload.state is UploadState.COMPLETED and upload.completed_at == upload.updated_at:
            network = _kind(upload.network_type, _NETWORKS)
            seconds = max(0.001, (upload.updated_at - upload.created_at).total_seconds())
            self.completed.inc()
            self.seconds.labels(network).observe(seconds)
            self.speed.labels(network, _kind(upload.device_type, _DEVICES)).observe(upload.size / seconds)
        elif upload.state is UploadState.FAILED:
            self.failed.labels(upload.error_type).inc()
        elif upload.state is UploadState.EXPIRED:
            self.expired.inc()
        elif upload.state is UploadState.CANCELLED and upload.completed_at is None:
            self.cancelled.inc()


def _kind(named: str, known: Set[str]) -> str:
    return (named or "unknown") if named in known else "other"


class MeteredUploads:
    """An :class:`UploadStore` that counts begins and ends of uploads."""

    def __init__(self, inner: UploadStore, metrics: UploadMetrics) -> None:
        self._inner = inner
        self._metrics = metrics
        self.get = inner.get
        self.delete = inner.delete
        self.list = inner.list

    async def create(self, key: str, value: Upload, *, ttl: float | None = None) -> Entry[Upload]:
        entry = await self._inner.create(key, value, ttl=ttl)
        self._metrics.started.inc()
        return entry

    async def update(self, key: str, value: Upload, revision: int, *, ttl: float | None = None) -> Entry[Upload]:
        entry = await self._inner.update(key, value, revision, ttl=ttl)
        self._metrics.written(value)
        return entry


class MeteredParts:
    """A :class:`PartStore` that counts bytes, chunks, replays and conflicts."""

    def __init__(self, inner: PartStore, metrics: UploadMetrics, replays: Replays) -> None:
        self._inner = inner
        self._metrics = metrics
        self._replays = replays

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[Buffer], confirm: Confirm
    ) -> StoredPart:
        try:
            stored = await self._inner.put_part(upload, grid, number, self._counted(pieces), confirm)
        except AlreadyExists as refusal:
            self._conflict(refusal)
            raise
        if stored.existed:
            self._metrics.replayed.inc()
            self._replays.add(upload)
        else:
            self._metrics.parts.inc()
        return stored

    async def append_tail(
        self,
        upload: str,
        grid: Grid,
        admit: Admit,
        pieces: AsyncIterator[Buffer],
        count: Counting,
        *,
        at_once: bool = False,
    ) -> int:
        began, on = 0, grid

        async def admitted(offset: int) -> Grid:
            nonlocal began, on
            began, on = offset, await admit(offset)
            return on

        async def counted() -> None:
            await count()
            if not at_once:  # then it is called for each part
                self._metrics.parts.inc()

        try:
            reached = await self._inner.append_tail(
                upload, grid, admitted, self._counted(pieces), counted, at_once=at_once
            )
        except AlreadyExists as refusal:
            self._conflict(refusal)
            raise
        if at_once:
            self._metrics.parts.inc(_whole_parts(on, reached) - _whole_parts(on, began))
        return reached

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        return await self._inner.list_parts(upload, grid)

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        return await self._inner.assemble(upload, grid, manifest, object_key, check)

    async def discard(self, upload: str) -> None:
        await self._inner.discard(upload)

    async def remove(self, object_key: str) -> None:
        await self._inner.remove(object_key)

    def list_uploads(self) -> AsyncIterator[Staged]:
        return self._inner.list_uploads()

    def _counted(self, pieces: AsyncIterator[Buffer]) -> AsyncIterator[Buffer]:
        return _Counted(pieces, self._metrics.bytes)

    def _conflict(self, refusal: AlreadyExists) -> None:
        if refusal.reason == Reason.CHUNK_CONFLICT:
            self._metrics.conflicts.inc()


def _whole_parts(grid: Grid, offset: int) -> int:
    return grid.total if offset == grid.size else offset // grid.chunk_size


class _Counted(AsyncIterator[Buffer]):
    """Not a generator, so that nothing but the bytes' own iterator has to be closed."""

    def __init__(self, pieces: AsyncIterator[Buffer], counter: Counter) -> None:
        self._pieces = pieces
        self._counter = counter

    async def __anext__(self) -> Buffer:
        piece = await anext(self._pieces)
        self._counter.inc(len(piece))
        return piece


class MeteredScanner:
    """A :class:`Scanner` whose verdicts are counted."""

    def __init__(self, inner: Scanner, metrics: UploadMetrics) -> None:
        self._inner = inner
        self._scans = metrics.scans

    async def scan(self, pieces: AsyncIterator[bytes]) -> str:
        try:
            found = await self._inner.scan(pieces)
        except (ServiceError, OSError):
            self._scans.labels("unavailable").inc()
            raise
        self._scans.labels("infected" if found else "clean").inc()
        return found
