"""Counts the rpcs that a server answered, and how long they took.

Health and reflection (``/grpc.…``) are not counted: probes would drown what callers do. A method that is not
served is counted as "unknown", whatever its name, so that nobody makes labels from outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from services.common.interceptor import cancelled_code

UNKNOWN = "unknown"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class RpcMetrics:
    """The metrics, in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.handled = Counter(
            "twotruths_rpc_handled",
            "Rpcs that came to their end, streams too, by method and gRPC status code.",
            ["method", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "twotruths_rpc_duration_seconds",
            "From when a handler began until its rpc ended; a stream lasts as long as its caller wants.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )


class MeteringInterceptor(grpc.aio.ServerInterceptor):
    """To be the outermost one: it sees how each rpc ended."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Answers the handler for a call, wrapped. Its behaviour must be a coroutine function, as those of
        :class:`services.common.interceptor.ServiceInterceptor` are."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            self._metrics.handled.labels(UNKNOWN, "UNIMPLEMENTED").inc()
            return None
        if method.startswith("/grpc."):
            return handler
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behaviour = self._counted(method.removeprefix("/"), getattr(handler, kind))
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _counted(self, method: str, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, rpc: Any) -> Any:
            started = time.perf_counter()
            code = "OK"
            try:
                return await behaviour(request, rpc)
            except asyncio.CancelledError:
                code = cancelled_code(rpc)
                raise
            except BaseException:
                told = rpc.code()
                code = told.name if isinstance(told, grpc.StatusCode) else "UNKNOWN"
                raise
            finally:
                self._metrics.handled.labels(method, code).inc()
                self._metrics.seconds.labels(method).observe(time.perf_counter() - started)

        return call
