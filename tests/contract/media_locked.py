"""Many small hostile files through the media jobs quickly: one locked child does one after the other.

A worker's child does one job and ends, which takes a tenth of a second. Here the same code runs behind the same
lock on bytes from a pipe, and only a child that died is replaced. So what a job says of a file is the same; that
a worker outlives it and leaves nothing is held by the tests that use a worker's own runner.
"""

from __future__ import annotations

import io
import os
import select
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

from services.merge.media import canary, normalise, probe
from services.merge.media.errors import RETRYABLE, ErrorType, MediaError
from services.merge.media.forked import ROOT
from services.merge.media.limits import Limits
from services.merge.media.runner import CRASHES
from services.merge.media.sandbox import lock_down
from services.merge.media.source import Source
from services.merge.timeline import Canvas, Quality

LIMITS = Limits(max_clip_seconds=2, wall_seconds=60)
OURS = Limits(cpu_seconds=7_200, wall_seconds=7_200)  # of a child that does thousands of jobs
CANVAS = Canvas(64, 48)
DONE = "done"
PRECISE = frozenset({DONE, *(str(kind) for kind in ErrorType)} - {str(kind) for kind in RETRYABLE})


class LockedJobs:
    """``outcome`` is "done", the ``error_type`` of what both jobs said of a file, or how a child ended over it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self.deaths = 0

    def outcome(self, data: bytes) -> str:
        """Probe, then normalise; the first failure counts. A crash is what the runner makes of it."""
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(struct.pack("=I", len(data)) + data)
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], LIMITS.wall_seconds)
        line = child.stdout.readline() if ready else b""
        if line:
            return line.decode().strip()
        self.close()
        self.deaths += 1
        if not ready:
            return ErrorType.TIME_EXCEEDED
        return ErrorType.DECODE_FAILED if -child.returncode in CRASHES else f"ended with {child.returncode}"

    def close(self) -> None:
        if self._child is not None:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            if select.select([self._child.stdout], [], [], 0)[0]:
                self._child.wait(10)  # it is dying by itself: how, counts
            else:
                self._child.kill()
                self._child.wait()
            self._child.stdin.close()
            self._child.stdout.close()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "2"}
        self._child = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        return self._child


def _serve(parent: int) -> None:
    canary.sing()
    lock_down(OURS, parent)
    while head := _read(4):
        answer = _both(_read(*struct.unpack("=I", head)))
        os.write(1, f"{answer}\n".encode())


def _both(data: bytes) -> str:
    def normalised(source: Source) -> object:
        return normalise.normalise(source, io.BytesIO(), CANVAS, Quality.LOW, lambda done, expected: None)

    jobs: tuple[Callable[[Source], object], ...] = (probe.probe, normalised)
    for job in jobs:
        source = Source(io.BytesIO(data), replace(LIMITS), 1)
        try:
            with source.explained():
                job(source)
        except MediaError as error:
            if error.retryable:
                traceback.print_exception(error)
            return error.error_type
        except MemoryError:
            return ErrorType.MEMORY_EXCEEDED
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return DONE


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := os.read(0, size - len(data))):
        data += piece
    return data


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _serve(int(sys.argv[1]))
    os._exit(0)
