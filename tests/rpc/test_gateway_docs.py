"""The documents that the gateway makes of itself: /openapi.json and /docs."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, open_world


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path) as world:
        yield world


async def curls(world: World) -> list[str]:
    """Every line of the page that calls an operation."""
    async with world.call("GET", "/docs", user="") as response:
        return [html.unescape(line) for line in re.findall('<pre class="curl">(.*?)</pre>', await response.text())]


@pytest.mark.parametrize(("path", "kind"), [("/docs", "text/html"), ("/openapi.json", "application/json")])
async def test_a_document_needs_no_token_and_is_sent_again_only_when_it_has_changed(
    world: World, path: str, kind: str
) -> None:
    async with world.call("GET", path, user="") as response:
        body = await response.read()
        assert (response.status, response.content_type, response.charset) == (
            200,
            kind,
            "utf-8" if kind == "text/html" else None,
        )
        etag = response.headers["ETag"]
        assert response.headers["Cache-Control"] == "no-cache"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "unsafe-inline" not in response.headers["Content-Security-Policy"]
    async with world.call("HEAD", path, user="") as response:
        assert (response.status, response.headers["ETag"]) == (200, etag)
        assert response.headers["Content-Length"] == str(len(body))
    for headers, status in (
        ({"If-None-Match": f'"other", W/{etag}'}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": "Fri, 31 Dec 2100 23:59:59 GMT"}, 200),  # it has no date
        ({"If-Match": '"other"'}, 412),
    ):
        async with world.call("GET", path, user="", headers=headers) as response:
            assert response.status == status, headers
            assert response.headers.get("ETag", etag) == etag
    async with world.call("POST", path, user="") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


async def test_the_line_of_the_page_asks_for_the_health(world: World) -> None:
    (line,) = (line for line in await curls(world) if line.endswith('/api/v1/health"'))
    environment = os.environ | {"BASE": f"http://127.0.0.1:{world.port}", "no_proxy": "127.0.0.1"}
    run = await asyncio.create_subprocess_exec(
        "sh", "-c", line, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await run.communicate()
    assert run.returncode == 0
    assert json.loads(out)["status"] == "healthy"


async def test_the_bodies_of_the_page_are_taken(world: World) -> None:
    """Also by rules that a schema cannot tell: lists that go together, sizes that must be given."""
    sent, session = 0, world.merges.add("alice", [("a", 1), ("b", 1)]).merge_session_id
    for line in await curls(world):
        words = shlex.split(line)
        if "-d" not in words:
            continue
        sent += 1
        path = re.sub(r"\$video_index", "0", words[-1].removeprefix("$BASE"))
        path = path.replace("$merge_session_id", session)
        path = re.sub(r"\$\w+", "00000000-0000-4000-8000-000000000000", path)
        async with world.call("POST", path, json=json.loads(words[words.index("-d") + 1])) as response:
            assert response.status in {200, 501}, (line, await response.text())  # ReportChallenge is not served
    assert sent >= 5
