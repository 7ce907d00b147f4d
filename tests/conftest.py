"""Fixtures of all rooms: a real broker, a real S3 server, a real PostgreSQL and development keys."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from nats.aio.client import Client

import mesh.launch
from mesh.health import http, until_healthy
from mesh.ports import choose
from mesh.swift import NAMES, SwiftServer
from services.common.adapters.jetstream import connect
from services.common.adapters.s3_bucket import S3Bucket, open_bucket
from services.common.keys import KeyRing
from services.common.settings import CommonSettings
from tests.postgres import new_database, own_postgres_server, postgres_server  # noqa: F401  fixtures of all rooms

hypothesis.settings.register_profile("anywhere", deadline=None)  # a busy machine is slow: that is no failure
hypothesis.settings.load_profile("anywhere")


class NatsServer:
    """A real nats-server with JetStream that a test may kill and start again on the same port and files."""

    def __init__(self, folder: Path) -> None:
        self.port = -1  # the server picks a free one itself: no other program can take it in between
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        folder = self._folder
        store = {"store_dir": str(folder / "js"), "max_file_store": 1 << 30}
        settings = {"listen": f"127.0.0.1:{self.port}", "jetstream": store, "ports_file_dir": str(folder)}
        (folder / "nats.json").write_text(json.dumps(settings))
        program = Path(sys.executable).with_name("nats-server")
        with (folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen([program, "-c", folder / "nats.json"], stdout=log, stderr=log)
        ports = folder / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", self.port), 0.5):
                    return
            except (OSError, ValueError):
                time.sleep(0.02)
        raise RuntimeError(f"nats-server did not start: {(folder / 'nats.log').read_text()[-500:]}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def forgotten(self, stream: str) -> None:
        """Waits until the files of a deleted stream are gone. The server answers before, and a stream of that name
        that is made meanwhile takes what is left of them for its own."""
        folder = self._folder / "js" / "jetstream" / "$G" / "streams"
        async with asyncio.timeout(10):
            while (folder / stream).exists() or (folder / f".{stream}").exists():
                await asyncio.sleep(0.001)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One broker for all tests of this worker. A test that kills it uses ``own_nats_server``."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def new_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], NatsServer]]:
    """Starts a broker for one upload service alone: a directory shares its broker with no other."""
    started: list[NatsServer] = []

    def new() -> NatsServer:
        started.append(server := NatsServer(tmp_path_factory.mktemp("nats")))
        server.start()
        return server

    yield new
    for server in started:
        server.kill()


@pytest.fixture
def own_nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A broker for one test alone."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def nats_url(nats_server: NatsServer) -> str:
    """Where the shared broker listens."""
    return nats_server.url


@pytest.fixture
async def nats_client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A connection to the shared broker, without streams or buckets of earlier tests."""
    client = await connect(nats_server.url, "test")
    js = client.jetstream()
    for stream in await js.streams_info():
        await js.delete_stream(stream.config.name or "")
        await nats_server.forgotten(stream.config.name or "")
    yield client
    await client.close()
    await asyncio.sleep(0)  # lets the transport's close callbacks run inside this loop


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    """Development keys: ``keys.player_token("alice")``, ``keys.settings()``."""
    return KeyRing.create(tmp_path_factory.mktemp("keys"))


class S3Server:
    """A real S3 server (OpenStack Swift) that a test may kill and start again on the same ports and files."""

    def __init__(self, folder: Path) -> None:
        # Below the ephemeral range: nobody gets one of them while the server is away.
        ports = choose(NAMES, free=True, gateway=None)
        self.server = SwiftServer(folder, tuple(ports[name] for name in NAMES))
        self._log = folder.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Starts the server and waits until it serves."""
        self._run()
        try:
            async with asyncio.timeout(60):
                await until_healthy(http(*self.server.health_urls()))
        except TimeoutError:
            self.kill()
            raise RuntimeError(f"Swift did not start: {self._log.read_text()[-500:]}") from None

    def _run(self) -> None:
        with self._log.open("ab") as log:
            # It goes when this process does, also when that is killed.
            launcher = (sys.executable, "-I", "-S", mesh.launch.__file__, str(os.getpid()))
            command = (*launcher, *self.server.command())
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL, to all its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
async def s3_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3Server]:
    """One S3 server for all tests of this worker; those that use it are of the xdist group "s3"."""
    server = S3Server(tmp_path_factory.mktemp("swift"))
    await server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_settings(s3_server: S3Server) -> dict[str, object]:
    """Settings of an empty bucket."""
    return s3_server.server.settings() | {"s3_bucket": f"test-{uuid.uuid4().hex}"}


@pytest.fixture
async def s3_bucket(s3_settings: dict[str, object]) -> AsyncIterator[S3Bucket]:
    """An empty bucket."""
    async with open_bucket(CommonSettings.model_validate(s3_settings)) as bucket:
        yield bucket
    await asyncio.sleep(0)  # lets the transports' close callbacks run inside this loop
