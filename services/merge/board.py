"""The progress board: the latest hint of each unit, kept in memory by every replica.

Hints are lossy and records are written on transitions only, so between two transitions this is all that is
known. Numbers never fall: a hint of an earlier attempt cannot take a player's progress back.
"""

from __future__ import annotations

from collections import OrderedDict

from services.common.progress import Progress

_MAX_SESSIONS = 10_000


class ProgressBoard:
    """Fractions done by session and unit, of the sessions heard of last."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, dict[str, float]] = OrderedDict()

    def note(self, progress: Progress) -> None:
        """Takes a hint in."""
        if not progress.unit or progress.total <= 0:
            return
        units = self._sessions.setdefault(progress.id, {})
        fraction = min(1.0, progress.done / progress.total)
        units[progress.unit] = max(units.get(progress.unit, 0.0), fraction)
        self._sessions.move_to_end(progress.id)
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def fraction(self, session_id: str, unit: str) -> float:
        """How much of the unit is done, 0 to 1, as far as heard."""
        return self._sessions.get(session_id, {}).get(unit, 0.0)
