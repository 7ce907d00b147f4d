"""GET /api/v1/health: whether the gateway and the three services behind it serve."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway import encode
from services.gateway.drain import Drain

_TIMEOUT_SECONDS = 2.0


class HealthRoutes:
    """Asks every service's grpc.health; 200 when all serve, 503 otherwise."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], drain: Drain) -> None:
        self._stubs: Mapping[str, Any] = {name: health_pb2_grpc.HealthStub(c) for name, c in channels.items()}
        self._drain = drain

    async def get(self, _request: web.Request) -> web.Response:
        """The state of each service."""
        states = await asyncio.gather(*(_state(stub) for stub in self._stubs.values()))
        healthy = self._drain.serving and all(state == "serving" for state in states)
        document = {
            "status": "healthy" if healthy else "unhealthy",
            "gateway": "serving" if self._drain.serving else "not_serving",
            "services": dict(zip(self._stubs, states, strict=True)),
        }
        return web.Response(
            body=encode.dumps(document), content_type="application/json", status=200 if healthy else 503
        )


async def _state(stub: Any) -> str:
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError:
        return "unreachable"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)).lower()
