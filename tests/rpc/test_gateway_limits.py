"""Whose requests the gateway counts, and what it says to one who makes too many."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from services.common.keys import KeyRing
from tests.rpc.gateway_world import open_world


@pytest.mark.parametrize(("proxies", "client"), [("", "127.0.0.1"), ("127.0.0.0/8", "198.51.100.1")])
async def test_the_access_log_names_the_client_behind_trusted_proxies(
    proxies: str, client: str, keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_world(keys, tmp_path, gateway_trusted_proxies=proxies) as world:
        headers = {"X-Forwarded-For": "6.6.6.6, 198.51.100.1"}
        await (await world.call("GET", "/api/v1/upload/limits", headers=headers)).read()
    lines = [getattr(record, "data", {}) for record in caplog.records if record.getMessage() == "request"]
    assert [line["client"] for line in lines if "client" in line] == [client]
