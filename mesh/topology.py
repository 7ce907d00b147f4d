"""What runs on one machine: the processes, where each listens and the environment that tells it so."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mesh import brokers, health, nats, ports, scale, swift
from mesh.errors import MeshError
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
    ``s3``: on an S3 server of its own instead of a directory. ``replicas``: how many of a service or the gateway,
    by name; ``nats``: how many NATS servers."""

    state: Path
    workers: int
    port: int | None = None
    free_ports: bool = False
    s3: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    nats: int = 1

    def names(self, name: str) -> tuple[str, ...]:
        """The processes of a service, or of the gateway."""
        return scale.names(name, self.replicas.get(name, 1))


@dataclass(frozen=True, slots=True)
class Topology:
    """The processes in an order in which each comes after those it needs, and where they are reached. ``members``:
    the names of the processes of each service and of the gateway."""

    specs: tuple[ProcessSpec, ...]
    ports: Mapping[str, int]
    nats_url: str
    own_broker: bool
    members: Mapping[str, tuple[str, ...]]

    @property
    def gateway_urls(self) -> list[str]:
        return [f"http://{HOST}:{self.ports[name]}" for name in self.members["gateway"]]

    def info(self, processes: Mapping[str, int], *, healthy: bool) -> MeshInfo:
        """What ``mesh.json`` says about it."""
        return MeshInfo(
            pid=os.getpid(),
            healthy=healthy,
            gateway_url=self.gateway_urls[0],
            gateway_urls=self.gateway_urls,
            nats_url=self.nats_url,
            grpc_targets={name: _target(self.members[name], self.ports) for name in SERVICES},
            ports={name: port for name, port in self.ports.items() if not name.endswith(METRICS)},
            metrics={
                name.removesuffix(METRICS): port for name, port in self.ports.items() if name.endswith(METRICS)
            },
            processes=dict(processes),
        )


def plan(options: Options, state: StateDirectory) -> Topology:
    """Chooses ports, makes keys that are missing and writes the broker's configuration.

    Raises MeshError when a port is taken, there is no NATS server to run or the numbers do not go together.
    """
    scale.check(options.replicas, s3=options.s3)
    home = state.s3 if options.s3 else state.root
    members = {name: options.names(name) for name in ("gateway", *SERVICES)}
    workers = [f"worker-{number}" for number in range(1, options.workers + 1)]
    external = nats.external_url()
    servers = () if external else brokers.names(options.nats)
    if external and options.nats > 1:
        raise MeshError("--nats says how many NATS servers to start; NATS_URL names those that run already")
    measured = (*(name for replicas in members.values() for name in replicas), *workers)
    names = [
        *measured,
        *(name + METRICS for name in measured),
        *brokers.port_names(servers),
        *(swift.NAMES if options.s3 else []),
    ]
    chosen = ports.choose(names, free=options.free_ports, gateway=options.port)
    nats_url = external or brokers.url(servers, chosen)
    server = _s3_server(home, chosen) if options.s3 else None
    settings = {
        "data_dir": home / "data",
        **(server.settings() if server else {}),
        **({"nats_replicas": options.nats} if options.nats > 1 else {}),
        **{f"{name}_target": _target(members[name], chosen, alone="dns:///") for name in SERVICES},
    }
    environment = _environment(state, nats_url, settings)
    base = (
        *brokers.plan(servers, chosen, configs=state.root, home=home),
        *((_storage(server),) if server else ()),
    )
    needs = tuple(spec.name for spec in base)
    services = (
        *_service("upload", members, environment, chosen, needs),
        # Merge follows the uploads' state stream, which upload makes.
        *_service("merge", members, environment, chosen, (*needs, *members["upload"])),
        *_service("challenge", members, environment, chosen, needs),
        *(_worker(name, environment, chosen, (*needs, *members["merge"])) for name in workers),
    )
    gateways = _gateways(members["gateway"], environment, chosen, tuple(spec.name for spec in services))
    return Topology((*base, *services, *gateways), chosen, nats_url, bool(servers), members)


def _target(replicas: tuple[str, ...], chosen: Mapping[str, int], alone: str = "") -> str:
    """Where a service is reached, as a gRPC target: calls are spread over the addresses that it names."""
    addresses = [f"{HOST}:{chosen[name]}" for name in replicas]
    return f"ipv4:{','.join(addresses)}" if len(addresses) > 1 else alone + addresses[0]


def _environment(state: StateDirectory, nats_url: str, settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment, so that TWOTRUTHS_… settings reach the services, and what the mesh decides."""
    decided = {"nats_url": nats_url, **KeyRing.create(state.keys).settings(), **settings}
    return {**ONE_MACHINE, **os.environ, **{_variable(name): str(value) for name, value in decided.items()}}


def _variable(setting: str) -> str:
    return f"TWOTRUTHS_{setting.upper()}"


def _s3_server(home: Path, chosen: Mapping[str, int]) -> SwiftServer:
    swift.require_installed()
    return SwiftServer(home / "swift", tuple(chosen[name] for name in swift.NAMES))


def _storage(server: SwiftServer) -> ProcessSpec:
    return ProcessSpec("s3", server.command(), os.environ, health.http(*server.health_urls()))


def _service(
    name: str,
    members: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
    chosen: Mapping[str, int],
    after: tuple[str, ...],
) -> tuple[ProcessSpec, ...]:
    def replica(each: str) -> ProcessSpec:
        listen = f"{HOST}:{chosen[each]}"
        own = {**_with_metrics(each, environment, chosen), _variable(f"{name}_listen"): listen}
        return ProcessSpec(each, _module(f"services.{name}"), own, health.grpc_service(listen), after)

    return tuple(map(replica, members[name]))


def _gateways(
    names: tuple[str, ...], environment: Mapping[str, str], chosen: Mapping[str, int], after: tuple[str, ...]
) -> tuple[ProcessSpec, ...]:
    def replica(each: str) -> ProcessSpec:
        listen = f"{HOST}:{chosen[each]}"
        own = {**_with_metrics(each, environment, chosen), _variable("gateway_listen"): listen}
        check = health.http(f"http://{listen}/api/v1/health")
        return ProcessSpec(each, _module("services.gateway"), own, check, after)

    return tuple(map(replica, names))


def _worker(
    name: str, environment: Mapping[str, str], chosen: Mapping[str, int], after: tuple[str, ...]
) -> ProcessSpec:
    listen = f"{HOST}:{chosen[name]}"
    return ProcessSpec(
        name=name,
        command=_module("services.merge", "worker"),
        environment={**_with_metrics(name, environment, chosen), _variable("worker_listen"): listen},
        check=health.grpc_service(listen),
        after=after,
    )


def _with_metrics(name: str, environment: Mapping[str, str], chosen: Mapping[str, int]) -> dict[str, str]:
    return {**environment, _variable("metrics_listen"): f"{HOST}:{chosen[name + METRICS]}"}


def _module(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)
