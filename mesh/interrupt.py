"""Runs a command's coroutine so that Ctrl-C and SIGTERM end it in order, and a second one at once.

Each signal cancels the coroutine: the first sends it into its ``finally`` blocks, the second cancels what
those wait for.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(main: Coroutine[Any, Any, None]) -> bool:
    """Runs ``main``. True when it ended by itself, False when a signal ended it; raises what it raised."""

    async def guarded() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(main)
        for number in SIGNALS:
            loop.add_signal_handler(number, task.cancel)
        await task

    try:
        asyncio.run(guarded())
    except asyncio.CancelledError:
        return False
    return True
