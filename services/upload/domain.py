"""The life of an upload: open → assembling → completed or failed; or open → cancelled or expired.

Which parts are stored is not written down here: the parts themselves say. A phone's "pending" and
"in progress" follow from both. Every transition answers a new :class:`Upload`, or the same one when there
is nothing to do, so that each may be tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from services.common.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ServiceError,
)
from services.upload import signatures
from services.upload.grid import Grid, Part
from services.upload.reasons import Reason

TYPE_MISMATCH = "file_type_mismatch"
DATA_LOST = "data_lost"
PARTIAL_GONE = "partial_gone"
INFECTED = "file_infected"
NOT_SCANNED = "file_not_scanned"

_UNTOLD = 1 << 62  # stands for a size that is not known: beyond every limit, below what an int64 holds


class UploadState(StrEnum):
    """What is written down; values are the names in the contract."""

    OPEN = "UPLOAD_STATE_OPEN"
    ASSEMBLING = "UPLOAD_STATE_ASSEMBLING"
    COMPLETED = "UPLOAD_STATE_COMPLETED"
    FAILED = "UPLOAD_STATE_FAILED"
    CANCELLED = "UPLOAD_STATE_CANCELLED"
    EXPIRED = "UPLOAD_STATE_EXPIRED"


class UploadStatus(StrEnum):
    """What phones see; values are the names in the contract."""

    PENDING = "UPLOAD_STATUS_PENDING"
    IN_PROGRESS = "UPLOAD_STATUS_IN_PROGRESS"
    COMPLETED = "UPLOAD_STATUS_COMPLETED"
    FAILED = "UPLOAD_STATUS_FAILED"
    CANCELLED = "UPLOAD_STATUS_CANCELLED"
    EXPIRED = "UPLOAD_STATUS_EXPIRED"


class UploadPurpose(StrEnum):
    """What an upload is for; values are the names in the contract."""

    GENERIC = "UPLOAD_PURPOSE_GENERIC"
    MERGE_CLIP = "UPLOAD_PURPOSE_MERGE_CLIP"
    PARTIAL = "UPLOAD_PURPOSE_PARTIAL"


class DigestRefused(Exception):
    """The whole file has the SHA-256 ``actual`` (hex) and not the one that was promised or claimed."""

    def __init__(self, actual: str) -> None:
        super().__init__(actual)
        self.actual = actual


class TypeRefused(Exception):
    """The whole file is not of the type it was announced as."""


@dataclass(frozen=True, slots=True)
class Whole:
    """An assembled file: its size in bytes, its SHA-256 in hex, its first ``signatures.HEAD_BYTES`` bytes."""

    size: int
    sha256: str
    head: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """The record of one upload, field by field ``twotruths.upload.v1.UploadRecord``, which says what each is."""

    id: str
    owner: str
    filename: str
    mime_type: str
    size: int
    chunk_size: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    promised_sha256: str = ""
    purpose: UploadPurpose = UploadPurpose.GENERIC
    merge_session_id: str = ""
    video_index: int = -1
    sibling_ids: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    state: UploadState = UploadState.OPEN
    manifest: tuple[Part, ...] = ()
    sha256: str = ""
    object_key: str = ""
    error_type: str = ""
    error_message: str = ""
    completed_at: datetime | None = None
    request_fingerprint: str = ""
    claimed_sha256: str = ""
    length_deferred: bool = False
    source_ids: tuple[str, ...] = ()
    network_type: str = ""
    device_type: str = ""
    complete_request_id: str = ""
    traceparent: str = ""

    @property
    def grid(self) -> Grid:
        """Where each part lies; without an end while the length is not told."""
        return Grid(_UNTOLD if self.length_deferred else self.size, self.chunk_size)

    @property
    def gathers(self) -> bool:
        """Whether the files of its partial uploads are still to be put into it."""
        return self.state is UploadState.OPEN and bool(self.source_ids)

    def state_at(self, now: datetime) -> UploadState:
        """The state, expired as soon as the time is over and not only when the sweep has written it down. A
        partial upload expires also when it is completed and nobody has used it."""
        partial = self.state is UploadState.COMPLETED and self.purpose is UploadPurpose.PARTIAL
        if (self.state is UploadState.OPEN or partial) and now >= self.expires_at:
            return UploadState.EXPIRED
        return self.state

    def ended(self, now: datetime) -> bool:
        """Whether nothing can change any more."""
        return self.state_at(now) not in {UploadState.OPEN, UploadState.ASSEMBLING}

    @property
    def final(self) -> bool:
        """Whether nothing can change any more, however late it gets: not so of a completed partial upload."""
        partial = self.state is UploadState.COMPLETED and self.purpose is UploadPurpose.PARTIAL
        return not partial and self.state not in {UploadState.OPEN, UploadState.ASSEMBLING}

    def due(self, now: datetime) -> bool:
        """Whether something remains to be done that no caller may come to do."""
        return self.state is UploadState.ASSEMBLING or self.gathers or self.state is not self.state_at(now)

    def require_bytes(self, now: datetime) -> None:
        """Raises FailedPrecondition (UPLOAD_EXPIRED, UPLOAD_CLOSED) when it takes no bytes from its owner."""
        self.require_open(now)
        if self.source_ids:
            raise FailedPrecondition("the upload is made of partial uploads", reason=Reason.UPLOAD_CLOSED)

    def require_length(self) -> None:
        """Raises FailedPrecondition (LENGTH_MISMATCH) while the length is not told."""
        if self.length_deferred:
            raise FailedPrecondition("the upload's length is not known yet", reason=Reason.LENGTH_MISMATCH)

    def tell_length(self, size: int, offset: int, now: datetime) -> Upload:
        """The length of an upload that was made without, of which ``offset`` bytes are there. Raises
        FailedPrecondition (LENGTH_MISMATCH) when it is known otherwise or fewer than are there."""
        if self.length_deferred and size >= offset:
            return replace(self, size=size, length_deferred=False, updated_at=now)
        if self.length_deferred or size != self.size:
            known = f"{offset} bytes are there" if self.length_deferred else f"it is {self.size} bytes"
            raise FailedPrecondition(
                f"the upload's length cannot be {size}: {known}", reason=Reason.LENGTH_MISMATCH
            )
        return self

    def require_open(self, now: datetime) -> None:
        """Raises FailedPrecondition (UPLOAD_EXPIRED, UPLOAD_CLOSED) when it takes no more parts."""
        state = self.state_at(now)
        if state is not UploadState.OPEN:
            raise closed(state)

    def begin_assembly(
        self, manifest: tuple[Part, ...], claimed: str, now: datetime, request_id: str = ""
    ) -> Upload:
        """Fixes the manifest; from now on parts are refused. One that is past open already is left as it is."""
        if self.state is not UploadState.OPEN:
            return self
        self.require_open(now)
        return replace(
            self,
            state=UploadState.ASSEMBLING,
            manifest=manifest,
            claimed_sha256=claimed,
            complete_request_id=request_id,
            updated_at=now,
        )

    def require_same_complete(self, claimed: str, request_id: str) -> None:
        """Raises AlreadyExists (REQUEST_ID_REUSED) when a complete call with this id came with another digest."""
        if request_id and request_id == self.complete_request_id and claimed != self.claimed_sha256:
            raise AlreadyExists("this id was used before with other parameters", reason=Reason.REQUEST_ID_REUSED)

    def check(self, whole: Whole) -> None:
        """Raises DigestRefused or TypeRefused when this is not the file that was announced."""
        if self.refuses_digest(whole.sha256, self.claimed_sha256):
            raise DigestRefused(whole.sha256)
        if self.purpose is not UploadPurpose.PARTIAL and not signatures.matches(self.mime_type, whole.head):
            raise TypeRefused

    def refuses_digest(self, actual: str, claimed: str) -> bool:
        """Whether the file's digest is not the one that initiate promised or a complete call claimed (if any)."""
        return any(expected not in {"", actual} for expected in (self.promised_sha256, claimed))

    def reopen(self, now: datetime, claimed: str) -> Upload:
        """Back to open: the complete call that claimed this digest was wrong, the parts may be right. One that is
        assembled by now for another claim stays as it is."""
        if self.state is not UploadState.ASSEMBLING or self.claimed_sha256 != claimed:
            return self
        return replace(
            self, state=UploadState.OPEN, manifest=(), claimed_sha256="", complete_request_id="", updated_at=now
        )

    def complete(self, whole: Whole, object_key: str, now: datetime) -> Upload:
        """The file is in the object store under this key."""
        if self.state is not UploadState.ASSEMBLING:
            return self
        return replace(
            self,
            state=UploadState.COMPLETED,
            sha256=whole.sha256,
            object_key=object_key,
            completed_at=now,
            updated_at=now,
        )

    def fail(self, error_type: str, message: str, now: datetime) -> Upload:
        """The file is refused for good."""
        if self.state is not UploadState.ASSEMBLING and not self.gathers:
            return self
        return replace(
            self, state=UploadState.FAILED, error_type=error_type, error_message=message, updated_at=now
        )

    def cancel(self, now: datetime, *, release: bool = False) -> Upload:
        """Given up by its owner, or by a service that takes a completed clip of a merge session back
        (``release``); one that failed, expired or was cancelled before stays as it is. Raises FailedPrecondition
        (UPLOAD_CLOSED) when it is completed and no partial upload. Not for one that is being assembled."""
        given_back = self.purpose is UploadPurpose.PARTIAL or (
            release and self.purpose is UploadPurpose.MERGE_CLIP
        )
        if self.state is UploadState.COMPLETED and not given_back:
            raise closed(self.state)
        if self.state not in {UploadState.OPEN, UploadState.COMPLETED}:
            return self
        return replace(self, state=UploadState.CANCELLED, updated_at=now)

    def hold(self, until: datetime, now: datetime) -> Upload:
        """A completed partial upload is kept until then at least; always another record, so that whoever was about
        to remove it notices. One that has ended meanwhile stays as it is."""
        if self.state_at(now) is not UploadState.COMPLETED:
            return self
        return replace(self, expires_at=max(until, self.expires_at), updated_at=now)

    def expire(self, now: datetime) -> Upload:
        """Given up when it is open past its time."""
        if self.state is self.state_at(now):
            return self
        return replace(self, state=UploadState.EXPIRED, updated_at=now)

    def status(self, any_bytes: bool, now: datetime) -> UploadStatus:
        """What phones see, given whether any bytes are stored."""
        state = self.state_at(now)
        if state is UploadState.OPEN:
            return UploadStatus.IN_PROGRESS if any_bytes else UploadStatus.PENDING
        if state is UploadState.ASSEMBLING:
            return UploadStatus.IN_PROGRESS
        return UploadStatus[state.name]


