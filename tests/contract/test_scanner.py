"""The clamd scanner against a server that speaks clamd's protocol: clean only when clamd says so in full."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.errors import Unavailable
from services.upload.adapters.clamd import ClamdScanner
from services.upload.reasons import Reason

BODY = [b"a" * 1000, b"", b"b" * 700_000, b"c"]


class Clamd:
    """Takes one stream after the other and answers ``answer``; None hangs up without a word."""

    def __init__(self) -> None:
        self.answer: bytes | None = b"stream: OK\0"
        self.silent = False
        self.hang_up_after: int | None = None
        self.command = b""
        self.received = b""
        self.largest = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.command = await reader.readuntil(b"\0")
            self.received, self.largest = b"", 0
            while length := int.from_bytes(await reader.readexactly(4), "big"):
                self.largest = max(self.largest, length)
                self.received += await reader.readexactly(length)
                if self.hang_up_after is not None and len(self.received) > self.hang_up_after:
                    break
            if self.silent:
                await reader.read()
            elif self.answer is not None:
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            """The scanner hung up."""
        finally:
            writer.transport.abort() if self.hang_up_after is not None else writer.close()

    @asynccontextmanager
    async def listening(self, path: Path | None = None) -> AsyncIterator[str]:
        """Yields the address."""
        if path is not None:
            server = await asyncio.start_unix_server(self.serve, path)
            address = str(path)
        else:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield address


Scan = Callable[..., Awaitable[str]]


@pytest.fixture
def clamd() -> Clamd:
    return Clamd()


@pytest.fixture(params=["tcp", "unix"])
async def scan(clamd: Clamd, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Scan]:
    async with clamd.listening(tmp_path / "clamd.ctl" if request.param == "unix" else None) as address:

        async def scanned(pieces: list[bytes] = BODY, timeout: float = 30) -> str:
            async def body() -> AsyncIterator[bytes]:
                for piece in pieces:
                    yield piece

            return await ClamdScanner(address, timeout=timeout).scan(body())

        yield scanned


async def _refused(scan: Awaitable[str]) -> None:
    with pytest.raises(Unavailable) as refusal:
        await scan
    assert refusal.value.reason == Reason.SCANNER_UNAVAILABLE
    assert refusal.value.retry_after


async def test_a_clean_file_reaches_clamd_whole_in_bounded_chunks(clamd: Clamd, scan: Scan) -> None:
    assert await scan() == ""
    assert clamd.command == b"zINSTREAM\0"
    assert clamd.received == b"".join(BODY)
    assert clamd.largest <= 256 << 10


async def test_what_was_found_is_named(clamd: Clamd, scan: Scan) -> None:
    clamd.answer = b"stream: Win.Test.EICAR_HDB-1 FOUND\0"
    assert await scan() == "Win.Test.EICAR_HDB-1"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"\0",
        b"stream: OK",
        b"stream: OK\n\0",
        b"OK\0",
        b" stream: OK\0",
        b"stream:  FOUND\0",
        b"stream: a b\r\nc FOUND\0",
        b"INSTREAM size limit exceeded. ERROR\0",
        b"stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\0",
        b"stream: Can't allocate memory ERROR\0",
        b"UNKNOWN COMMAND\0",
        b"stream: " + b"x" * 100_000,
        b"stream: \xff FOUND\0",
    ],
)
async def test_any_other_answer_is_not_clean(clamd: Clamd, scan: Scan, answer: bytes | None) -> None:
    clamd.answer = answer
    await _refused(scan())


async def test_a_clamd_that_hangs_up_in_the_middle_is_not_clean(clamd: Clamd, scan: Scan) -> None:
    clamd.hang_up_after = 10
    await _refused(scan([b"x" * 1_000_000] * 20))


async def test_a_clamd_that_says_nothing_is_given_up(clamd: Clamd, scan: Scan) -> None:
    clamd.silent = True
    await _refused(scan(timeout=0.2))


async def test_a_clamd_that_is_not_there_is_not_clean(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    async with Clamd().listening() as address:
        """Its port is free again."""
    for gone in (address, str(tmp_path / "nothing")):
        await _refused(ClamdScanner(gone, timeout=30).scan(body()))


async def test_a_clamd_that_takes_no_connection_is_given_up_long_before_a_scan_would_be() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as waiting:
            for _ in range(8):  # its queue is full: what else comes is dropped, as by a firewall
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            address = f"127.0.0.1:{full.getsockname()[1]}"
            await _refused(ClamdScanner(address, timeout=3600, connect_timeout=0.2).scan(body()))


async def test_an_error_of_the_store_is_the_stores(scan: Scan) -> None:
    class Broken(list[bytes]):
        def __iter__(self) -> object:  # type: ignore[override]  # it ends the generator that reads it
            raise LookupError

    with pytest.raises(LookupError):
        await scan(Broken())


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":3310", "localhost:clamd"])
def test_what_is_no_address_is_refused_at_the_start(address: str) -> None:
    with pytest.raises(ValueError, match="clamd must be"):
        ClamdScanner(address, timeout=1)
