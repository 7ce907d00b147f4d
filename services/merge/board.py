"""The progress board: the latest hint of each unit, kept in memory by every replica.

Hints are lossy and records are written on transitions only, so between two transitions this is all that is
known. Numbers never fall: a hint that comes late cannot take a player's progress back. How fast a worker
is comes from the hints, too: frames between two hints of one unit, as a moving figure for each kind of work. And
what uploads looked like when they were last seen, for when nobody can be asked.
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from services.common.progress import Progress
from services.merge.planner import ClipUpload, UploadStatus

_MAX_SESSIONS = 10_000
_MAX_UPLOADS = 30_000
_WEIGHT = 0.2  # of the latest measurement in the moving figure
_LONGEST_STEP_SECONDS = 10.0  # hints further apart say nothing of speed
_BUSY_SECONDS = 3.0
# Frames a second of one worker until one is measured: 720p, medium, one thread; joining counts frames twice.
_SPEEDS = {"normalise": 20.0, "merge": 300.0}


@dataclass(slots=True)
class _Heard:
    """A unit's best fraction, and its latest hint."""

    fraction: float = 0.0
    done: int = 0
    total: int = 0
    at: float = -math.inf


class ProgressBoard:
    """What was heard of sessions and uploads, of the latest ones. ``now`` in seconds, never going back."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: OrderedDict[str, dict[str, _Heard]] = OrderedDict()
        self._uploads: OrderedDict[str, ClipUpload] = OrderedDict()
        self._speeds = dict(_SPEEDS)
        self._busy: OrderedDict[tuple[str, str], float] = OrderedDict()  # the one heard of longest ago first

    def note(self, progress: Progress) -> None:
        """Takes a hint in."""
        if not progress.unit or progress.total <= 0:
            return
        now, heard = self._now(), self._heard(progress)
        self._measure(_kind(progress.unit), heard, progress, now)
        if (progress.done, progress.total) != (heard.done, heard.total):  # said again it is no step
            heard.done, heard.total, heard.at = progress.done, progress.total, now
        self._busy[progress.id, progress.unit] = now
        self._busy.move_to_end((progress.id, progress.unit))
        self._forget_idle(now)

    def recall(self, progress: Progress) -> None:
        """Takes in a hint of before, of which nobody knows when it was."""
        if progress.unit and progress.total > 0:
            heard = self._heard(progress)
            heard.total = heard.total or progress.total

    def _heard(self, progress: Progress) -> _Heard:
        heard = self._sessions.setdefault(progress.id, {}).setdefault(progress.unit, _Heard())
        heard.fraction = max(heard.fraction, min(1.0, progress.done / progress.total))
        self._sessions.move_to_end(progress.id)
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return heard

    def _measure(self, kind: str, heard: _Heard, progress: Progress, now: float) -> None:
        step, frames = now - heard.at, progress.done - heard.done
        if not heard.total or not 0 < step <= _LONGEST_STEP_SECONDS or frames <= 0:
            return  # the first hint, one of another attempt, or one too late
        before = self._speeds.get(kind, frames / step)
        self._speeds[kind] = before + _WEIGHT * (frames / step - before)

    def fraction(self, session_id: str, unit: str) -> float:
        """How much of the unit is done, 0 to 1, as far as heard."""
        heard = self._sessions.get(session_id, {}).get(unit)
        return heard.fraction if heard is not None else 0.0

    def frames(self, session_id: str, unit: str) -> int | None:
        """How many frames the unit has, None when that was not heard."""
        heard = self._sessions.get(session_id, {}).get(unit)
        return heard.total if heard is not None else None

    def speed(self, kind: str) -> float:
        """Frames a second that one worker does of this kind of work ("normalise", "merge")."""
        return self._speeds.get(kind, _SPEEDS["normalise"])

    def busy(self) -> int:
        """How many workers were heard of just now."""
        self._forget_idle(self._now())
        return len(self._busy)

    def _forget_idle(self, now: float) -> None:
        while self._busy and next(iter(self._busy.values())) < now - _BUSY_SECONDS:
            self._busy.popitem(last=False)

    def see(self, upload: ClipUpload) -> None:
        """Remembers what an upload looks like. A late answer does not take back one that was made after it."""
        before = self._uploads.get(upload.id)
        if before is not None and _is_older(upload, before):
            return
        self._uploads[upload.id] = upload
        self._uploads.move_to_end(upload.id)
        while len(self._uploads) > _MAX_UPLOADS:
            self._uploads.popitem(last=False)

    def seen(self, upload_id: str) -> ClipUpload | None:
        """The upload as it was last seen."""
        return self._uploads.get(upload_id)


def _is_older(upload: ClipUpload, than: ClipUpload) -> bool:
    """An upload only grows, and stays completed."""
    if upload.status not in (UploadStatus.PENDING, UploadStatus.IN_PROGRESS):
        return False
    return than.status is UploadStatus.COMPLETED or than.progress > upload.progress


def _kind(unit: str) -> str:
    letters = re.match("[a-z]*", unit)
    return letters[0] if letters else unit
