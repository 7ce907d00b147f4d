"""One child process: started in a session of its own, logged to a file, and stopped with what it started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import mesh.launch


class ChildProcess:
    """A running child. A session of its own keeps Ctrl-C in the terminal from reaching it before we decide."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], log: Path) -> ChildProcess:
        """Starts ``command`` (an absolute path first); its output is appended to ``log``. Raises OSError."""
        launcher = (sys.executable, "-I", "-S", mesh.launch.__file__, str(os.getpid()))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *launcher,
                *command,
                stdin=DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        return cls(process)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """The exit status once it has ended; negative for a signal. What it left behind is killed."""
        status = await self._process.wait()
        self._kill_group()
        return status

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after ``grace`` seconds."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(grace):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """SIGKILL, at once, to it and all that it started in its session."""
        if self.running:
            self._kill_group()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def describe_exit(status: int) -> str:
    """An exit status in words: "exited with 1", "was killed by SIGKILL"."""
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def tail(log: Path, lines: int = 15, limit: int = 16_384) -> str:
    """The last lines of a log file; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - limit))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
