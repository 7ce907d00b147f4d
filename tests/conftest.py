"""Fixtures of all rooms: a real broker and development keys."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.common.adapters.jetstream import connect
from services.common.keys import KeyRing


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


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One broker for all tests of this worker. A test that kills it uses ``own_nats_server``."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
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
async def nats_client(nats_url: str) -> AsyncIterator[Client]:
    """A connection to the shared broker, without streams or buckets of earlier tests."""
    client = await connect(nats_url, "test")
    js = client.jetstream()
    for stream in await js.streams_info():
        await js.delete_stream(stream.config.name or "")
    yield client
    await client.close()
    await asyncio.sleep(0)  # lets the transport's close callbacks run inside this loop


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    """Development keys: ``keys.player_token("alice")``, ``keys.settings()``."""
    return KeyRing.create(tmp_path_factory.mktemp("keys"))
