"""What runs on one machine: the processes, where each listens and the environment that tells it so."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh import health, nats, ports, swift
from mesh.ports import HOST
from mesh.state import MeshInfo, StateDirectory
from mesh.supervisor import ProcessSpec
from mesh.swift import SwiftServer
from services.common.keys import KeyRing

SERVICES = ("upload", "merge", "challenge")
MOST_WORKERS = 4
METRICS = "-metrics"

# Where one machine wants other values than a cluster; the environment replaces them.
ONE_MACHINE: Mapping[str, str] = {
    # Whoever presses Ctrl-C waits for no call longer than this.
    "TWOTRUTHS_DRAIN_GRACE_SECONDS": "5",
    # A worker cannot be out of reach here: one that is silent for this long is dead.
    "TWOTRUTHS_JOB_ACK_WAIT_SECONDS": "10",
    # Small files in several chunks show what a broken connection costs.
    "TWOTRUTHS_UPLOAD_CHUNK_SIZE": str(256 << 10),
}


def default_workers() -> int:
    """One a processor, at most four: more would only share them."""
    return min(os.cpu_count() or 1, MOST_WORKERS)


@dataclass(frozen=True, slots=True)
class Options:
    """How the mesh is to run. ``port`` is the gateway's: None is the fixed one, a free one with ``free_ports``.
    ``s3``: on an S3 server of its own instead of a directory."""

    state: Path
    workers: int
    port: int | None = None
    free_ports: bool = False
    s3: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """The processes in an order in which each comes after those it needs, and where they are reached."""

    specs: tuple[ProcessSpec, ...]
    ports: Mapping[str, int]
    nats_url: str

    @property
    def own_broker(self) -> bool:
        """Whether the NATS server is one of the processes."""
        return "nats" in self.ports

    @property
    def gateway_url(self) -> str:
        return f"http://{HOST}:{self.ports['gateway']}"

    def info(self, processes: Mapping[str, int], *, healthy: bool) -> MeshInfo:
        """What ``mesh.json`` says about it."""
        return MeshInfo(
            pid=os.getpid(),
            healthy=healthy,
            gateway_url=self.gateway_url,
            nats_url=self.nats_url,
            grpc_targets={name: f"{HOST}:{self.ports[name]}" for name in SERVICES},
            ports={name: port for name, port in self.ports.items() if not name.endswith(METRICS)},
            metrics={
                name.removesuffix(METRICS): port for name, port in self.ports.items() if name.endswith(METRICS)
            },
            processes=dict(processes),
        )


def plan(options: Options, state: StateDirectory) -> Topology:
    """Chooses ports, makes keys that are missing and writes the broker's configuration.

    Raises MeshError when a port is taken or there is no NATS server to run.
    """
    home = state.s3 if options.s3 else state.root
    workers = [f"worker-{number}" for number in range(1, options.workers + 1)]
    external = nats.external_url()
    names = ["gateway", *SERVICES, *workers, *([] if external else ["nats"]), *(swift.NAMES if options.s3 else [])]
    names += [name + METRICS for name in ("gateway", *SERVICES, *workers)]
    chosen = ports.choose(names, free=options.free_ports, gateway=options.port)
    nats_url = external or f"nats://{HOST}:{chosen['nats']}"
    server = _s3_server(home, chosen) if options.s3 else None
    storage_settings = {"data_dir": home / "data", **(server.settings() if server else {})}
    environment = _environment(state, chosen, nats_url, storage_settings)
    broker = () if external else (_broker(state, chosen["nats"], home / "nats"),)
    storage = (_storage(server),) if server else ()
    needs = tuple(spec.name for spec in (*broker, *storage))
    services = (
        _service("upload", environment, chosen, needs),
        # Merge follows the uploads' state stream, which upload makes.
        _service("merge", environment, chosen, (*needs, "upload")),
        _service("challenge", environment, chosen, needs),
        *(_worker(name, environment, chosen, (*needs, "merge")) for name in workers),
    )
    gateway = ProcessSpec(
        name="gateway",
        command=_module("services.gateway"),
        environment=_with_metrics("gateway", environment, chosen),
        check=health.http(f"http://{HOST}:{chosen['gateway']}/api/v1/health"),
        after=tuple(spec.name for spec in services),
    )
    return Topology(specs=(*broker, *storage, *services, gateway), ports=chosen, nats_url=nats_url)


def _environment(
    state: StateDirectory, chosen: Mapping[str, int], nats_url: str, storage: Mapping[str, object]
) -> dict[str, str]:
    """This process's environment, so that TWOTRUTHS_… settings reach the services, and what the mesh decides."""
    settings: dict[str, object] = {
        "nats_url": nats_url,
        **KeyRing.create(state.keys).settings(),
        **storage,
        **{f"{name}_target": f"dns:///{HOST}:{chosen[name]}" for name in SERVICES},
        **{f"{name}_listen": f"{HOST}:{chosen[name]}" for name in ("gateway", *SERVICES)},
    }
    decided = {f"TWOTRUTHS_{name.upper()}": str(value) for name, value in settings.items()}
    return {**ONE_MACHINE, **os.environ, **decided}


def _broker(state: StateDirectory, port: int, store: Path) -> ProcessSpec:
    server = nats.find_server()
    config = state.root / "nats.conf"
    nats.write_config(config, port=port, store=store)
    return ProcessSpec(
        name="nats",
        command=(str(server), "-c", str(config)),
        environment=os.environ,
        check=health.jetstream(f"nats://{HOST}:{port}"),
    )


def _s3_server(home: Path, chosen: Mapping[str, int]) -> SwiftServer:
    swift.require_installed()
    return SwiftServer(home / "swift", tuple(chosen[name] for name in swift.NAMES))


def _storage(server: SwiftServer) -> ProcessSpec:
    return ProcessSpec("s3", server.command(), os.environ, health.http(*server.health_urls()))


def _service(
    name: str, environment: Mapping[str, str], chosen: Mapping[str, int], after: tuple[str, ...]
) -> ProcessSpec:
    check = health.grpc_service(f"{HOST}:{chosen[name]}")
    return ProcessSpec(name, _module(f"services.{name}"), _with_metrics(name, environment, chosen), check, after)


def _worker(
    name: str, environment: Mapping[str, str], chosen: Mapping[str, int], after: tuple[str, ...]
) -> ProcessSpec:
    listen = f"{HOST}:{chosen[name]}"
    return ProcessSpec(
        name=name,
        command=_module("services.merge", "worker"),
        environment={**_with_metrics(name, environment, chosen), "TWOTRUTHS_WORKER_LISTEN": listen},
        check=health.grpc_service(listen),
        after=after,
    )


def _with_metrics(name: str, environment: Mapping[str, str], chosen: Mapping[str, int]) -> dict[str, str]:
    return {**environment, "TWOTRUTHS_METRICS_LISTEN": f"{HOST}:{chosen[name + METRICS]}"}


def _module(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)
