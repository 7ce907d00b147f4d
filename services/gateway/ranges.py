"""Byte ranges (RFC 9110 section 14) of a representation whose length is known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

_SPEC = re.compile(r"(?:0*([1-9][0-9]*|0))?-(?:0*([1-9][0-9]*|0))?")
_MAX_DIGITS = 19  # more digits than any length has
MAX_RANGES = 16
"""More than so many are a mistake or an attack (RFC 9110 section 14.2): they are answered with the whole."""
GAP = 256
"""Ranges with fewer bytes between them are sent as one: the head of a part is not much shorter."""


class Unsatisfiable(ValueError):
    """No range that begins before the end."""


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


def parse(header: str, size: int) -> list[ByteRange] | None:
    """The ranges that a Range header asks for, cut to ``size``, in its order; None means: send the whole.

    That is the answer to another unit, to a header of which one range is malformed (section 14.2: ignore it), to
    one that asks for too many or for more than there is, and to the end of an empty file. Ranges past the end are
    left out, those that overlap or nearly touch are one. Raises Unsatisfiable when none is left.
    """
    unit, _, listed = header.partition("=")
    specs = [spec for text in listed.split(",") if (spec := text.strip(" \t"))]  # a list may have empty elements
    if unit.strip(" \t").lower() != "bytes" or not specs:
        return None
    pairs = [_pair(spec) for spec in specs]
    if None in pairs:
        return None
    if size == 0 and any(first is None and last for first, last in filter(None, pairs)):
        return None  # it can be satisfied (section 14.1.2), but no Content-Range says so
    found = [cut for pair in pairs if pair is not None and (cut := _cut(*pair, size)) is not None]
    if not found:
        raise Unsatisfiable
    if len(pairs) > MAX_RANGES or sum(one.length for one in found) > size:
        return None
    return found if len(found) == 1 else _coalesced(found)


def _pair(spec: str) -> tuple[int | None, int | None] | None:
    """First and last position, or None and the length of a suffix; None for what is no range."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        return None
    first, last = match.groups()
    if last is None:
        return None if first is None else (_number(first), None)
    if first is None:
        return None, _number(last)
    # By their digits, since what is past every end is one number below.
    backwards = (len(last), last) < (len(first), first)
    return None if backwards else (_number(first), _number(last))


def _cut(first: int | None, last: int | None, size: int) -> ByteRange | None:
    """The range within ``size`` bytes; None when there is none of it."""
    if first is None:
        return ByteRange(max(0, size - last), size, size) if last and size else None
    if first >= size:
        return None
    return ByteRange(first, size if last is None else min(last + 1, size), size)


def _coalesced(found: Iterable[ByteRange]) -> list[ByteRange]:
    """Those that overlap or nearly touch become one, which takes the place of the first of them."""
    groups: list[int] = []
    ordered = sorted(enumerate(found), key=lambda item: item[1].start)
    end = -1
    for _, one in ordered:
        groups.append(groups[-1] if groups and one.start - end < GAP else len(groups))
        end = max(end, one.end)
    merged = []
    for _, members in groupby(zip(groups, ordered, strict=True), key=itemgetter(0)):
        items = [item for _, item in members]
        whole = ByteRange(items[0][1].start, max(one.end for _, one in items), items[0][1].size)
        merged.append((min(position for position, _ in items), whole))
    return [one for _, one in sorted(merged, key=itemgetter(0))]


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
