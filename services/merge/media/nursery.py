"""The warm process that media children are forked from. Started by the worker, never imported by it.

Starting Python and importing PyAV costs a quarter of a CPU-second, more than many a job; a fork of a process that
has done both costs a few milliseconds. So this one imports everything, sings the canary and then does nothing but
fork, kill and reap. It reads no byte that a player sent and runs no thread, else a fork would not be safe: what a
child reads comes over pipes that the worker made for it alone. See docs/decisions/014.

The control socket is stdin, one message each: ``fork N`` with the child's three pipes, ``kill N``; the answers are
``forked N PID`` and ``ended N CODE``. When the worker ends, however it does, so does this process, and with it
every child.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress

from services.merge.media import canary, child
from services.merge.media.sandbox import die_with_parent, only_thread

MESSAGE_BYTES = 256
PIPES = 3


class Nursery:
    """Children by their numbers, those that have not been reaped."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}  # by the descriptor that becomes readable when a child ends
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> None:
        """Until the worker closes the control socket."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._numbers:
                    self._reap(descriptor)
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        message, pipes, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, PIPES)
        if not message:
            return False
        command, number = message.split()
        if command == b"fork":
            self._fork(int(number), pipes)
        elif pid := self._pids.get(int(number)):  # not reaped: the process id is still its own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ProcessLookupError):  # it has not made its group yet
                os.killpg(pid, signal.SIGKILL)
        return True

    def _fork(self, number: int, pipes: list[int]) -> None:
        only_thread()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _be_child(parent, pipes)
        for pipe in pipes:
            os.close(pipe)
        self._pids[number] = pid
        descriptor = os.pidfd_open(pid)
        self._numbers[descriptor] = number
        self._poll.register(descriptor, select.POLLIN)
        self._control.send(f"forked {number} {pid}".encode())

    def _reap(self, descriptor: int) -> None:
        number = self._numbers.pop(descriptor)
        _, status = os.waitpid(self._pids.pop(number), 0)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        self._control.send(f"ended {number} {os.waitstatus_to_exitcode(status)}".encode())


def _be_child(parent: int, pipes: list[int]) -> None:
    """Does not return, whatever happens."""
    code = 1
    try:
        os.setsid()
        die_with_parent(parent)
        for standard, pipe in enumerate(pipes):
            os.dup2(pipe, standard)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor >= PIPES:
                with suppress(OSError):  # what listed them
                    os.close(descriptor)
        code = child.main(parent)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # no destructors over what a hostile file may have left behind


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the worker ends its children in its own order
    canary.sing()
    gc.collect()
    gc.freeze()  # a child's collector need not copy these pages
    with socket.socket(fileno=os.dup(0)) as control:
        Nursery(control).serve()


if __name__ == "__main__":
    main()
