"""The child's lock, closed after its files are open and before a byte of them is read. No root needed.

Resource limits; no way to gain privileges; death with the parent; an end of its own two seconds after its
time, should nobody end it; no file or port by name (Landlock); no system call but what decoding needs (seccomp).
A child of root becomes nobody first. What is loaded on first use must have been used before: see ``canary``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress

from services.merge.media import landlock, seccomp
from services.merge.media.limits import Limits

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
MAX_OPEN_FILES = 64
GRACE_SECONDS = 2
NOBODY = 65534


def missing() -> tuple[str, ...]:
    """The locks that this machine lacks; empty when a child can be closed in."""
    found = {"landlock": landlock.version() > 0, "seccomp": seccomp.available()}
    return tuple(name for name, there in found.items() if not there)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends, however it ends. Raises :class:`ProcessLookupError` if it already has.

    The kernel ties this to the parent's *thread* that started the child: of the worker's nursery that of its event
    loop, of a job's child the nursery's only one.
    The parent may have gone before the request was made, hence the second look.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent ended before its child began")


def lock_down(limits: Limits, parent: int) -> None:
    """Give up what the job does not need. Cannot be undone; threads started later inherit it.

    CPU: SIGXCPU at the limit, so that the parent sees why, and SIGKILL two seconds later.
    FSIZE: a write past it fails with EFBIG (Python ignores SIGXFSZ).
    Raises OSError if a lock does not close, with ``limits.locked`` also if the kernel has none.
    """
    for name, soft, hard in (
        (resource.RLIMIT_AS, limits.memory_bytes, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + GRACE_SECONDS),
        (resource.RLIMIT_FSIZE, limits.output_bytes, limits.output_bytes),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
    ):
        resource.setrlimit(name, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds + GRACE_SECONDS)  # SIGALRM ends it
    _become_nobody()
    die_with_parent(parent)  # a change of user forgets it
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    lacking = missing()
    if lacking and limits.locked:
        raise OSError(f"this kernel has no {' and no '.join(lacking)}")
    only_thread()
    if "landlock" not in lacking:
        landlock.restrict()
    if "seccomp" not in lacking:
        seccomp.restrict()


def _become_nobody() -> None:
    """Root is more than a decoder needs. A container's root that may not change its user stays what it is."""
    if os.geteuid() != 0:
        return
    with suppress(PermissionError):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def only_thread() -> None:
    """Landlock binds the thread that asks; one that ran already would stay free. Nor may a process with others be
    forked. Raises OSError."""
    if len(os.listdir("/proc/self/task")) != 1:
        raise OSError("a thread is running before the lock is closed")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")
