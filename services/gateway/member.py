"""What makes a gateway process one of several on one port: it takes connections from the sockets that its parent
listens on, and tells it when it serves.

:mod:`services.gateway.fleet` starts it as ``python -m services.gateway member NUMBER PARENT DESCRIPTORS``. It
never outlives its parent, and leaves Ctrl-C, which a terminal sends to both, to it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence

COMMAND = "member"
READY = b"serving\n"
_PR_SET_PDEATHSIG = 1


class Member:
    """This process as child ``number`` of ``parent``, a process id. Exits if the parent is gone."""

    def __init__(self, number: int, parent: int, descriptors: Sequence[int]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if sys.platform == "linux":
            # SIGKILL: whoever starts the fleet again must find the port free, at once (prctl(2)).
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the gateway that this process belongs to is gone")
        self.name = name(number)
        self.sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        self._told = False

    def serves(self) -> None:
        """Tells the parent; what is printed afterwards goes where the log goes."""
        if not self._told:
            self._told = True
            os.write(1, READY)
            os.dup2(2, 1)


def command(number: int, sockets: Sequence[socket.socket]) -> list[str]:
    """How this process starts its child; the sockets have to be passed on."""
    descriptors = ",".join(str(each.fileno()) for each in sockets)
    return [sys.executable, "-m", "services.gateway", COMMAND, str(number), str(os.getpid()), descriptors]


def join(arguments: Sequence[str]) -> Member:
    """Joins the fleet, by the arguments of :func:`command` after the word. Raises ValueError."""
    number, parent, descriptors = arguments
    return Member(int(number), int(parent), [int(each) for each in descriptors.split(",")])


def name(number: int) -> str:
    """What it is called in logs."""
    return f"gateway-{number}"
