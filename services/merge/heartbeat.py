"""A worker's report of itself, renewed every few seconds; when the worker ends, however it ends, it goes.

The worker's numbers include those of its jobs' processes: what they use while they run, and after that what the
kernel adds to their parent, which is a child of the worker's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from services.common.clock import Clock
from services.common.errors import ServiceError
from services.common.state import Entry, RevisionConflict
from services.merge.health import Library, WorkerReport, WorkerReports

log = logging.getLogger(__name__)

_EVERY_SECONDS = 5.0
_TTL_SECONDS = 16.0  # three reports may be lost
_FAREWELL_SECONDS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Heartbeat:
    """Reports a worker. ``describe`` tells of the media library, once; ``scratch`` is where its jobs write."""

    def __init__(
        self,
        reports: WorkerReports,
        describe: Callable[[], Awaitable[Library]],
        *,
        scratch: Path,
        sandbox_lacks: tuple[str, ...],
        clock: Clock,
        every_seconds: float = _EVERY_SECONDS,
    ) -> None:
        self._reports = reports
        self._describe = describe
        self._scratch = scratch
        self._sandbox_lacks = sandbox_lacks
        self._clock = clock
        self._every_seconds = every_seconds
        self._id = uuid.uuid4().hex
        self._entry: Entry[WorkerReport] | None = None
        self._before = (time.monotonic(), 0.0)

    async def run(self) -> None:
        """Reports for ever; at the end takes the report back."""
        self._before = (time.monotonic(), cpu_seconds())
        library = await self._describe()
        try:
            while True:
                try:
                    await self._report(self._measured(library))
                except (ServiceError, RevisionConflict) as error:  # away, or the report had gone: the next comes
                    self._entry = None
                    log.debug("no report: %s", error)
                except Exception:  # whatever it is, the worker works on
                    self._entry = None
                    log.exception("no report")
                await asyncio.sleep(self._every_seconds)
        finally:
            if self._entry is not None:
                with suppress(ServiceError, RevisionConflict, TimeoutError):
                    async with asyncio.timeout(_FAREWELL_SECONDS):
                        await self._reports.delete(self._entry.key, self._entry.revision)

    async def _report(self, report: WorkerReport) -> None:
        if self._entry is None:
            self._entry = await self._reports.get(self._id)
        if self._entry is None:
            self._entry = await self._reports.create(self._id, report, ttl=_TTL_SECONDS)
        else:
            self._entry = await self._reports.update(self._id, report, self._entry.revision, ttl=_TTL_SECONDS)

    def _measured(self, library: Library) -> WorkerReport:
        now, used = time.monotonic(), cpu_seconds()
        passed, busy = now - self._before[0], used - self._before[1]
        self._before = (now, used)
        return WorkerReport(
            id=self._id,
            reported_at=self._clock(),
            ffmpeg_version=library.version,
            decoders=library.decoders,
            encoders=library.encoders,
            sandbox_lacks=self._sandbox_lacks,
            cpu_percent=round(max(0.0, 100 * busy / passed), 1) if passed > 0 else 0.0,
            rss_bytes=rss_bytes(),
            scratch_free_bytes=_free_bytes(self._scratch),
        )


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # jobs will say so
        return 0


def cpu_seconds() -> float:
    """What this process and its children used, those that ended and those that run."""
    used = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    for child in _descendants():
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15])) / _TICKS  # its own and that of children it waited for
    return used


def rss_bytes() -> int:
    """Resident memory of this process and its children."""
    total = 0
    for process in ("self", *_descendants()):
        with suppress(OSError, IndexError):
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
    return total


def _descendants(process: str = "self") -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += task.read_text().split()
    return found + [below for child in found for below in _descendants(child)]
