"""The state directory: one mesh at a time, and a file that says what runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mesh.errors import MeshError
from mesh.state import MeshInfo, StateDirectory


def info(pid: int) -> MeshInfo:
    url = "http://127.0.0.1:1"
    return MeshInfo(pid, True, url, [url], "nats://127.0.0.1:2", {"upload": "127.0.0.1:3"}, {}, {"nats": 5})


def test_a_second_mesh_on_a_state_directory_is_refused_by_name(tmp_path: Path) -> None:
    first, second = StateDirectory(tmp_path), StateDirectory(tmp_path)
    with first.locked():
        first.write(info(4711))
        with pytest.raises(MeshError, match=r"runs on .* already \(process 4711\).*--state"), second.locked():
            pass
    with second.locked():
        pass


def test_what_runs_is_read_back_and_forgotten(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    assert state.read() is None
    state.write(info(os.getpid()))
    assert state.read() == info(os.getpid())
    assert info(os.getpid()).alive()
    assert (tmp_path / "mesh.json").stat().st_mode & 0o777 == 0o600  # NATS_URL may hold a password
    state.forget()
    assert state.read() is None
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_damaged_file_is_no_running_mesh(tmp_path: Path) -> None:
    (tmp_path / "mesh.json").write_text('{"pid": 1')
    assert StateDirectory(tmp_path).read() is None


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MeshError, match="cannot be used: Not a directory"),
        StateDirectory(tmp_path / "file" / "state").locked(),
    ):
        pass
