"""The sweep: tends uploads that no caller may come back for, and removes bytes that nobody can use.

Bytes without a record are kept for a grace period, lest a wrong database address costs somebody's files: parts
from when they last changed, finished files from when this process first saw that no record knows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.common.clock import Clock
from services.common.errors import ServiceError
from services.common.objects import ObjectStore
from services.common.progress import Progress
from services.common.state import mutate
from services.upload.assembly import FORGOTTEN, Assembly, Retention, object_key
from services.upload.domain import Upload, UploadState
from services.upload.ports import Hints, PartStore, Staged, UploadStore

log = logging.getLogger(__name__)

_FILES = "uploads/"
_OBJECTS_EVERY = timedelta(hours=1)  # to list a bucket costs more than to list the records


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep removed: uploads' parts, and finished files, that nobody can use."""

    parts: int = 0
    objects: int = 0


class Sweep:
    """Sweeps what the records in ``uploads`` know and do not know of ``parts`` and ``objects``."""

    def __init__(
        self,
        uploads: UploadStore,
        parts: PartStore,
        objects: ObjectStore,
        hints: Hints,
        assembly: Assembly,
        *,
        retention: Retention,
        clock: Clock,
    ) -> None:
        self._uploads = uploads
        self._parts = parts
        self._objects = objects
        self._hints = hints
        self._assembly = assembly
        self._grace = timedelta(seconds=retention.orphans)
        self._clock = clock
        self._unknown: dict[str, datetime] = {}  # object key → when it was first seen without a record
        self._looked_at: datetime | None = None

    async def run_every(self, seconds: float, tell: Callable[[Swept], None]) -> None:
        """Sweeps now and again for ever, whatever happens to the stores."""
        while True:
            try:
                tell(await self.run())
            except (ServiceError, OSError):
                log.exception("sweep cut short")
            await asyncio.sleep(seconds)

    async def run(self) -> Swept:
        """Expires what is past its time, finishes what is being assembled, removes bytes that nobody can use.
        Goes on after an upload that cannot be helped now; raises Unavailable when the records cannot be read."""
        now = self._clock()
        # Before the records: of a file that is there by now, the record says so already.
        files = await self._list_objects(now)
        due: list[tuple[str, Upload]] = []
        states: dict[str, UploadState] = {}
        unread: list[str] = []
        async for entry in self._uploads.list(unread=unread.append):
            states[object_key(entry.value)] = entry.value.state
            if entry.value.due(now):
                due.append((entry.key, entry.value))
        for key, upload in due:
            with _left_for_later(upload.id):
                await self._tend(key, upload)
        parts = 0
        async for staged in self._parts.list_uploads():
            with _left_for_later(staged.upload):
                parts += await self._tidy(staged, now)
        # A record that cannot be read, a newer process's for example, has a file all the same.
        theirs = {f"{_FILES}{key.rpartition('.')[2]}" for key in unread}
        return Swept(parts, await self._clear([key for key in files if key not in theirs], states, now))

    async def _tend(self, key: str, upload: Upload) -> None:
        if upload.state is UploadState.ASSEMBLING or (upload.gathers and not upload.ended(self._clock())):
            await self._assembly.finish(key)
        else:
            if upload.object_key:  # of a partial upload that nobody used; first, so that it is never forgotten
                await self._parts.remove(upload.object_key)
            await mutate(self._uploads, key, lambda u: u.expire(self._clock()), ttl=self._assembly.ttl)
            await self._hints.publish(Progress("upload", upload.id))

    async def _tidy(self, staged: Staged, now: datetime) -> bool:
        found = await self._uploads.get(staged.upload)
        forgotten = now - staged.changed_at > self._grace if found is None else found.value.ended(now)
        if forgotten:
            await self._parts.discard(staged.upload)
        return forgotten

    async def _list_objects(self, now: datetime) -> list[str]:
        if self._looked_at is not None and now - self._looked_at < min(self._grace / 4, _OBJECTS_EVERY):
            return []
        self._looked_at = now
        return [info.key async for info in self._objects.list(_FILES)]

    async def _clear(self, files: list[str], states: dict[str, UploadState], now: datetime) -> int:
        """Removes finished files whose upload came to nothing, and after the grace period those without one."""
        if not states or not files:  # that nothing at all is known tells of another database, not of orphans
            return 0
        removed = 0
        self._unknown = {key: self._unknown.get(key, now) for key in files if key not in states}
        for key in files:
            since = self._unknown.get(key)
            if states.get(key) in FORGOTTEN or (since is not None and now - since > self._grace):
                with _left_for_later(key):
                    await self._objects.delete(key)
                    removed += 1
        return removed


@contextlib.contextmanager
def _left_for_later(upload: str) -> Iterator[None]:
    """One upload that cannot be helped, whatever its trouble, must not keep the sweep from the others."""
    try:
        yield
    except ServiceError as error:
        log.warning("upload left for the next sweep: %s", error, extra={"data": {"upload": upload}})
    except Exception:
        log.exception("upload left for the next sweep", extra={"data": {"upload": upload}})
