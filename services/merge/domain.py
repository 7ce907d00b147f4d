"""Merge sessions and merged videos: what is written down about one.

Work is cut into *units*: a probe and a normalisation for each clip, one merge. A unit has one current
*attempt*; a worker that takes it writes its *claim token* into the record, and only the result that comes
with the current token counts. So a worker that was thought dead can do no harm. How a session changes is
in :mod:`services.merge.transitions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.merge.timeline import Canvas, ClipInfo, Quality


class Reason(StrEnum):
    """Why a call was refused: MergeErrorReason of the contract without its prefix."""

    MERGE_NOT_FOUND = "MERGE_NOT_FOUND"
    VIDEO_NOT_FOUND = "VIDEO_NOT_FOUND"
    CLIP_LISTS_DIFFER = "CLIP_LISTS_DIFFER"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    RETRY_NOT_AVAILABLE = "RETRY_NOT_AVAILABLE"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    INTERNAL_ONLY = "INTERNAL_ONLY"
    CLIP_TOO_LONG = "CLIP_TOO_LONG"
    CLIPS_MISSING = "CLIPS_MISSING"
    MERGE_FAILED = "MERGE_FAILED"
    MERGE_CANCELLED = "MERGE_CANCELLED"
    VIDEO_IN_USE = "VIDEO_IN_USE"
    CLIPS_GONE = "CLIPS_GONE"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105  the name of a refusal, not a secret


class SessionState(StrEnum):
    """As in the contract. Uploading, queued and processing are all ACTIVE: which one follows from the units."""

    ACTIVE = "SESSION_STATE_ACTIVE"
    COMPLETED = "SESSION_STATE_COMPLETED"
    FAILED = "SESSION_STATE_FAILED"
    CANCELLED = "SESSION_STATE_CANCELLED"


class JobKind(StrEnum):
    """What a unit does."""

    PROBE = "JOB_KIND_PROBE"
    NORMALISE = "JOB_KIND_NORMALISE"
    MERGE = "JOB_KIND_MERGE"


class UnitState(StrEnum):
    """Where a unit's current attempt is."""

    QUEUED = "UNIT_STATE_QUEUED"
    CLAIMED = "UNIT_STATE_CLAIMED"
    DONE = "UNIT_STATE_DONE"
    FAILED = "UNIT_STATE_FAILED"


class Priority(StrEnum):
    """Which queue an attempt waits in."""

    HIGH = "PRIORITY_HIGH"
    NORMAL = "PRIORITY_NORMAL"
    LOW = "PRIORITY_LOW"


class Visibility(StrEnum):
    """Who may see a video."""

    PRIVATE = "VISIBILITY_PRIVATE"
    PUBLIC = "VISIBILITY_PUBLIC"


class StaleClaim(Exception):
    """The attempt is not current, or another claim counts: whoever holds it must leave no trace."""


WHOLE_SESSION = -1
COPY_REFUSED = "copy_refused"  # error type of a merge whose copy is not to be tried again
STORAGE_UNAVAILABLE = "storage_unavailable"  # error type of an attempt that the object store stood in the way of


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip. ``promised_duration`` in seconds is shown, never used; ``source_key`` is set once uploaded."""

    index: int
    upload_id: str
    filename: str
    size: int
    promised_duration: float
    mime_type: str
    generation: int = 0
    source_key: str = ""
    uploaded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object: ``size`` in bytes, ``sha256`` in hex."""

    object_key: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Storyboard:
    """A sheet of small pictures, ``columns`` a row; each stands for the frames from its start to the next's."""

    file: StoredFile
    tile_width: int
    tile_height: int
    columns: int
    start_frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rendition:
    """The video as fragmented MP4. Each part begins at its offset with the IDR of its start frame, and ends where
    the next begins; before the first is the header."""

    file: StoredFile
    offsets: tuple[int, ...]
    start_frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What lies beside a video: a poster for each statement, and more."""

    posters: tuple[StoredFile, ...]
    storyboard: Storyboard
    rendition: Rendition


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a unit made. A probe fills ``clip``; the others the object, whose ``frames`` are one number for
    each clip in it; a merge also ``sidecars``, unless they could not be made. ``copied``: its video was not
    encoded anew."""

    clip: ClipInfo | None = None
    object_key: str = ""
    size: int = 0
    sha256: str = ""
    frames: tuple[int, ...] = ()
    width: int = 0
    height: int = 0
    copied: bool = False
    sidecars: Sidecars | None = None

    @property
    def object_keys(self) -> frozenset[str]:
        """All that it stored."""
        keys = {self.object_key} if self.object_key else set()
        if self.sidecars is not None:
            files = (*self.sidecars.posters, self.sidecars.storyboard.file, self.sidecars.rendition.file)
            keys.update(file.object_key for file in files)
        return frozenset(keys)


