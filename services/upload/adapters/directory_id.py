"""What a data directory is known by, wherever it is mounted: a random name in a file of its own."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

_FILE = "parts.id"


def directory_id(root: Path) -> str:
    """The name, made if it is missing; for the one process that owns the directory. Raises OSError."""
    path = root / _FILE
    try:
        if known := path.read_text().strip():
            return known
    except FileNotFoundError:
        pass
    made, staged = uuid.uuid4().hex, path.with_suffix(".new")
    with staged.open("w") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    return made
