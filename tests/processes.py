"""The upload service and the gateway as the processes they are, on ports and a directory of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.health import grpc_service, until_healthy
from mesh.ports import choose
from mesh.process import ChildProcess, tail
from services.common.keys import KeyRing

HOST = "127.0.0.1"
START_SECONDS = 60.0


def free_port() -> int:
    """A port that nobody listens on now, below the ephemeral range: nobody gets it while its process is away."""
    return choose(("process",), free=True, gateway=None)["process"]


class ServiceProcess:
    """``python -m services.<name>``, always on the same port: it may be killed and started again."""

    def __init__(self, name: str, settings: Mapping[str, object], folder: Path) -> None:
        self.name = name
        self.port = free_port()
        self.log = folder / f"{name}.log"
        own = dict(settings) | {f"{name}_listen": f"{HOST}:{self.port}"}
        self._environment = os.environ | {f"TWOTRUTHS_{key.upper()}": str(value) for key, value in own.items()}
        self._child: ChildProcess | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} does not run"
        return self._child.pid

    async def start(self) -> None:
        """Starts it; it serves a moment later."""
        command = (sys.executable, "-m", f"services.{self.name}")
        self._child = await ChildProcess.start(command, self._environment, self.log)

    async def listening(self) -> None:
        """Waits until it takes connections. Raises RuntimeError when it ended instead."""
        async with asyncio.timeout(START_SECONDS):
            while not await self._answers():
                if self._child is None or not self._child.running:
                    raise RuntimeError(f"{self.name} ended: {tail(self.log)}")
                await asyncio.sleep(0.01)

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._child is not None:
            self._child.kill()
            await self._child.wait()
            self._child = None

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._child is not None
        child, self._child = self._child, None
        await child.stop(30)
        return await child.wait()


class Pair:
    """An upload service and a gateway before it."""

    def __init__(self, upload: ServiceProcess, gateway: ServiceProcess, keys: KeyRing, data: Path) -> None:
        self.upload, self.gateway, self.keys, self.data = upload, gateway, keys, data

    @property
    def url(self) -> str:
        """The gateway's base URL."""
        return f"http://{HOST}:{self.gateway.port}"

    @property
    def target(self) -> str:
        """The upload service's address."""
        return f"{HOST}:{self.upload.port}"

    def bearer(self, user: str) -> dict[str, str]:
        """The headers of a player."""
        return {"Authorization": f"Bearer {self.keys.player_token(user)}"}

    def file(self, upload_id: str) -> bytes:
        """The completed file as it lies in the store."""
        (path,) = (self.data / "objects" / "uploads").glob(f"*.{upload_id}")
        return path.read_bytes()


@asynccontextmanager
async def running(
    keys: KeyRing, folder: Path, nats_url: str, *, upload_port: int | None = None, **changes: object
) -> AsyncIterator[Pair]:
    """Both processes within the block. ``upload_port``: where the gateway looks for the upload service, if not
    where that listens; ``changes``: settings."""
    data = folder / "data"
    settings = keys.settings() | {"nats_url": nats_url, "data_dir": data} | changes
    upload = ServiceProcess("upload", settings, folder)
    target = f"dns:///{HOST}:{upload_port or upload.port}"
    gateway = ServiceProcess("gateway", settings | {"upload_target": target}, folder)
    try:
        await asyncio.gather(upload.start(), gateway.start())
        await asyncio.gather(upload.listening(), gateway.listening())
        async with asyncio.timeout(START_SECONDS):
            await until_healthy(grpc_service(f"{HOST}:{upload.port}"))
        yield Pair(upload, gateway, keys, data)
    finally:
        await asyncio.gather(upload.kill(), gateway.kill())
