"""The connection to NATS: its log, and making streams."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import nats.js.errors
import pytest
from nats.js.api import StreamConfig

from services.common.adapters.jetstream import connect, ensure_stream
from tests.conftest import NatsServer


async def test_waiting_for_a_server_is_said_without_its_password(
    caplog: pytest.LogCaptureFixture, unused_tcp_port: int
) -> None:
    here = f"127.0.0.1:{unused_tcp_port}"
    waiting = asyncio.create_task(connect(f"nats://user:pa@ss@{here},nats://token@{here}", "test"))
    async with asyncio.timeout(10):
        while "waiting for NATS" not in caplog.text:
            await asyncio.sleep(0.01)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert f"nats://{here},nats://{here}" in caplog.text
    assert not any(secret in caplog.text for secret in ("user", "pa@ss", "token"))


async def test_a_stream_whose_files_cannot_be_made_is_made_once_they_can(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    client = await connect(own_nats_server.url, "test")
    in_the_way = tmp_path / "js" / "jetstream" / "$G" / "streams"
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("not a folder")
    js, config = client.jetstream(), StreamConfig(name="ONE", subjects=["one"])
    with pytest.raises(nats.js.errors.ServerError):
        await js.add_stream(config)
    making = asyncio.create_task(ensure_stream(js, config))
    asyncio.get_running_loop().call_later(0.3, in_the_way.unlink)
    await making
    assert (await js.stream_info("ONE")).config.name == "ONE"
    await client.close()
    await asyncio.sleep(0)
