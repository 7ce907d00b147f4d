"""How many of each: what may be asked for, what the shape is, and who is told what."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import nats, scale, topology
from mesh.__main__ import app
from mesh.errors import MeshError
from mesh.state import StateDirectory
from mesh.topology import Options

POSTGRESQL = {"TWOTRUTHS_CHALLENGE_DATABASE_URL": "postgresql+asyncpg://localhost/challenge"}


@pytest.fixture(autouse=True)
def own_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)


def test_numbers_are_read_by_name() -> None:
    assert scale.parse("upload=2, merge-worker=3,gateway=2") == {"upload": 2, "merge-worker": 3, "gateway": 2}
    assert scale.parse("") == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scale", "foo=2"], "there is no foo; there are upload, merge, challenge, gateway, merge-worker"),
        (["--scale", "=2"], "there is no name; there are upload"),
        (["--scale", "upload=0"], "upload takes a number from 1 to 8, as in upload=2"),
        (["--scale", "upload=x"], "upload takes a number from 1 to 8"),
        (["--scale", "upload=²"], "upload takes a number from 1 to 8"),
        (["--scale", "upload"], "upload takes a number from 1 to 8"),
        (["--scale", "upload=-1"], "upload takes a number from 1 to 8"),
        (["--scale", "merge-worker=65"], "merge-worker takes a number from 1 to 64"),
        (["--scale", "upload=2,upload=2"], "upload is there twice"),
        (["--scale", "upload=2"], "several uploads need --s3"),
        (["--scale", "challenge=2"], "several challenges need PostgreSQL: set TWOTRUTHS_CHALLENGE_DATABASE_URL"),
        (["--scale", "merge-worker=2", "--workers", "2"], "--workers 2 is short for --scale merge-worker=2"),
        (["--nats", "2"], "--nats takes 1 or 3, not 2"),
    ],
)
def test_what_is_not_possible_is_one_line_that_says_what_is(
    options: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TWOTRUTHS_CHALLENGE_DATABASE_URL", raising=False)
    with pytest.raises(SystemExit) as left:
        app(["up", "--free-ports", "--state", str(tmp_path), *options])
    said = capsys.readouterr().err
    assert (left.value.code, len(said.splitlines())) == (1, 1)
    assert says in said


def test_several_challenges_may_share_a_postgresql() -> None:
    scale.check({"challenge": 2}, s3=False, environment=POSTGRESQL)


def test_a_number_of_servers_is_no_use_beside_those_that_run_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", "nats://elsewhere:4222")
    with pytest.raises(MeshError, match="NATS_URL names those that run already"):
        topology.plan(Options(tmp_path, 1, free_ports=True, nats=3), StateDirectory(tmp_path))


def test_one_of_each_has_plain_names_and_nothing_of_a_cluster(tmp_path: Path) -> None:
    planned = topology.plan(Options(tmp_path, 1, free_ports=True), StateDirectory(tmp_path))
    names = ["nats", "upload", "merge", "challenge", "worker-1", "gateway"]
    assert [spec.name for spec in planned.specs] == names
    assert set(planned.ports) == {*names, *(f"{name}-metrics" for name in names if name != "nats")}
    environment = planned.specs[-1].environment
    assert environment["TWOTRUTHS_UPLOAD_TARGET"] == f"dns:///127.0.0.1:{planned.ports['upload']}"
    assert "TWOTRUTHS_NATS_REPLICAS" not in environment
    assert "cluster" not in (tmp_path / "nats.conf").read_text()
    info = planned.info({}, healthy=True)
    assert info.gateway_urls == [info.gateway_url]


def test_every_process_knows_all_of_what_it_calls_and_listens_by_itself(tmp_path: Path) -> None:
    options = Options(tmp_path, 3, free_ports=True, s3=True, replicas={"upload": 2, "gateway": 2}, nats=3)
    planned = topology.plan(options, StateDirectory(tmp_path))
    specs, at = {spec.name: spec for spec in planned.specs}, planned.ports
    several = {"upload-1", "upload-2", "gateway-1", "gateway-2", "nats-1", "nats-2", "nats-3"}
    assert specs.keys() == several | {"s3", "merge", "challenge", "worker-1", "worker-2", "worker-3"}
    for name in specs.keys() - {"s3", "nats-1", "nats-2", "nats-3"}:
        environment = specs[name].environment
        uploads = f"ipv4:127.0.0.1:{at['upload-1']},127.0.0.1:{at['upload-2']}"
        assert environment["TWOTRUTHS_UPLOAD_TARGET"] == uploads
        assert environment["TWOTRUTHS_NATS_URL"] == planned.nats_url
        assert environment["TWOTRUTHS_NATS_REPLICAS"] == "3"
        service, _, _ = name.partition("-")
        assert environment[f"TWOTRUTHS_{service.upper()}_LISTEN"] == f"127.0.0.1:{at[name]}"
    assert planned.nats_url == ",".join(f"nats://127.0.0.1:{at[f'nats-{number}']}" for number in (1, 2, 3))
    assert {"upload-1", "upload-2", "nats-1", "nats-2", "nats-3"} <= set(specs["merge"].after)
    info = planned.info({}, healthy=True)
    assert info.gateway_urls == [f"http://127.0.0.1:{at[name]}" for name in ("gateway-1", "gateway-2")]
    assert info.gateway_url == info.gateway_urls[0]
    config = (tmp_path / "nats-2.conf").read_text()
    assert "server_name: nats-2" in config
    assert f'listen: "127.0.0.1:{at["nats-2-routes"]}"' in config
    assert "sync_interval: always" in config


def test_the_first_of_several_gateways_has_the_port_that_was_asked_for(tmp_path: Path) -> None:
    options = Options(tmp_path, 1, free_ports=True, port=18099, replicas={"gateway": 2})
    planned = topology.plan(options, StateDirectory(tmp_path))
    assert planned.gateway_urls[0] == "http://127.0.0.1:18099"
    assert planned.ports["gateway-2"] != 18099


@pytest.mark.parametrize(("made", "folder", "asked"), [(1, "nats", 3), (3, "nats-1", 1)])
def test_streams_of_another_number_of_servers_are_refused(
    made: int, folder: str, asked: int, tmp_path: Path
) -> None:
    (tmp_path / folder / "jetstream").mkdir(parents=True)
    nats.check_store(tmp_path, made)
    with pytest.raises(MeshError, match=f"was made with --nats {made}: use that, or another --state"):
        topology.plan(Options(tmp_path, 1, free_ports=True, nats=asked), StateDirectory(tmp_path))
