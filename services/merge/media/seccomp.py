"""Only the system calls that decoding needs: a seccomp filter, written as the kernel's BPF.

What is not allowed fails with EPERM, so a library that tries it reports an error as it would for a file it may
not read. ``clone3`` is answered ENOSYS, since its flags lie in memory where a filter cannot see them: libc then
falls back to ``clone``, which may only start threads. Another architecture's calls kill the process.
See seccomp(2), linux/filter.h; numbers from asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

PR_GET_SECCOMP = 21
PR_SET_NAME = 15
PR_SET_VMA = 0x53564D41  # how allocators name their memory
SET_MODE_FILTER = 1
ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC
CLONE_THREAD = 0x10000
PROT_EXEC = 4
AT_EMPTY_PATH = 0x1000

ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld [k], jeq, jset, ret
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data

# name: x86_64, aarch64
NUMBERS = {
    "read": (0, 63),
    "write": (1, 64),
    "writev": (20, 66),
    "close": (3, 57),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "fstat": (5, 80),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# name: x86_64, aarch64; allowed if the argument of that place passes
CHECKED = {
    "clone": (56, 220),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "newfstatat": (262, 79),
    "prctl": (157, 167),
    "tgkill": (234, 131),
}
CLONE3 = (435, 435)
SECCOMP = (317, 277)


@dataclass(frozen=True, slots=True)
class Machine:
    """``audit`` is AUDIT_ARCH_…, ``column`` where the tables have this machine's numbers."""

    audit: int
    column: int


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}


def machine() -> Machine | None:
    """This machine, if its numbers are known. A 32-bit Python on a 64-bit kernel is another one."""
    return MACHINES.get(platform.machine()) if sys.maxsize > 1 << 32 and sys.byteorder == "little" else None


def available() -> bool:
    """Whether the kernel filters system calls and this machine's are known."""
    return machine() is not None and _libc().prctl(PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def restrict() -> None:
    """Allow only what is listed, in every thread. PR_SET_NO_NEW_PRIVS must be set. Raises OSError."""
    here = machine()
    if here is None:
        raise OSError(errno.ENOSYS, f"the system calls of {platform.machine()} are not known")
    code = b"".join(struct.pack("=HBBI", *step) for step in program(here, os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _Program(len(code) // 8, ctypes.addressof(buffer))
    # The pointer is all that prctl and seccomp take; with TSYNC a positive answer is a thread it could not bind.
    if _libc().syscall(SECCOMP[here.column], SET_MODE_FILTER, ALL_THREADS, ctypes.byref(header)) != 0:
        raise OSError(ctypes.get_errno(), "the system-call filter was not taken")


Step = tuple[int, int, int, int]


def program(here: Machine, pid: int) -> list[Step]:
    """The filter as (code, jump if true, jump if false, operand)."""
    steps: list[Step] = [
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, here.audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        *_if_called(CLONE3[here.column], [(RETURN, 0, 0, DENY | errno.ENOSYS)]),
    ]
    for numbers in NUMBERS.values():
        steps += _if_called(numbers[here.column], [(RETURN, 0, 0, ALLOW)])
    allowed, denied = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY | errno.EPERM)
    for name, test in {
        "clone": [_argument(0), (ANY_BIT, 0, 1, CLONE_THREAD), allowed, denied],
        "mmap": [_argument(2), (ANY_BIT, 1, 0, PROT_EXEC), allowed, denied],
        "mprotect": [_argument(2), (ANY_BIT, 1, 0, PROT_EXEC), allowed, denied],
        "newfstatat": [_argument(3), (ANY_BIT, 0, 1, AT_EMPTY_PATH), allowed, denied],
        "prctl": [_argument(0), (EQUAL, 1, 0, PR_SET_NAME), (EQUAL, 0, 1, PR_SET_VMA), allowed, denied],
        "tgkill": [_argument(0), (EQUAL, 0, 1, pid), allowed, denied],  # abort() only
    }.items():
        steps += _if_called(CHECKED[name][here.column], test)
    return [*steps, denied]


def _if_called(number: int, then: Sequence[Step]) -> list[Step]:
    return [(EQUAL, 0, len(then), number), *then]


def _argument(index: int) -> Step:
    """The low half of an argument; flags and process ids fit into it."""
    return (LOAD, 0, 0, ARGUMENTS_AT + 8 * index)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
