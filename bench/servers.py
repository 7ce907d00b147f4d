"""The servers under measurement: ours as the processes they are, and the peers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.nats import find_server, write_config
from mesh.ports import HOST
from services.common.keys import KeyRing
from tests.processes import free_port

PEERS = Path(__file__).parent / "peers"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """Something that takes files: how to talk to it, and its processes by name."""

    port: int
    protocol: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    checksum: bool = False
    pids: dict[str, int] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def job(self, files: Sequence[Path], chunk: int) -> dict[str, Any]:
        """What bench/driver.py is to do."""
        return {
            "port": self.port,
            "protocol": self.protocol,
            "path": self.path,
            "headers": self.headers,
            "checksum": self.checksum,
            "files": [str(path) for path in files],
            "chunk": chunk,
        }

    def cpu(self, *names: str) -> float:
        """CPU-seconds that the processes and their children have used."""
        return sum(map(_cpu, self._processes(names)))

    def rss(self, *names: str) -> float:
        """Their resident memory in MiB."""
        return sum(_status(pid, "VmRSS") for pid in self._processes(names)) / 1024

    def written(self, *names: str) -> int:
        """Bytes that went to the disk, see proc(5)."""
        return sum(_io(pid, "write_bytes") for pid in self._processes(names))

    def _processes(self, names: Sequence[str]) -> list[int]:
        return [pid for name in names for pid in (self.pids[name], *descendants(self.pids[name]))]


def descendants(pid: int) -> list[int]:
    """Its children, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += [int(word) for word in task.read_text().split()]
    return found + [below for child in found for below in descendants(child)]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _status(pid: int, name: str) -> int:
    return _number(Path(f"/proc/{pid}/status"), name)


def _io(pid: int, name: str) -> int:
    return _number(Path(f"/proc/{pid}/io"), name)


def _number(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


@contextmanager
def _process(command: Sequence[object], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    with log.open("ab") as output:
        child = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, env=environment)
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _until_answers(port: int, path: str, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=2)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nothing answers: {log.read_text()[-500:]}")


@contextmanager
def ours(folder: Path, *, processes: int = 1, merge: bool = False) -> Iterator[Server]:
    """Gateway, upload service, with ``merge`` also that, and broker with the settings they have by themselves, but
    for ``processes``, and no limit of what one player or address may ask."""
    folder.mkdir(parents=True)
    keys = KeyRing.create(folder / "keys")
    ports = {name: free_port() for name in ("nats", "upload", "merge", "gateway")}
    settings: dict[str, object] = keys.settings() | {
        "nats_url": f"nats://{HOST}:{ports['nats']}",
        "data_dir": folder / "data",
        "upload_listen": f"{HOST}:{ports['upload']}",
        "upload_target": f"dns:///{HOST}:{ports['upload']}",
        "merge_listen": f"{HOST}:{ports['merge']}",
        "merge_target": f"dns:///{HOST}:{ports['merge']}",
        "gateway_listen": f"{HOST}:{ports['gateway']}",
        "gateway_processes": processes,
        "gateway_requests_per_second_user": 1_000_000,
        "gateway_burst_user": 1_000_000,
        "gateway_max_connections_address": 4096,
        "gateway_store_readers_user": 1000,
    }
    environment = os.environ | {f"TWOTRUTHS_{name.upper()}": str(value) for name, value in settings.items()}
    write_config(folder / "nats.conf", port=ports["nats"], store=folder / "nats")
    with ExitStack() as stack:
        commands: dict[str, Sequence[object]] = {
            "nats": (find_server(), "-c", folder / "nats.conf"),
            "upload": (sys.executable, "-m", "services.upload"),
            **({"merge": (sys.executable, "-m", "services.merge")} if merge else {}),
            "gateway": (sys.executable, "-m", "services.gateway"),
        }
        pids = {
            name: stack.enter_context(_process(command, folder / f"{name}.log", environment))
            for name, command in commands.items()
        }
        headers = {"Authorization": f"Bearer {keys.player_token('bench')}"}
        server = Server(ports["gateway"], "native", "/api/v1/upload", headers, pids=pids, ports=ports)
        _until_answers(server.port, "/api/v1/health", folder / "gateway.log")
        _until_has(server, f"upload/{uuid.UUID(int=1)}/status")
        if merge:
            _until_has(server, f"challenge-videos/merge-session/{uuid.UUID(int=1)}/status")
        yield server


def _until_has(server: Server, path: str) -> None:
    """Waits until the service behind a path says that there is no such thing."""
    request = urllib.request.Request(f"http://{HOST}:{server.port}/api/v1/{path}", headers=server.headers)
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(request, timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} is not served")
        time.sleep(0.1)


@contextmanager
def tus_node(folder: Path) -> Iterator[Server]:
    """@tus/server with its file store."""
    folder.mkdir(parents=True)
    port, node = free_port(), shutil.which("node")
    if node is None or not (PEERS / "node_modules").is_dir():
        raise RuntimeError("@tus/server is not installed: make bench-deps")
    with _process((node, PEERS / "tus_node.js", port, folder), folder.with_suffix(".log")) as pid:
        _until_answers(port, "/files/none", folder.with_suffix(".log"))
        yield Server(port, "tus", "/files", pids={"peer": pid})


@contextmanager
def tus_python(folder: Path) -> Iterator[Server]:
    """tuspyserver under uvicorn."""
    folder.mkdir(parents=True)
    port, python = free_port(), PEERS / ".venv" / "bin" / "python"
    if not python.exists():
        raise RuntimeError("tuspyserver is not installed: make bench-deps")
    with _process((python, PEERS / "tus_python.py", port, folder), folder.with_suffix(".log")) as pid:
        _until_answers(port, "/files/none", folder.with_suffix(".log"))
        yield Server(port, "tus", "/files/", pids={"peer": pid})
