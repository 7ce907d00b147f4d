"""Children that are started ahead: each does one job, and none outlives its worker."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from mesh.clips import RED, make_clip
from services.merge.heartbeat import cpu_seconds
from services.merge.media import forked
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.forked import ROOT, Child, Nursery
from services.merge.media.runner import MediaRunner


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("children") / "clip.mp4"
    make_clip(path, seconds=0.2, colour=RED, size=(64, 64))
    return path


class Counted:
    """Every child that is started, by its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids: list[int] = []
        start = Nursery.child

        async def counted(nursery: Nursery) -> Child:
            child = await start(nursery)
            self.pids.append(child.pid)
            return child

        monkeypatch.setattr(Nursery, "child", counted)

    @property
    def alive(self) -> list[int]:
        return [pid for pid in self.pids if alive(pid)]


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody has asked for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_child_that_waited_does_one_job_and_another_takes_its_place(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Counted(monkeypatch)
    runner = MediaRunner(spare=1)
    await runner.warm()
    (first,) = children.alive
    await runner.probe(clip)
    assert not alive(first), "it has seen a player's bytes: it is no good for the next's"
    async with asyncio.timeout(10):
        while not children.alive:
            await asyncio.sleep(0.01)
    (second,) = children.alive
    assert second != first
    async with asyncio.TaskGroup() as group:  # more at once than wait
        for _ in range(2):
            group.create_task(runner.probe(clip))
    assert not alive(second)
    await runner.close()
    assert children.alive == []
    assert runner._nursery._process is None
    assert len(children.pids) == len(set(children.pids)) >= 3


async def test_a_child_that_died_while_it_waited_is_not_given_a_job(clip: Path) -> None:
    runner = MediaRunner(spare=1)
    await runner.warm()
    child = runner._children._waiting[0]
    child.kill()
    await child.wait()
    assert (await runner.probe(clip)).width == 64
    await runner.close()


async def test_nursery_and_children_that_wait_end_with_a_worker_that_is_killed() -> None:
    program = (
        "import asyncio\n"
        "from services.merge.media.runner import MediaRunner\n"
        "async def main():\n"
        "    runner = MediaRunner(spare=2)\n"
        "    await runner.warm()\n"
        "    pids = [child.pid for child in runner._children._waiting]\n"
        "    print(runner._nursery._process.pid, *pids, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=PIPE, cwd=ROOT)
    assert worker.stdout is not None
    pids = [int(pid) for pid in (await worker.stdout.readline()).split()]
    assert len(pids) == 3
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    async with asyncio.timeout(20):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.02)
    await worker.communicate()


async def test_children_come_from_one_process_and_have_pipes_of_their_own(clip: Path) -> None:
    runner = MediaRunner(spare=2)
    await runner.warm()
    nursery = runner._nursery._process
    assert nursery is not None
    first, second = runner._children._waiting
    assert {parent(child.pid) for child in (first, second)} == {nursery.pid}
    pipes = []
    for child in (first, second):
        opened = Path(f"/proc/{child.pid}/fd")
        async with asyncio.timeout(10):  # 3 is the stdout that the protocol keeps for itself
            while {path.name for path in opened.iterdir()} != {"0", "1", "2", "3"}:
                await asyncio.sleep(0.01)
        pipes += [str((opened / name).readlink()) for name in ("0", "2", "3")]
    assert len(set(pipes)) == 6
    assert all(pipe.startswith("pipe:") for pipe in pipes)
    await runner.close()


async def test_a_child_that_crashes_leaves_the_next_one_alive(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import ctypes
from services.merge.media import child, nursery, probe
probe_clip = probe.probe
def fault(source):
    seen = probe_clip(source)
    return ctypes.string_at(0) if seen.width == 32 else seen
probe.probe = fault
nursery.main()
"""
    monkeypatch.setattr(forked, "COMMAND", (sys.executable, "-c", program))
    make_clip(clip.with_name("bad.mp4"), seconds=0.2, colour=RED, size=(32, 32))
    runner = MediaRunner(spare=1)
    await runner.warm()
    nursery = runner._nursery._process
    for _ in range(2):
        with pytest.raises(MediaError) as caught:
            await runner.probe(clip.with_name("bad.mp4"))
        assert caught.value.error_type == ErrorType.DECODE_FAILED
        assert (await runner.probe(clip)).width == 64
    assert runner._nursery._process is nursery
    await runner.close()


async def test_a_nursery_that_dies_takes_its_children_and_another_takes_its_place(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children, told = Counted(monkeypatch), list[str]()
    runner = MediaRunner(spare=2, on_restart=lambda: told.append("died"))
    await runner.warm()
    nursery = runner._nursery._process
    assert nursery is not None
    waiting = runner._children._waiting[:]
    nursery.kill()
    assert [await child.wait() for child in waiting] == [-signal.SIGKILL] * 2
    async with asyncio.timeout(10):
        while children.alive:
            await asyncio.sleep(0.01)
    assert (await runner.probe(clip)).width == 64
    assert runner._nursery._process is not nursery
    await runner.close()
    assert told == ["died"]


async def test_what_a_worker_used_is_what_its_jobs_used_too(clip: Path) -> None:
    """A child's time goes to the nursery when it ends, and the nursery's to nobody while it runs."""
    runner = MediaRunner(spare=1)
    before = cpu_seconds() - own_seconds()
    await runner.warm()
    started = cpu_seconds() - own_seconds()
    assert started - before > 0.05
    make_clip(clip.with_name("long.mp4"), seconds=4, colour=RED, size=(640, 480))
    before = cpu_seconds() - own_seconds()
    await runner.probe(clip.with_name("long.mp4"))
    assert cpu_seconds() - own_seconds() - before > 0.02
    await runner.close()


def own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
