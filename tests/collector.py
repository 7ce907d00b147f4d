"""What traces are sent to: an OTLP collector of this process, which keeps what it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Value = str | int | bool | float


@dataclass(frozen=True)
class Seen:
    """A span as it was sent, and which service sent it."""

    service: str
    span: Span

    @property
    def attributes(self) -> dict[str, Value]:
        return _values(self.span.attributes)

    @property
    def texts(self) -> list[str]:
        """Its name, and all that is told of it and what happened within it."""
        told = [self.attributes, *(_values(event.attributes) for event in self.span.events)]
        named = [self.span.name, self.span.status.message, *(event.name for event in self.span.events)]
        return [*named, *(f"{name}={value}" for values in told for name, value in values.items())]

    @property
    def failed(self) -> bool:
        return self.span.status.code == Status.STATUS_CODE_ERROR

    @property
    def label(self) -> str:
        """ "<service>: <name>"."""
        return f"{self.service}: {self.span.name}"


class Collector:
    """Listens at :attr:`endpoint`; ``raw`` has the bytes of all that came."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.raw = b""
        self.spans: list[Seen] = []

    async def export(self, request: bytes, _: Any) -> ExportTraceServiceResponse:
        """TraceService.Export of OTLP."""
        self.raw += request
        for resource in ExportTraceServiceRequest.FromString(request).resource_spans:
            service = str(_values(resource.resource.attributes)["service.name"])
            self.spans += [Seen(service, span) for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    def trace(self, trace_id: bytes) -> dict[bytes, Seen]:
        """The spans of a trace by their ids."""
        return {seen.span.span_id: seen for seen in self.spans if seen.span.trace_id == trace_id}

    def ways(self, trace_id: bytes) -> Iterator[list[Seen]]:
        """Each span of a trace with those that it comes from, the first first."""
        spans = self.trace(trace_id)
        for seen in spans.values():
            way = [seen]
            while parent := way[0].span.parent_span_id:
                way.insert(0, spans[parent])
            yield way


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector within the block."""
    collector, server = Collector(), grpc.aio.server()
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        collector.export, response_serializer=ExportTraceServiceResponse.SerializeToString
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def _values(attributes: Any) -> dict[str, Value]:
    pairs: Iterator[KeyValue] = iter(attributes)
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
