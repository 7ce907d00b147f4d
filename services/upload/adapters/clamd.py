"""The virus scanner clamd: its command INSTREAM over TCP or a Unix socket (man 8 clamd).

Only the answer "stream: OK" is *clean*. By itself clamd also answers that of a file over its own MaxFileSize,
which it has not looked at: its configuration must say ``AlertExceedsMax yes``, and what that reports counts as
not scanned. (The asyncio clients on PyPI were weighed and left: they read blocking files and speak TCP alone.)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from services.common.errors import Unavailable
from services.upload.reasons import Reason

_CHUNK = 256 << 10
_MAX_ANSWER = 4096
_FOUND = re.compile(rb"stream: (?!Heuristics\.Limits\.Exceeded)([\x21-\x7e]{1,200}) FOUND\0")


class ClamdScanner:
    """Implements :class:`services.upload.ports.Scanner`. ``address``: "host:port" or the path of a socket;
    ``timeout``: seconds for a whole scan, ``connect_timeout``: until clamd takes the connection."""

    def __init__(self, address: str, *, timeout: float, connect_timeout: float = 5) -> None:
        host, _, port = address.rpartition(":")
        if not address.startswith("/") and not (host and port.isdecimal()):
            raise ValueError(f"clamd must be <host>:<port> or the path of a socket, not {address!r}")
        self._address = address
        self._timeout = timeout
        self._connect_timeout = connect_timeout

    async def scan(self, pieces: AsyncIterator[bytes]) -> str:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._ask(pieces)
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:  # TimeoutError is an OSError
            raise _not_scanned(type(error).__name__) from error
        if answer == b"stream: OK\0":
            return ""
        if found := _FOUND.fullmatch(answer):
            return found[1].decode()
        raise _not_scanned(ascii(answer[:100]))

    async def _ask(self, pieces: AsyncIterator[bytes]) -> bytes:
        """The answer up to its NUL. Raises OSError, EOFError when clamd hangs up, LimitOverrunError."""
        async with asyncio.timeout(self._connect_timeout):
            reader, writer = await self._connect()
        try:
            writer.write(b"zINSTREAM\0")
            async for piece in pieces:
                for start in range(0, len(piece), _CHUNK):
                    chunk = piece[start : start + _CHUNK]
                    writer.write(len(chunk).to_bytes(4, "big") + chunk)
                    await writer.drain()
            writer.write(bytes(4))
            return await reader.readuntil(b"\0")
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._address.startswith("/"):
            return await asyncio.open_unix_connection(self._address, limit=_MAX_ANSWER)
        host, _, port = self._address.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port), limit=_MAX_ANSWER)


def _not_scanned(why: str) -> Unavailable:
    return Unavailable(f"the file could not be scanned: {why}", reason=Reason.SCANNER_UNAVAILABLE, retry_after=10)
