"""What parent and child say to each other: one JSON job on stdin, JSON lines on stdout. Of several results the
last counts: a merge tells of its file, and once more when it has made what lies beside it.

The child has read hostile bytes, so the parent takes nothing from it on trust: lines are bounded, a result
must have exactly the fields and types of the dataclass it claims to be, and an error type must be one
of ours. Anything else counts as a broken child.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.limits import Limits
from services.merge.timeline import (
    Canvas,
    ClipInfo,
    Coded,
    MergedFile,
    NormalisedClip,
    Piece,
    Quality,
    SidecarFiles,
)

MAX_LINE_BYTES = 64 * 1024
MAX_NUMBER = 1 << 53  # far above any size or count, and a record, JSON and a division can still hold it
MAX_TEXT = 200


class ProtocolError(Exception):
    """The child said something that it never says."""


Result = ClipInfo | NormalisedClip | MergedFile | SidecarFiles
ResultT = TypeVar("ResultT", ClipInfo, NormalisedClip, MergedFile, SidecarFiles)
Parsed = TypeVar("Parsed", ClipInfo, NormalisedClip, MergedFile, SidecarFiles, Coded)
OPTIONAL_SIDECARS = "SidecarFiles | None"


@dataclass(frozen=True, slots=True)
class Job:
    """One child's work. ``targets`` are for sidecars, of a merge or of a file that is merged already, whose
    ``frames`` of each clip are told."""

    kind: str
    sources: tuple[str, ...]
    target: str
    canvas: Canvas
    quality: Quality
    limits: Limits
    threads: int
    piece: Piece | None = None
    layout: tuple[tuple[int, str], ...] = ()
    even_loudness: bool = True
    targets: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(raw: bytes) -> Job:
        job = json.loads(raw)
        return Job(
            kind=job["kind"],
            sources=tuple(job["sources"]),
            target=job["target"],
            canvas=Canvas(**job["canvas"]),
            quality=Quality(job["quality"]),
            limits=Limits(**job["limits"]),
            threads=job["threads"],
            piece=Piece(**job["piece"]) if job["piece"] else None,
            layout=tuple((count, start) for count, start in job["layout"]),
            even_loudness=job["even_loudness"],
            targets=tuple(job["targets"]),
            frames=tuple(job["frames"]),
        )


def progress_line(done: int, expected: int) -> bytes:
    return _line({"progress": [done, expected]})


def result_line(result: Result) -> bytes:
    return _line({"result": asdict(result)})


def error_line(error: MediaError) -> bytes:
    return _line({"error": [error.error_type, error.message]})


def parse_line(line: bytes) -> dict[str, Any]:
    """Decode one line of the child. Raises :class:`ProtocolError` if it is not a JSON object."""
    try:
        message = json.loads(line)
    except ValueError as error:
        raise ProtocolError("not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("not an object")
    return message


def parse_progress(value: object) -> tuple[int, int]:
    """Raises :class:`ProtocolError` unless the value is two whole numbers that can be progress."""
    match value:
        case [int(done), int(expected)] if 0 <= done <= expected <= MAX_NUMBER and expected:
            return done, expected
    raise ProtocolError("progress must be two whole numbers, done and expected")


def parse_error(value: object) -> MediaError:
    """Raises :class:`ProtocolError` unless the value is a known error type and a text."""
    match value:
        case [str(error_type), str(message)] if error_type in set(ErrorType):
            return MediaError(ErrorType(error_type), message[:500])
    raise ProtocolError("an error must be a type and a message")


def parse_result(kind: type[ResultT], value: object) -> ResultT:
    """Build the expected dataclass. Raises :class:`ProtocolError` if a field is missing, foreign, mistyped or
    beyond what such a field can be."""
    return _parsed(kind, value)


def _parsed(kind: type[Parsed], value: object) -> Parsed:
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(kind)}:
        raise ProtocolError(f"not the fields of a {kind.__name__}")
    for field in fields(kind):
        item = value[field.name]
        if field.type == Coded.__name__:
            value[field.name] = _parsed(Coded, item)
        elif field.type == OPTIONAL_SIDECARS:
            value[field.name] = None if item is None else _parsed(SidecarFiles, item)
        elif field.type == "tuple[int, ...]" and isinstance(item, list):
            value[field.name] = tuple(item)
            if not all(type(number) is int and _sane(number) for number in item):
                raise ProtocolError(f"{field.name} must be whole numbers")
        elif type(item).__name__ != field.type or not _sane(item):
            raise ProtocolError(f"{field.name} must be {field.type}")
    return kind(**value)


def _sane(item: object) -> bool:
    """Whether a number is none that breaks arithmetic later (negative, huge, not a number), a text no essay."""
    if isinstance(item, int | float):
        return 0 <= item <= MAX_NUMBER
    return not isinstance(item, str) or len(item) <= MAX_TEXT


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
