"""Metrics for Prometheus, on a port of their own: they are for operators, not for players.

Each process has one registry, which its wiring makes and :class:`services.common.lifecycle.App` carries.
https://prometheus.io/docs/practices/naming
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

log = logging.getLogger(__name__)


def new_registry() -> CollectorRegistry:
    """A registry that tells of the process (memory, CPU, descriptors) and takes the service's own metrics."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


@contextmanager
def exposed(registry: CollectorRegistry, listen: str) -> Iterator[int]:
    """Serves the registry at ``http://<listen>/metrics`` within the block, from a thread; yields the port.

    ``listen``: "127.0.0.1:9100", port 0 for a free one, or "" for nowhere (yields 0). Raises OSError when the
    port is taken, ValueError when that is no address.
    """
    if not listen:
        yield 0
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"metrics_listen must be <host>:<port>, not {listen!r}")
    server, thread = start_http_server(int(port), host.strip("[]"), registry)
    try:
        log.info("metrics on port %d", server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
