"""Interim responses: 104 (Upload Resumption Supported), written before the answer proper.

aiohttp has no call for them; its own 100 (Continue) goes the same way, straight to the request's writer.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import HttpVersion11, web


async def send_104(request: web.Request, headers: Mapping[str, str]) -> None:
    """Writes a 104. Nothing goes to HTTP/1.0 clients: they know no interim responses (RFC 9110 section 15.2)."""
    if request.version < HttpVersion11:
        return
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer = request.writer
    await writer.write(f"HTTP/1.1 104 Upload Resumption Supported\r\n{lines}\r\n".encode("ascii"))
    writer.output_size = 0  # the answer has not begun
