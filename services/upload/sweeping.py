"""The sweep: tends uploads that no caller may come back for, and removes bytes that nobody can use.

It looks at the uploads that the index says are due, and at a bounded number of the uploads that have parts and of
the finished files, going on the next time where it stopped: what a sweep reads does not grow with what is stored.
Bytes without a record are kept for a grace period, lest a wrong database address costs somebody's files: parts
from when they last changed, finished files from when this process first saw that no record knows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from services.common.clock import Clock
from services.common.errors import ServiceError
from services.common.objects import ObjectInfo, ObjectStore
from services.common.progress import Progress
from services.common.state import mutate
from services.upload.assembly import FILES, FORGOTTEN, Assembly, Retention
from services.upload.domain import Upload, UploadState
from services.upload.index import UploadIndex
from services.upload.ports import Hints, PartStore, Staged, UploadStore

log = logging.getLogger(__name__)
T = TypeVar("T")

_FILE = re.compile(rf"{FILES}(?P<record>[0-9a-f]{{32}}\.[0-9a-f-]{{36}})")
_FILES_EVERY = timedelta(hours=1)  # to list a bucket costs more than to look at what is due
_AT_ONCE = 1000  # uploads with parts, and files, that one sweep looks at
_ASSEMBLIES = 4  # that the sweep has run at once
_PATIENCE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep removed: uploads' parts, and finished files, that nobody can use."""

    parts: int = 0
    objects: int = 0


