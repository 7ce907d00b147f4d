"""Runs a command that cannot outlive the process that asked for it: ``python -I -S launch.py PARENT COMMAND…``.

A parent-death signal (prctl(2), PR_SET_PDEATHSIG) has to be set in the child and survives exec. Doing it
here, in a tiny interpreter that is replaced at once, spares the supervisor a fork with Python code in it,
which is not safe in a process that has used gRPC. It stands alone: it must not import the package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Sets the signal, and ends at once if the parent went away before it was set."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the supervisor is gone")
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
