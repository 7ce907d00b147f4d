"""The state directory of a mesh: its data, keys and logs, and the file by which others find a running mesh.

One mesh runs on a state directory at a time: it holds a lock (flock) that the kernel drops when the
process ends, however it ends. ``mesh.json`` says what runs; it is replaced whole at every change, so a
reader never sees half of it. After ``kill -9`` it stays behind: who reads it checks that the mesh answers.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mesh.errors import MeshError


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """A running mesh: the process that runs it, where it is reached (of several gateways the first is
    ``gateway_url``; players may turn to any) and the processes it runs (name → pid); ``metrics``: the ports at
    which those of them that count anything tell Prometheus."""

    pid: int
    healthy: bool
    gateway_url: str
    gateway_urls: list[str]
    nats_url: str
    grpc_targets: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, int] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)

    def alive(self) -> bool:
        """Whether the process that wrote this may still be there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class StateDirectory:
    """Paths below ``root``, which is made when it is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.data = self.root / "data"
        self.keys = self.root / "keys"
        self.logs = self.root / "logs"
        self.nats = self.root / "nats"
        # What runs with --s3 has records of its own, since they name files that are there and nowhere else.
        self.s3 = self.root / "s3"
        self._info = self.root / "mesh.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for this process. Raises MeshError when another holds it or it cannot be made."""
        try:
            for directory in (self.root, self.data, self.logs, self.nats):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.root / "mesh.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise MeshError(f"the state directory {self.root} cannot be used: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise MeshError(self._held()) from error
            yield
        finally:
            os.close(descriptor)

    def _held(self) -> str:
        info = self.read()
        who = f"process {info.pid}" if info else "another process"
        return f"a mesh runs on {self.root} already ({who}); stop it, or name another directory with --state"

    def read(self) -> MeshInfo | None:
        """What ``mesh.json`` says, or None without a usable one."""
        try:
            return MeshInfo(**json.loads(self._info.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, info: MeshInfo) -> None:
        """Replaces ``mesh.json``."""
        temporary = self._info.with_suffix(".json.new")
        temporary.unlink(missing_ok=True)
        temporary.touch(0o600)  # NATS_URL may hold a password
        temporary.write_text(json.dumps(asdict(info), indent=2) + "\n")
        temporary.replace(self._info)

    def forget(self) -> None:
        """Removes ``mesh.json``."""
        self._info.unlink(missing_ok=True)
