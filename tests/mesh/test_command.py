"""The command line says in one line what is wrong, and leaves with 1."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import jwt
import pytest

from mesh import running
from mesh.__main__ import app
from mesh.errors import MeshError
from mesh.topology import Options
from services.common.keys import KeyRing


async def mesh(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    """The exit status, stdout and stderr of ``mesh <arguments>``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh", *arguments, stdout=PIPE, stderr=PIPE, env={**os.environ, **environment}
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_up_on_a_taken_port_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, _, err = await mesh("up", "--state", str(tmp_path), "--free-ports", "--port", port)
    assert (status, len(err.splitlines())) == (1, 1)
    assert f"port {port} (gateway) is taken" in err


async def test_up_without_the_broker_that_it_was_given_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_BROKER_SECONDS", 0.3)
    monkeypatch.setenv("NATS_URL", "nats://user:secret@127.0.0.1:9")
    options = Options(tmp_path, workers=1, free_ports=True)
    with pytest.raises(MeshError, match=r"^no NATS server with JetStream answers at NATS_URL$"):
        async with running.running(options, print, print):
            pass


async def test_a_token_is_all_that_is_printed(tmp_path: Path) -> None:
    status, out, err = await mesh("token", "--user", "carol", "--scope", "media:read", "--state", str(tmp_path))
    assert (status, err) == (0, "")
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert (claims["sub"], claims["scope"]) == ("carol", "media:read")
    assert KeyRing(tmp_path / "keys").settings()["service_key_file"].exists()


async def test_a_token_of_nobody_is_refused(tmp_path: Path) -> None:
    status, out, err = await mesh("token", "--user", "", "--state", str(tmp_path))
    assert (status, out, err) == (1, "", "mesh: a player has a name: --user NAME\n")


async def test_a_demo_with_two_clips_says_how_many_it_takes(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    clip = str(tmp_path / "a.mp4")
    status, _, err = await mesh("demo", clip, clip, "--state", str(tmp_path / "state"))
    assert (status, err) == (1, "mesh: the demo takes three clips or none, not 2\n")


async def test_a_demo_with_a_file_that_is_not_there_names_it(tmp_path: Path) -> None:
    clips = [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mp4")]
    status, _, err = await mesh("demo", *clips, "--state", str(tmp_path / "state"))
    assert (status, err) == (1, f"mesh: {clips[0]} is not a file\n")


def test_a_demo_with_a_file_that_it_may_not_read_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "a.mp4"
    clip.touch()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root, who may run the tests, may read everything
    with pytest.raises(SystemExit) as left:
        app(["demo", *[str(clip)] * 3, "--state", str(tmp_path / "state")])
    assert (left.value.code, capsys.readouterr().err) == (1, f"mesh: {clip} cannot be read\n")
