"""The child's lock, closed after its files are open and before a byte of them is read.

Now: resource limits, no way to gain privileges, and death with the parent. The file system and the
network are still open; closing them (Landlock, a system-call allow-list) belongs into :func:`lock_down`
as well, and the job code is ready for it: it works on descriptors opened beforehand and opens nothing.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from services.merge.media.limits import Limits

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
MAX_OPEN_FILES = 64


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends, however it ends. Raises :class:`ProcessLookupError` if it already has.

    The kernel ties this to the parent's *thread* that started the child, here its event loop.
    The parent may have gone before the request was made, hence the second look.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent ended before its child began")


def lock_down(limits: Limits) -> None:
    """Give up what the job does not need. Cannot be undone; threads started later inherit it.

    CPU: SIGXCPU at the limit, so that the parent sees why, and SIGKILL two seconds later.
    FSIZE: a write past it fails with EFBIG (Python ignores SIGXFSZ).
    """
    for name, soft, hard in (
        (resource.RLIMIT_AS, limits.memory_bytes, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 2),
        (resource.RLIMIT_FSIZE, limits.output_bytes, limits.output_bytes),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
    ):
        resource.setrlimit(name, (soft, hard))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")
