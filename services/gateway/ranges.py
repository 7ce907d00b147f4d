"""Byte ranges (RFC 9110 section 14) of a representation whose length is known."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPEC = re.compile(r"([0-9]*)-([0-9]*)")
_MAX_DIGITS = 19  # more digits than any length has


class Unsatisfiable(ValueError):
    """A range that begins past the end."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes [start, end) of ``size``."""

    start: int
    end: int
    size: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def content_range(self) -> str:
        """The Content-Range header of a 206."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def parse(header: str | None, size: int) -> ByteRange | None:
    """The one range that a Range header asks for, cut to ``size``; None means: send the whole.

    That is also the answer to another unit, to a header that is malformed (section 14.2: ignore it) and to
    several ranges. Raises Unsatisfiable.
    """
    unit, _, specs = (header or "").partition("=")
    spec = _SPEC.fullmatch(specs.strip())
    if unit.strip().lower() != "bytes" or spec is None:
        return None
    first, last = (_number(text) for text in spec.groups())
    if first is None:
        if last is None:
            return None
        if last == 0 or size == 0:
            raise Unsatisfiable
        return ByteRange(max(0, size - last), size, size)
    if last is not None and last < first:
        return None
    if first >= size:
        raise Unsatisfiable
    return ByteRange(first, size if last is None else min(last + 1, size), size)


def _number(text: str) -> int | None:
    if not text:
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
