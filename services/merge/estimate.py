"""How long it will take: what is left to do, in frames, at the speed at which workers did the like of it just now.

Pure. Before anything was measured the pace has defaults, so there is always a number; it is a guess all the same.
"""

from __future__ import annotations

from typing import Protocol

from services.merge.delivery import is_copied
from services.merge.domain import Clip, JobKind, Session, SessionState
from services.merge.timeline import FPS

_MERGE_PASSES = 2  # joining counts each frame twice: copied and verified
_START_SECONDS = 1.0  # to find a worker, fetch the files and store the result


class Pace(Protocol):
    """What the progress board knows."""

    def fraction(self, session_id: str, unit: str) -> float: ...

    def frames(self, session_id: str, unit: str) -> int | None: ...

    def speed(self, kind: str) -> float: ...

    def busy(self) -> int: ...


def remaining_seconds(session: Session, pace: Pace) -> float | None:
    """Seconds of work that remain, uploads apart; None for a session that has ended."""
    if session.state is not SessionState.ACTIVE:
        return None
    left = [_frames_left(session, clip, pace) for clip in session.clips]
    at_once = max(1, min(pace.busy(), sum(frames > 0 for frames in left)))
    normalising = max([*left, sum(left) / at_once]) / pace.speed("normalise")
    return round(_START_SECONDS + normalising + _merging(session, pace), 1)


def seconds_after_last_upload(session: Session, pace: Pace) -> float:
    """What a player will wait for once all clips are in: the others are normalised by then, so it is the last of
    them (the longest, to be safe) and the join."""
    longest = max(_frames(session, clip, pace) for clip in session.clips)
    return round(_START_SECONDS + longest / pace.speed("normalise") + _merging(session, pace), 1)


def _frames_left(session: Session, clip: Clip, pace: Pace) -> float:
    if session.done(JobKind.NORMALISE, clip.index) is not None or is_copied(session):
        return 0.0
    unit = session.unit(JobKind.NORMALISE, clip.index)
    done = pace.fraction(session.id, unit.name) if unit is not None else 0.0
    return _frames(session, clip, pace) * (1.0 - done)


def _merging(session: Session, pace: Pace) -> float:
    if session.done(JobKind.MERGE) is not None:
        return 0.0
    frames = sum(_frames(session, clip, pace) for clip in session.clips)
    unit = session.unit(JobKind.MERGE)
    done = pace.fraction(session.id, unit.name) if unit is not None else 0.0
    return frames * _MERGE_PASSES * (1.0 - done) / pace.speed("merge")


def _frames(session: Session, clip: Clip, pace: Pace) -> float:
    """The clip's length in frames of the result: as normalised, as its job said, as probed, or as promised."""
    made = session.done(JobKind.NORMALISE, clip.index)
    if made is not None and made.frames:
        return float(made.frames[0])
    unit = session.unit(JobKind.NORMALISE, clip.index)
    told = pace.frames(session.id, unit.name) if unit is not None else None
    if told is not None:
        return float(told)
    probed = session.done(JobKind.PROBE, clip.index)
    seconds = probed.clip.duration if probed is not None and probed.clip is not None else clip.promised_duration
    return seconds * FPS
