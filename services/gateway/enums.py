"""Enum values as phones know them: UPLOAD_STATUS_IN_PROGRESS is "in_progress"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from google.protobuf.descriptor import EnumDescriptor

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _prefix(enum: EnumDescriptor) -> str:
    return _WORD_STARTS.sub("_", enum.name).upper() + "_"


@cache
def short_names(enum: EnumDescriptor) -> Mapping[int, str]:
    """Number → short lower-case name. The zero value, which means "not set", has none if it is UNSPECIFIED."""
    prefix = _prefix(enum)
    return {
        value.number: value.name.removeprefix(prefix).lower()
        for value in enum.values
        if not (value.number == 0 and value.name == f"{prefix}UNSPECIFIED")
    }


@cache
def numbers(enum: EnumDescriptor) -> Mapping[str, int]:
    """Short lower-case name or full name → number."""
    full = {value.name: value.number for value in enum.values}
    return full | {name: number for number, name in short_names(enum).items()}
