"""What callers ask for: new sessions, and pages of those they have. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.common.errors import FieldViolation, InvalidArgument
from services.merge.domain import Clip, Reason, Session
from services.merge.timeline import Canvas, Quality

_NAMESPACE = uuid.UUID("5b7a1f0e-3a54-4f0f-9d0c-0d1d4e0b6a57")


@dataclass(frozen=True, slots=True)
class NewClip:
    """A clip as the player announces it. ``duration`` in seconds, 0 when unknown."""

    filename: str
    size: int
    duration: float
    mime_type: str


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session as the player asks for it. The same ``request_id`` of the same owner is the same session."""

    clips: Sequence[NewClip]
    title: str = ""
    request_id: str = ""
    canvas: Canvas | None = None
    quality: Quality = Quality.MEDIUM

    @property
    def fingerprint(self) -> str:
        """Tells whether two requests ask for the same."""
        described = [(c.filename, c.size, c.duration, c.mime_type) for c in self.clips]
        shape = (self.canvas.width, self.canvas.height) if self.canvas is not None else None
        return hashlib.sha256(json.dumps([described, self.title, shape, self.quality]).encode()).hexdigest()


def new_session(
    owner: str, asked: NewSession, now: datetime, wait: timedelta, *, traceparent: str = ""
) -> Session:
    """The record of a new session, which waits so long for its clips."""
    name = f"{owner}\0{asked.request_id}" if asked.request_id else uuid.uuid4().hex
    session_id = uuid.uuid5(_NAMESPACE, name)
    return Session(
        id=str(session_id),
        owner=owner,
        title=asked.title,
        request_fingerprint=asked.fingerprint,
        clips=tuple(
            Clip(i, str(uuid.uuid5(session_id, f"clip-{i}-0")), c.filename, c.size, c.duration, c.mime_type)
            for i, c in enumerate(asked.clips)
        ),
        created_at=now,
        updated_at=now,
        deadline=now + wait,
        quality=asked.quality,
        canvas=asked.canvas,
        canvas_given=asked.canvas is not None,
        traceparent=traceparent,
    )


def check_durations(clips: Sequence[NewClip], most: float) -> None:
    """:func:`check_duration` of each clip of a session."""
    for i, clip in enumerate(clips):
        check_duration(f"video_durations[{i}]", clip, most)


def check_duration(field: str, clip: NewClip, most: float) -> None:
    """Raises InvalidArgument (CLIP_TOO_LONG) when the promised duration could never be accepted; a second more is
    let through, since phones round."""
    if clip.duration > most + 1:
        text = f"a clip may be {most:g} seconds long at most"
        raise InvalidArgument.field(field, text, reason=Reason.CLIP_TOO_LONG)


def in_the_callers_names(refused: InvalidArgument) -> InvalidArgument:
    """The upload service names ``clips[1].file_size``; our caller sent ``video_file_sizes[1]``."""
    names = {"filename": "video_filenames", "file_size": "video_file_sizes", "mime_type": "video_mime_types"}
    violations = []
    for violation in refused.violations:
        place, _, field = violation.field.partition(".")
        index = place.removeprefix("clips")
        violations.append(FieldViolation(f"{names.get(field, field)}{index}", violation.description))
    text = f"{violations[0].field}: {violations[0].description}" if violations else refused.message
    return InvalidArgument(text, reason=refused.reason, violations=violations, domain=refused.domain)


Place = tuple[datetime, str]
"""Where a session stands in a list: when it was made, and its id."""


def place(session: Session) -> Place:
    """The session's place."""
    return session.created_at, session.id


def write_token(last: Place) -> str:
    """The page token for what comes after this place, newest first."""
    return base64.urlsafe_b64encode(f"{last[0].isoformat()} {last[1]}".encode()).decode()


def read_token(token: str) -> Place:
    """What :func:`write_token` wrote. Raises InvalidArgument (PAGE_TOKEN_INVALID)."""
    try:
        moment, _, id_ = base64.b64decode(token.encode(), b"-_", validate=True).decode().partition(" ")
        return datetime.fromisoformat(moment).astimezone(UTC), id_
    except (ValueError, OverflowError):
        raise InvalidArgument.field(
            "page_token", "must be a next_page_token of this method", reason=Reason.PAGE_TOKEN_INVALID
        ) from None
