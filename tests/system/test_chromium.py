"""What people see: a merged video in Chromium, played through and sought to each statement."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mesh.clips import BLUE, GREEN, RED
from services.merge.media.runner import MediaRunner
from services.merge.timeline import FPS, Canvas, Quality, Segment, segments
from tests.contract.recordings import Audio, Recording, record

HERE = Path(__file__).parent
COLOURS = (RED, GREEN, BLUE)
NEVER = Fraction(99, 100)
PAGE = '<!doctype html><link rel="icon" href="data:,"><video src="/video.mp4" muted preload="auto"></video>'
CANVAS = Canvas(320, 180)
PATIENCE = 90  # seconds; it takes six


@pytest.fixture(name="tiles")
async def tiles_fixture(tmp_path: Path) -> tuple[Segment, ...]:
    """Three clips of a colour each, without flashes, merged in ``video.mp4``; no start is a whole second."""
    recordings = (
        Recording(suffix=".mov", rotation=90, seconds=Fraction(29, 30), flash_at=NEVER),
        Recording(
            suffix=".webm", codec="vp8", audio=Audio("opus"), live=True, seconds=Fraction(4, 5), flash_at=NEVER
        ),
        Recording(codec="hevc", fps=Fraction(25), audio=None, seconds=Fraction(23, 25), flash_at=NEVER),
    )
    runner, parts = MediaRunner(), []
    for number, (recording, colour) in enumerate(zip(recordings, COLOURS, strict=True)):
        source = record(tmp_path / str(number), replace(recording, colour=colour))
        parts.append(tmp_path / f"{number}.part")
        await runner.normalise(source, parts[-1], CANVAS, Quality.MEDIUM, lambda *step: None)
    merged = await runner.merge(parts, tmp_path / "video.mp4", Quality.MEDIUM, lambda *step: None)
    return segments(merged.frames)


@pytest.fixture(name="address")
async def address_fixture(tmp_path: Path) -> AsyncIterator[str]:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def video(_: web.Request) -> web.FileResponse:
        return web.FileResponse(tmp_path / "video.mp4")

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/video.mp4", video)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/"
    await runner.cleanup()


async def watched(url: str, seeks: list[float]) -> dict[str, Any]:
    node, chromium = shutil.which("node"), shutil.which("chromium")
    assert node is not None, "make test-system installs it"
    assert chromium is not None, "make test-system installs it"
    job = json.dumps({"url": url, "chromium": chromium, "seeks": seeks})
    process = await asyncio.create_subprocess_exec(
        node, HERE / "play.js", job, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()  # it closes its browser then
            await process.wait()
    assert process.returncode == 0, errors.decode()
    shown: dict[str, Any] = json.loads(out)
    return shown


def statement(seen: list[int]) -> int:
    """Whose colour it is: the nearest."""
    distances = [sum(abs(a - b) for a, b in zip(seen, colour, strict=True)) for colour in COLOURS]
    assert min(distances) < 60
    return distances.index(min(distances))


async def test_chromium_plays_it_and_a_seek_to_a_start_shows_that_statement(
    tiles: tuple[Segment, ...], address: str
) -> None:
    starts = [tile.start_time for tile in tiles]
    lasts = [tile.end_time - 1 / (2 * FPS) for tile in tiles]  # the middle of each segment's last frame
    shown = await watched(address, [*reversed(starts), *lasts])

    assert shown["duration"] == pytest.approx(tiles[-1].end_time, abs=0.03)
    assert (shown["width"], shown["height"]) == (CANVAS.width, CANVAS.height)
    sought = [(round(time * FPS), statement(colour)) for time, colour in shown["sought"]]
    assert sought == [
        *((tile.start_frame, tile.statement_index) for tile in reversed(tiles)),
        *((tile.start_frame + tile.frame_count - 1, tile.statement_index) for tile in tiles),
    ]
    played = [(round(time * FPS), statement(colour)) for time, colour in shown["played"]]
    assert {index for _, index in played} == {0, 1, 2}
    assert all(before[0] <= after[0] for before, after in pairwise(played))
    for frame, index in played:
        assert tiles[index].start_frame <= frame < tiles[index].start_frame + tiles[index].frame_count
