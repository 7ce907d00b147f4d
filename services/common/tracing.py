"""Traces: what one request caused, step by step, in whichever process that happened.

A step is a :class:`Span`. The current one is in a context variable, so every task that a call starts continues its
trace; what is done later and elsewhere continues it by the ``traceparent`` (https://www.w3.org/TR/trace-context/)
that a record, a message or a call's metadata carries. ``tracestate`` is not passed on: nobody here reads it.

Until a :class:`Tracer` is in use (:mod:`services.common.adapters.otlp`, by a setting) there is one span, which
does nothing. Names and attributes never hold tokens, signatures, queries, bodies or the lie, nor the texts of
errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, Protocol, Self

TRACEPARENT = "traceparent"
"""The header, metadata key and message header in which a trace travels."""

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool


class Span:
    """A step. Within ``with`` it is the current one, and it ends with the block, as failed if an exception leaves
    it; without, :meth:`end` ends it. This class itself is the step of which nothing is kept."""

    trace_id: str = ""
    traceparent: str = ""

    def set(self, name: str, value: Value) -> None:
        """Adds an attribute."""

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        """Notes that something happened, and when."""

    def link(self, traceparent: str) -> None:
        """Says that this belongs together with a step of another trace; "" and nonsense link nothing."""

    def fail(self, error_type: str) -> None:
        """Marks it as failed; of several reasons the first counts."""

    def discard(self) -> None:
        """It turned out to be none: nothing of it is kept."""

    def end(self) -> None:
        """Ends it, if it has not ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        return None


class Tracer(Protocol):
    """Whoever keeps spans."""

    def begin(
        self, name: str, kind: Kind, parent: Span | str, attributes: Mapping[str, Value], link: str = ""
    ) -> Span:
        """A step of ``parent``'s trace, also by its traceparent; of a new trace if that is none. ``link``: the
        traceparent of a step that it belongs together with."""


NONE = Span()
_current: ContextVar[Span] = ContextVar("span", default=NONE)
_tracer: Tracer | None = None


@contextmanager
def kept_by(tracer: Tracer) -> Iterator[None]:
    """Has the spans of this process kept within the block."""
    global _tracer  # noqa: PLW0603  one a process, as for log lines
    _tracer, before = tracer, _tracer
    try:
        yield
    finally:
        _tracer = before


def on() -> bool:
    """Whether spans are kept."""
    return _tracer is not None


def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: str | None = None,
    attributes: Mapping[str, Value] | None = None,
    link: str = "",
) -> Span:
    """Begins a step: of the trace that a traceparent names, of a new one if it names none, or without ``parent``
    of the current step's."""
    if _tracer is None:
        return NONE
    return _tracer.begin(name, kind, _current.get() if parent is None else parent, attributes or {}, link)


def current() -> Span:
    """The current step."""
    return _current.get()


def enter(step: Span) -> Token[Span]:
    """Makes a step the current one until :func:`leave`."""
    return _current.set(step)


def leave(token: Token[Span]) -> None:
    """Makes the step before the current one again."""
    _current.reset(token)
