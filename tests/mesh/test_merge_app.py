"""The merge calls of the phone app that existed before this system, as it sends them, against the whole mesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mesh.http import Json
from tests.mesh.harness import Harness

pytestmark = pytest.mark.xdist_group("mesh")

PREFIX = "/api/v1/challenge-videos"


@dataclass
class App:
    """The app: forms whose lists are JSON strings, fields that nobody knows, and polling."""

    http: aiohttp.ClientSession

    async def call(self, method: str, path: str, status: int = 200, **body: Any) -> Json:
        async with self.http.request(method, path, **body) as response:
            text = await response.text()
            assert response.status == status, text
            answer: Json = json.loads(text)
            return answer

    async def begin(self, clips: list[Path]) -> Json:
        form = {
            "video_count": str(len(clips)),
            "video_filenames": json.dumps([clip.name for clip in clips]),
            "video_file_sizes": json.dumps([clip.stat().st_size for clip in clips]),
            "video_durations": json.dumps([1000.5, 1200, 1001]),  # milliseconds
            "video_mime_types": json.dumps(["video/quicktime", "video/mp4", "video/webm"][: len(clips)]),
            "challenge_title": "Two truths",
            "quality": "low",
            "canvas.width": "320",
            "canvas.height": "180",
            "app_version": "3.1.4",
        }
        return await self.call("POST", f"{PREFIX}/upload-for-merge/initiate", data=form)

    async def send(self, session: Json, clip: Path) -> Json:
        content, size = clip.read_bytes(), session["chunk_size"]
        for number in range(session["total_chunks"]):
            form = aiohttp.FormData()
            form.add_field("file", content[number * size : (number + 1) * size], filename="chunk")
            await self.call("POST", f"{session['upload_url']}/{number}", data=form)
        return await self.call("POST", session["upload_url"].removesuffix("chunk") + "complete", data={})

    async def poll(self, merge: str, *wanted: str) -> Json:
        """Asks for the status until it is one of those wanted; as the app does, only that it has more patience."""
        async with asyncio.timeout(60):
            while (session := await self.call("GET", f"{merge}/status"))["overall_status"] not in wanted:
                await asyncio.sleep(0.1)
        return session


@pytest.fixture
async def app(mesh: Harness) -> AsyncIterator[App]:
    headers = {"Authorization": f"Bearer {mesh.keys.player_token('erin')}"}
    async with aiohttp.ClientSession(mesh.info.gateway_url, headers=headers) as http:
        yield App(http)


async def test_begin_send_trigger_replace_poll_and_take_the_result(app: App, clips: list[Path]) -> None:
    begun = await app.begin(clips)
    assert (begun["status"], begun["total_videos"]) == ("initiated", 3)
    assert [s["duration_seconds"] for s in begun["upload_sessions"]] == [1.0005, 1.2, 1.001]
    merge = f"{PREFIX}/merge-session/{begun['merge_session_id']}"
    first, second, third = begun["upload_sessions"]
    missing = await app.call("POST", f"{merge}/trigger", 409, data={"force": "true"})
    assert (missing["reason"], missing["detail"]) == ("CLIPS_MISSING", "not completely uploaded: clip 1, 2, 3")
    await app.send(first, clips[0])
    await app.send(second, clips[1])
    # The second statement is recorded anew: its first take is as short as the first clip's.
    other = {"filename": "again.mp4", "file_size": clips[0].stat().st_size, "mime_type": "video/quicktime"}
    replaced = await app.call("POST", f"{merge}/clips/1/replace", json=other | {"duration_seconds": 1000.4})
    new = replaced["upload_session"]
    assert (new["video_index"], new["filename"], new["duration_seconds"]) == (1, "again.mp4", 1.0004)
    assert (await app.call("POST", f"{merge}/clips/1/replace", json=other))["upload_session"]["session_id"] == new[
        "session_id"
    ], "sent again for want of an answer"
    refused = await app.call("POST", f"{merge}/clips/1/replace", 400, json=other | {"take": 2})
    assert refused["errors"][0]["pointer"] == "/take"
    await app.send(third, clips[2])
    answer = await app.send(new, clips[0])
    assert (answer["video_index"], answer["ready_for_merge"], answer["merge_triggered"]) == (1, True, True)
    for _ in range(2):
        triggered = await app.call("POST", f"{merge}/trigger", data={})
        assert triggered["merge_session_id"] == begun["merge_session_id"]
    done = await app.poll(merge, "completed", "failed")
    assert done["overall_status"] == "completed", done
    assert [s["frame_count"] for s in done["merged_video"]["segments"]] == [30, 30, 24]
    assert done["videos"][1]["filename"] == "again.mp4"
    assert await app.call("GET", f"{merge}/result") == done
    assert (await app.call("POST", f"{merge}/trigger"))["overall_status"] == "completed"
    assert (await app.call("POST", f"{merge}/clips/1/replace", 409, json=other))["reason"] == "ALREADY_COMPLETED"
    assert (await app.call("DELETE", f"{merge}/cancel", 409))["reason"] == "ALREADY_COMPLETED"
    assert (await app.call("POST", f"{merge}/retry", 409))["reason"] == "RETRY_NOT_AVAILABLE"


async def test_a_session_is_given_up_and_one_that_lost_a_clip_goes_on_with_another(
    app: App, clips: list[Path]
) -> None:
    given_up = await app.begin(clips)
    merge = f"{PREFIX}/merge-session/{given_up['merge_session_id']}"
    for path in (f"{merge}/cancel", merge):
        assert (await app.call("DELETE", path))["overall_status"] == "cancelled"
    assert (await app.call("POST", f"{merge}/trigger", 409))["reason"] == "MERGE_CANCELLED"

    begun = await app.begin(clips)
    merge = f"{PREFIX}/merge-session/{begun['merge_session_id']}"
    lost = begun["upload_sessions"][0]
    await app.call("DELETE", lost["upload_url"].removesuffix("/chunk"))
    failed = await app.poll(merge, "failed")
    assert (failed["error_type"], failed["retry_available"]) == ("clip_cancelled", False)
    assert (await app.call("POST", f"{merge}/retry", 409))["reason"] == "RETRY_NOT_AVAILABLE"
    assert (await app.call("POST", f"{merge}/trigger", 409))["reason"] == "MERGE_FAILED"
    other = {"filename": "again.mov", "file_size": clips[0].stat().st_size, "mime_type": "video/quicktime"}
    new = (await app.call("POST", f"{merge}/clips/0/replace", json=other))["upload_session"]
    assert (await app.call("GET", f"{merge}/status"))["overall_status"] == "uploading"
    await asyncio.gather(
        app.send(new, clips[0]),
        *(app.send(session, clip) for session, clip in zip(begun["upload_sessions"][1:], clips[1:], strict=True)),
    )
    assert (await app.poll(merge, "completed", "failed"))["overall_status"] == "completed"

    page = await app.call("GET", f"{PREFIX}/merge-session?page_size=1")
    assert [s["merge_session_id"] for s in page["merge_sessions"]] == [begun["merge_session_id"]]
    rest = await app.call("GET", f"{PREFIX}/merge-session?page_token={page['next_page_token']}")
    assert given_up["merge_session_id"] in [s["merge_session_id"] for s in rest["merge_sessions"]]
    wrong = await app.call("GET", f"{PREFIX}/merge-session?page_token=x", 400)
    assert wrong["reason"] == "PAGE_TOKEN_INVALID"


async def test_qualities_and_the_state_of_the_processing_are_told(app: App) -> None:
    presets = (await app.call("GET", f"{PREFIX}/compression/presets"))["presets"]
    assert [p["quality"] for p in presets if p["is_default"]] == ["medium"]
    assert [p["quality"] for p in presets] == ["low", "medium", "high"]
    async with asyncio.timeout(30):
        while True:  # a process that a test before has killed may only just be back
            health = await app.call("GET", "/api/v1/health/processing")
            amiss = [problem for problem in health["problems"] if not problem.startswith("sandbox")]
            if len(health["workers"]) == 2 and not amiss:
                break
            await asyncio.sleep(0.2)
    assert set(health["processing_queue"]) >= {"depth", "active_jobs", "failed_jobs_last_hour"}
    assert set(health["ffmpeg_service"]) >= {"available", "version", "resource_usage"}
    assert set(health["storage"]) >= {"s3_accessible", "cdn_accessible", "disk_space"}
    assert health["ffmpeg_service"]["available"]
    assert health["storage"]["s3_accessible"]
    assert health["storage"]["disk_space"]["data"] > 0
