"""Health checks: each asks the real thing once, and raises when it is not ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import nats
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.channel import open_channel
from services.common.settings import CommonSettings
from services.common.tls import Tls

HealthCheck = Callable[[], Awaitable[None]]
"""Raises NotReady, or what the attempt raised, unless the process does its work."""

_TIMEOUT = 2.0
_INTERVAL = 0.1


class NotReady(Exception):
    """It answers, and says that it does not serve."""


async def until_healthy(check: HealthCheck) -> None:
    """Asks again and again until the check passes. It has no end of its own: put a timeout around it."""
    while True:
        try:
            async with asyncio.timeout(_TIMEOUT):
                await check()
        except Exception:  # whatever it was: not ready yet
            await asyncio.sleep(_INTERVAL)
        else:
            return


def jetstream(url: str) -> HealthCheck:
    """A NATS server (one of several, comma-separated) that takes connections and has JetStream."""

    async def ignore(_: Exception) -> None:
        """The error is raised by connect as well."""

    async def check() -> None:
        connection = await nats.connect(url.split(","), allow_reconnect=False, connect_timeout=1, error_cb=ignore)
        try:
            await connection.jetstream(timeout=1).account_info()
        finally:
            await connection.close()

    return check


def grpc_service(target: str) -> HealthCheck:
    """A gRPC server whose overall health (grpc.health.v1) is SERVING, with TLS if this process's environment has
    certificates, as the server's has."""
    tls = Tls.from_settings(CommonSettings())

    async def check() -> None:
        async with open_channel(target, tls=tls) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise NotReady(target)

    return check


def http(*urls: str) -> HealthCheck:
    """An HTTP server that answers 200 there, at each of them."""

    async def check() -> None:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for url in urls:
                async with session.get(url) as response:
                    if response.status != 200:
                        raise NotReady(url)

    return check


def any_http(urls: Sequence[str]) -> HealthCheck:
    """HTTP servers of which one answers 200 there."""

    async def check() -> None:
        answers = await asyncio.gather(*(http(url)() for url in urls), return_exceptions=True)
        if all(isinstance(answer, BaseException) for answer in answers):
            raise NotReady(*urls)

    return check
