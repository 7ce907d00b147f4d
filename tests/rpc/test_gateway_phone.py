"""The sequences of the phone app that existed before this system, as it sends them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.common.keys import KeyRing
from services.gateway import uplink
from tests.rpc.gateway_world import World, open_world
from twotruths.upload.v1.upload_pb2 import UPLOAD_STATUS_COMPLETED

LINES = "application/x-ndjson"
PREFIX = "/api/v1/challenge-videos"
CLIPS = [b"abcdefghij", b"klmn", b"opqrstu"]
LEGACY_INITIATE = {
    "video_count": "3",
    "video_filenames": json.dumps(["a.mp4", "b.mov", "ä [1].webm"]),
    "video_file_sizes": json.dumps([len(c) for c in CLIPS]),
    "video_durations": json.dumps([15000, 12500.0, 18]),
    "video_mime_types": json.dumps(["video/mp4", "video/quicktime", "video/webm"]),
    "challenge_title": "Two truths",
    "app_version": "3.1.4 (unknown to us)",
}


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path) as world:
        yield world


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def answer(call: Any, status: int = 200) -> Any:
    async with call as response:
        text = await response.text()
        assert response.status == status, text
        return json.loads(text)


def chunk_form(data: bytes, *, hash_first: bool = False) -> aiohttp.FormData:
    form = aiohttp.FormData()
    if hash_first:
        form.add_field("chunk_hash", sha(data))
    form.add_field("file", data, filename="chunk.bin", content_type="application/octet-stream")
    if not hash_first:
        form.add_field("chunk_hash", sha(data))
    return form


async def send_all(world: World, session: dict[str, Any], content: bytes) -> dict[str, Any]:
    size, last = session["chunk_size"], {}
    for n in reversed(range(session["total_chunks"])):
        data = content[n * size : (n + 1) * size]
        url = f"{session['upload_url']}/{n}" if n % 2 else f"{session['upload_url']}?chunk_number={n}"
        last = await answer(world.call("POST", url, data=chunk_form(data, hash_first=n == 1)))
        assert last["chunk_number"] == n
        assert last["status"] == "uploaded"
    return last


@pytest.mark.parametrize("kind", ["urlencoded", "multipart", "json"])
async def test_three_clips_go_in_as_the_phone_app_sends_them(world: World, kind: str) -> None:
    body: dict[str, Any] = {"data": dict(LEGACY_INITIATE)}
    if kind == "multipart":
        body = {"data": aiohttp.FormData(LEGACY_INITIATE, default_to_multipart=True)}
    elif kind == "json":
        parsed = {
            k: json.loads(v) if v[0] in "[3" and k != "app_version" else v for k, v in LEGACY_INITIATE.items()
        }
        body = {"json": parsed}
    begun = await answer(world.call("POST", f"{PREFIX}/upload-for-merge/initiate", **body))
    assert list(world.merges.initiated[0].video_durations) == [15000, 12500, 18]
    assert world.merges.initiated[0].video_filenames[2] == "ä [1].webm"
    assert begun["status"] == "initiated"
    assert begun["total_file_size_bytes"] == 21
    assert begun["created_at"] == "2026-09-21T14:13:20Z"
    assert [s["video_index"] for s in begun["upload_sessions"]] == [0, 1, 2]
    merge = f"{PREFIX}/merge-session/{begun['merge_session_id']}"
    assert (await answer(world.call("POST", f"{merge}/trigger"), 409))["reason"] == "CLIPS_MISSING"
    for session, content in zip(begun["upload_sessions"], CLIPS, strict=True):
        last = await send_all(world, session, content)
        assert last["remaining_chunks"] == []
        assert last["progress_percent"] == 100.0
        assert last["merge_session_id"] == begun["merge_session_id"]
        url = session["upload_url"].removesuffix("/chunk")
        done = await answer(world.call("POST", f"{url}/complete", data={"file_hash": sha(content)}))
        assert (done["status"], done["file_hash"]) == ("completed", sha(content))
        assert set(done) >= {"ready_for_merge", "merge_triggered", "merge_status", "expires_at", "completed_at"}
    status = await answer(world.call("GET", f"{merge}/status"))
    assert (status["overall_status"], status["completed_videos"], status["ready_for_merge"]) == (
        "uploading",
        3,
        True,
    )
    assert status["merged_video"] is None
    assert status["merge_status"] is None
    assert status == await answer(world.call("GET", f"{merge}/result"))
    assert await answer(world.call("POST", f"{merge}/trigger")) == status
    assert (await answer(world.call("POST", f"{merge}/retry"), 409))["reason"] == "RETRY_NOT_AVAILABLE"
    cancelled = await answer(world.call("DELETE", f"{merge}/cancel"))
    assert cancelled["overall_status"] == "cancelled"


async def test_a_single_upload_resumes_and_can_be_cancelled(world: World) -> None:
    parameters = {"filename": "a.mp4", "file_size": 10, "mime_type": "video/mp4", "metadata": {"take": "2"}}
    upload = await answer(world.call("POST", "/api/v1/upload/initiate", json=parameters))
    assert upload["status"] == "pending"
    assert upload["metadata"] == {"take": "2"}
    assert (upload["video_index"], upload["completed_at"]) == (None, None)
    url = f"/api/v1/upload/{upload['session_id']}"
    raw = {"X-Chunk-SHA256": sha(b"abcd"), "Content-Type": "application/octet-stream"}
    assert (await answer(world.call("POST", f"{url}/chunk/0", data=b"abcd", headers=raw)))["status"] == "uploaded"
    again = await answer(world.call("POST", f"{url}/chunk/0", data=b"abcd", headers=raw))
    assert (again["status"], again["uploaded_chunks"]) == ("already_exists", [0])
    status = await answer(world.call("GET", f"{url}/status"))
    assert (status["status"], status["remaining_chunks"]) == ("in_progress", [1, 2])
    missing = await answer(world.call("POST", f"{url}/complete", json={}), 409)
    assert missing["reason"] == "CHUNKS_MISSING"
    assert (await answer(world.call("DELETE", url)))["status"] == "cancelled"


async def test_a_large_chunk_reaches_the_service_in_pieces(world: World) -> None:
    content = bytes(range(256)) * 4000 + b"end"
    upload = world.uploads.add("alice", "a.mp4", len(content), len(content))
    url = f"/api/v1/upload/{upload.session_id}/chunk/0"
    await answer(world.call("POST", url, data=chunk_form(content)))
    assert world.uploads.chunks[upload.session_id][0] == content
    assert max(world.uploads.pieces) <= uplink.PIECE_BYTES
    assert len(world.uploads.pieces) <= 6


async def test_what_a_slow_phone_has_sent_reaches_the_service_before_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "HELD_SECONDS", 0.0)
    upload = world.uploads.add("alice", "a.mp4", 4, 4)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"ab"
        await asyncio.wait_for(world.uploads.data_came.wait(), 10)
        yield b"cd"

    url = f"/api/v1/upload/{upload.session_id}/chunk/0"
    raw = {"Content-Type": "application/octet-stream"}
    await answer(world.call("POST", url, data=slowly(), headers=raw))
    assert world.uploads.chunks[upload.session_id] == {0: b"abcd"}


async def test_progress_comes_as_events_and_ends(world: World) -> None:
    begun = await answer(world.call("POST", f"{PREFIX}/upload-for-merge/initiate", data=dict(LEGACY_INITIATE)))
    events = f"{PREFIX}/merge-session/{begun['merge_session_id']}/events"
    async with world.call("GET", events, headers={"Accept": "text/event-stream"}) as response:
        assert response.content_type == "text/event-stream"
        blocks = (await response.text()).strip().split("\n\n")
    assert blocks[0] == "retry: 2000"
    last_id, last = blocks[-2].split("\n")
    assert blocks[-1] == f"{last_id}.end\nevent: end\ndata: {{}}"
    assert json.loads(last.removeprefix("data: "))["overall_status"] == "completed"
    headers = {"Accept": "application/x-ndjson"}
    async with world.call("GET", events, headers=headers) as response:
        lines = [json.loads(line) for line in (await response.text()).splitlines() if line]
    assert [line["result"]["merge_progress_percent"] for line in lines[:3]] == [10, 50, 100]
    assert last_id.startswith("id: ")


async def test_a_client_that_comes_back_is_spared_the_state_it_has(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    events = f"/api/v1/upload/{upload.session_id}/events"
    async with world.call("GET", events) as response:
        while not (line := await response.content.readline()).startswith(b"id: "):
            pass
    id_ = line.decode().removeprefix("id: ").strip()
    async with world.call("GET", events, headers={"Last-Event-ID": id_}) as response:
        assert await response.content.readline() == b"retry: 2000\n"
        await answer(world.call("DELETE", f"/api/v1/upload/{upload.session_id}"))
        text = await response.text()
    assert f"id: {id_}" not in text
    assert '"status":"cancelled"' in text


async def test_a_client_that_comes_back_after_the_end_is_told_to_stay_away(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    upload.status = UPLOAD_STATUS_COMPLETED
    events = f"/api/v1/upload/{upload.session_id}/events"
    async with world.call("GET", events) as response:
        blocks = (await response.text()).strip().split("\n\n")
    id_ = blocks[-1].split("\n")[0].removeprefix("id: ")
    async with world.call("GET", events, headers={"Last-Event-ID": id_}) as response:
        assert (response.status, await response.read()) == (204, b"")
    # Not for lines, which have no ids; nor when it has gone on since.
    async with world.call("GET", events, headers={"Last-Event-ID": id_, "Accept": LINES}) as response:
        assert response.status == 200
    upload.file_id = "another"
    async with world.call("GET", events, headers={"Last-Event-ID": id_}) as response:
        assert (response.status, b'"file_id":"another"' in await response.read()) == (200, True)


async def test_drain_ends_streams_without_saying_that_they_are_over(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path) as world:
        upload = world.uploads.add("alice", "a.mp4", 4, 4)
        events = f"/api/v1/upload/{upload.session_id}/events"
        async with world.call("GET", events) as one, world.call("GET", events, headers={"Accept": LINES}) as other:
            await one.content.readuntil(b'"status":"pending"')
            await other.content.readuntil(b'"status":"pending"')
            stopping = asyncio.create_task(world.gateway.server.stop(60))
            text = (await asyncio.wait_for(one.text(), 10)) + (await asyncio.wait_for(other.text(), 10))
            assert "event:" not in text
            assert "error" not in text.replace("error_", "")
            await asyncio.wait_for(stopping, 10)
        await asyncio.wait_for(world.uploads.call_ended.wait(), 10)


async def test_an_event_stream_beats_and_its_call_ends_with_the_client(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_heartbeat_seconds=0.05) as world:
        upload = world.uploads.add("alice", "a.mp4", 4, 4)
        async with world.call("GET", f"/api/v1/upload/{upload.session_id}/events") as response:
            while await response.content.readline() != b": \n":
                pass
            response.close()
        await asyncio.wait_for(world.uploads.call_ended.wait(), 10)


@pytest.mark.parametrize(("refused", "status"), [(3, 200), (4, 503)])
async def test_a_stream_begins_though_its_service_is_away_for_a_moment(
    world: World, refused: int, status: int
) -> None:
    """EventSource gives up for good on an answer that is no stream."""
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    world.uploads.watches_refused = refused
    async with world.call("GET", f"/api/v1/upload/{upload.session_id}/events") as response:
        assert response.status == status
    assert world.uploads.watches == 4


async def test_a_stream_that_fails_half_way_says_why(world: World) -> None:
    from services.common.errors import Unavailable

    upload = world.uploads.add("alice", "a.mp4", 8, 4)
    async with world.call("GET", f"/api/v1/upload/{upload.session_id}/events") as response:
        await response.content.readline()
        world.uploads.error = Unavailable("the broker at 10.0.0.1 is away")
        upload.uploaded_chunks.append(0)
        await world.uploads.notify()
        text = await response.text()
    problem = json.loads(text.split("event: error\ndata: ")[1])
    assert (problem["status"], problem["reason"]) == (503, "UNAVAILABLE")
    assert "10.0.0.1" not in text


async def test_a_challenge_is_made_guessed_and_listed(world: World) -> None:
    metadata = {
        "total_duration": 3.0,
        "segments": [{"statement_index": 0, "start_time": 0, "end_time": 1.5, "duration": 1.5, "start_frame": 0}],
        "video_file_id": "v",
        "compression_applied": True,
        "thumbnail": "unknown fields are ignored at every depth",
    }
    made = await answer(
        world.call(
            "POST",
            "/api/v1/challenges",
            json={
                "title": "t",
                "statements": [{"media_file_id": "v", "duration_seconds": 1}, {}],
                "lie_statement_index": 0,
                "is_merged_video": True,
                "merged_video_metadata": metadata,
            },
        )
    )
    assert (made["status"], made["answer"]) == ("draft", None)
    assert made["merged_video_metadata"]["segments"][0]["end_time"] == 1.5
    assert world.challenges.created[0].HasField("lie_statement_index")
    guess = f"/api/v1/challenges/{made['challenge_id']}/guess"
    guessed = await answer(
        world.call("POST", guess, data={"statement_index": "0", "challenge_id": "not this one"})
    )
    assert (guessed["challenge_id"], guessed["statement_index"]) == (made["challenge_id"], 0)
    assert (await answer(world.call("GET", "/api/v1/challenges?page_size=5&page_token=x")))["challenges"] == []
    assert (world.challenges.listed[0].page_size, world.challenges.listed[0].page_token) == (5, "x")


async def test_playback_is_asked_for_as_the_phone_app_does(world: World) -> None:
    video = await world.add_video(b"x")
    url = f"/api/v1/media/optimized/{video}?device_type=mobile&prefer_signed="
    assert (await answer(world.call("GET", f"{url}true")))["delivery_type"] == "gateway_signed"
    direct = await answer(world.call("GET", f"{url}false"))
    assert (direct["delivery_type"], direct["expires_at"]) == ("direct", None)
