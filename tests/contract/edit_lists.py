"""Edit lists (ISO/IEC 14496-12, 8.6.6) written over those of a finished MP4 or MOV whose index is at its end.

A phone's trimmed clip keeps all its samples and says by an edit list what of them is shown.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

CONTAINERS = frozenset({b"moov", b"trak", b"edts", b"mdia"})


@dataclass(frozen=True, slots=True)
class Edit:
    """``seconds`` shown of the medium from ``begin`` on; without a beginning, so long nothing."""

    seconds: Fraction
    begin: Fraction | None = None


@dataclass(slots=True)
class Box:
    kind: bytes
    body: bytes
    inner: list[Box]

    def find(self, *path: bytes) -> Iterator[Box]:
        if not path:
            yield self
            return
        for box in self.inner:
            if box.kind == path[0]:
                yield from box.find(*path[1:])

    def to_bytes(self) -> bytes:
        body = self.body + b"".join(box.to_bytes() for box in self.inner)
        return struct.pack(">I4s", len(body) + 8, self.kind) + body


def edit(path: Path, edits: Sequence[Edit]) -> None:
    """Apply the same edits to all tracks. What a track's own list hid at its start (priming) stays hidden."""
    data = path.read_bytes()
    place = data.rindex(b"moov") - 4
    (movie,) = boxes(data[place:])
    assert len(movie.to_bytes()) == len(data) - place
    (header,) = movie.find(b"mvhd")
    movie_scale = struct.unpack_from(">I", header.body, 12)[0]
    for track in movie.find(b"trak"):
        (media_header,) = track.find(b"mdia", b"mdhd")
        scale = struct.unpack_from(">I", media_header.body, 12)[0]
        hidden = next((max(0, _first_media_time(old)) for old in track.find(b"edts", b"elst")), 0)
        rows = b"".join(
            struct.pack(
                ">IiI",
                round(one.seconds * movie_scale),
                -1 if one.begin is None else hidden + round(one.begin * scale),
                1 << 16,
            )
            for one in edits
        )
        new = Box(b"edts", b"", [Box(b"elst", struct.pack(">II", 0, len(edits)) + rows, [])])
        track.inner = [box for box in track.inner if box.kind != b"edts"]
        track.inner.insert(1, new)
    path.write_bytes(data[:place] + movie.to_bytes())


def boxes(data: bytes) -> list[Box]:
    found, position = [], 0
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + size]
        found.append(Box(kind, b"", boxes(body)) if kind in CONTAINERS else Box(kind, body, []))
        position += size
    return found


def _first_media_time(box: Box) -> int:
    time: int = struct.unpack_from(">i", box.body, 12)[0]
    return time
