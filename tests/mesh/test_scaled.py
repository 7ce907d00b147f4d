"""Several of each on a cluster: the demo is played while one of each is killed."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext
from rich.console import Console

from mesh import demo
from mesh.narrator import Narrator
from mesh.topology import Options
from tests.mesh.harness import Harness
from tests.postgres import PostgresServer

pytestmark = pytest.mark.xdist_group("mesh")

SHAPE = ("--scale", "upload=2,merge=2,challenge=2,gateway=2", "--nats", "3", "--s3")
WORKERS = 3
# Every call is a line in the log of the process that served it.
TELLING = {"TWOTRUTHS_LOG_LEVEL": "DEBUG"}


class Killer:
    """Kills processes of a mesh, each once, and remembers which; and how far the merge was said to be."""

    def __init__(self, mesh: Harness) -> None:
        self._mesh = mesh
        self.pids: dict[str, int] = {}
        self.percentages: list[float] = []
        self.tasks: list[asyncio.Task[None]] = []

    def kill(self, name: str) -> None:
        if name not in self.pids:
            self.pids[name] = self._mesh.kill(name)

    def merging(self) -> None:
        """Begins to wait for a worker that has a job: then it, a controller, a challenge service and the leader of
        the jobs die."""
        if not self.tasks:
            self.tasks.append(asyncio.create_task(self._while_a_job_is_done()))

    async def _while_a_job_is_done(self) -> None:
        leader = (await streams(self._mesh))["JOBS"][0]
        while not (busy := self._mesh.busy_workers()):
            await asyncio.sleep(0.005)
        for name in (next(iter(busy)), leader, "merge-1", "challenge-1"):
            self.kill(name)


def killing_narrator(killer: Killer) -> type[Narrator]:
    """A narrator who kills at what is told to it: chunks that are stored, a merge that begins."""

    class KillingNarrator(Narrator):
        @contextmanager
        def uploads(self, sizes: dict[str, int]) -> Iterator[Callable[[str, int], None]]:
            stored = dict.fromkeys(sizes, 0)

            def told(name: str, bytes_: int) -> None:
                stored[name] = max(stored[name], bytes_)
                if sum(stored.values()) > 0:
                    killer.kill("upload-1")
                if sum(stored.values()) > sum(sizes.values()) / 2:
                    killer.kill("gateway-1")
                killer.merging()

            yield told

        @contextmanager
        def percentage(self, title: str) -> Iterator[Callable[[str, float], None]]:
            with super().percentage(title) as update:

                def told(status: str, percent: float) -> None:
                    killer.percentages.append(percent)
                    update(status, percent)

                yield told

    return KillingNarrator


async def streams(mesh: Harness) -> dict[str, tuple[str, int]]:
    """The leader of each stream, and how many of its replicas are up to date."""
    async with jetstream(mesh) as js:
        return {
            info.config.name or "": (
                info.cluster.leader or "",
                1 + sum(bool(peer.current) for peer in info.cluster.replicas or ()),
            )
            for info in await js.streams_info()
            if info.cluster is not None
        }


@asynccontextmanager
async def jetstream(mesh: Harness) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(mesh.info.nats_url.split(","))
    try:
        yield client.jetstream()
    finally:
        await client.close()


def calls(mesh: Harness, name: str, service: str) -> int:
    """How many calls of a service the process has served, by its log."""
    lines = (mesh.state.logs / f"{name}.log").read_text().splitlines()
    return sum("rpc method=" in line and f".{service}/" in line and "code=OK" in line for line in lines)


async def served_again(mesh: Harness, merge_session_id: str) -> None:
    """Waits until those that were killed serve calls of players again."""
    before = calls(mesh, "upload-1", "UploadService"), calls(mesh, "merge-1", "MergeService")
    async with mesh.phone("alice") as alice, asyncio.timeout(20):
        while calls(mesh, "upload-1", "UploadService") == before[0]:
            await alice.http.call("GET", "/api/v1/upload")
        while calls(mesh, "merge-1", "MergeService") == before[1]:
            await alice.merge_status(merge_session_id)


async def test_the_demo_goes_on_while_one_of_each_is_killed(
    tmp_path: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch, postgres_server: PostgresServer
) -> None:
    database = {"TWOTRUTHS_CHALLENGE_DATABASE_URL": await postgres_server.migrated_database()}
    own = Harness(tmp_path, WORKERS, *SHAPE, settings=TELLING | database)
    try:
        own.wait_until_healthy()
        shape = Counter(name.partition("-")[0] for name in own.info.processes)
        assert shape == {"nats": 3, "s3": 1, "upload": 2, "merge": 2, "challenge": 2, "worker": 3, "gateway": 2}
        assert {replicas for _, replicas in (await streams(own)).values()} == {3}
        killer = Killer(own)
        monkeypatch.setattr(demo, "Narrator", killing_narrator(killer))
        said = io.StringIO()
        async with asyncio.timeout(180):
            await demo.demo(Options(own.state.root, WORKERS), clips, Console(file=said))
            await asyncio.gather(*killer.tasks)
        verdict, _, report = said.getvalue().splitlines()[-1].partition("DEMO OK ")
        assert verdict == ""
        assert [segment["frame_count"] for segment in json.loads(report)["segments"]] == [30, 36, 24]
        kinds = sorted(name.partition("-")[0] for name in killer.pids)
        assert kinds == ["challenge", "gateway", "merge", "nats", "upload", "worker"]
        assert killer.percentages == sorted(killer.percentages)  # whichever controller said it
        for name, pid in killer.pids.items():
            assert await own.restarted(name, pid) != pid
        # Calls were spread, and are again: what came back gets its share, and has every stream.
        assert calls(own, "upload-1", "UploadService") > 1
        assert calls(own, "upload-2", "UploadService") > 1
        await served_again(own, json.loads(report)["merge_session_id"])
        async with asyncio.timeout(20):
            while {replicas for _, replicas in (await streams(own)).values()} != {3}:
                await asyncio.sleep(0.1)
        assert own.interrupt() == 0
    finally:
        own.close()
