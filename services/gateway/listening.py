"""Sockets that listen, and the taking of connections from them.

asyncio's own server loses a connection that it accepted just before it is closed, and has the kernel reset those
that wait to be accepted. Here a connection belongs to us from the moment it is accepted, and none that has come
before the end is left behind. One is taken at a time, so that processes that share a socket share a crowd.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

_BACKLOG = 1024
_RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


async def listen(address: str) -> list[socket.socket]:
    """Sockets that listen at ``address`` ("127.0.0.1:8080", "[::1]:0", ":8080"), one for each that the host stands
    for. Raises OSError when it is taken, ValueError when it is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"gateway_listen {address!r} is not host:port")
    loop = asyncio.get_running_loop()
    bound = await loop.create_server(asyncio.Protocol, host.strip("[]") or None, int(port), start_serving=False)
    sockets = [each.dup() for each in bound.sockets]
    bound.close()
    try:
        for each in sockets:
            each.setblocking(False)
            each.listen(_BACKLOG)
    except OSError as error:
        for each in sockets:
            each.close()
        # Somebody else bound it at the same time and was first to listen.
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
    return sockets


class Listener:
    """Makes a protocol with ``new`` for every connection that comes to ``sockets``, which it owns."""

    def __init__(self, sockets: Sequence[socket.socket], new: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._new = new
        self._beginning: set[asyncio.Task[object]] = set()
        self._left = False
        for each in sockets:
            self._loop.add_reader(each, self._take, each)

    async def leave(self) -> None:
        """Takes what has come, closes the sockets, and returns when the protocol of each connection is at work."""
        self._left = True
        sockets, self._sockets = self._sockets, ()
        for each in sockets:
            self._loop.remove_reader(each)
            for _ in range(_BACKLOG):  # no more than can wait, whatever comes meanwhile
                if not self._take(each):
                    break
            each.close()
        await asyncio.gather(*self._beginning, return_exceptions=True)

    def _take(self, listening: socket.socket) -> bool:
        """Takes one connection; False when there is none."""
        try:
            connected, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # it went, or another process was faster
        except OSError as error:  # out of descriptors or memory
            log.warning("no connection can be taken: %s", error.strerror)
            self._pause(listening)
            return False
        connected.setblocking(False)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._new, connected)
        )
        self._beginning.add(task)
        task.add_done_callback(self._begun)
        return True

    def _begun(self, task: asyncio.Task[object]) -> None:
        self._beginning.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("a connection could not begin", exc_info=error)

    def _pause(self, listening: socket.socket) -> None:
        """The socket stays readable: without a pause we would spin."""
        self._loop.remove_reader(listening)
        self._loop.call_later(_RETRY_SECONDS, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if not self._left:
            self._loop.add_reader(listening, self._take, listening)
