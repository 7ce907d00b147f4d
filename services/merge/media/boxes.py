"""Whether bytes are missing, read off a file's outermost structure alone; for files that FFmpeg cannot open.

MP4 (ISO/IEC 14496-12, 4.2) is a row of boxes that tell their lengths, and cannot be played without its ``moov``
or a fragment's ``moof``. Matroska (RFC 8794) is a header and one segment, whose length a live recording
leaves open.
"""

from __future__ import annotations

import os
from typing import BinaryIO

FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
INDEXES, MEDIA = {b"moov", b"moof"}, {b"mdat"}
BLOCK = 1 << 20
MATROSKA = b"\x1a\x45\xdf\xa3"
SEGMENT = b"\x18\x53\x80\x67"
MAX_BOXES = 10_000


def cut_off(file: BinaryIO) -> bool:
    """True if the file begins as a video does and ends too early, or was never finished."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    if head[:4] == MATROSKA:
        return _matroska_is_cut(file, size)
    return head[4:8] in FIRST_BOXES and _boxes_are_cut(file, size)


def _boxes_are_cut(file: BinaryIO, size: int) -> bool:
    position, kinds = 0, set[bytes]()
    for _ in range(MAX_BOXES):
        if position >= size:
            break
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if len(head) < 8 or (length == 1 and len(head) < 16):
            return True
        kinds.add(kind)
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:  # up to the end, wherever that is
            length = size - position
        if length < 8:
            return False
        position += length
    return position > size or not (kinds & INDEXES and kinds & MEDIA)


def tracks(file: BinaryIO) -> int:
    """How many tracks an MP4 seems to have, without reading it as one: too many of them cannot be opened."""
    file.seek(0)
    count, end = 0, b""
    while block := file.read(BLOCK):
        count += (end + block).count(b"trak")
        end = block[-3:]
    return count


def _matroska_is_cut(file: BinaryIO, size: int) -> bool:
    file.seek(4)
    length, used = _number(file.read(8))
    position = 4 + used + length
    file.seek(position)
    head = file.read(12)
    if position + 12 > size:
        return True
    length, used = _number(head[4:])
    unknown = length == (1 << 7 * used) - 1
    return head[:4] == SEGMENT and not unknown and position + 4 + used + length > size


def _number(data: bytes) -> tuple[int, int]:
    """A variable-length number and how many bytes it takes (RFC 8794, 4)."""
    if not data or not data[0]:
        return 0, 8
    used = 9 - data[0].bit_length()
    return int.from_bytes(data[:used], "big") & ((1 << 7 * used) - 1), used
