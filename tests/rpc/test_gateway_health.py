"""What anybody may ask as often as they like costs the services one question a second."""

# ruff: noqa: N802  servicers have the names of their rpcs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.keys import KeyRing
from services.gateway.buckets import SECOND
from tests.rpc.gateway_world import open_world

URL = "/api/v1/health"
STATUS = health_pb2.HealthCheckResponse


class Asked(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """A service's health, which counts and takes its time."""

    def __init__(self) -> None:
        self.count = 0
        self.begun, self.may_answer = asyncio.Event(), asyncio.Event()
        self.status = STATUS.SERVING

    async def Check(self, _request: Any, _rpc: Any) -> Any:
        self.count += 1
        self.begun.set()
        await self.may_answer.wait()
        return STATUS(status=self.status)


@pytest.fixture
async def asked() -> AsyncIterator[tuple[Asked, str]]:
    """The health of an upload service, and where it is."""
    server, servicer = grpc.aio.server(), Asked()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(0)


async def test_all_who_wait_share_one_check_and_it_holds_for_a_second(
    keys: KeyRing, tmp_path: Path, asked: tuple[Asked, str]
) -> None:
    upload, target = asked
    now = 0
    async with open_world(keys, tmp_path, ticks=lambda: now, upload_target=target) as world:

        async def status() -> int:
            async with world.call("GET", URL, user="") as response:
                return int(response.status)

        first = asyncio.create_task(status())
        await asyncio.wait_for(upload.begun.wait(), 10)
        others = [asyncio.create_task(status()) for _ in range(50)]
        async with world.call("GET", "/openapi.json", user="") as response:
            assert response.status == 200
        first.cancel()  # who began it leaves: the others are answered all the same
        upload.may_answer.set()
        assert await asyncio.wait_for(asyncio.gather(*others), 10) == [200] * 50
        assert upload.count == 1
        upload.status = STATUS.NOT_SERVING
        now += SECOND - 1
        assert (await status(), upload.count) == (200, 1)
        await world.gateway.server.set_serving(False)  # its own state it knows without asking
        assert (await status(), upload.count) == (503, 1)
        await world.gateway.server.set_serving(True)
        now += 1
        assert (await status(), upload.count) == (503, 2)
