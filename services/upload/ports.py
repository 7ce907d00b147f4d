"""What the upload use cases need from outside: a place for parts, the state store and the progress bus, a virus
scanner, and somewhere to tell how uploads went."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from services.common.progress import ProgressBus
from services.common.state import StateStore
from services.common.wire import Buffer
from services.upload.domain import Upload, UploadPurpose, Whole
from services.upload.grid import Grid, Part, Tail

UploadStore: TypeAlias = StateStore[Upload]
"""The records, at ``owned_key(owner, id)``."""

Hints: TypeAlias = ProgressBus
"""Hints of kind "upload": this upload changed, look again."""

Confirm: TypeAlias = Callable[[Part], Awaitable[None]]
"""Called with a part that was received whole, before it counts as stored; raises to refuse it."""

Admit: TypeAlias = Callable[[int], Awaitable[Grid]]
"""Called with the offset that the upload has reached, while nobody else appends to it; answers the grid to go on
with (another one when the upload's length was told only now), or raises to refuse the append."""

Counting: TypeAlias = Callable[[], Awaitable[None]]
"""Called before appended bytes count; raises to refuse them."""

Check: TypeAlias = Callable[[Whole], None]
"""Called with the assembled file before it becomes an object; raises to refuse it."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The parts that are stored, in any order, and when the last bytes came (None without any). ``tail``: what is
    stored of the first part that is missing, if anything."""

    parts: tuple[Part, ...] = ()
    changed_at: datetime | None = None
    tail: Tail | None = None

    def offset(self, grid: Grid) -> int:
        """How many bytes are stored from the start without a gap."""
        return grid.offset((part.number for part in self.parts), self.tail)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that is stored, now or (``existed``) before."""

    part: Part
    existed: bool


@dataclass(frozen=True, slots=True)
class Staged:
    """An upload that has bytes in the part store, and when they last changed."""

    upload: str
    changed_at: datetime


class PartStore(Protocol):
    """Parts of uploads until they are a file. ``upload`` is the key of the upload's record.

    A part exists if and only if :meth:`list_parts` answers it, and what exists survives a kill of any process.
    Every method raises Unavailable when the store does not answer.
    """

    async def put_part(
        self, upload: str, grid: Grid, number: int, pieces: AsyncIterator[Buffer], confirm: Confirm
    ) -> StoredPart:
        """Stores a part if there is none: hashes ``pieces`` as they come, never holding the part whole, awaits
        ``confirm`` and only then lets the part exist. The same bytes again change nothing. Over a tail the part
        must begin with the tail's bytes; it then takes the tail's place.

        Of two writers of one part the newer goes on. Raises OutOfRange (CHUNK_OUT_OF_RANGE), InvalidArgument
        (CHUNK_SIZE_MISMATCH), AlreadyExists (CHUNK_CONFLICT: other bytes are stored, also in a
        tail; they stay), Aborted
        (CHUNK_SUPERSEDED), FailedPrecondition (UPLOAD_CLOSED: discarded meanwhile), ResourceExhausted
        (STORAGE_FULL: what was stored before is intact), and what ``pieces`` and ``confirm`` raise.
        """

    async def append_tail(
        self,
        upload: str,
        grid: Grid,
        admit: Admit,
        pieces: AsyncIterator[Buffer],
        count: Counting,
        *,
        at_once: bool = False,
    ) -> int:
        """Stores bytes at the end of what is stored without a gap, and answers the offset reached.

        Awaits ``admit`` with the offset, then takes ``pieces`` as they come, cut on the grid. Each piece that was
        taken counts as the tail, also when ``pieces`` raises later, and survives a kill: at the latest when this
        returns or raises. A tail that reaches its part's length becomes the part, after ``count`` was awaited
        (what ``count`` refuses need not stay); so it does without any piece. Bytes for a part that is stored
        already must be that part's, and change nothing.

        ``at_once``: no byte counts until ``pieces`` ended and ``count``, awaited once, agreed.

        Of two that append to one upload, or that write one part, the newer goes on. Raises InvalidArgument
        (LENGTH_EXCEEDED: what came before the piece that is too long stays), AlreadyExists (CHUNK_CONFLICT),
        Aborted (CHUNK_SUPERSEDED), FailedPrecondition (UPLOAD_CLOSED: discarded meanwhile), ResourceExhausted
        (STORAGE_FULL), and what ``admit``, ``pieces`` and ``count`` raise.
        """

    async def list_parts(self, upload: str, grid: Grid) -> Ledger:
        """The parts that exist and the tail; none for an upload that is not known."""

    async def assemble(
        self, upload: str, grid: Grid, manifest: tuple[Part, ...], object_key: str, check: Check
    ) -> Whole:
        """Makes one object of exactly the parts of the manifest, unless ``check`` refuses it. The parts may go.

        May be called again after it was cut off anywhere, also when the object is there already. Raises DataLoss
        when a part of the manifest is not there, ResourceExhausted (STORAGE_FULL), and what ``check`` raises:
        then the parts are as they were.
        """

    async def discard(self, upload: str) -> None:
        """Removes the upload's parts and stops their writers; an upload that is not known is no error."""

    async def remove(self, object_key: str) -> None:
        """Removes an assembled object; one that is not there is no error."""

    def list_uploads(self) -> AsyncIterator[Staged]:
        """The uploads that have bytes here, in any order."""


class Scanner(Protocol):
    """A virus scanner."""

    async def scan(self, pieces: AsyncIterator[bytes]) -> str:
        """The name of what was found in these bytes, "" when they are clean. Raises Unavailable
        (SCANNER_UNAVAILABLE) when that is not certain, whatever the reason, and what ``pieces`` raises."""


@dataclass(frozen=True, slots=True)
class UploadCompleted:
    """How an upload went, field by field ``twotruths.upload.v1.UploadCompleted``, which says what each is."""

    upload_id: str
    purpose: UploadPurpose
    seconds: float
    bytes: int
    bytes_per_second: float
    chunks: int
    replayed_chunks: int
    network_type: str
    device_type: str
    completed_at: datetime


class Events(Protocol):
    """Takes note of what happened, for analytics."""

    async def completed(self, event: UploadCompleted) -> None:
        """Keeps one event for each upload, however often it is told of within minutes. Never raises: what cannot
        be kept is logged and dropped."""
