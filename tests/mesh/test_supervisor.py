"""The supervisor on real processes, small ones of our own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.errors import MeshError
from mesh.supervisor import Change, Condition, ProcessSpec, Supervisor, Timings

QUICK = Timings(start=10, grace=5, first_delay=0.01, max_delay=0.05)

# Says that it serves by making a file, and leaves when told.
SERVE = """
import pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # one that comes before the wait is waited for, too
pathlib.Path(sys.argv[1]).write_text("ready")
signal.sigwait({signal.SIGTERM})
print("told", flush=True)
"""
STUBBORN = SERVE.replace("signal.sigwait({signal.SIGTERM})", "signal.pause()")


class Changes:
    """What the supervisor said, and a way to wait for something it will say."""

    def __init__(self) -> None:
        self.seen: list[Change] = []
        self._new = asyncio.Event()

    def __call__(self, change: Change) -> None:
        self.seen.append(change)
        self._new.set()

    async def until(self, wanted: Callable[[Change], bool], after: int = 0) -> Change:
        async with asyncio.timeout(20):
            while True:
                for change in self.seen[after:]:
                    if wanted(change):
                        return change
                self._new.clear()
                await self._new.wait()

    def order(self, condition: Condition) -> list[str]:
        return [change.name for change in self.seen if change.condition is condition]


def spec(tmp_path: Path, name: str, *after: str, script: str = SERVE) -> ProcessSpec:
    ready = tmp_path / f"{name}.ready"

    async def check() -> None:
        assert ready.exists()

    return ProcessSpec(name, (sys.executable, "-c", script, str(ready)), os.environ, check, after)


@asynccontextmanager
async def supervised(
    tmp_path: Path, *specs: ProcessSpec, timings: Timings = QUICK
) -> AsyncIterator[tuple[Supervisor, Changes]]:
    changes = Changes()
    supervisor = Supervisor(specs, logs=tmp_path, on_change=changes, timings=timings)
    try:
        await supervisor.start()
        yield supervisor, changes
    finally:
        await supervisor.stop()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_starts_in_order_of_need_and_stops_in_reverse(tmp_path: Path) -> None:
    first, second, third = (
        spec(tmp_path, "broker"),
        spec(tmp_path, "service", "broker"),
        spec(tmp_path, "gateway", "service"),
    )
    async with supervised(tmp_path, first, second, third) as (_, changes):
        assert changes.order(Condition.HEALTHY) == ["broker", "service", "gateway"]
        pids = [change.pid for change in changes.seen if change.condition is Condition.HEALTHY]
    assert changes.order(Condition.STOPPED) == ["gateway", "service", "broker"]
    assert all(pid is not None and gone(pid) for pid in pids)
    assert (tmp_path / "gateway.log").read_text() == "told\n"


async def test_what_dies_is_started_again(tmp_path: Path) -> None:
    async with supervised(tmp_path, spec(tmp_path, "service")) as (_, changes):
        before = await changes.until(lambda change: change.condition is Condition.HEALTHY)
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        died = await changes.until(lambda change: change.condition is Condition.RESTARTING)
        assert "killed by SIGKILL" in died.note
        after = await changes.until(
            lambda change: change.condition is Condition.HEALTHY and change.pid != before.pid
        )
        assert after.pid is not None
        assert gone(before.pid)


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    timings = Timings(start=10, grace=0.2)
    async with supervised(tmp_path, spec(tmp_path, "service", script=STUBBORN), timings=timings) as (_, changes):
        running = await changes.until(lambda change: change.condition is Condition.HEALTHY)
    assert running.pid is not None
    assert gone(running.pid)


async def test_one_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    broken = spec(tmp_path, "service", script="import sys; sys.exit('no such database')")
    with pytest.raises(MeshError, match="service cannot start: it exited with 1") as raised:
        async with supervised(tmp_path, spec(tmp_path, "broker"), broken):
            pass
    assert raised.value.detail == "no such database"


async def test_one_that_never_gets_healthy_is_an_error(tmp_path: Path) -> None:
    dumb = spec(tmp_path, "service", script="import signal; signal.pause()")
    with pytest.raises(MeshError, match=r"was not healthy after 0\.3 s"):
        async with supervised(tmp_path, dumb, timings=Timings(start=0.3, grace=5)):
            pass


SUPERVISOR = """
import asyncio, os, pathlib, sys
from mesh.process import ChildProcess

async def main():
    command = (sys.executable, "-c", "import signal; signal.pause()")
    child = await ChildProcess.start(command, os.environ, pathlib.Path(sys.argv[1]))
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISOR, str(tmp_path / "log"), stdout=PIPE
    )
    assert supervisor.stdout is not None
    child = os.pidfd_open(int(await supervisor.stdout.readline()))
    try:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(child, ended.set)  # readable when it has ended
        supervisor.kill()
        await supervisor.wait()
        async with asyncio.timeout(10):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(child)
        os.close(child)
