"""Turns domain dataclasses into protobuf records and back, field by field of the same name.

The record's message is the schema on disk; the dataclass is what the domain works with. Fields of a
dataclass must all exist in the message (checked when the codec is made). Enumerations are StrEnums whose
values are the proto names; digests are hex strings; times are aware datetimes; an unset time is None.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from pydantic import TypeAdapter

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Codec(Protocol[T]):
    """How a state store keeps values of one kind."""

    def encode(self, value: T) -> bytes: ...

    def decode(self, data: bytes) -> T:
        """Raises ValueError for bytes that are no such value, a newer process's for example."""


def parsed(message: type[M], data: bytes) -> M:
    """The message of these bytes. Raises ValueError."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise ValueError(f"no {message.DESCRIPTOR.name}: {error}") from error


class RecordCodec(Generic[T]):
    """The codec of dataclass ``T`` kept as ``message``. Unknown fields of newer records are dropped on decode.

    ``remember``: how many decoded values are kept for records that are read again and again; only for values
    that nobody changes.
    """

    def __init__(self, type_: type[T], message: type[Message], *, remember: int = 0) -> None:
        names = {f.name for f in dataclasses.fields(type_)}  # type: ignore[arg-type]  # T is a dataclass
        missing = names - {f.name for f in message.DESCRIPTOR.fields}
        if missing:
            raise TypeError(f"{message.DESCRIPTOR.full_name} lacks {', '.join(sorted(missing))}")
        self._adapter = TypeAdapter(type_)
        self._message = message
        self._decoded: Callable[[bytes], T] = (
            functools.lru_cache(remember)(self._decode) if remember else self._decode
        )

    def encode(self, value: T) -> bytes:
        record = json_format.ParseDict(self._adapter.dump_python(value, mode="json"), self._message())
        return record.SerializeToString(deterministic=True)

    def decode(self, data: bytes) -> T:
        return self._decoded(bytes(data))

    def _decode(self, data: bytes) -> T:
        record = parsed(self._message, data)
        fields = json_format.MessageToDict(
            record, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return self._adapter.validate_python(fields)
