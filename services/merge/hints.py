"""How a worker tells how far it has come: at most four times a second, and once a second though nothing changed,
for those who missed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.progress import Progress, ProgressBus
from services.merge.domain import UnitRef
from services.merge.ports import OnProgress
from services.merge.service import KIND

_HINT_SECONDS = 0.25
_AGAIN_AFTER = 4  # of these


@asynccontextmanager
async def telling(progress: ProgressBus, session_id: str, ref: UnitRef) -> AsyncIterator[OnProgress]:
    """Sends what it is called with until the block ends, the latest at a time."""
    latest: list[tuple[int, int]] = []

    async def send() -> None:
        said, silent = None, 0
        while True:
            await asyncio.sleep(_HINT_SECONDS)
            silent += 1
            if latest and (latest[-1] is not said or silent >= _AGAIN_AFTER):
                del latest[:-1]
                said, silent = latest[0], 0
                await progress.publish(Progress(KIND, session_id, ref.heard_as, *said))

    sending = asyncio.create_task(send())
    try:
        yield lambda done, total: latest.append((done, total))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
