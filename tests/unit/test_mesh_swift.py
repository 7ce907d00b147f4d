"""Which store a mesh runs on, and how its S3 server is configured."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mesh import swift, swift_cache, topology
from mesh.errors import MeshError
from mesh.state import StateDirectory
from mesh.swift import SwiftServer
from mesh.topology import Options


def test_records_that_name_files_in_s3_and_those_that_name_local_files_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)
    state = StateDirectory(tmp_path)
    places = set()
    for s3 in (True, False):
        planned = topology.plan(Options(state.root, 1, free_ports=True, s3=s3), state)
        places.add(planned.specs[-1].environment["TWOTRUTHS_DATA_DIR"])
        assert (tmp_path / "nats.conf").read_text().count(f'"{state.s3}/nats"' if s3 else f'"{state.nats}"') == 1
    assert places == {str(state.s3 / "data"), str(state.data)}


def test_every_process_is_told_where_the_bucket_is_and_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", "nats://elsewhere:4222")
    planned = topology.plan(Options(tmp_path, 2, free_ports=True, s3=True), StateDirectory(tmp_path))
    server, *others = planned.specs
    assert server.name == "s3"
    url = f"http://127.0.0.1:{planned.ports['s3']}"
    assert {spec.environment["TWOTRUTHS_S3_ENDPOINT_URL"] for spec in others} == {url}
    assert all("s3" in spec.after for spec in others if spec.name in {"upload", "merge", "worker-1", "worker-2"})


def test_without_swift_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swift, "find_spec", lambda _: None)
    with pytest.raises(MeshError, match="install the packages swift and pyeclib"):
        swift.require_installed()


def test_the_servers_listen_to_this_machine_alone_and_their_secret_is_for_its_user(tmp_path: Path) -> None:
    server = SwiftServer(tmp_path / "s3", (5001, 5002, 5003, 5004))
    swift.write_configuration(server.folder, server.ports)
    for kind, port in zip(("proxy", "object", "container", "account"), server.ports, strict=True):
        path = server.folder / f"{kind}-server.conf"
        assert f"bind_ip = 127.0.0.1\nbind_port = {port}\n" in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.url == "http://127.0.0.1:5001"


def test_the_proxy_remembers_what_it_asked_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(swift_cache, "monotonic", lambda: now)
    seen: list[swift_cache.ProcessCache] = []
    app = swift_cache.filter_factory({})(lambda environ, _: seen.append(environ["swift.cache"]))
    app({}, None)
    app({}, None)
    cache, same = seen
    assert cache is same
    cache.set("account", {"status": 200}, time=60)
    cache.set("container", {"status": 200})
    assert (cache.get("account"), cache.get("other")) == ({"status": 200}, None)
    now = 160.0
    assert (cache.get("account"), cache.get("container")) == (None, {"status": 200})
    cache.delete("container")
    cache.delete("container")
    assert cache.get("container") is None
