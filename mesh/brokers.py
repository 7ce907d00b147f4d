"""The NATS servers of a mesh: one alone, or three as a cluster, whose streams outlive the loss of one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mesh import health, nats, scale
from mesh.ports import HOST
from mesh.supervisor import ProcessSpec

_ROUTES, _HEALTH = "routes", "health"


def names(number: int) -> tuple[str, ...]:
    """What the servers are called."""
    return scale.names("nats", number)


def port_names(servers: Sequence[str]) -> list[str]:
    """The ports that they need: by a server's own name that for clients, in a cluster two more each."""
    beside = (_beside(server, kind) for server in servers for kind in (_ROUTES, _HEALTH))
    return [*servers, *(beside if len(servers) > 1 else ())]


def url(servers: Sequence[str], ports: Mapping[str, int]) -> str:
    """Where clients reach them: they turn to any."""
    return ",".join(f"nats://{HOST}:{ports[server]}" for server in servers)


def plan(
    servers: Sequence[str], ports: Mapping[str, int], *, configs: Path, home: Path
) -> tuple[ProcessSpec, ...]:
    """Their processes; their configuration is written to ``configs``, their streams are below ``home``. A member
    of a cluster is healthy when it has what the leader has. Raises MeshError when there is no server to run or the
    streams are of another number of them."""
    if not servers:
        return ()
    program = nats.find_server()
    nats.check_store(home, len(servers))
    routes = tuple(ports[_beside(server, _ROUTES)] for server in servers) if len(servers) > 1 else ()

    def one(server: str) -> ProcessSpec:
        config, member, check = configs / f"{server}.conf", None, health.jetstream(url([server], ports))
        if routes:
            health_port = ports[_beside(server, _HEALTH)]
            member = nats.Member(server, ports[_beside(server, _ROUTES)], routes, health_port)
            check = health.http(f"http://{HOST}:{health_port}/healthz")
        nats.write_config(config, port=ports[server], store=home / server, member=member)
        return ProcessSpec(server, (str(program), "-c", str(config)), os.environ, check)

    return tuple(map(one, servers))


def _beside(server: str, kind: str) -> str:
    return f"{server}-{kind}"
