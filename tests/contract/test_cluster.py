"""What the adapters of JetStream hold to on a cluster of three: its leader dies, a server is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import StreamInfo

from mesh import brokers, ports
from mesh.health import until_healthy
from mesh.process import ChildProcess
from services.common.adapters.jetstream import connect
from services.common.adapters.jetstream_changes import JetStreamChangeFeed
from services.common.adapters.jetstream_jobs import JetStreamJobQueue
from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.errors import Unavailable
from services.common.jobs import Job
from services.common.state import RevisionConflict
from tests.contract.test_state_store import Note, NoteCodec


class Cluster:
    """Three real servers."""

    def __init__(self, folder: Path) -> None:
        servers = brokers.names(3)
        chosen = ports.choose(brokers.port_names(servers), free=True, gateway=None)
        self.url = brokers.url(servers, chosen)
        self._folder = folder
        self._specs = brokers.plan(servers, chosen, configs=folder, home=folder)
        self._running: dict[str, ChildProcess] = {}

    async def start(self) -> None:
        """Starts those that do not run and waits until all have what the leader has."""
        for spec in self._specs:
            if spec.name not in self._running:
                log = self._folder / f"{spec.name}.log"
                self._running[spec.name] = await ChildProcess.start(spec.command, spec.environment, log)
        async with asyncio.timeout(30):
            for spec in self._specs:
                await until_healthy(spec.check)

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when it is gone."""
        child = self._running.pop(name)
        child.kill()
        await child.wait()

    async def close(self) -> None:
        for name in list(self._running):
            await self.kill(name)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = await connect(self.url, "test")
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.close()


async def leader(client: Client, stream: str) -> str:
    info: StreamInfo = await client.jetstream().stream_info(stream)
    assert info.config.num_replicas == 3
    assert info.cluster is not None
    assert info.cluster.leader
    return info.cluster.leader


async def test_records_and_changes_go_on_when_their_leader_is_killed(cluster: Cluster) -> None:
    async with cluster.client() as client:
        store = JetStreamStateStore(client, "notes", NoteCodec(), replicas=3)
        await store.ensure()
        feed = JetStreamChangeFeed(client, "notes", "follower", NoteCodec())
        await feed.ensure()
        entry = await store.create("a.1", Note("0"))
        for number in range(1, 41):
            if number == 20:
                await cluster.kill(await leader(client, "KV_notes"))
            entry = await store.update("a.1", Note(str(number)), entry.revision)
        assert await store.get("a.1") == entry
        assert [each async for each in store.list("a")] == [entry]
        async with asyncio.timeout(20):
            while True:
                with suppress(Unavailable):
                    if (change := await feed.next(1.0)) is not None:
                        await change.ack()
                        if change.value == Note("40"):
                            break
        await feed.close()


async def test_a_write_that_is_refused_has_another_before_it(cluster: Cluster) -> None:
    """The cluster refuses a write already while another one is on its way to the replicas."""
    async with cluster.client() as one, cluster.client() as two, cluster.client() as three:
        stores = [JetStreamStateStore(each, "notes", NoteCodec(), replicas=3) for each in (one, two, three)]
        await stores[0].ensure()
        entry = await stores[0].create("a.1", Note("0"))

        async def write(store: JetStreamStateStore[Note], expected: int) -> bool:
            try:
                await store.update("a.1", Note("1"), expected)
            except RevisionConflict:
                found = await store.get("a.1")
                assert found is not None
                assert found.revision > expected
                return False
            return True

        for _ in range(50):
            written = await asyncio.gather(*(write(store, entry.revision) for store in stores))
            assert sum(written) == 1
            found = await stores[0].get("a.1")
            assert found is not None
            entry = found


async def test_every_job_is_done_though_the_leader_of_the_queue_is_killed(cluster: Cluster) -> None:
    async with cluster.client() as client:
        queue = JetStreamJobQueue(client, ack_wait=1, replicas=3)
        await queue.ensure(["probe"])
        done: set[str] = set()

        async def work() -> None:
            while True:
                try:
                    delivery = await queue.fetch(["probe"], 5.0)
                    if delivery is not None:
                        done.add(delivery.job.id)
                        await delivery.ack()
                except Unavailable:
                    await asyncio.sleep(0.1)

        worker = asyncio.create_task(work())
        try:
            for number in range(40):
                if number == 20:
                    await cluster.kill(await leader(client, "JOBS"))
                await queue.publish(Job("probe", str(number), b"x", group="g"))
            async with asyncio.timeout(20):
                while await queue.unfinished("g"):
                    await asyncio.sleep(0.05)
        finally:
            worker.cancel()
            await asyncio.wait([worker])
        assert done == set(map(str, range(40)))


async def test_a_service_begins_while_a_server_is_away(cluster: Cluster) -> None:
    async with cluster.client() as client:
        await JetStreamStateStore(client, "notes", NoteCodec(), replicas=3).ensure()
        await JetStreamJobQueue(client, replicas=3).ensure(["probe"])
        gone = await leader(client, "KV_notes")
        await cluster.kill(gone)
    async with cluster.client() as client:
        store = JetStreamStateStore(client, "notes", NoteCodec(), replicas=3)
        await store.ensure()
        await JetStreamJobQueue(client, replicas=3).ensure(["probe"])
        await JetStreamChangeFeed(client, "notes", "follower", NoteCodec()).ensure()
        entry = await store.create("a.1", Note("alone"))
        await cluster.start()
        assert await store.get("a.1") == entry