class Sweep:
    """Sweeps what ``index`` and the records in ``uploads`` know and do not know of ``parts`` and ``objects``.

    ``patience``: seconds that a sweep waits for what it has assembled, a slow virus scan say, before it goes on
    beside it; ``at_once``: how many uploads with parts, and files, it looks at.
    """

    def __init__(
        self,
        uploads: UploadStore,
        index: UploadIndex,
        parts: PartStore,
        objects: ObjectStore,
        hints: Hints,
        assembly: Assembly,
        *,
        retention: Retention,
        clock: Clock,
        patience: float = _PATIENCE_SECONDS,
        at_once: int = _AT_ONCE,
    ) -> None:
        self._uploads = uploads
        self._index = index
        self._parts = parts
        self._objects = objects
        self._hints = hints
        self._assembly = assembly
        self._grace = timedelta(seconds=retention.orphans)
        self._clock = clock
        self._patience = patience
        self._at_once = at_once
        self._finishing: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_ASSEMBLIES)
        self._staged = _Walk(parts.list_uploads)
        self._files = _Walk(lambda: objects.list(FILES))
        self._listed_at: datetime | None = None
        # Object key → when it was first seen without a record: in the walk before and in this one.
        self._unknown: dict[str, datetime] = {}
        self._still_unknown: dict[str, datetime] = {}

    async def run_every(self, seconds: float, tell: Callable[[Swept], None]) -> None:
        """Sweeps now and again for ever, whatever happens to the stores."""
        try:
            while True:
                try:
                    tell(await self.run())
                except (ServiceError, OSError):
                    log.exception("sweep cut short")
                await asyncio.sleep(seconds)
        finally:
            for task in self._finishing.values():
                task.cancel()  # not what is being assembled already: the assembly sees to its end

    async def run(self) -> Swept:
        """Expires what is past its time, finishes what is being assembled, removes bytes that nobody can use.
        Goes on after an upload that cannot be helped now; raises Unavailable when a store cannot be read."""
        now = self._clock()
        for key in await self._index.due(now):
            with _left_for_later(key):
                await self._look(key, now)
        if self._finishing:
            await asyncio.wait(self._finishing.values(), timeout=self._patience)
        parts = 0
        for staged in await self._staged.some(self._at_once):
            with _left_for_later(staged.upload):
                parts += await self._tidy(staged, now)
        return Swept(parts, await self._sweep_files(now))

    async def _look(self, key: str, now: datetime) -> None:
        found = await self._uploads.get(key)
        if found is not None and found.value.due(now):
            await self._tend(key, found.value)
        else:
            await self._index.repair(key, None if found is None else found.value)

    async def _tend(self, key: str, upload: Upload) -> None:
        if upload.state is UploadState.ASSEMBLING or (upload.gathers and not upload.ended(self._clock())):
            if key not in self._finishing:
                self._finishing[key] = asyncio.create_task(self._finish(key), name=f"sweep {key}")
        else:
            entry = await mutate(self._uploads, key, lambda u: u.expire(self._clock()), ttl=self._assembly.ttl)
            # Of a partial upload that nobody used. Not before: a file may have begun to be made of it. What a kill
            # leaves here is removed as the file of an upload that came to nothing.
            if upload.object_key and entry is not None and entry.value.state is UploadState.EXPIRED:
                await self._parts.remove(upload.object_key)
            await self._hints.publish(Progress("upload", upload.id))

    async def _finish(self, key: str) -> None:
        try:
            async with self._turns:
                with _left_for_later(key):
                    await self._assembly.finish(key)
        finally:
            del self._finishing[key]

    async def _tidy(self, staged: Staged, now: datetime) -> bool:
        found = await self._uploads.get(staged.upload)
        if found is not None and found.value.due(now):  # whatever the index says
            await self._tend(staged.upload, found.value)
        forgotten = now - staged.changed_at > self._grace if found is None else found.value.ended(now)
        if forgotten:
            await self._parts.discard(staged.upload)
        return forgotten

    async def _sweep_files(self, now: datetime) -> int:
        if not self._files.under_way:
            if self._listed_at is not None and now - self._listed_at < min(self._grace / 4, _FILES_EVERY):
                return 0
            self._listed_at = now
            self._unknown, self._still_unknown = self._still_unknown, {}
        removed = 0
        for info in await self._files.some(self._at_once):
            with _left_for_later(info.key):
                removed += await self._clear(info, now)
        return removed

    async def _clear(self, info: ObjectInfo, now: datetime) -> bool:
        """Removes a finished file whose upload came to nothing, and after the grace period one without any."""
        name = _FILE.fullmatch(info.key)
        if name is None:
            return False
        # A record that cannot be read, a newer process's for example, raises: then the file stays.
        found = await self._uploads.get(name["record"])
        if found is None:
            since = self._still_unknown[info.key] = self._unknown.get(info.key, now)
            if now - since <= self._grace or not await self._any_record():
                return False
        elif found.value.state not in FORGOTTEN:
            return False
        await self._objects.delete(info.key)
        self._still_unknown.pop(info.key, None)
        return True

    async def _any_record(self) -> bool:
        """That nothing at all is known tells of another database, not of orphans."""
        async with contextlib.aclosing(self._uploads.list()) as records:
            async for _ in records:
                return True
        return False


class _Walk(Generic[T]):
    """Goes through what ``begin`` lists, some at a time, and then from the start again."""

    def __init__(self, begin: Callable[[], AsyncIterator[T]]) -> None:
        self._begin = begin
        self._rest: AsyncIterator[T] | None = None

    @property
    def under_way(self) -> bool:
        """Whether the last walk has not come to its end."""
        return self._rest is not None

    async def some(self, most: int) -> list[T]:
        """The next ones, fewer than ``most`` only at the end."""
        rest, self._rest = self._rest or self._begin(), None  # one that raises is begun again
        found: list[T] = []
        async for item in rest:
            found.append(item)
            if len(found) == most:
                self._rest = rest
                break
        return found


@contextlib.contextmanager
def _left_for_later(upload: str) -> Iterator[None]:
    """One upload that cannot be helped, whatever its trouble, must not keep the sweep from the others."""
    try:
        yield
    except ServiceError as error:
        log.warning("upload left for the next sweep: %s", error, extra={"data": {"upload": upload}})
    except Exception:
        log.exception("upload left for the next sweep", extra={"data": {"upload": upload}})
