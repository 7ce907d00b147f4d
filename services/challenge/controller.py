"""The loops of the service: completing what was left half done, and watching over the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.challenge.service import ChallengeService
from services.common.errors import ServiceError, Unavailable

log = logging.getLogger(__name__)


async def reconcile(service: ChallengeService, *, every: float) -> None:
    """Finishes begun publishings, at once and then ``every`` so many seconds, until cancelled.

    Replicas do it side by side: every step may be repeated, and the last is a compare-and-set.
    """
    while True:
        try:
            await service.finish_publishing()
        except ServiceError as error:
            log.warning("the sweep waits: %s", error.message)
        except Exception:  # guesses must not stop because publishing does
            log.exception("the sweep fails")
        await asyncio.sleep(every)


async def watch(
    ask: Callable[[], Awaitable[None]], tell: Callable[[bool], Awaitable[None]], *, every: float, patience: float
) -> None:
    """Asks the database ``every`` so many seconds whether it is there (``ask`` raises Unavailable, or takes longer
    than ``patience``), and tells when that changes, until cancelled."""
    there = True
    while True:
        try:
            async with asyncio.timeout(patience):
                await ask()
        except (Unavailable, TimeoutError) as error:
            now, why = False, error.message if isinstance(error, Unavailable) else "the database is silent"
        else:
            now, why = True, "the database answers again"
        if now is not there:
            log.log(logging.INFO if now else logging.ERROR, why)
            await tell(now)
        there = now
        await asyncio.sleep(every)
