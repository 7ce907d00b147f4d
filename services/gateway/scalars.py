"""Single values of a request: JSON values and texts of forms, queries and paths → what a proto field takes."""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as F

from services.gateway import enums

WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)
"""Messages that stand for one value which may be missing; everywhere written as that value."""
ONE_TEXT = WRAPPERS | {"google.protobuf.Timestamp", "google.protobuf.Duration"}
"""Messages that a parameter gives as one value, not by their fields."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FLOAT32_MAX = 3.4028234663852886e38


class Wrong(ValueError):
    """A value that its field cannot take; the text says what it must be."""


def scalar(field: F, value: object, *, text: bool = False) -> Any:
    """``value`` as ``field`` takes it. ``text``: it comes from a form, query or path, where all is text.

    Raises Wrong.
    """
    if field.enum_type is not None:
        return _enum(field, value, text)
    return _BY_TYPE[field.type](value, text)


def _integer(low: int, high: int) -> Callable[[object, bool], int]:
    def convert(value: object, _text: bool) -> int:
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        if whole or (isinstance(value, str) and _INTEGER.fullmatch(value)):  # proto3 JSON writes int64 as strings
            value = int(value)  # type: ignore[call-overload]  # a float or a str
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong("must be an integer")
        if not low <= value <= high:
            raise Wrong(f"must be between {low} and {high}")
        return value

    return convert


def _float(value: object, _text: bool) -> float:
    if isinstance(value, str):
        if value in _SPECIAL:
            return _SPECIAL[value]
        if not _NUMBER.fullmatch(value):
            raise Wrong("must be a number")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong("must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise Wrong("is too large a number")
    return number


def _float32(value: object, text: bool) -> float:
    number = _float(value, text)
    if math.isfinite(number) and abs(number) > _FLOAT32_MAX:
        raise Wrong("is too large a number")
    return float(struct.unpack("f", struct.pack("f", number))[0])


def _truth(value: object, text: bool) -> bool:
    if text and isinstance(value, str) and value.lower() in {"true", "1", "false", "0"}:
        return value.lower() in {"true", "1"}
    if not isinstance(value, bool):
        raise Wrong("must be true or false")
    return value


def _string(value: object, _text: bool) -> str:
    if not isinstance(value, str):
        raise Wrong("must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Wrong("holds half a surrogate pair, which is no character") from None
    return value


def _bytes(value: object, _text: bool) -> bytes:
    if not isinstance(value, str):
        raise Wrong("must be a string in base64")
    standard = value.translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Wrong("must be a string in base64") from None


def _enum(field: F, value: object, text: bool) -> int:
    assert field.enum_type is not None
    if isinstance(value, str):
        number = enums.numbers(field.enum_type).get(value)
        if number is not None:
            return number
        if not (text and _INTEGER.fullmatch(value)):
            raise Wrong(f"must be one of {', '.join(enums.short_names(field.enum_type).values())}")
    return _INT32(value, text)


_INT32, _INT64 = _integer(-(2**31), 2**31 - 1), _integer(-(2**63), 2**63 - 1)
_UINT32, _UINT64 = _integer(0, 2**32 - 1), _integer(0, 2**64 - 1)
_BY_TYPE: Mapping[int, Callable[[object, bool], Any]] = {
    F.TYPE_INT32: _INT32,
    F.TYPE_SINT32: _INT32,
    F.TYPE_SFIXED32: _INT32,
    F.TYPE_INT64: _INT64,
    F.TYPE_SINT64: _INT64,
    F.TYPE_SFIXED64: _INT64,
    F.TYPE_UINT32: _UINT32,
    F.TYPE_FIXED32: _UINT32,
    F.TYPE_UINT64: _UINT64,
    F.TYPE_FIXED64: _UINT64,
    F.TYPE_DOUBLE: _float,
    F.TYPE_FLOAT: _float32,
    F.TYPE_BOOL: _truth,
    F.TYPE_STRING: _string,
    F.TYPE_BYTES: _bytes,
}
