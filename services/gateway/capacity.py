"""Who gets a connection: as many as the gateway has room for, and of one address no more than its part of them.

When all are taken, the one that idles for the longest time makes room. When none idles, the next client is told so
and let go, not left to hang.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from itertools import islice

from services.gateway import cors
from services.gateway.drain import Leaving
from services.gateway.edge import Edge
from services.gateway.problems import Problem

_RETRY_SECONDS = 2
_REFUSED_SECONDS = 2.0
_MOST_REFUSED = 128
_MOST_ASKED = 8
_WARN_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Holder:
    """An address: how many connections it has, and those of them that idle, for the longest time first."""

    address: str
    count: int = 0
    idle: dict[Leaving, None] = field(default_factory=dict)


class Capacity:
    """What one server's connections share: how many there may be at once, of all and of one address (a trusted
    proxy's are those of many), and how long a head may take. ``edge`` says what their refusals carry."""

    def __init__(self, edge: Edge, *, connections: int, per_address: int, head_seconds: float) -> None:
        self.edge = edge
        self.head_seconds = head_seconds
        self._most = connections
        self._most_of_one = per_address
        self._open: dict[Leaving, _Holder] = {}
        self._idle: dict[Leaving, None] = {}
        self._holders: dict[str, _Holder] = {}
        self._refused: set[_Refused] = set()
        self._warned = -_WARN_SECONDS

    def enter(self, connection: Leaving, transport: asyncio.Transport) -> bool:
        """Whether there is room for a new connection. One that there is none for is answered, and is not one that
        serves requests."""
        peer = transport.get_extra_info("peername")
        address = self.edge.clients.counted_peer(peer[0] if peer else "")
        holder = self._holders.get(address) or _Holder(address)
        if address and holder.count >= self._most_of_one:
            if not self._close_one(holder.idle):
                self._refuse(transport, f"this address has {holder.count} connections; try again")
                return False
        elif len(self._open) >= self._most and not self._close_one(self._idle):
            self._refuse(transport, "there are too many connections; try again")
            return False
        holder.count += 1
        self._holders[address] = holder
        self._open[connection] = holder
        return True

    def idles(self, connection: Leaving) -> None:
        """It has had its answer."""
        if holder := self._open.get(connection):
            holder.idle[connection] = self._idle[connection] = None

    def stirs(self, connection: Leaving) -> None:
        """Something came over it."""
        if connection in self._idle:
            del self._idle[connection], self._open[connection].idle[connection]

    def left(self, connection: Leaving) -> None:
        """It is closed."""
        self.stirs(connection)
        if holder := self._open.pop(connection, None):
            holder.count -= 1
            if not holder.count:
                del self._holders[holder.address]

    def _close_one(self, idle: dict[Leaving, None]) -> bool:
        """Closes the connection that idles for the longest time. Some still wait for the rest of a body that
        nobody wanted; they are passed over, and asked last the next time."""
        for connection in list(islice(idle, _MOST_ASKED)):
            self.stirs(connection)
            if connection.close_if_idle(also_new=False):
                return True
            self.idles(connection)
        return False

    def _refuse(self, transport: asyncio.Transport, detail: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._warned >= _WARN_SECONDS:
            self._warned = now
            log.warning("connections are refused: %s", detail, extra={"data": {"connections": len(self._open)}})
        if len(self._refused) >= _MOST_REFUSED:
            transport.abort()
            return
        headers = {"Retry-After": str(_RETRY_SECONDS)}
        problem = Problem(503, "TOO_MANY_CONNECTIONS", detail, headers=headers)
        protocol = _Refused(self._refused, self.edge, problem)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def close(self) -> None:
        """Lets go of those that are being refused."""
        for refused in list(self._refused):
            refused.abort()


class _Refused(asyncio.Protocol):
    """A connection too many: ``problem`` to whatever it asks, and the end.

    The answer waits for the first bytes, since clients take one that comes before they asked for a fault; and the
    end for the client's, else the kernel would reset the connection over what is unread and lose the answer.
    """

    def __init__(self, others: set[_Refused], edge: Edge, problem: Problem) -> None:
        self._others = others
        self._edge = edge
        self._problem = problem
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._others.add(self)
        self._timer = asyncio.get_running_loop().call_later(_REFUSED_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._answered or self._transport is None:
            return
        self._answered = True
        self._transport.write(self._answer(data))
        self._transport.write_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._others.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Ends it now."""
        if self._transport is not None:
            self._transport.abort()

    def _answer(self, asked: bytes) -> bytes:
        response = self._edge.closing(self._problem, "/", cors.origins_in(asked))
        body = response.body
        assert isinstance(body, bytes)
        fields = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        head = f"HTTP/1.1 {response.status} {response.reason}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        return head.encode() + body
