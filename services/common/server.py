"""The gRPC server that every service runs: health with Watch, reflection, and one interceptor around each rpc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from services.common import scopes
from services.common.admin import AdminServer
from services.common.identity import TokenVerifier
from services.common.interceptor import ServiceInterceptor
from services.common.rpc_metering import MeteringInterceptor, RpcMetrics
from services.common.settings import CommonSettings
from services.common.tls import Tls

# Pings notice a vanished peer: keepalive alone took 64 s, with ping_timeout 8 s (measured). Without the permission
# a server takes those of an idle connection for an attack and ends it, and its client pings half as often after.
KEEPALIVE = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS = (
    *KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a second server on a taken port must fail, not share it
    ("grpc.max_receive_message_length", 4 << 20),
    # Calls that wait for the event loop. By default some are cancelled at random above 1,000, as when everybody
    # who watched something comes back at once.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
)


ALIVE = "alive"
"""What health checks ask for to learn whether the process lives: true from start to stop, also while calls are not
welcome because it drains or something else is away. A restart would help neither."""


class GrpcServer:
    """A server at ``listen`` ("127.0.0.1:50051"; port 0 picks a free one), with TLS if the settings have
    certificates, and one for operators beside it if they have an address for that.

    ``name`` is the service's short name; its errors have the domain "<name>.twotruths".
    ``deserializers``: full method name → what makes messages of bytes, where that is not protobuf alone.
    ``registry``: where its rpcs are counted, if anywhere.
    """

    def __init__(
        self,
        settings: CommonSettings,
        *,
        name: str,
        listen: str,
        verifier: TokenVerifier,
        deserializers: Mapping[str, Callable[[bytes], Any]] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.port = 0
        self._listen = listen
        self._reflection = settings.reflection
        self._services: list[str] = []
        self._traits: list[str] = []
        self._welcome, self._able = False, True
        self._scopes: dict[str, str] = {}
        self._interceptor = ServiceInterceptor(name, verifier, self._scopes, deserializers or {})
        metering = [] if registry is None else [MeteringInterceptor(RpcMetrics(registry))]
        self._server = grpc.aio.server(interceptors=[*metering, self._interceptor], options=_SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._tls = Tls.from_settings(settings)
        self.admin = AdminServer(settings.admin_listen, self._health) if settings.admin_listen else None

    def add(self, service: str, register: Callable[[Any, grpc.aio.Server], None], servicer: object) -> None:
        """Serves ``servicer`` as the service of this full name, to tokens with the scopes of its contract."""
        self._scopes |= scopes.of_service(service)
        register(servicer, self._server)
        self._services.append(service)

    def also_healthy(self, trait: str) -> None:
        """Lets health checks ask for something else that holds while this server serves."""
        self._traits.append(trait)

    async def start(self) -> None:
        """Listens; :attr:`port` tells where. Not serving until :meth:`set_serving`. Raises OSError."""
        await self._tell()
        await self._set(ALIVE, serving=True)
        if self._reflection:
            names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        try:
            self.port = self._add_port()
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen}: is the port taken?") from error
        await self._server.start()
        if self.admin is not None:
            await self.admin.start()

    def _add_port(self) -> int:
        if self._tls is None:
            return self._server.add_insecure_port(self._listen)
        return self._server.add_secure_port(self._listen, self._tls.server_credentials())

    async def set_serving(self, ok: bool) -> None:
        """Tells health checks, of the server and of each service, whether calls are welcome."""
        self._welcome = ok
        await self._tell()

    async def set_able(self, ok: bool) -> None:
        """Tells whether what most calls need is there; while it is not, health checks hear that calls are not
        welcome."""
        self._able = ok
        await self._tell()

    async def _tell(self) -> None:
        for service in ("", *self._services, *self._traits):
            await self._set(service, serving=self._welcome and self._able)

    async def _set(self, service: str, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Takes no new calls, ends the streams and then the server when the other running calls are done, or
        after ``grace`` seconds."""
        self._interceptor.end_streams()
        await self._server.stop(grace)
        if self.admin is not None:
            await self.admin.stop()
