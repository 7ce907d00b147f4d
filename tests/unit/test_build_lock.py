"""An image's wheel is built by what requirements/build.txt pins with hashes."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_build_lock_pins_what_the_wheel_is_built_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = project["build-system"]["requires"]
    assert project["dependency-groups"]["build"] == required
    locked = (ROOT / "requirements" / "build.txt").read_text()
    for requirement in required:
        assert f"{requirement} \\\n    --hash=sha256:" in locked
