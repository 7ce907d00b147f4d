"""The nursery as its worker sees it: a child for each job, with pipes of its own.

The worker asks, kills and learns of ends through the nursery, which alone knows whether a process id still is its
child's. Should the nursery die, the kernel kills its children, all count as killed, and the next child comes from
a new one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import cast

from services.merge.media.protocol import MAX_LINE_BYTES

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-P", "-m", "services.merge.media.nursery")
MESSAGE_BYTES = 256


class Child:
    """A process that does one job. ``returncode`` is None while it runs, and negative for a signal."""

    def __init__(self, nursery: Nursery, number: int) -> None:
        self._nursery = nursery
        self._number = number
        self._ended = asyncio.Event()
        self._transports: list[asyncio.BaseTransport] = []
        self.pid = 0
        self.returncode: int | None = None
        self.stdout = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        self.stderr = asyncio.StreamReader()

    async def connect(self) -> tuple[int, int, int]:
        """The child's ends of its pipes; the caller closes them."""
        loop = asyncio.get_running_loop()
        child_in, own_in = os.pipe()
        own_out, child_out = os.pipe()
        own_err, child_err = os.pipe()
        writing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(own_in, "wb", 0))
        self._transports.append(writing)
        for reader, pipe in ((self.stdout, own_out), (self.stderr, own_err)):
            protocol = asyncio.StreamReaderProtocol(reader)
            reading, _ = await loop.connect_read_pipe(lambda protocol=protocol: protocol, os.fdopen(pipe, "rb", 0))  # type: ignore[misc]
            self._transports.append(reading)
        return child_in, child_out, child_err

    def give(self, job: bytes) -> None:
        """All that it reads. Whether it did, its end tells."""
        stdin = cast("asyncio.WriteTransport", self._transports[0])
        stdin.write(job)
        stdin.write_eof()

    def kill(self) -> None:
        if self.returncode is None:
            self._nursery.kill(self._number)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def ended(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def close(self) -> None:
        for transport in self._transports:
            transport.close()


class Nursery:
    """Starts the nursery when it is needed. Unless ``kept``, it ends with its last child. ``on_restart`` is called
    when one had died."""

    def __init__(self, *, kept: bool, on_restart: Callable[[], None] = lambda: None) -> None:
        self._kept = kept
        self._on_restart = on_restart
        self._numbers = count(1)
        self._starting = asyncio.Lock()
        self._process: Process | None = None
        self._control: socket.socket | None = None
        self._children: dict[int, tuple[Child, asyncio.Future[int]]] = {}

    async def child(self) -> Child:
        """A new one, which waits for its job. Raises OSError."""
        async with self._starting:
            number = next(self._numbers)
            child, forked = Child(self, number), asyncio.get_running_loop().create_future()
            pipes = await child.connect()
            try:
                control = self._control or await self._start()  # from here on nothing waits, so none can close it
                socket.send_fds(control, [b"fork %d" % number], pipes)
                self._children[number] = child, forked
            except OSError:
                child.close()
                self._lose()
                raise
            finally:
                for pipe in pipes:
                    os.close(pipe)
        child.pid = await forked
        return child

    def kill(self, number: int) -> None:
        if self._control is None:
            return
        try:
            self._control.send(b"kill %d" % number)
        except OSError:  # it has died, or does not listen: with it go its children
            self._lose()

    async def release(self, child: Child) -> None:
        """Of a child that has ended nothing is left."""
        child.close()
        if not self._kept and not self._children:
            await self.close()

    async def close(self) -> None:
        """Ends the nursery, and so every child."""
        self._lose()
        process, self._process = self._process, None
        if process is not None:
            await process.wait()

    async def _start(self) -> socket.socket:
        if self._process is not None:  # one that died
            await self._process.wait()
            self._on_restart()
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            own.setblocking(False)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *COMMAND,
                    str(os.getpid()),
                    stdin=other.fileno(),
                    stdout=DEVNULL,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                )
            except BaseException:
                own.close()
                raise
        asyncio.get_running_loop().add_reader(own, self._hear, own)
        self._control = own
        return own

    def _hear(self, control: socket.socket) -> None:
        try:
            message = control.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lose()
            return
        kind, number, value = message.split()
        child, forked = self._children[int(number)]
        if kind == b"forked":
            if not forked.done():
                forked.set_result(int(value))
        else:
            del self._children[int(number)]
            child.ended(int(value))

    def _lose(self) -> None:
        """The kernel kills a nursery's children when it ends."""
        if self._control is None:
            return
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = None
        for child, forked in self._children.values():
            if not forked.done():
                forked.set_result(0)
            child.ended(-signal.SIGKILL)
        self._children.clear()


def _environment() -> dict[str, str]:
    """No secrets, no proxy, no locale surprises; few allocation arenas, as each reserves address space."""
    return {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "2"}
