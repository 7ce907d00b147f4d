"""Builds every image and starts each once, as a mesh: ``python -m deploy.images`` (``make images``).

A game is played on what runs then (``mesh demo``), so that a worker's jobs run in their sandbox inside the
container's own restrictions. In the end each process is told to stop and has to exit with 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from deploy.engines import Engine, ImageError, Run, engine
from mesh import health, nats, ports
from mesh.demo import demo
from mesh.errors import MeshError
from mesh.ports import HOST
from mesh.state import MeshInfo, StateDirectory
from mesh.topology import Options
from services.common.keys import KeyRing

TARGETS = ("upload", "merge", "worker", "challenge", "gateway")
USER = 10001
SIGNERS = ("merge", "challenge", "gateway")
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
# Told from inside: what k8s/ promises of the user and the root, and what an image must not or need not hold.
_LOOK = """
import importlib.util, json, os, shutil
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "user": os.getuid(),
    "capabilities": int(status["CapEff"], 16),
    "no_new_privs": status["NoNewPrivs"],
    "read_only": bool(os.statvfs("/app").f_flag & os.ST_RDONLY and os.statvfs("/etc").f_flag & os.ST_RDONLY),
    "broker": shutil.which("nats-server"),
    "codecs": importlib.util.find_spec("av") is not None,
    "malloc": sorted(name for name in os.environ if name.startswith("MALLOC_")),
}))
"""
_MALLOC = ["MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_"]


class Containers:
    """The mesh on ``state``, out of images that ``engine`` has built; the broker is this machine's own."""

    def __init__(self, engine: Engine, state: StateDirectory) -> None:
        self._engine = engine
        self._state = state
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        names = [*TARGETS, "nats", *(f"{kind}-{name}" for kind in ("admin", "metrics") for name in TARGETS)]
        self._ports = ports.choose(names, free=True, gateway=None)
        self.gateway_url = f"http://{HOST}:{self._ports['gateway']}"
        self.nats_url = f"nats://{HOST}:{self._ports['nats']}"

    def look(self, name: str) -> None:
        """Raises ImageError unless a process of the image is as it should be."""
        with self._log(f"look-{name}") as log:
            process = self._engine.start(name, Run(command=("python", "-c", _LOOK)), log)
            process.wait(_START_SECONDS)
        said = (self._state.logs / f"look-{name}.log").read_text()
        wanted = {
            "user": USER,
            "capabilities": 0,
            "no_new_privs": "1",
            "read_only": True,
            "broker": None,
            "codecs": name == "worker",
            "malloc": _MALLOC,
        }
        if not said.startswith("{") or json.loads(said) != wanted:
            raise ImageError(f"a process of {name} says {said.strip()}, not {json.dumps(wanted)}")

    async def start_broker(self) -> None:
        """JetStream, for the time being."""
        config = self._state.root / "nats.conf"
        nats.write_config(config, port=self._ports["nats"], store=self._state.nats)
        self._start_here("nats", str(nats.find_server()), "-c", str(config))
        await self._healthy("nats", health.jetstream(self.nats_url))

    async def start(self, name: str) -> None:
        """Starts it and waits until it is healthy, as Kubernetes would see it. Raises ImageError."""
        keys = {"/keys/public": self._state.root / "public", "/keys/private": self._state.keys}
        if name == "worker":
            keys = {}
        elif name not in SIGNERS:
            del keys["/keys/private"]
        run = Run(self._environment(name), {"/data": self._state.data, **keys})
        with self._log(name) as log:
            self._running[name] = self._engine.start(name, run, log)
        check = health.grpc_service(f"{HOST}:{self._ports[f'admin-{name}']}")
        if name == "gateway":
            check = health.http(f"{self.gateway_url}/api/v1/health")
        await self._healthy(name, check)
        await self._healthy(name, health.http(f"http://{HOST}:{self._ports[f'metrics-{name}']}/metrics"))

    def stop(self) -> None:
        """Tells all to stop, the last first. Raises ImageError if one does not exit with 0."""
        while self._running:
            name, process = self._running.popitem()
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise ImageError(f"{name} does not stop") from error
            if status != 0 and name != "nats":
                raise ImageError(f"{name} exited with {status}{self._said(name)}")

    def kill(self) -> None:
        """Ends what is left."""
        for process in self._running.values():
            process.kill()
            process.wait()

    def _start_here(self, name: str, *command: str) -> None:
        with self._log(name) as log:
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    async def _healthy(self, name: str, check: health.HealthCheck) -> None:
        waiting = asyncio.create_task(health.until_healthy(check))
        end = time.monotonic() + _START_SECONDS
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=0.5)
            if self._running[name].poll() is not None or time.monotonic() > end:
                waiting.cancel()
                raise ImageError(f"{name} does not get healthy{self._said(name)}")

    def _environment(self, name: str) -> Mapping[str, str]:
        settings = {
            "nats_url": self.nats_url,
            "data_dir": "/data",
            "auth_jwks": "/keys/public/players.jwks.json",
            "service_jwks": "/keys/public/services.jwks.json",
            "service_key_file": "/keys/private/services.pem",
            "playback_keys_file": "/keys/private/playback.json",
            "metrics_listen": f"{HOST}:{self._ports[f'metrics-{name}']}",
            "admin_listen": f"{HOST}:{self._ports[f'admin-{name}']}",
            "log_format": "json",
            **{f"{other}_listen": f"{HOST}:{self._ports[other]}" for other in TARGETS},
            **{f"{other}_target": f"dns:///{HOST}:{self._ports[other]}" for other in TARGETS},
        }
        return {f"TWOTRUTHS_{setting.upper()}": value for setting, value in settings.items()}

    @contextmanager
    def _log(self, name: str) -> Iterator[int]:
        with open(self._state.logs / f"{name}.log", "wb") as file:
            yield file.fileno()

    def _said(self, name: str) -> str:
        lines = (self._state.logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "".join(f"\n  {line}" for line in lines[-15:])


async def check(engine: Engine, folder: Path, console: Console) -> None:
    """Builds all images and runs them as a mesh on ``folder``. Raises ImageError or MeshError."""
    for name in TARGETS:
        began = time.monotonic()
        size = engine.build(name)
        console.print(f"built {name}: {size}, {time.monotonic() - began:.0f} s ({engine.name})", highlight=False)
    state = StateDirectory(folder)
    with state.locked():
        _lay_out(state)
        containers = Containers(engine, state)
        try:
            for name in TARGETS:
                containers.look(name)
            console.print(f"each runs as user {USER}, without capabilities, on a read-only root", highlight=False)
            await containers.start_broker()
            for name in TARGETS:
                await containers.start(name)
            console.print(f"healthy: {', '.join(TARGETS)}")
            url = containers.gateway_url
            state.write(MeshInfo(os.getpid(), True, url, [url], containers.nats_url))
            await demo(Options(state.root, workers=1), [], console)
            containers.stop()
            console.print("each stopped at SIGTERM with 0", highlight=False)
        finally:
            containers.kill()


def _lay_out(state: StateDirectory) -> None:
    """Keys and folders that the images' user, whom this machine does not know, can use."""
    KeyRing.create(state.keys)
    public = state.root / "public"
    public.mkdir()
    for file in state.keys.glob("*.jwks.json"):
        shutil.copy(file, public)
    for folder in (state.keys, public):
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)
    state.data.chmod(0o777)


def main() -> None:
    """Says how far it got, or exits with what is wrong."""
    try:
        # What processes wrote is theirs: this user cannot remove it, unless it is root.
        folders = tempfile.TemporaryDirectory(prefix="twotruths-mesh-", ignore_cleanup_errors=True)
        with engine() as found, folders as folder:
            asyncio.run(check(found, Path(folder) / "mesh", Console()))
    except (ImageError, MeshError) as error:
        sys.exit(f"make images: {error}")
    print("IMAGES OK")


if __name__ == "__main__":
    main()
