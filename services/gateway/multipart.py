"""A strict streaming reader of ``multipart/form-data`` (RFC 7578 over RFC 2046).

Strict because a body that ends without its closing boundary was cut short, and a chunk that was cut short
must never be stored: every such body raises. Holds at most one piece and one part's headers in memory.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

_MAX_HEADERS = 8192
_MAX_PREAMBLE = 4096
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  the grammar's word, RFC 9110
_PARAMETER = re.compile(rf';\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))\s*')
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")


class MultipartError(ValueError):
    """A body that is no whole ``multipart/form-data``; the text says why."""


@dataclass(frozen=True, slots=True)
class PartHead:
    """A form field; ``filename`` is None unless the part is a file."""

    name: str
    filename: str | None


def boundary_of(content_type: str) -> bytes:
    """The boundary parameter of a Content-Type. Raises MultipartError."""
    _, parameters = _parse_value(content_type)
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise MultipartError("the Content-Type has no boundary of 1 to 70 characters")
    return boundary.encode()


class MultipartReader:
    """Reads parts one after the other: :meth:`next_part`, then all of :meth:`pieces`, and again."""

    def __init__(self, source: AsyncIterator[bytes], boundary: bytes) -> None:
        self._source = source
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # so that the first boundary looks like the others
        self._in_part = True  # the preamble is read like a part, and thrown away

    async def next_part(self) -> PartHead | None:
        """The next part's head, or None after the closing boundary. What is left of a part is skipped."""
        skipped = 0
        async for piece in self.pieces():
            skipped += len(piece)
            if skipped > _MAX_PREAMBLE:
                raise MultipartError("too many bytes stand where no part is")
        while len(self._buffer) < 2:
            await self._fill()
        if self._buffer.startswith(b"--"):
            async for _ in self._source:  # the epilogue means nothing
                pass
            return None
        await self._end_of_line()
        head = _parse_head(await self._headers())
        self._in_part = True
        return head

    async def pieces(self) -> AsyncIterator[bytes]:
        """The part's content. Raises MultipartError when the body ends first."""
        keep = len(self._delimiter) - 1
        while self._in_part:
            found = self._buffer.find(self._delimiter)
            end = found if found >= 0 else max(0, len(self._buffer) - keep)
            piece = bytes(memoryview(self._buffer)[:end])
            if found >= 0:
                del self._buffer[: end + len(self._delimiter)]
                self._in_part = False
            else:
                del self._buffer[:end]
            if piece:
                yield piece
            if self._in_part:
                await self._fill()

    async def _end_of_line(self) -> None:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > 256:
                raise MultipartError("a boundary is followed by other text")
            await self._fill()
        if self._buffer[:end].strip(b" \t"):
            raise MultipartError("a boundary is followed by other text")
        del self._buffer[: end + 2]

    async def _headers(self) -> str:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEADERS:
                raise MultipartError("a part's headers are too long")
            await self._fill()
        if end > _MAX_HEADERS:
            raise MultipartError("a part's headers are too long")
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        try:
            return head.decode()
        except UnicodeDecodeError:
            raise MultipartError("a part's headers are not UTF-8") from None

    async def _fill(self) -> None:
        async for data in self._source:
            if data:
                self._buffer += data
                return
        raise MultipartError("the body ends before its closing boundary")


def _parse_head(text: str) -> PartHead:
    disposition = ""
    for line in text.split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon:
            raise MultipartError("a part has a header without a colon")
        if name.strip().lower() == "content-disposition":
            disposition = value.strip()
        if name.strip().lower() == "content-transfer-encoding" and value.strip().lower() not in {
            "binary",
            "8bit",
            "7bit",
        }:
            raise MultipartError("a part has a Content-Transfer-Encoding, which forms do not use")
    kind, parameters = _parse_value(disposition)
    if kind != "form-data" or "name" not in parameters:
        raise MultipartError("a part lacks Content-Disposition: form-data with a name")
    return PartHead(parameters["name"], parameters.get("filename", parameters.get("filename*")))


def _parse_value(text: str) -> tuple[str, dict[str, str]]:
    """``value; name=parameter; name="quoted"`` as (value, parameters), names in lower case."""
    value, _, _ = text.partition(";")
    at = len(value)
    parameters: dict[str, str] = {}
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            if text[at:].strip("; \t"):
                raise MultipartError("a header has a malformed parameter")
            break
        quoted = match.group(2)
        name = match.group(1).lower()
        if name in parameters:  # which of the two counts is read differently by others on the way
            raise MultipartError(f"the parameter {name} is given twice")
        parameters[name] = match.group(3) if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = match.end()
    return value.strip().lower(), parameters
