"""A connection between gateway and upload service that swallows everything, and is never reset: only a ping that
stays unanswered tells. Calls end in bounded time, and go over a new connection as soon as there can be one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryStateStore
from services.common.keys import KeyRing
from services.gateway import wiring
from services.gateway.config import GatewaySettings
from services.upload.domain import Upload
from tests.fault_proxy import Fault, Proxy, proxy_to
from tests.rpc.upload_fixtures import CHUNK, FILE, running

# Seconds. Without pings the calls would take their deadlines, a minute and more; with 20 s to connect, 26 s.
NOTICED = 20
REPLACED = 12


class Edge:
    """A gateway whose connections to the upload service go through ``proxy``, and alice who calls it."""

    def __init__(self, http: aiohttp.ClientSession, proxy: Proxy) -> None:
        self._http, self.proxy = http, proxy

    async def initiate(self) -> str:
        file = {"filename": "a.mp4", "file_size": len(FILE), "mime_type": "video/mp4", "chunk_size": CHUNK}
        async with self._http.post("/api/v1/upload/initiate", json=file) as response:
            assert response.status == 200
            return str((await response.json())["session_id"])

    async def put(self, id_: str, number: int) -> int:
        data = FILE[number * CHUNK : (number + 1) * CHUNK]
        async with self._http.post(f"/api/v1/upload/{id_}/chunk/{number}", data=data) as response:
            return response.status

    async def status(self, id_: str) -> tuple[int, list[int]]:
        async with self._http.get(f"/api/v1/upload/{id_}/status") as response:
            return response.status, (await response.json()).get("uploaded_chunks", [])


@pytest.fixture(name="edge")
async def edge_fixture(keys: KeyRing, tmp_path: Path) -> AsyncIterator[Edge]:
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(running(keys, tmp_path, MemoryStateStore[Upload]()))
        proxy = await stack.enter_async_context(proxy_to(mesh.app.server.port))
        away = dict.fromkeys(("merge_target", "challenge_target"), "127.0.0.1:9")
        settings = GatewaySettings(
            **(keys.settings() | away | {"gateway_listen": "127.0.0.1:0", "data_dir": tmp_path}),
            upload_target=f"127.0.0.1:{proxy.port}",
        )
        gateway = await stack.enter_async_context(wiring.build(settings, store=DirectoryObjectStore(tmp_path)))
        await gateway.server.start()
        await gateway.server.set_serving(True)
        stack.push_async_callback(gateway.server.stop, 1)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                f"http://127.0.0.1:{gateway.server.port}",
                headers={"Authorization": f"Bearer {keys.player_token('alice')}"},
            )
        )
        yield Edge(http, proxy)


async def test_a_connection_that_swallows_everything_is_noticed_and_replaced(edge: Edge) -> None:
    id_ = await edge.initiate()
    assert await edge.put(id_, 0) == 200
    edge.proxy.set(Fault.BLACKHOLE, after=CHUNK // 2)
    async with asyncio.timeout(NOTICED):
        answers = tuple(await asyncio.gather(edge.put(id_, 1), edge.put(id_, 2), edge.status(id_)))
    assert answers == (503, 503, (503, []))
    edge.proxy.heal()
    async with asyncio.timeout(REPLACED):
        while (await edge.status(id_))[0] != 200:
            await asyncio.sleep(0.1)
        assert await edge.put(id_, 1) == 200
    _, stored = await edge.status(id_)
    assert {0, 1} <= set(stored)
