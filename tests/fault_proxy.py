"""A TCP proxy that does to connections what bad networks do.

The fault may be set at any time and then holds for connections that run and for those that come. What a fault
destroyed stays destroyed: a connection that lost bytes is never used again when the fault is lifted.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

HOST = "127.0.0.1"
_PIECE = 64 << 10


class Fault(enum.Enum):
    """What happens to a connection, once :attr:`Proxy.after` bytes of the client have passed."""

    NONE = "none"
    RESET = "both sides are reset"
    HALF_OPEN = "the client is gone, the server is never told"
    TRICKLE = "one byte at a time, `Proxy.pause` seconds apart"
    ANSWER_LOST = "all that the client says arrives, no answer comes back, then the client is reset"
    BLACKHOLE = "nothing passes in either direction, and nobody is told"


@dataclass(eq=False, slots=True)
class _Connection:
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    doomed: bool = False  # bytes were lost: nothing may ever pass again
    given_up: bool = False  # the server has answered or closed its side since


class Proxy:
    """Forwards ``port`` to ``target``. ``passed`` counts the clients' bytes since the fault was set, ``struck``
    is set when it happens to a connection."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.fault = Fault.NONE
        self.after = 0
        self.pause = 1.0
        self.passed = 0
        self.struck = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def set(self, fault: Fault, *, after: int = 0, pause: float = 1.0) -> None:
        """From now on ``fault``, after so many more bytes of clients."""
        self.fault, self.after, self.pause, self.passed = fault, after, pause, 0
        self.struck = asyncio.Event()
        if after == 0 and fault is Fault.RESET:
            self.reset_all()

    def heal(self) -> None:
        """New connections work; those that lost bytes never will."""
        self.set(Fault.NONE)

    def reset_all(self) -> None:
        """Resets every connection that runs: what a router does that forgot them."""
        for connection in list(self._connections):
            self._reset(connection)

    async def given_up(self) -> None:
        """Returns when the server has answered, or closed its side, on every connection that lost bytes."""
        while any(connection.doomed and not connection.given_up for connection in self._connections):
            await asyncio.sleep(0.01)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        try:
            server = await asyncio.open_connection(HOST, self.target)
        except OSError:
            _abort(writer)
            return
        connection = _Connection((reader, writer), server)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._requests(connection))
                pumps.create_task(self._answers(connection))
        except* (OSError, ConnectionError):
            pass
        finally:
            self._connections.discard(connection)
            for _, side in (connection.client, connection.server):
                _abort(side) if connection.doomed else side.close()

    async def _requests(self, connection: _Connection) -> None:
        reader, writer = connection.client[0], connection.server[1]
        while data := await reader.read(_PIECE):
            while data and not connection.doomed:
                if self.fault is Fault.NONE or self.passed < self.after:
                    most = len(data) if self.fault is Fault.NONE else self.after - self.passed
                    step, data = data[:most], data[most:]
                elif self.fault is Fault.ANSWER_LOST:
                    self.struck.set()
                    step, data = data, b""
                elif self.fault is Fault.TRICKLE:
                    self.struck.set()
                    await asyncio.sleep(self.pause)
                    step, data = data[:1], data[1:]
                else:
                    self._strike(connection)
                    continue
                self.passed += len(step)
                writer.write(step)
                await writer.drain()
        if connection.doomed:
            return
        if self.fault is Fault.NONE:
            writer.write_eof()
        elif self.fault in {Fault.HALF_OPEN, Fault.BLACKHOLE}:
            self._strike(connection)

    async def _answers(self, connection: _Connection) -> None:
        reader, writer = connection.server[0], connection.client[1]
        while data := await reader.read(_PIECE):
            if self.fault is Fault.ANSWER_LOST and self.passed >= self.after:
                self.struck.set()
                connection.doomed = True
                _abort(writer)
                return
            if self.fault is Fault.BLACKHOLE and self.passed >= self.after:
                self._strike(connection)
            connection.given_up = connection.doomed
            if not connection.doomed:
                writer.write(data)
                await writer.drain()
        connection.given_up = True
        if not connection.doomed:
            writer.close()

    def _strike(self, connection: _Connection) -> None:
        connection.doomed = True
        if self.fault is Fault.RESET:
            self._reset(connection)
        elif self.fault is Fault.HALF_OPEN:
            _abort(connection.client[1])
        self.struck.set()

    def _reset(self, connection: _Connection) -> None:
        connection.doomed = True
        for _, writer in (connection.client, connection.server):
            _abort(writer)
        self.struck.set()

    def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Called by asyncio for every client."""
        task = asyncio.get_running_loop().create_task(self.serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Resets what runs."""
        self.reset_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST rather than FIN, see SO_LINGER in socket(7)."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def proxy_to(target: int, port: int = 0) -> AsyncIterator[Proxy]:
    """A proxy to a port of this machine within the block."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.handle, HOST, port)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
