"""One mesh for all tests of this directory that a worker of pytest-xdist runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.clips import BLUE, GREEN, RED, Sound, make_clip
from tests.mesh.harness import Harness


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A healthy mesh with two workers. Tests may kill its processes: it comes back."""
    harness = Harness(tmp_path_factory.mktemp("mesh"))
    try:
        harness.wait_until_healthy()
        yield harness
    finally:
        harness.close()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three small clips that differ in all that matters: 1.0, 1.2 and 0.8 s."""
    directory = tmp_path_factory.mktemp("clips")
    paths = [directory / name for name in ("one.mov", "two.mp4", "three.webm")]
    make_clip(paths[0], seconds=1.0, colour=RED, size=(160, 90), rotation=90)
    make_clip(paths[1], seconds=1.2, colour=GREEN, size=(240, 136), fps=25)
    make_clip(paths[2], seconds=0.8, colour=BLUE, size=(160, 120), codec="vp8", sound=Sound("opus"), live=True)
    return paths
