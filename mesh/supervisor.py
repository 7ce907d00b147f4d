"""Starts processes in health order, restarts what dies, and stops all in reverse order.

Each process has a task that keeps it: it waits for those that the process needs, starts it, asks for its
health until it serves, waits for its end and starts it again, a little later each time that it does not last.
Ports and state are part of a process's command and environment, so it comes back as the same. A process
that has never been healthy is not tried again: what cannot start is an error with its log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mesh.errors import MeshError
from mesh.health import HealthCheck, until_healthy
from mesh.process import ChildProcess, describe_exit, tail


class Condition(StrEnum):
    """Where a process is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    HEALTHY = "healthy"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to run: its absolute command, its whole environment, its health and what must be healthy first."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    check: HealthCheck
    after: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. A process that lasted ``stable`` begins again with the first delay."""

    start: float = 60.0
    grace: float = 10.0
    first_delay: float = 0.2
    max_delay: float = 5.0
    stable: float = 10.0


@dataclass(frozen=True, slots=True)
class Change:
    """Something happened to a process; ``note`` says what, for a person."""

    name: str
    condition: Condition
    pid: int | None
    note: str = ""


class _Member:
    def __init__(self, spec: ProcessSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.child: ChildProcess | None = None
        self.ready = asyncio.Event()


class Supervisor:
    """Runs ``specs``; the names in their ``after`` come earlier in the sequence. One event loop, one use."""

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        logs: Path,
        on_change: Callable[[Change], None],
        timings: Timings | None = None,
    ) -> None:
        self._members = {spec.name: _Member(spec, logs / f"{spec.name}.log") for spec in specs}
        self._on_change = on_change
        self._timings = timings or Timings()
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when all are healthy. Raises MeshError, with the log's end, when one cannot start."""
        for member in self._members.values():
            member.log.unlink(missing_ok=True)
            self._say(member, Condition.WAITING)
            self._keepers.append(asyncio.create_task(self._keep(member), name=f"keep {member.spec.name}"))
        ready = asyncio.create_task(self._all_ready())
        try:
            await asyncio.wait({ready, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
            self._raise_failure()
        finally:
            ready.cancel()

    async def wait(self) -> None:
        """Returns never, unless a keeper fails: then it raises what happened."""
        await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        self._raise_failure()

    async def stop(self) -> None:
        """Stops all, those that others need last: SIGTERM, and SIGKILL after the grace."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        waves: dict[int, list[_Member]] = {}
        for member in self._members.values():
            waves.setdefault(self._depth(member.spec), []).append(member)
        for depth in sorted(waves, reverse=True):
            await asyncio.gather(*(self._stop(member) for member in waves[depth]))

    def kill(self) -> None:
        """Kills all at once."""
        for member in self._members.values():
            if member.child:
                member.child.kill()

    async def _all_ready(self) -> None:
        for member in self._members.values():
            await member.ready.wait()

    def _raise_failure(self) -> None:
        for keeper in self._keepers:
            if keeper.done() and not keeper.cancelled() and (error := keeper.exception()):
                raise error

    def _depth(self, spec: ProcessSpec) -> int:
        return 1 + max((self._depth(self._members[name].spec) for name in spec.after), default=0)

    async def _stop(self, member: _Member) -> None:
        if member.child:
            await member.child.stop(self._timings.grace)
        self._say(member, Condition.STOPPED)

    async def _keep(self, member: _Member) -> None:
        spec, timings = member.spec, self._timings
        for name in spec.after:
            await self._members[name].ready.wait()
        delay = timings.first_delay
        while True:
            began = asyncio.get_running_loop().time()
            end = await self._run_once(member)
            if not member.ready.is_set():
                raise MeshError(f"{spec.name} cannot start: it {end}; see {member.log}", detail=tail(member.log))
            if asyncio.get_running_loop().time() - began > timings.stable:
                delay = timings.first_delay
            self._say(member, Condition.RESTARTING, f"{spec.name} {end}; again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(2 * delay, timings.max_delay)

    async def _run_once(self, member: _Member) -> str:
        """Runs the process until it ends; answers how it ended, in words."""
        spec = member.spec
        try:
            member.child = await ChildProcess.start(spec.command, spec.environment, member.log)
        except OSError as error:
            return f"could not be started ({error.strerror})"
        self._say(member, Condition.STARTING)
        ended = asyncio.create_task(member.child.wait())
        healthy = asyncio.create_task(until_healthy(spec.check))
        try:
            await asyncio.wait({ended, healthy}, timeout=self._timings.start, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not healthy.done():
                await member.child.stop(self._timings.grace)
                return f"was not healthy after {self._timings.start:g} s"
            if not ended.done():
                member.ready.set()
                self._say(member, Condition.HEALTHY)
            return describe_exit(await ended)
        finally:
            healthy.cancel()
            ended.cancel()

    def _say(self, member: _Member, condition: Condition, note: str = "") -> None:
        child = member.child
        pid = child.pid if child and child.running else None
        self._on_change(Change(member.spec.name, condition, pid, note))
