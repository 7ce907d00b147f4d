"""Spans on OpenTelemetry, sent to a collector by OTLP over gRPC. Imported only where traces are on.

Spans wait in a queue of bounded length and are sent by a thread. While the collector is away the newest replace
the oldest, nothing waits for it, and the log says so once. What is left is sent when the process stops, for at
most ``_FLUSH_SECONDS``. What the exporter takes besides (headers, certificates, compression) are its own
environment variables: https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Token
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common import tracing
from services.common.settings import CommonSettings

log = logging.getLogger(__name__)

_QUEUE_SPANS = 2048
_BATCH_SPANS = 512
_EVERY_SECONDS = 1.0
_SEND_SECONDS = 5.0
_FLUSH_SECONDS = 2.0
_LIMITS = SpanLimits(max_span_attributes=32, max_events=16, max_links=8, max_span_attribute_length=256)
_PARSE = TraceContextTextMapPropagator().extract
_NO_PARENT = Context()
_KINDS: Mapping[tracing.Kind, trace.SpanKind] = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}


@asynccontextmanager
async def exporting(settings: CommonSettings, service: str) -> AsyncIterator[None]:
    """Has this process's spans sent to ``settings.traces_endpoint`` within the block. ``service``: its name."""
    exporter = _Exporter(OTLPSpanExporter(endpoint=settings.traces_endpoint, timeout=_SEND_SECONDS))
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.traces_ratio)),
        resource=Resource.create(
            {
                "service.namespace": "twotruths",
                "service.name": service.partition("-")[0],  # of a fleet: its gateways have numbers
                "service.instance.id": str(uuid.uuid4()),
                "process.pid": os.getpid(),
            }
        ),
        span_limits=_LIMITS,
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=_QUEUE_SPANS,
            max_export_batch_size=_BATCH_SPANS,
            schedule_delay_millis=_EVERY_SECONDS * 1000,
        )
    )
    try:
        with tracing.kept_by(OtlpTracer(provider.get_tracer("twotruths"))):
            yield
    finally:
        # The provider would wait for half a minute; an exporter that is shut down ends what it is at.
        cut_off = threading.Timer(_FLUSH_SECONDS, exporter.shutdown)
        cut_off.start()
        await asyncio.to_thread(provider.shutdown)
        cut_off.cancel()


class OtlpTracer:
    """Implements :class:`services.common.tracing.Tracer`."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def begin(
        self,
        name: str,
        kind: tracing.Kind,
        parent: tracing.Span | str,
        attributes: Mapping[str, tracing.Value],
        link: str = "",
    ) -> tracing.Span:
        if isinstance(parent, _Span):
            context = trace.set_span_in_context(parent.span, _NO_PARENT)
        else:
            context = _parsed(parent if isinstance(parent, str) else "")
        linked = trace.get_current_span(_parsed(link)).get_span_context()
        links = [trace.Link(linked)] if linked.is_valid else None
        return _Span(
            self._tracer.start_span(
                name,
                context=context,
                kind=_KINDS[kind],
                attributes=attributes,
                links=links,
                record_exception=False,  # texts of errors may tell what nobody is to read here
                set_status_on_exception=False,
            )
        )


def _parsed(traceparent: str) -> Context:
    return _PARSE({tracing.TRACEPARENT: traceparent}, _NO_PARENT) if traceparent else _NO_PARENT


class _Span(tracing.Span):
    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self._failed = self._ended = False
        self._linked = ""
        self._token: Token[tracing.Span] | None = None
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id)
        span_id = trace.format_span_id(context.span_id)
        self.traceparent = f"00-{self.trace_id}-{span_id}-{context.trace_flags & trace.TraceFlags.SAMPLED:02x}"

    def set(self, name: str, value: tracing.Value) -> None:
        self.span.set_attribute(name, value)

    def event(self, name: str, attributes: Mapping[str, tracing.Value] | None = None) -> None:
        self.span.add_event(name, attributes)

    def link(self, traceparent: str) -> None:
        if traceparent in {"", self._linked}:
            return
        self._linked = traceparent
        linked = trace.get_current_span(_parsed(traceparent)).get_span_context()
        if linked.is_valid and linked.trace_id != self.span.get_span_context().trace_id:
            self.span.add_link(linked)

    def fail(self, error_type: str) -> None:
        if not self._failed and not self._ended:
            self._failed = True
            self.span.set_attribute("error.type", error_type)
            self.span.set_status(trace.StatusCode.ERROR)

    def discard(self) -> None:
        self._ended = True  # what never ends is never sent

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self.span.end()

    def __enter__(self) -> Self:
        self._token = tracing.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._token is not None, "it was entered"
        tracing.leave(self._token)
        if isinstance(error, Exception):
            self.fail(type(error).__name__)
        self.end()


class _Exporter(SpanExporter):
    """Sends spans, and says once that it cannot and once that it can again."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        self._why = ""
        # The exporter would tell of each attempt, the queue of each twenty seconds in which it dropped something.
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").addFilter(self._listen)
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)

    def _listen(self, record: logging.LogRecord) -> bool:
        self._why = record.getMessage()
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # the SDK's own word for it is silenced above
            result, self._why = SpanExportResult.FAILURE, repr(error)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._away:
            log.warning("traces are dropped until the collector takes them again: %s", self._why)
        if self._away and not failed:
            log.info("traces are sent again")
        self._away = failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
