"""How long it will take: what is left to do, in frames, at the speed at which workers did the like of it just now.

Pure. Before anything was measured the pace has defaults, so there is always a number; it is a guess all the same.
"""

from __future__ import annotations

from typing import Protocol

from services.merge.delivery import is_copied
from services.merge.domain import Clip, JobKind, Session, SessionState, UnitState
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
    left = [frames for clip in session.clips for frames in _frames_left(session, clip, pace)]
    at_once = max(1, min(pace.busy(), sum(frames > 0 for frames in left)))
    normalising = max([*left, sum(left) / at_once]) / pace.speed("normalise")
    return round(_START_SECONDS + normalising + _merging(session, pace), 1)


def seconds_after_last_upload(session: Session, pace: Pace) -> float:
    """What a player will wait for once all clips are in: the others are normalised by then, so it is the last of
    them (the longest, to be safe) and the join."""
    longest = max(_frames(session, clip, pace) for clip in session.clips)
    return round(_START_SECONDS + longest / pace.speed("normalise") + _merging(session, pace), 1)


def _frames_left(session: Session, clip: Clip, pace: Pace) -> list[float]:
    """Of each unit that normalises the clip; a long clip's chunks are about equally long."""
    if is_copied(session):
        return [0.0]
    units = session.normalising(clip.index)
    frames = _frames(session, clip, pace) / max(1, len(units))
    left = [0.0 if u.state is UnitState.DONE else 1.0 - pace.fraction(session.id, u.ref.heard_as) for u in units]
    return [frames * share for share in left or [1.0]]


def _merging(session: Session, pace: Pace) -> float:
    if session.done(JobKind.MERGE) is not None:
        return 0.0
    frames = sum(_frames(session, clip, pace) for clip in session.clips)
    unit = session.unit(JobKind.MERGE)
    done = pace.fraction(session.id, unit.ref.heard_as) if unit is not None else 0.0
    return frames * _MERGE_PASSES * (1.0 - done) / pace.speed("merge")


def _frames(session: Session, clip: Clip, pace: Pace) -> float:
    """The clip's length in frames of the result: as normalised, as its job said, as probed, or as promised."""
    made = session.normalised(clip.index)
    if made:
        return float(sum(sum(outcome.frames) for outcome in made))
    units = session.normalising(clip.index)
    told = pace.frames(session.id, units[0].ref.heard_as) if len(units) == 1 else None
    if told is not None:
        return float(told)
    probed = session.done(JobKind.PROBE, clip.index)
    seconds = probed.clip.duration if probed is not None and probed.clip is not None else clip.promised_duration
    return seconds * FPS
