"""How many of each: what ``--scale upload=2,merge-worker=3`` says, what it needs, and what replicas are called.

One alone keeps its plain name; several are numbered from 1. A worker is always numbered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType

from mesh.errors import MeshError

WORKER = "merge-worker"
MOST: Mapping[str, int] = {"upload": 8, "merge": 8, "challenge": 8, "gateway": 8, WORKER: 64}
ONE_OF_EACH: Mapping[str, int] = MappingProxyType({})
# A majority of two is two: such a cluster stops when either does.
SERVERS = (1, 3)

_DATABASE = "TWOTRUTHS_CHALLENGE_DATABASE_URL"
_POSTGRESQL = re.compile(r"postgres(ql)?(\+\w+)?://")  # as the challenge service reads it


def parse(text: str) -> dict[str, int]:
    """The numbers by name in "upload=2,gateway=2". Raises MeshError that says what is possible."""
    scale: dict[str, int] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, _, number = (part.strip() for part in item.partition("="))
        if name not in MOST:
            raise MeshError(f"--scale {item}: there is no {name or 'name'}; there are {', '.join(MOST)}")
        if not (number.isascii() and number.isdecimal() and len(number) < 4 and 1 <= int(number) <= MOST[name]):
            raise MeshError(f"--scale {item}: {name} takes a number from 1 to {MOST[name]}, as in {name}=2")
        if name in scale:
            raise MeshError(f"--scale {item}: {name} is there twice")
        scale[name] = int(number)
    return scale


def check(scale: Mapping[str, int], *, s3: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Raises MeshError when several would need a store that they could share."""
    if scale.get("upload", 1) > 1 and not s3:
        raise MeshError("several uploads need --s3: a directory of chunks has one owner")
    if scale.get("challenge", 1) > 1 and not _POSTGRESQL.match(environment.get(_DATABASE, "")):
        raise MeshError(f"several challenges need PostgreSQL: set {_DATABASE}=postgresql://…, and mesh migrate")


def names(name: str, number: int) -> tuple[str, ...]:
    """What so many processes of this name are called."""
    return (name,) if number == 1 else tuple(f"{name}-{each}" for each in range(1, number + 1))
