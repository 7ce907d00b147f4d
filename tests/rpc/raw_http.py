"""HTTP by hand: what no client library would send, and answers as they are on the wire. No read waits for ever."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader
from dataclasses import dataclass
from typing import Any

from tests.rpc import documented
from tests.rpc.gateway_world import connection

SECONDS = 10
HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """A response; of a header that comes twice, the last."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The body, which must be a problem that says the same as the head."""
        assert self.headers["content-type"] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        assert document["request_id"] == self.headers["x-request-id"]
        return document


async def answer(reader: StreamReader) -> Answer:
    """The next answer; raises IncompleteReadError when the connection ends first."""
    async with asyncio.timeout(SECONDS):
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        pairs = (field.partition(":") for field in fields)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = b""
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    assert line.startswith(("HTTP/1.1 ", "HTTP/1.0 ")), line
    return Answer(int(line.split()[1]), headers, body)


async def ended(reader: StreamReader) -> bytes:
    """What comes before the connection ends."""
    return await asyncio.wait_for(reader.read(), SECONDS)


async def exchange(port: int, data: bytes) -> Answer:
    """The answer to ``data`` on a connection of its own, which the OpenAPI document must know."""
    async with connection(port) as (reader, writer):
        writer.write(data)
        got = await answer(reader)
    method, target, *_ = [*data.partition(b"\r\n")[0].decode("latin-1").split(" "), ""]
    found = documented.fault(method, target.partition("?")[0], got.status, got.headers, got.body)
    assert not found, found
    return got


async def assert_healthy(port: int) -> None:
    """Whatever was sent before: the gateway answers."""
    assert (await exchange(port, HEALTH)).status == 200
