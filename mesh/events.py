"""Reads server-sent events (WHATWG HTML, section 9.2): enough of it for a stream that we follow ourselves."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import NamedTuple


class Event(NamedTuple):
    """An event: its name, "message" if the stream gave none, and its data lines joined."""

    name: str
    data: str


async def parse(lines: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """The events of a stream, given line by line. One that the stream's end cuts off is dropped."""
    name, data = "", []
    async for raw in lines:
        line = raw.decode().rstrip("\r\n")
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                yield Event(name or "message", "\n".join(data))
            name, data = "", []
