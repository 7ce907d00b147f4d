"""The fixed grid of an upload: part n is the bytes [n·P, min((n+1)·P, size)) of the file.

P, the chunk size, never changes after initiate, so a part's place and length follow from its number alone
and parts may arrive in any order. Bytes that are appended are cut on the same grid; those of the last part that
is not whole yet are the upload's *tail*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.common.errors import AlreadyExists, FailedPrecondition, FieldViolation, InvalidArgument, OutOfRange
from services.upload.reasons import Reason

_NAMED = 10


@dataclass(frozen=True, slots=True)
class Part:
    """A stored part: its number, its length in bytes, its SHA-256 in hex."""

    number: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Tail:
    """The first ``length`` bytes (at least 1) of part ``number`` are stored, the part is not whole yet. All parts
    before it are."""

    number: int
    length: int


@dataclass(frozen=True, slots=True)
class Grid:
    """``size`` bytes (at least 1) cut every ``chunk_size`` bytes."""

    size: int
    chunk_size: int

    @property
    def total(self) -> int:
        """How many parts there are."""
        return -(-self.size // self.chunk_size)

    def bounds(self, number: int) -> tuple[int, int]:
        """The part's bytes as [start, end). Raises OutOfRange (CHUNK_OUT_OF_RANGE)."""
        if not 0 <= number < self.total:
            description = f"must be 0 to {self.total - 1}"
            raise OutOfRange(
                f"chunk_number: {description}",
                reason=Reason.CHUNK_OUT_OF_RANGE,
                violations=[FieldViolation("chunk_number", description)],
            )
        start = number * self.chunk_size
        return start, min(start + self.chunk_size, self.size)

    def length(self, number: int) -> int:
        """The part's length in bytes. Raises OutOfRange."""
        start, end = self.bounds(number)
        return end - start

    def offset(self, numbers: Iterable[int], tail: Tail | None = None) -> int:
        """How many bytes are stored from the start without a gap, given the stored parts and the tail."""
        present = set(numbers)
        first = next(n for n in range(self.total + 1) if n not in present)
        within = tail.length if tail is not None and tail.number == first else 0
        return min(first * self.chunk_size + within, self.size)

    def cut(self, offset: int, piece: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
        """Bytes that lie at ``offset`` of the file: what belongs to one part each, with the part's number. Raises
        InvalidArgument (LENGTH_EXCEEDED) when they reach beyond the file's end."""
        if offset + len(piece) > self.size:
            raise InvalidArgument.field("data", f"the file has {self.size} bytes", reason=Reason.LENGTH_EXCEEDED)
        rest = memoryview(piece)
        while rest:
            number, within = divmod(offset, self.chunk_size)
            taken = rest[: self.chunk_size - within]
            yield number, taken
            rest, offset = rest[len(taken) :], offset + len(taken)

    def remaining(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """The numbers that are not among ``numbers``, ascending."""
        present = set(numbers)
        return tuple(n for n in range(self.total) if n not in present)

    def percent(self, numbers: Iterable[int], tail: Tail | None = None) -> float:
        """The bytes of these parts and of the tail as a percentage of the file, 0 to 100."""
        present, last = set(numbers), self.total - 1
        stored = len(present) * self.chunk_size + (tail.length if tail is not None else 0)
        if last in present:
            stored -= self.chunk_size - self.length(last)
        return 100 * stored / self.size

    def wrong_size(self, number: int, received: int) -> InvalidArgument:
        """The refusal of a part with another length; ``received`` more than its length means "or more"."""
        length = self.length(number)
        more = " or more" if received > length else ""
        return InvalidArgument.field(
            "data",
            f"chunk {number} has {length} bytes, received {received}{more}",
            reason=Reason.CHUNK_SIZE_MISMATCH,
        )

    def manifest(self, parts: Iterable[Part]) -> tuple[Part, ...]:
        """The parts of the whole file in order. Raises FailedPrecondition: CHUNKS_MISSING names the first missing
        numbers, CHUNK_CONFLICT a number for which two contradicting parts are stored."""
        found: dict[int, Part] = {}
        for part in parts:
            if found.setdefault(part.number, part) != part:
                raise FailedPrecondition(
                    f"two contradicting parts are stored for chunk {part.number}", reason=Reason.CHUNK_CONFLICT
                )
        missing = self.remaining(found)
        if missing:
            named = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
            raise FailedPrecondition(
                f"{len(missing)} of {self.total} chunks are missing: {named}",
                reason=Reason.CHUNKS_MISSING,
                metadata={"first_missing": str(missing[0]), "missing": str(len(missing))},
            )
        return tuple(found[n] for n in range(self.total))


def conflict(number: int) -> AlreadyExists:
    """The refusal of other bytes for a part that was acknowledged."""
    return AlreadyExists(
        f"chunk_number: other bytes are stored for chunk {number}; they stay",
        reason=Reason.CHUNK_CONFLICT,
        violations=[FieldViolation("chunk_number", "other bytes are stored under this number")],
    )
