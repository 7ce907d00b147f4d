"""Scratch folders: what a dead worker left goes, what a living one works in stays."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from services.merge.scratch import Scratch


async def test_what_a_killed_worker_left_goes_and_what_is_worked_in_stays(tmp_path: Path) -> None:
    left = tmp_path / "left"
    (left / "job").mkdir(parents=True)
    first = Scratch(tmp_path)
    assert not left.exists()
    async with first.folder() as folder:
        Scratch(tmp_path).close()
        assert folder.is_dir()
    assert not folder.exists()
    first.close()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_starts_waits_for_one_that_has_yet_to_lock_its_folder(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(root, fcntl.LOCK_EX)
    (starting := tmp_path / "starting").mkdir()
    other = threading.Thread(target=lambda: Scratch(tmp_path).close())
    other.start()
    other.join(0.2)
    assert starting.is_dir()
    lock = os.open(starting, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.close(root)
    other.join(10)
    assert not other.is_alive()
    assert list(tmp_path.iterdir()) == [starting]
    os.close(lock)
