"""What people see: a merged video in Chromium, and its HLS rendition in hls.js, played through and sought to each
statement."""

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
from services.gateway.playlists import RENDITION, playlist
from services.merge.media.runner import MediaRunner
from services.merge.timeline import FPS, Canvas, Quality, Segment, segments
from tests.contract.recordings import Audio, Recording, record
from twotruths.merge.v1.video_pb2 import Video

HERE = Path(__file__).parent
COLOURS = (RED, GREEN, BLUE)
NEVER = Fraction(99, 100)
ICON = '<!doctype html><link rel="icon" href="data:,">'
HLS_JS = HERE / "node_modules" / "hls.js" / "dist" / "hls.min.js"
PAGES = {
    "video": ICON + '<video src="/video.mp4" muted preload="auto"></video>',
    "hls": ICON
    + """<video muted></video><script src="/hls.js"></script><script>
        const hls = new Hls({ enableWorker: false });
        hls.loadSource("/hls.m3u8?signature=a%2Bb");
        hls.attachMedia(document.querySelector("video"));
        hls.on(Hls.Events.ERROR, (_, error) => { throw new Error(error.details) });
    </script>""",
}
CANVAS = Canvas(320, 180)
SIGNED = "?signature=a%2Bb"
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
    posters = [tmp_path / f"{number}.jpg" for number in range(3)]
    rendition = tmp_path / "hls.mp4"
    beside = [*posters, tmp_path / "sheet.jpg", rendition]
    merged = await runner.merge(parts, tmp_path / "video.mp4", Quality.MEDIUM, lambda *step: None, beside)
    files = merged.beside
    assert files is not None
    video = Video(fps=FPS, frame_count=sum(merged.frames))
    video.sidecars.rendition.file.size = rendition.stat().st_size
    video.sidecars.rendition.offsets.extend(files.part_offsets)
    video.sidecars.rendition.start_frames.extend(files.part_frames)
    (tmp_path / "hls.m3u8").write_text(playlist(video, RENDITION + SIGNED))
    return segments(merged.frames)


@pytest.fixture(name="address")
async def address_fixture(tmp_path: Path) -> AsyncIterator[str]:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGES[request.match_info["page"]], content_type="text/html")

    async def file(request: web.Request) -> web.FileResponse:
        name = request.match_info["file"]
        assert name == "video.mp4" or request.query_string == SIGNED[1:], "the permission is carried on"
        return web.FileResponse(tmp_path / name)

    async def script(_: web.Request) -> web.FileResponse:
        return web.FileResponse(HLS_JS)

    app = web.Application()
    app.add_routes(
        [
            web.get("/page/{page}", page),
            web.get("/hls.js", script),
            web.get(r"/{file:video\.mp4|hls\.mp4|hls\.m3u8}", file),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/page/"
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


@pytest.mark.parametrize("page", list(PAGES))
async def test_chromium_plays_it_and_a_seek_to_a_start_shows_that_statement(
    page: str, tiles: tuple[Segment, ...], address: str
) -> None:
    starts = [tile.start_time for tile in tiles]
    lasts = [tile.end_time - 1 / (2 * FPS) for tile in tiles]  # the middle of each segment's last frame
    shown = await watched(address + page, [*reversed(starts), *lasts])

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
