"""Several gateway processes on one port: a parent that listens and serves nothing, and children that take what
comes to its sockets.

The queue of connections is one, so nothing in it is lost when a child comes or goes, and whoever is idle takes the
next. Children are executed anew, not forked: what a process has of gRPC, threads and locks is its own.

A child that dies is started again, a little later each time that it does not last. If at the start one cannot
serve, or later one cannot and no other does, the fleet ends. SIGTERM is passed on once: each child drains as a
gateway alone does. A second one ends the parent, and with it all children. A child that is sent SIGTERM alone
drains while the others take what is new, and comes back.

The parent's metrics are at ``metrics_listen``, those of child i (from 1) at i ports above.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from services.common.lifecycle import App
from services.gateway import listening, member
from services.gateway.config import GatewaySettings

# Before a dead child starts again; one that lasted begins with the first pause.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_LASTING_SECONDS = 10.0
# How much longer than its grace a child may take to end.
_MARGIN_SECONDS = 5.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def build(settings: GatewaySettings) -> AsyncIterator[App]:
    """The parent of ``settings.gateway_processes`` children, not yet started."""
    fleet = Fleet(settings)
    try:
        yield App(server=fleet, background=[fleet.keep])
    finally:
        await fleet.close()


class Fleet:
    """The children, in the shape of a server that :mod:`services.common.lifecycle` runs."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.port = 0
        self._settings = settings
        self._sockets: Sequence[socket.socket] = ()
        self._running: dict[int, Process] = {}
        self._serving: set[int] = set()
        self._stopping = False

    async def start(self) -> None:
        """Returns when all children serve. Raises OSError when the address is taken or a child cannot serve,
        ValueError when the address is none."""
        self._sockets = await listening.listen(self._settings.gateway_listen)
        self.port = self._sockets[0].getsockname()[1]
        await asyncio.gather(*(self._launch(number) for number in self._numbers))

    async def set_serving(self, ok: bool) -> None:
        """Has the children end, each of which turns its own health off, waits and drains. From here on the sockets
        are theirs alone: when the last closes them, what is new is refused."""
        if ok:
            return
        self._stopping = True
        for process in self._running.values():
            _signal(process, signal.SIGTERM)
        self._let_go()

    async def stop(self, grace: float) -> None:
        """Waits for the children; kills those that are there a little after all that they may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace + _MARGIN_SECONDS):
                await asyncio.gather(*(process.wait() for process in self._running.values()))
        await self.close()

    async def close(self) -> None:
        """Kills whatever runs and gives the address back."""
        self._stopping = True
        self._let_go()
        for process in self._running.values():
            _signal(process, signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in self._running.values()))

    async def keep(self) -> None:
        """Starts every child again that ends. Never returns; raises OSError when none serves and one cannot."""
        await asyncio.gather(*(self._keep(number) for number in self._numbers))

    @property
    def _numbers(self) -> range:
        return range(1, self._settings.gateway_processes + 1)

    async def _keep(self, number: int) -> None:
        pause, now = _FIRST_PAUSE_SECONDS, asyncio.get_running_loop().time
        began = now()
        while True:
            status = await self._running[number].wait()
            self._serving.discard(number)
            if now() - began > _LASTING_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            if not self._stopping:
                log.warning("%s %s; again in %g s", member.name(number), _ending(status), pause)
                await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if self._stopping:
                await asyncio.Event().wait()  # until this task is cancelled
            began = now()
            try:
                await self._launch(number)
            except OSError:
                if not (self._serving or self._stopping):
                    raise

    async def _launch(self, number: int) -> None:
        """Starts a child and waits until it serves. Raises OSError when it ends instead."""
        process = self._running[number] = await asyncio.create_subprocess_exec(
            *member.command(number, self._sockets),
            stdin=DEVNULL,
            stdout=PIPE,
            env=self._environment(number),
            pass_fds=[each.fileno() for each in self._sockets],
        )
        log.info("%s is process %d", member.name(number), process.pid)
        if self._stopping:
            _signal(process, signal.SIGKILL)
        assert process.stdout is not None, "it was asked for"
        if await process.stdout.readline() != member.READY:
            ending = _ending(await process.wait())
            raise OSError(f"{member.name(number)} cannot serve, it {ending}; its own log line says why")
        self._serving.add(number)

    def _environment(self, number: int) -> Mapping[str, str]:
        host, _, port = self._settings.metrics_listen.rpartition(":")
        if not port.isdecimal() or int(port) == 0:
            return os.environ  # none, or free ones
        return os.environ | {"TWOTRUTHS_METRICS_LISTEN": f"{host}:{int(port) + number}"}

    def _let_go(self) -> None:
        for each in self._sockets:
            each.close()


def _signal(process: Process, which: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(which)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with {status}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
