"""Spans of rpcs, on both sides, as https://opentelemetry.io/docs/specs/semconv/rpc/grpc/ has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc

from services.common import tracing

# What is the server's fault; for the caller every code but OK is a failure.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_ending: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks


def serving(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> tracing.Span:
    """The step of answering a call; callers of the mesh are believed whose trace it belongs to. ``method`` begins
    with a slash, as it does on the wire."""
    if not tracing.on():
        return tracing.NONE
    parent = next((value for key, value in metadata if key == tracing.TRACEPARENT and isinstance(value, str)), "")
    return tracing.span(method[1:], "server", parent=parent, attributes=_attributes(method))


def answered(step: tracing.Span, code: str) -> None:
    """Ends the step of answering a call, with the name of a status code. Aborting the call, which raises, is no
    failure of its own."""
    step.set("rpc.response.status_code", code)
    if code in _FAULTS:
        step.fail(code)
    step.end()


def calling(method: str, metadata: list[tuple[str, Any]]) -> tracing.Span:
    """The step of a call that serves the current step; ``metadata`` gets what continues the trace. Calls of loops
    that look after things by themselves belong to no step and are none."""
    if not tracing.current().trace_id:
        return tracing.NONE
    step = tracing.span(method[1:], "client", attributes=_attributes(method))
    metadata.append((tracing.TRACEPARENT, step.traceparent))
    return step


def ends_with(call: Any, step: tracing.Span) -> Any:
    """The call, a grpc.aio one; when it ends, the step does."""
    if step is not tracing.NONE:
        call.add_done_callback(lambda _: _in_a_task(call, step))
    return call


def _in_a_task(call: grpc.aio.Call, step: tracing.Span) -> None:
    _ending.add(task := asyncio.ensure_future(_end(call, step)))
    task.add_done_callback(_ending.discard)


async def _end(call: grpc.aio.Call, step: tracing.Span) -> None:
    code = (await call.code()).name
    step.set("rpc.response.status_code", code)
    if code != "OK":
        step.fail(code)
    step.end()


def _attributes(method: str) -> dict[str, tracing.Value]:
    return {"rpc.system.name": "grpc", "rpc.method": method[1:]}
