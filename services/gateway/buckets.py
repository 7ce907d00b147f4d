"""Token buckets by GCRA (ITU-T I.371 annex A): how many requests each caller may make.

Of a bucket there is only the time at which it will be full again. It starts full with ``burst`` tokens; each
request takes one, and one comes back every 1/``per_second`` seconds. A bucket that is full again need not be kept,
so the table holds those alone that were used of late; were there more than it may hold, those used longest ago
would count as full. Each gateway counts for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

Ticks = Callable[[], int]  # nanoseconds of a clock that never goes back

SECOND = 1_000_000_000
_MOST = 50_000


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request found. ``left``: whole tokens after it; ``wait``: whole seconds until there is one more."""

    allowed: bool
    left: int
    wait: int


class Buckets:
    """The buckets of one kind of caller, for example ``name`` "user". ``per_second`` above 0."""

    def __init__(self, name: str, *, per_second: float, burst: int, ticks: Ticks, most: int = _MOST) -> None:
        self._name = name
        self._interval = max(1, round(SECOND / per_second))
        self._burst = burst
        self._ticks = ticks
        self._most = most
        self._full_at: OrderedDict[str, int] = OrderedDict()  # used longest ago first
        window = _seconds(burst * self._interval)
        # draft-ietf-httpapi-ratelimit-headers-10 section 3.
        self.policy = f'"{name}";q={burst};w={window}'

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: str) -> Taken:
        """Takes a token of ``key``'s bucket, if there is one."""
        now, interval = self._ticks(), self._interval
        full_at = max(now, self._full_at.get(key, now))
        room = self._burst * interval - (full_at - now)  # nanoseconds' worth of tokens
        if room < interval:
            self._full_at.move_to_end(key)
            return Taken(allowed=False, left=0, wait=_seconds(interval - room))
        self._full_at[key] = full_at + interval
        self._full_at.move_to_end(key)
        self._drop(now)
        left, part = divmod(room - interval, interval)
        return Taken(allowed=True, left=left, wait=_seconds(interval - part))

    def state(self, taken: Taken) -> str:
        """The item of RateLimit (section 4 of the draft)."""
        return f'"{self._name}";r={taken.left};t={taken.wait}'

    def _drop(self, now: int) -> None:
        """Lets go of what needs no keeping: two at most, so that the table shrinks and no request pays for it."""
        for _ in range(2):
            oldest = next(iter(self._full_at))
            if len(self._full_at) > self._most or self._full_at[oldest] <= now:
                del self._full_at[oldest]


def _seconds(nanoseconds: int) -> int:
    return -(-nanoseconds // SECOND)
