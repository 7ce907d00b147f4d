"""How a process of the mesh lives: build, serve, drain.

On SIGTERM or SIGINT: health says NOT_SERVING, calls are still served for a moment (so that balancers notice),
then no new ones are taken and the running ones end; workers stop; dependencies close, by leaving what
``build`` entered. A second signal exits at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from prometheus_client import CollectorRegistry

from services.common import logging as log_lines
from services.common import malloc, metrics
from services.common.errors import Cancelled, ServiceError
from services.common.settings import CommonSettings

S = TypeVar("S", bound=CommonSettings)
log = logging.getLogger(__name__)


class LoopEnded(Exception):
    """A background loop ended, though nobody told it to; its exception is the cause."""


class Server(Protocol):
    """What serves: the gRPC server, or the gateway's HTTP server."""

    port: int

    async def start(self) -> None:
        """Listens. Raises OSError."""

    async def set_serving(self, ok: bool) -> None:
        """Tells health checks whether calls are welcome."""

    async def stop(self, grace: float) -> None:
        """Takes no new calls and waits for the running ones, at most ``grace`` seconds."""


@dataclass(frozen=True)
class App:
    """A built process: its server, its endless loops (cancelled on drain; one that ends is an error) and what it
    counts."""

    server: Server
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    metrics: CollectorRegistry = field(default_factory=metrics.new_registry)


def run(
    build: Callable[[S], AbstractAsyncContextManager[App]], settings: S, *, name: str, traced: bool = True
) -> None:
    """Runs a process until it is told to stop. Exits with 1 and one clear line when it cannot start or go on.
    ``traced``: whether it does anything that traces are of."""
    _run(_main(build, settings, name, traced=traced), settings, name)


def run_once(work: Callable[[S], Coroutine[Any, Any, None]], settings: S, *, name: str) -> None:
    """Runs what has an end by itself. Exits like :func:`run`, and with 1 when it is told to stop before."""
    _run(_work(work, settings), settings, name)


def _run(main: Coroutine[Any, Any, None], settings: CommonSettings, name: str) -> None:
    log_lines.configure(settings, name)
    malloc.tune()
    try:
        asyncio.run(main)
    except (OSError, ValueError, ServiceError) as error:
        log.critical("%s stopped: %s", name, error)
        sys.exit(1)
    except LoopEnded as error:
        log.critical("%s stopped: %s", name, error, exc_info=error.__cause__)
        sys.exit(1)
    except Exception:
        log.critical("%s stopped by an unexpected error", name, exc_info=True)
        sys.exit(1)
    except asyncio.CancelledError:
        log.info("%s was told to stop while it started", name)


async def _work(work: Callable[[S], Coroutine[Any, Any, None]], settings: S) -> None:
    _Told(asyncio.current_task())
    try:
        await work(settings)
    except asyncio.CancelledError:
        raise Cancelled("told to stop before it was done") from None


async def _main(
    build: Callable[[S], AbstractAsyncContextManager[App]], settings: S, name: str, *, traced: bool
) -> None:
    told = _Told(asyncio.current_task())
    async with _exporting(settings, name) if traced else nullcontext(), build(settings) as app:
        with metrics.exposed(app.metrics, settings.metrics_listen):
            await _serve(app, settings, name, told)
    log.info("%s stopped", name)


@asynccontextmanager
async def _exporting(settings: CommonSettings, name: str) -> AsyncIterator[None]:
    if not settings.traces_endpoint:
        yield
        return
    from services.common.adapters.otlp import exporting  # a third of a second of imports

    async with exporting(settings, name):
        yield


async def _serve(app: App, settings: CommonSettings, name: str, told: _Told) -> None:
    await app.server.start()
    await app.server.set_serving(True)
    told.started()
    gc.freeze()  # what there is now stays: each collection of the oldest generation would walk it in vain
    log.info("%s serves on port %d", name, app.server.port)
    loops = [asyncio.create_task(loop(), name=getattr(loop, "__qualname__", "loop")) for loop in app.background]
    stop = asyncio.create_task(told.stop.wait())
    done, _ = await asyncio.wait({stop, *loops}, return_when=asyncio.FIRST_COMPLETED)
    await app.server.set_serving(False)
    if stop in done:
        log.info("%s drains", name)
        await asyncio.sleep(settings.drain_wait_seconds)
    await app.server.stop(settings.drain_grace_seconds)
    for task in (stop, *loops):
        task.cancel()
    await asyncio.gather(stop, *loops, return_exceptions=True)
    for task in done - {stop}:
        raise LoopEnded(f"{task.get_name()} ended by itself") from task.exception()


class _Told:
    """Signals: the first asks to stop (or ends the start), the second exits."""

    def __init__(self, starting: asyncio.Task[Any] | None) -> None:
        self.stop = asyncio.Event()
        self._starting = starting
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def started(self) -> None:
        self._starting = None

    def _received(self) -> None:
        if self.stop.is_set():
            os._exit(1)
        self.stop.set()
        if self._starting is not None:
            self._starting.cancel()
