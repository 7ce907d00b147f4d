"""Message → JSON, in the shape that the phone app knows.

snake_case names; 64-bit numbers as JSON numbers; times in RFC 3339, UTC; enums by short lower-case name; every
field present, null where a message, an optional field or an enum is not set.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from services.gateway import enums
from services.gateway.scalars import WRAPPERS

_WELL_KNOWN = "google.protobuf."
Convert = Callable[[Any], Any]
_Plan = Sequence[tuple[str, Callable[[Message], Any]]]


def dumps(value: object) -> bytes:
    """JSON in UTF-8, on one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def to_json(message: Message, field: str = "") -> Any:
    """The message as JSON values, or only its ``field`` (response_body)."""
    if field:
        return dict(_plan(message.DESCRIPTOR))[field](message)
    if message.DESCRIPTOR.full_name in WRAPPERS:
        return dict(_plan(message.DESCRIPTOR))["value"](message)
    if message.DESCRIPTOR.full_name.startswith(_WELL_KNOWN):
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    return {name: read(message) for name, read in _plan(message.DESCRIPTOR)}


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    return [(field.name, _reader(field)) for field in descriptor.fields]


def _reader(field: FieldDescriptor) -> Callable[[Message], Any]:
    name, convert = field.name, _converter(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = _converter(field.message_type.fields_by_name["value"])
        return lambda m: {_key(k): value(v) for k, v in sorted(getattr(m, name).items())}
    if field.is_repeated:
        return lambda m: [convert(v) for v in getattr(m, name)]
    if field.has_presence:
        return lambda m: convert(getattr(m, name)) if m.HasField(name) else None
    return lambda m: convert(getattr(m, name))


def _key(key: object) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _converter(field: FieldDescriptor) -> Convert:
    if field.message_type is not None:
        return to_json
    if field.enum_type is not None:
        return _enum(field.enum_type)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda v: base64.b64encode(v).decode()
    if field.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
        return _float
    return lambda v: v


def _enum(enum: EnumDescriptor) -> Convert:
    """A value of a newer contract is shown as its number; "not set" as null."""
    names = enums.short_names(enum)
    return lambda number: names.get(number, number or None)


def _float(value: float) -> float | str:
    """JSON has no NaN: proto3 JSON writes it as a string."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
