"""Progress in frames, monotone, at most about a hundred reports a job."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int], None]


class Progress:
    """Counts frames towards ``expected``. An estimate that was too low grows; it never goes back. Where a frame
    goes through several passes, it has as many ``parts`` as they cost in proportion, and :meth:`advance` counts
    those."""

    def __init__(self, report: Report, expected: int, parts: int = 1) -> None:
        self._report = report
        self._frame = parts
        self._expected = max(1, expected) * parts
        self._step = max(1, self._expected // 100)
        self._done = 0
        self._reported = 0
        report(0, self._expected // parts)

    def advance(self, parts: int = 1) -> None:
        self._done += parts
        self._expected = max(self._expected, self._done)
        if self._done - self._reported >= self._step:
            self._reported = self._done
            self._report(self._done // self._frame, self._expected // self._frame)

    def finish(self) -> None:
        """Everything is done, also if the estimate had been too high."""
        frames = max(1, self._done // self._frame)
        self._report(frames, frames)
