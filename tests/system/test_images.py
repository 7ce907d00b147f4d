"""The images of the mesh: built, started and played on, by the code of ``make images``."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.xdist_group("images")
def test_every_image_is_built_and_serves() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "deploy.images"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout
    assert said.stdout.endswith("IMAGES OK\n"), said.stdout
