"""Ports are found taken before anything starts."""

from __future__ import annotations

import socket

import pytest

from mesh import ports
from mesh.errors import MeshError


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MeshError, match=rf"port {port} \(gateway\) is taken.*another --port, or --free-ports"):
            ports.choose(["gateway"], free=True, gateway=port)


def test_free_ports_differ_and_can_be_listened_on() -> None:
    chosen = ports.choose(["gateway", "upload", "worker-1"], free=True, gateway=None)
    assert len(set(chosen.values())) == 3
    for port in chosen.values():
        socket.create_server(("127.0.0.1", port)).close()


def test_above_the_gateways_metrics_there_is_room_for_its_children() -> None:
    for _ in range(20):
        chosen = ports.choose(["upload", "gateway-metrics", "upload-metrics"], free=True, gateway=None)
        block = range(chosen["gateway-metrics"], chosen["gateway-metrics"] + ports.ROOM["gateway-metrics"] + 1)
        assert [name for name, port in chosen.items() if port in block] == ["gateway-metrics"]
        assert block.stop < 1 << 16
