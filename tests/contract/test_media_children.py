"""Children that are started ahead: each does one job, and none outlives its worker."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from mesh.clips import RED, make_clip
from services.merge.media.runner import ROOT, MediaRunner


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("children") / "clip.mp4"
    make_clip(path, seconds=0.2, colour=RED, size=(64, 64))
    return path


class Counted:
    """Every child that is started, by its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids: list[int] = []
        self._start = asyncio.create_subprocess_exec
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self)

    async def __call__(self, *args: object, **options: object) -> asyncio.subprocess.Process:
        process = await self._start(*args, **options)  # type: ignore[arg-type]  # as they were given
        self.pids.append(process.pid)
        return process

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
    assert len(children.pids) == len(set(children.pids)) >= 4


async def test_a_child_that_died_while_it_waited_is_not_given_a_job(clip: Path) -> None:
    runner = MediaRunner(spare=1)
    await runner.warm()
    child = runner._children._waiting[0]
    child.kill()
    await child.wait()
    assert (await runner.probe(clip)).width == 64
    await runner.close()


async def test_children_that_wait_end_with_a_worker_that_is_killed() -> None:
    program = (
        "import asyncio\n"
        "from services.merge.media.runner import MediaRunner\n"
        "async def main():\n"
        "    runner = MediaRunner(spare=2)\n"
        "    await runner.warm()\n"
        "    print(*[child.pid for child in runner._children._waiting], flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=PIPE, cwd=ROOT)
    assert worker.stdout is not None
    pids = [int(pid) for pid in (await worker.stdout.readline()).split()]
    assert len(pids) == 2
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    async with asyncio.timeout(20):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.02)
    await worker.communicate()