def closed(state: UploadState) -> FailedPrecondition:
    """The refusal of an upload that is not open."""
    if state is UploadState.EXPIRED:
        return FailedPrecondition("the upload's expires_at has passed", reason=Reason.UPLOAD_EXPIRED)
    return FailedPrecondition(f"the upload is {state.name.lower()}", reason=Reason.UPLOAD_CLOSED)


def not_found() -> NotFound:
    """The refusal of an id under which the caller has nothing."""
    return NotFound("no upload of yours has this id", reason=Reason.UPLOAD_NOT_FOUND)


def wrong_offset(reached: int) -> Aborted:
    """The refusal of an append that does not begin where the upload ends."""
    return Aborted(
        f"the upload's offset is {reached}",
        reason=Reason.OFFSET_MISMATCH,
        violations=[FieldViolation("offset", f"must be {reached}")],
        metadata={"offset": str(reached)},
    )


def wrong_digest(actual: str) -> InvalidArgument:
    """The refusal of a complete call whose digest the file does not have."""
    return InvalidArgument.field(
        "file_hash", f"the file has the SHA-256 {actual}", reason=Reason.FILE_DIGEST_MISMATCH
    )


def refused(upload: Upload) -> ServiceError:
    """Why an upload failed, as the error that its complete call answers."""
    if upload.error_type == TYPE_MISMATCH:
        return InvalidArgument.field("mime_type", upload.error_message, reason=Reason.FILE_TYPE_MISMATCH)
    if upload.error_type == INFECTED:
        return InvalidArgument(upload.error_message, reason=Reason.FILE_INFECTED)
    if upload.error_type == PARTIAL_GONE:
        return FailedPrecondition(upload.error_message, reason=Reason.PARTIAL_NOT_USABLE)
    return FailedPrecondition(f"the upload failed: {upload.error_message}", reason=Reason.UPLOAD_CLOSED)
