"""The edge between upload service and S3, hurt in every way: what was acknowledged stays, a retry gets through."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from services.common.adapters.s3_bucket import open_bucket
from services.common.adapters.s3_objects import S3ObjectStore
from services.common.errors import Unavailable
from services.common.settings import CommonSettings
from services.upload.adapters.s3_parts import S3PartStore
from services.upload.grid import Grid, Part
from services.upload.ports import StoredPart
from tests.fault_proxy import Fault, proxy_to

GRID = Grid(size=3 * (128 << 10), chunk_size=128 << 10)
BODY = hashlib.shake_256(b"edge").digest(GRID.size)
UPLOAD = "0123456789abcdef0123456789abcdef.6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c12"
KEY = "uploads/6f1f3a2e-0b0e-4f53-9f51-0b8a3d1a2c12"
SILENT = {Fault.BLACKHOLE, Fault.TRICKLE}  # the client is told nothing: these end when the connection is reset
pytestmark = pytest.mark.xdist_group("s3")


async def agree(_: object) -> None:
    """Confirms any part."""


async def put(store: S3PartStore, number: int) -> StoredPart:
    async def pieces() -> AsyncIterator[bytes]:
        start, end = GRID.bounds(number)
        yield BODY[start:end]

    return await store.put_part(UPLOAD, GRID, number, pieces(), agree)


async def parts_in(store: S3PartStore) -> tuple[Part, ...]:
    return tuple((await store.list_parts(UPLOAD, GRID)).parts)


@pytest.mark.parametrize(
    "fault", [Fault.RESET, Fault.HALF_OPEN, Fault.ANSWER_LOST, Fault.BLACKHOLE, Fault.TRICKLE]
)
async def test_the_edge_to_s3_may_break_in_any_way(s3_settings: dict[str, object], fault: Fault) -> None:
    port = urlsplit(str(s3_settings["s3_endpoint_url"])).port
    assert port is not None
    async with proxy_to(port) as proxy:
        endpoint = {"s3_endpoint_url": f"http://127.0.0.1:{proxy.port}"}
        async with open_bucket(CommonSettings.model_validate(s3_settings | endpoint)) as bucket:
            objects = S3ObjectStore(bucket)
            with S3PartStore(bucket, objects) as store:
                await put(store, 0)
                proxy.set(fault, after=GRID.chunk_size // 2)
                broken = asyncio.create_task(put(store, 1))
                async with asyncio.timeout(60):
                    await proxy.struck.wait()
                    if fault in SILENT:
                        proxy.heal()
                        proxy.reset_all()
                    (answer,) = await asyncio.gather(broken, return_exceptions=True)
                proxy.heal()
                proxy.reset_all()
                assert isinstance(answer, StoredPart if fault in SILENT else Unavailable), answer
                acknowledged = {0, 1} if fault in SILENT else {0}
                assert acknowledged <= {part.number for part in await parts_in(store)}
                for number in range(GRID.total):
                    await put(store, number)
                manifest = GRID.manifest(await parts_in(store))
                whole = await store.assemble(UPLOAD, GRID, manifest, KEY, lambda _: None)
                assert whole.sha256 == hashlib.sha256(BODY).hexdigest()
                assert b"".join([piece async for piece in objects.read(KEY)]) == BODY
        await asyncio.sleep(0)  # lets the transports' close callbacks run inside this loop