@dataclass(frozen=True, slots=True)
class UnitRef:
    """Names one attempt of one unit: what a job carries."""

    kind: JobKind
    clip_index: int
    generation: int
    attempt: int
    chunk: int = 0

    @property
    def name(self) -> str:
        """The unit's name: that of a replaced clip's is another than its successor's."""
        name = unit_name(self.kind, self.clip_index, self.chunk)
        return f"{name}-{self.generation}" if self.generation else name

    @property
    def heard_as(self) -> str:
        """The attempt's name in progress hints: how far one came says nothing of the next, which may do other work
        (encode what the one before copied)."""
        return f"{self.name}-a{self.attempt}" if self.attempt > 1 else self.name

    def job_id(self, session_id: str) -> str:
        """``<session>-<unit>-<generation>-<attempt>``: each attempt is a job of its own, so a retry is never
        refused for its predecessor that nobody acknowledged yet."""
        name = unit_name(self.kind, self.clip_index, self.chunk)
        return f"{session_id}-{name}-{self.generation}-{self.attempt}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work and its current attempt (from 1), which was claimed so many times without being given back:
    ``deliveries``. ``superseded`` attempts were replaced without having failed. A long clip is normalised by a
    unit for each ``chunk``: frames ``first_frame`` up to and without ``end_frame``, which is 0 for the last one
    (and for the only one of a short clip)."""

    kind: JobKind
    clip_index: int
    queued_at: datetime | None
    generation: int = 0
    attempt: int = 1
    state: UnitState = UnitState.QUEUED
    priority: Priority = Priority.NORMAL
    claim_token: str = ""
    claimed_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: Outcome | None = None
    error_type: str = ""
    error_message: str = ""
    retryable: bool = False
    retry_at: datetime | None = None
    deliveries: int = 0
    superseded: int = 0
    chunk: int = 0
    first_frame: int = 0
    end_frame: int = 0

    @property
    def ref(self) -> UnitRef:
        return UnitRef(self.kind, self.clip_index, self.generation, self.attempt, self.chunk)

    @property
    def name(self) -> str:
        return self.ref.name


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a session failed. ``clip_index`` is -1 when no clip is at fault, ``buried`` once its jobs are dead."""

    error_type: str
    message: str
    failed_at: datetime | None
    retry_available: bool
    clip_index: int = WHOLE_SESSION
    buried: bool = False


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a session had come when the controller last wrote it, in percent; ``clips`` in order."""

    overall: float
    merge: float
    clips: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """A merge session: message MergeRecord of the contract, field by field. ``canvas_given``: the client chose it.
    ``copy_refused`` says why a copy was tried in vain. ``traceparent``: the step of a trace that began it."""

    id: str
    owner: str
    title: str
    request_fingerprint: str
    clips: tuple[Clip, ...]
    created_at: datetime
    updated_at: datetime
    deadline: datetime
    quality: Quality = Quality.MEDIUM
    priority: Priority = Priority.NORMAL
    state: SessionState = SessionState.ACTIVE
    canvas: Canvas | None = None
    units: tuple[Unit, ...] = ()
    failure: Failure | None = None
    retry_count: int = 0
    video_id: str = ""
    uploads_ready: bool = False
    uploads_completed_at: datetime | None = None
    completed_at: datetime | None = None
    cleaned: bool = False
    retry_request_id: str = ""
    canvas_given: bool = False
    copy_refused: str = ""
    replacements: tuple[Clip, ...] = ()
    superseded: tuple[str, ...] = ()
    closed: bool = False
    reached: Reached | None = None
    traceparent: str = ""

    def unit(self, kind: JobKind, clip_index: int = WHOLE_SESSION, chunk: int = 0) -> Unit | None:
        """The unit of this kind for the clip as it is now (of its current generation), or None."""
        generation = self.generation(clip_index)
        for unit in self.units:
            if (unit.kind, unit.clip_index, unit.generation, unit.chunk) == (kind, clip_index, generation, chunk):
                return unit
        return None

    def normalising(self, clip_index: int) -> tuple[Unit, ...]:
        """The units that normalise the clip as it is now, in order of their chunks."""
        generation = self.generation(clip_index)
        place = (JobKind.NORMALISE, clip_index, generation)
        units = (u for u in self.units if (u.kind, u.clip_index, u.generation) == place)
        return tuple(sorted(units, key=lambda u: u.chunk))

    def normalised(self, clip_index: int) -> tuple[Outcome, ...]:
        """The clip's normalised pieces in order, one for a short clip; none while any is missing."""
        units = self.normalising(clip_index)
        made = tuple(u.outcome for u in units if u.state is UnitState.DONE and u.outcome is not None)
        return made if len(made) == len(units) else ()

    def generation(self, clip_index: int) -> int:
        """The clip's generation; that of the whole session counts every replacement."""
        if clip_index == WHOLE_SESSION:
            return sum(clip.generation for clip in self.clips)
        return self.clips[clip_index].generation

    def done(self, kind: JobKind, clip_index: int = WHOLE_SESSION) -> Outcome | None:
        """What the unit made, or None while it is not done."""
        unit = self.unit(kind, clip_index)
        return unit.outcome if unit is not None and unit.state is UnitState.DONE else None

    @property
    def all_uploaded(self) -> bool:
        return all(clip.source_key for clip in self.clips)

    @property
    def unfinished(self) -> tuple[Unit, ...]:
        """The units whose current attempt ought to be in the queue or with a worker."""
        return tuple(u for u in self.units if u.state in (UnitState.QUEUED, UnitState.CLAIMED))


@dataclass(frozen=True, slots=True)
class Video:
    """A merged video: message VideoRecord of the contract. ``frames`` of each segment at 30 per second."""

    id: str
    owner: str
    merge_session_id: str
    object_key: str
    size: int
    sha256: str
    frames: tuple[int, ...]
    width: int
    height: int
    created_at: datetime
    transcoded: bool = True
    visibility: Visibility = Visibility.PRIVATE
    sidecars: Sidecars | None = None
    deleted_at: datetime | None = None
    cleaned: bool = False


def folder_of(session_id: str) -> str:
    """Where the session's video and what belongs to it lie in the object store."""
    return f"videos/{session_id}/"


def unit_name(kind: JobKind, clip_index: int, chunk: int = 0) -> str:
    """A unit's short name: "probe0", "normalise2", its second chunk "normalise2c1", "merge"."""
    name = kind.removeprefix("JOB_KIND_").lower()
    name = name if clip_index == WHOLE_SESSION else f"{name}{clip_index}"
    return f"{name}c{chunk}" if chunk else name
