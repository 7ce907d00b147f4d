"""GET /api/v1/health: whether the gateway and the three services behind it serve.

Anybody may ask, as often as they like, so services are asked once for all who wait, and what they said holds for a
second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway import encode
from services.gateway.buckets import SECOND, Ticks
from services.gateway.drain import Drain

_TIMEOUT_SECONDS = 2.0
_REMEMBERED = SECOND


class HealthRoutes:
    """Asks every service's grpc.health; 200 when all serve, 503 otherwise."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], drain: Drain, ticks: Ticks) -> None:
        self._stubs: Mapping[str, Any] = {name: health_pb2_grpc.HealthStub(c) for name, c in channels.items()}
        self._drain = drain
        self._ticks = ticks
        self._check: asyncio.Task[list[str]] | None = None
        self._until = 0

    async def get(self, _request: web.Request) -> web.Response:
        """The state of each service."""
        states = await self._states()
        healthy = self._drain.serving and all(state == "serving" for state in states)
        document = {
            "status": "healthy" if healthy else "unhealthy",
            "gateway": "serving" if self._drain.serving else "not_serving",
            "services": dict(zip(self._stubs, states, strict=True)),
        }
        return web.Response(
            body=encode.dumps(document), content_type="application/json", status=200 if healthy else 503
        )

    async def _states(self) -> list[str]:
        if self._check is None or (self._check.done() and self._ticks() >= self._until):
            self._check = asyncio.create_task(self._ask())
        return await asyncio.shield(self._check)  # who leaves ends it for nobody else

    async def _ask(self) -> list[str]:
        states = await asyncio.gather(*(_state(stub) for stub in self._stubs.values()))
        self._until = self._ticks() + _REMEMBERED
        return states


async def _state(stub: Any) -> str:
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError:
        return "unreachable"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)).lower()
