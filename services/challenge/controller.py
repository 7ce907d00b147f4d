"""The loop that completes what a crash or an absent merge service left half done."""

from __future__ import annotations

import asyncio
import logging

from services.challenge.service import ChallengeService
from services.common.errors import ServiceError

log = logging.getLogger(__name__)


async def reconcile(service: ChallengeService, *, every: float) -> None:
    """Finishes begun publishings, at once and then ``every`` so many seconds, until cancelled."""
    while True:
        try:
            await service.finish_publishing()
        except ServiceError as error:
            log.warning("the sweep waits: %s", error.message)
        except Exception:  # guesses must not stop because publishing does
            log.exception("the sweep fails")
        await asyncio.sleep(every)
