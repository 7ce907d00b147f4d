"""Counts what the gateway answers, by route.

A range of a video costs less than half a millisecond in all, so one answer is counted by a few additions to plain
numbers (a microsecond instead of the six of three metrics of prometheus-client), which only the event loop writes;
what Prometheus reads is made of them when it asks.

Labels are routes as they are written, never paths: what matches none is "unmatched", what was no request that
could be read "unreadable".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

UNMATCHED, UNREADABLE = "unmatched", "unreadable"
CUT_OFF = 499
"""Status of an answer whose client left before its end, as nginx counts it."""
BROKEN_OFF = 599
"""Status of an answer that we could not send to its end, whatever its head said."""
_OTHER = "other"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_SECONDS = (*_SHORT, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_BOUNDS = (*map(str, _SECONDS), "+Inf")


class _Tally:
    """Answers of one route, method and status."""

    __slots__ = ("buckets", "bytes", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.seconds = 0.0
        self.buckets = [0] * len(_BOUNDS)

    def add(self, other: _Tally) -> None:
        self.bytes += other.bytes
        self.seconds += other.seconds
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]


class RouteMetrics(Collector):
    """The metrics; register it where they are to be read."""

    def __init__(self) -> None:
        self._routes: dict[object, str] = {None: UNMATCHED}
        self._tallies: dict[tuple[object, str, int], _Tally] = {}

    def name(self, resource: web.AbstractResource | None, route: str) -> None:
        """What the answers of a resource are counted as; the canonical path of those that nobody names."""
        self._routes[resource] = route

    def count(self, request: web.BaseRequest, status: int, seconds: float, sent: int) -> None:
        """Counts one answer, of which ``sent`` bytes went out."""
        match = getattr(request, "_match_info", None)  # match_info asserts that there is one
        resource = UNREADABLE if match is None else match.route.resource
        method = request.method if request.method in _METHODS else _OTHER
        tally = self._tallies.get((resource, method, status))
        if tally is None:
            tally = self._tallies[resource, method, status] = _Tally()
        tally.count += 1
        tally.bytes += sent
        tally.seconds += seconds
        tally.buckets[bisect_left(_SECONDS, seconds)] += 1

    def describe(self) -> tuple[Metric, ...]:
        """The metrics without values."""
        return (
            CounterMetricFamily(
                "twotruths_http_requests",
                "Answers by route, method and status; 499 is one whose client left, 599 one that we broke off.",
                labels=["route", "method", "status"],
            ),
            CounterMetricFamily(
                "twotruths_http_sent_bytes",
                "Bytes of answers that went out.",
                labels=["route", "method"],
            ),
            HistogramMetricFamily(
                "twotruths_http_request_duration_seconds",
                "From a request's head until its answer's end; an event stream lasts as long as its client wants.",
                labels=["route", "method"],
            ),
        )

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are."""
        requests, sent, duration = self.describe()
        assert isinstance(requests, CounterMetricFamily)
        assert isinstance(sent, CounterMetricFamily)
        assert isinstance(duration, HistogramMetricFamily)
        by_route: dict[tuple[str, str], _Tally] = {}
        for (resource, method, status), tally in list(self._tallies.items()):
            route = self._routes.get(resource) or _canonical(resource)
            requests.add_metric((route, method, str(status)), tally.count)
            by_route.setdefault((route, method), _Tally()).add(tally)
        for labels, whole in by_route.items():
            sent.add_metric(labels, whole.bytes)
            buckets = list(zip(_BOUNDS, map(float, accumulate(whole.buckets)), strict=True))
            duration.add_metric(labels, buckets, whole.seconds)
        yield from (requests, sent, duration)


def _canonical(resource: object) -> str:
    return resource.canonical if isinstance(resource, web.AbstractResource) else UNREADABLE
