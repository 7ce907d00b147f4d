"""The connection to NATS, as far as its log goes."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from services.common.adapters.jetstream import connect


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
