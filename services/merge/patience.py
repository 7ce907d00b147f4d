"""What a worker does when the object store is full or away: it keeps what it made and tries again for a while.

An encode of minutes must not be thrown away for a store that is away for seconds. When it stays away the attempt
fails and says why; it counts as others do, so a store that is full costs a few encodes and not one after another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from services.common.errors import ResourceExhausted, Unavailable
from services.merge.media.errors import ErrorType, MediaError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Tries for so many ``seconds``; the first pause is of ``pause_seconds``, each one twice as long as the one
    before, up to ``longest_pause_seconds``."""

    seconds: float = 60.0
    pause_seconds: float = 0.5
    longest_pause_seconds: float = 10.0

    async def __call__(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What ``ask`` answers, in the end. Raises MediaError (STORAGE_UNAVAILABLE) when the store does not serve
        within that time; whatever else ``ask`` raises at once."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self.seconds, self.pause_seconds
        while True:
            try:
                return await ask()
            except (ResourceExhausted, Unavailable) as error:
                if loop.time() + pause > deadline:
                    text = "the store of clips and videos is full or does not answer"
                    raise MediaError(ErrorType.STORAGE_UNAVAILABLE, text) from error
                log.warning("the object store does not serve, tried again in %g s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, self.longest_pause_seconds)
