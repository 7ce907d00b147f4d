"""The lanes in which a worker takes jobs.

A player waits for a probe, which takes a moment; an encode takes minutes. So probes have slots of their own, and
the others take the encodes. Nobody waits for what is encoded ahead at low priority, but once begun it is not
stopped: while it holds all slots, one more takes what is urgent. So beside its probes a worker does at most one
job more than ``jobs_at_once``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from services.common.errors import ServiceError
from services.common.jobs import Delivery, JobPriority, JobQueue
from services.merge.jobs import ENCODES, KINDS, PROBES

log = logging.getLogger(__name__)

_FETCH_SECONDS = 30.0
_AWAY_SECONDS = 1.0


class Lanes:
    """Fetches jobs for ``handle``, which leaves a job in the queue by raising ServiceError. With no slots for
    probes the others take them, too."""

    def __init__(
        self,
        queue: JobQueue,
        handle: Callable[[Delivery], Awaitable[None]],
        *,
        jobs_at_once: int = 1,
        probes_at_once: int = 0,
    ) -> None:
        self._queue = queue
        self._handle = handle
        self._jobs_at_once = jobs_at_once
        self._probes_at_once = probes_at_once
        self._low = 0  # slots that hold jobs of low priority
        self._only_low = asyncio.Event()
        self._until_one_is_free: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Takes jobs for ever."""
        others = ENCODES if self._probes_at_once else KINDS
        async with asyncio.TaskGroup() as group:
            for _ in range(self._probes_at_once):
                group.create_task(_for_ever(lambda: self._take(PROBES)))
            for _ in range(self._jobs_at_once):
                group.create_task(_for_ever(lambda: self._take(others)))
            group.create_task(_for_ever(lambda: self._take_urgent(others)))

    async def _take(self, kinds: Sequence[str]) -> None:
        delivery = await self._queue.fetch(kinds, _FETCH_SECONDS)
        if delivery is not None:
            with self._held(low=kinds is not PROBES and delivery.job.priority is JobPriority.LOW):
                await self._handle(delivery)

    async def _take_urgent(self, kinds: Sequence[str]) -> None:
        await self._only_low.wait()
        delivery = None
        try:
            # A fetch that is cancelled gives back what was on its way to it.
            async with asyncio.timeout(_FETCH_SECONDS) as self._until_one_is_free:
                delivery = await self._queue.fetch(kinds, _FETCH_SECONDS, least=JobPriority.NORMAL)
        except TimeoutError:
            return
        finally:
            self._until_one_is_free = None
        if delivery is not None:
            await self._handle(delivery)

    @contextmanager
    def _held(self, *, low: bool) -> Iterator[None]:
        if not low:
            yield
            return
        self._low += 1
        if self._low == self._jobs_at_once:
            self._only_low.set()
        try:
            yield
        finally:
            self._low -= 1
            self._only_low.clear()
            if self._until_one_is_free is not None and not self._until_one_is_free.expired():
                self._until_one_is_free.reschedule(asyncio.get_running_loop().time())


async def _for_ever(take: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await take()
        except ServiceError as error:
            log.info("no work: %s", error)
            await asyncio.sleep(_AWAY_SECONDS)
