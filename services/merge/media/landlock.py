"""No file and no port by name: Landlock (Linux 5.13 and newer), three system calls, no privilege needed.

A ruleset that handles every right and allows none: whatever is open stays usable, nothing more can be opened,
made, removed, run, connected to or listened on. What a kernel's version does not know is left to the
system-call filter. Applies to the calling thread and those it starts later. See landlock(7).
"""

from __future__ import annotations

import ctypes
import os

CREATE_RULESET, RESTRICT_SELF = 444, 446  # the same on every architecture
VERSION = 1  # flag of CREATE_RULESET: tell the version instead

FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # how many rights on files a version knows, from bit 0
NET_SINCE, NET_RIGHTS = 4, 0b11  # bind and connect TCP
SCOPES_SINCE, SCOPES = 6, 0b11  # abstract sockets and signals of other processes


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def version() -> int:
    """Of the kernel's Landlock; 0 if it has none, or it is turned off or forbidden here."""
    return max(0, int(_libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)))


def restrict() -> None:
    """Allow nothing from here on. PR_SET_NO_NEW_PRIVS must be set. Raises OSError."""
    known = version()
    rights = (1 << max((bits for since, bits in FILE_RIGHTS.items() if since <= known), default=0)) - 1
    ruleset = _Ruleset(
        rights, NET_RIGHTS if known >= NET_SINCE else 0, SCOPES if known >= SCOPES_SINCE else 0
    )  # zeros beyond what a kernel knows are fine to it
    libc = _libc()
    descriptor = libc.syscall(CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(ctypes.sizeof(ruleset)), 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "Landlock made no ruleset")
    try:
        if libc.syscall(RESTRICT_SELF, descriptor, 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock did not restrict this process")
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
