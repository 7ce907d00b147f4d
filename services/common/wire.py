"""The wire form of a protobuf message that has one field of bytes and nothing else, without copying the bytes.

Messages that carry a megabyte are most of what the services pass on; protobuf copies it three times on the way out
and twice on the way in. See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Sequence

Buffer = bytes | memoryview
_LENGTH_DELIMITED = 2


def frame(field: int, pieces: Sequence[Buffer], size: int) -> bytes:
    """The message whose field of this number has the ``size`` bytes that ``pieces`` are."""
    return b"".join((_varint(field << 3 | _LENGTH_DELIMITED), _varint(size), *pieces))


def framed(message: bytes, field: int) -> memoryview | None:
    """The bytes of the field of this number, if the message has that one alone; None for any other message."""
    if not message or message[0] != field << 3 | _LENGTH_DELIMITED:
        return None
    size = shift = 0
    for at, byte in enumerate(message[1:6], 2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return memoryview(message)[at:] if len(message) - at == size else None
    return None


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
