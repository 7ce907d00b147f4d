"""Ports: the fixed ones, free ones, and saying before anything starts that one is taken."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from mesh.errors import MeshError

HOST = "127.0.0.1"
FIXED: Mapping[str, int] = {
    "gateway": 8080,
    "upload": 50051,
    "merge": 50052,
    "challenge": 50053,
    "gateway-metrics": 9160,
    "upload-metrics": 9151,
    "merge-metrics": 9152,
    "challenge-metrics": 9153,
    **{f"worker-{number}-metrics": 9140 + number for number in range(1, 5)},
}
ROOM: Mapping[str, int] = {"gateway-metrics": 16}
"""How many ports above are left free: several gateway processes have theirs there."""

_FIRST, _NUMBER = re.compile("-1(?=-|$)"), re.compile("-[0-9]+(?=-|$)")  # of several


def choose(names: Iterable[str], *, free: bool, gateway: int | None) -> dict[str, int]:
    """A port for each name. Raises MeshError naming a fixed port that is taken and the way out.

    ``gateway`` asks for that port of the gateway. Of several the first has the fixed port. Names without a fixed
    port get a free one, with ``free`` all do.
    """
    wanted: dict[str, int] = {} if free else dict(FIXED)
    if gateway is not None:
        wanted["gateway"] = gateway
    chosen: dict[str, int] = {}
    for name in names:
        first = name if name in wanted else _FIRST.sub("", name)
        if first in wanted:
            _check(name, wanted[first])
            chosen[name] = wanted[first]
        else:
            taken = {port + above for named, port in chosen.items() for above in range(_room(named) + 1)}
            chosen[name] = _free({*taken, *wanted.values()}, room=_room(name))
    return chosen


def _room(name: str) -> int:
    return ROOM.get(_NUMBER.sub("", name), 0)


def _check(name: str, port: int) -> None:
    if not _bindable(port):
        other = "another --port, or --free-ports" if name in {"gateway", "gateway-1"} else "--free-ports"
        raise MeshError(f"port {port} ({name}) is taken or not allowed: stop what listens there, or use {other}")


def _free(avoid: set[int], *, room: int = 0) -> int:
    """A port below the kernel's ephemeral range: nothing takes it while its process is being restarted. So are the
    ``room`` ports above it."""
    for _ in range(1000):
        port = random.randrange(10_000, _ephemeral_start() - room)  # noqa: S311 - not a secret
        if all(each not in avoid and _bindable(each) for each in range(port, port + room + 1)):
            return port
    raise MeshError("no free port was found on 127.0.0.1")


def _ephemeral_start() -> int:
    try:
        start = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
    return start if start > 11_000 else 32_768


def _bindable(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections of a server that ended (TIME_WAIT) do not block its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True
