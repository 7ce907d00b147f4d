"""Metrics have a port of their own, from the start of a process to its end."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from services.common.metrics import exposed, new_registry


async def _scrape(port: int) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.content_type == "text/plain"
        return await answer.text()


async def test_metrics_are_served_within_the_block_alone() -> None:
    with exposed(new_registry(), "127.0.0.1:0") as port:
        text = await _scrape(port)
        assert "process_cpu_seconds_total" in text
        assert "python_gc_objects_collected_total" in text
    with pytest.raises(aiohttp.ClientConnectionError):
        await _scrape(port)


def test_without_an_address_nothing_listens() -> None:
    with exposed(new_registry(), "") as port:
        assert port == 0


@pytest.mark.parametrize("listen", ["9100", "127.0.0.1:", "127.0.0.1:http"])
def test_what_is_no_address_is_refused_by_name(listen: str) -> None:
    with pytest.raises(ValueError, match="metrics_listen"), exposed(new_registry(), listen):
        """Not reached."""


def test_a_taken_port_is_an_error_and_not_shared() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"), exposed(new_registry(), listen):
            """Not reached."""
