"""Constant frame rate from any frame times: which source frame is shown in which slot of 1/FPS second.

Slot k of a frame shown at t is the one nearest to it, k = ⌊(t − t0)·FPS + ½⌋, with t0 the first displayed
frame. A frame is held until the next one's slot; of several in one slot the last is shown, which for 60 fps
is the one whose time is exactly the slot's. Times are fractions: nothing drifts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Generic, TypeVar

from services.merge.timeline import FPS

T = TypeVar("T")
HALF = Fraction(1, 2)
MAX_TAIL = Fraction(5)  # seconds a last frame may claim to stay; a recorder's still end, not a broken header
USUAL_GAP = Fraction(1, 10)  # a last frame without a duration stays as long as the one before, up to this


class TooManyFrames(Exception):
    """The frames span more slots than allowed. Raised before any of them is held."""


class Cadence(Generic[T]):
    """Turns (time, duration, picture) in display order into (slot, repeats, picture) without gaps.

    ``start`` is t0, ``count`` the slot after those handed out; both are final once :meth:`slots` is exhausted.
    When t0 is given, the first picture may be a later one.
    """

    def __init__(self, max_frames: int, start: Fraction | None = None) -> None:
        self._max_frames = max_frames
        self.start = start
        self.count = 0

    def slots(self, shown: Iterable[tuple[Fraction, Fraction, T]]) -> Iterator[tuple[int, int, T]]:
        """Raises :class:`TooManyFrames`. A frame that goes back in time is dropped."""
        held: T | None = None
        last = end = gap = Fraction(0)
        for time, duration, picture in shown:
            if held is None:
                self.start = time if self.start is None else self.start
                self.count, last = max(0, self._slot(time)), time
            elif time <= last:
                continue
            elif (slot := self._slot(time)) > self.count:
                yield self.count, slot - self.count, held
                self.count = slot
            gap, last, end = time - last, time, time + duration
            held = picture
        if held is None:
            return
        if not 0 < end - last <= MAX_TAIL:
            end = last + (gap if 0 < gap <= USUAL_GAP else Fraction(1, FPS))
        total = max(1, self.count, self._slot(end))
        if total > self.count:  # else the last frame ends before the middle of its slot
            yield self.count, total - self.count, held
            self.count = total

    def _slot(self, time: Fraction) -> int:
        assert self.start is not None
        slot = ((time - self.start) * FPS + HALF).__floor__()
        if slot > self._max_frames:
            raise TooManyFrames
        return slot
