"""Progress in frames, monotone, at most about a hundred reports a job."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int], None]


class Progress:
    """Counts frames towards ``expected``. An estimate that was too low grows; it never goes back."""

    def __init__(self, report: Report, expected: int) -> None:
        self._report = report
        self._expected = max(1, expected)
        self._step = max(1, self._expected // 100)
        self._done = 0
        self._reported = 0
        report(0, self._expected)

    def advance(self, frames: int = 1) -> None:
        self._done += frames
        self._expected = max(self._expected, self._done)
        if self._done - self._reported >= self._step:
            self._reported = self._done
            self._report(self._done, self._expected)

    def finish(self) -> None:
        """Everything is done, also if the estimate had been too high."""
        self._report(max(1, self._done), max(1, self._done))
