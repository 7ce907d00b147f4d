"""The whole mesh: the game is played, and processes die while it is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from contextlib import suppress
from pathlib import Path

import aiohttp
import av
import pytest
from rich.console import Console

from mesh.client import Phone
from mesh.clips import RED, make_clip
from mesh.demo import Game
from mesh.http import ConnectionLost, Json
from mesh.narrator import Narrator
from mesh.sender import Sender
from tests.mesh.harness import CANVAS, Harness, finished, upload_all

pytestmark = pytest.mark.xdist_group("mesh")

CHUNK = 1 << 18


def decoded(path: Path) -> tuple[list[bool], tuple[int, int]]:
    """Whether each frame is a keyframe, and the picture's size. Any decoding error raises."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}
        frames = [frame.key_frame for frame in container.decode(stream)]
        return frames, (stream.width, stream.height)


def assert_exact(path: Path, segments: list[Json]) -> None:
    """The segments tile the decoded frames and each starts with a keyframe."""
    keyframes, _ = decoded(path)
    assert [segment["start_frame"] for segment in segments] == [
        sum(before["frame_count"] for before in segments[:index]) for index in range(len(segments))
    ]
    assert len(keyframes) == sum(segment["frame_count"] for segment in segments)
    assert all(keyframes[segment["start_frame"]] for segment in segments)


async def test_the_demo_plays_the_game_on_a_running_mesh(mesh: Harness, clips: list[Path]) -> None:
    command = (sys.executable, "-m", "mesh", "demo", "--state", str(mesh.state.root), *map(str, clips))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    verdict, _, report = out.decode().splitlines()[-1].partition("DEMO OK ")
    assert verdict == ""
    result = json.loads(report)
    assert result["frames"] == sum(segment["frame_count"] for segment in result["segments"])
    assert [segment["frame_count"] for segment in result["segments"]] == [30, 36, 24]
    video = mesh.video(result["merge_session_id"])
    assert_exact(video, result["segments"])


async def test_guests_play_the_game(mesh: Harness, clips: list[Path], tmp_path: Path) -> None:
    url = mesh.info.gateway_url
    async with aiohttp.ClientSession() as http:
        phones = []
        for _ in range(2):
            async with http.post(f"{url}/api/v1/guest") as answer:
                assert answer.status == 200
                phones.append(Phone(http, [url], (await answer.json())["token"]))
        result = await Game(phones[0], phones[1], Narrator(Console(quiet=True)), tmp_path).play(clips)
    assert [segment["frame_count"] for segment in result["segments"]] == [30, 36, 24]


async def test_clips_that_can_be_delivered_as_they_are_are_copied(mesh: Harness, tmp_path: Path) -> None:
    clips = [tmp_path / f"{n}.mp4" for n in range(3)]
    for clip, seconds in zip(clips, (1.0, 0.5, 0.8), strict=True):
        make_clip(clip, seconds=seconds, colour=RED, size=CANVAS)
    async with mesh.phone("carol") as carol:
        session = await finished(carol, await upload_all(carol, clips))
    assert [(step["video_index"], step["action"]) for step in session["plan"]] == [(n, "copy") for n in range(3)]
    assert [segment["frame_count"] for segment in session["merged_video"]["segments"]] == [30, 15, 24]
    assert session["merged_video"]["compression_applied"] is False
    assert_video(mesh, session)


async def test_a_long_clip_is_encoded_in_pieces(mesh: Harness, clips: list[Path], tmp_path: Path) -> None:
    long = tmp_path / "long.mp4"
    make_clip(long, seconds=20.5, fps=10, colour=RED)
    async with mesh.phone("carol") as carol:
        session = await finished(carol, await upload_all(carol, [clips[0], long, clips[1]]))
    assert {step["action"] for step in session["plan"]} == {"transcode"}
    assert [segment["frame_count"] for segment in session["merged_video"]["segments"]] == [30, 615, 36]
    assert len(mesh.objects(f"merges/{session['merge_session_id']}")) == 2 + 3
    assert_video(mesh, session)


async def test_a_killed_workers_job_is_finished_by_another_once(mesh: Harness, clips: list[Path]) -> None:
    async with mesh.phone("alice") as alice:
        merge_id = await upload_all(alice, clips)
        name, children = await busy_worker(mesh)
        for child in children:
            os.kill(child, signal.SIGSTOP)  # its work cannot be finished before the worker dies
        pid = mesh.kill(name)
        for child in children:  # one that had not begun yet does not die with its worker while it is stopped
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        session = await finished(alice, merge_id, never_falls=True)
        await mesh.restarted(name, pid)
    assert_video(mesh, session)
    record = await mesh.record("alice", merge_id)
    # What it was at, a probe and something urgent beside an encode at most, was delivered again once, as the same
    # attempt: nothing failed, and every unit has one result.
    deliveries = Counter(unit.deliveries for unit in record.units)
    assert deliveries.keys() == {1, 2}
    assert deliveries[2] <= 3
    assert {unit.attempt for unit in record.units} == {1}
    assert len(mesh.objects(f"merges/{merge_id}")) == len(clips)


async def test_a_killed_broker_during_the_merge_still_ends_completed(mesh: Harness, clips: list[Path]) -> None:
    async with mesh.phone("alice") as alice:
        merge_id = await upload_all(alice, clips)
        await busy_worker(mesh)
        pid = mesh.kill("nats")
        session = await finished(alice, merge_id)
        await mesh.restarted("nats", pid)
    assert_video(mesh, session)


async def test_a_killed_controller_during_the_merge_still_ends_completed(mesh: Harness, clips: list[Path]) -> None:
    async with mesh.phone("alice") as alice:
        merge_id = await upload_all(alice, clips)
        pid = mesh.kill("merge")  # uploads are completed, and what follows from that is not written down
        session = await finished(alice, merge_id, within=25)  # sooner than a lost change comes again
        await mesh.restarted("merge", pid)
    assert_video(mesh, session)


def assert_video(mesh: Harness, session: Json) -> None:
    video = mesh.video(session["merge_session_id"])
    assert_exact(video, session["merged_video"]["segments"])
    assert decoded(video)[1] == CANVAS


async def busy_worker(mesh: Harness) -> tuple[str, list[int]]:
    """A worker that has a job right now, and its children."""
    async with asyncio.timeout(20):
        while not (busy := mesh.busy_workers()):
            await asyncio.sleep(0.005)
    return next(iter(busy.items()))


async def test_a_killed_upload_service_loses_no_acknowledged_chunk(mesh: Harness, tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    head = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
    path.write_bytes(head + os.urandom(24 * CHUNK - len(head)))
    data = path.read_bytes()
    async with mesh.phone("bob") as bob:
        body = {"filename": "large.mp4", "file_size": len(data), "mime_type": "video/mp4", "chunk_size": CHUNK}
        upload = await bob.http.call("POST", "/api/v1/upload/initiate", body)
        session_id, total = upload["session_id"], upload["total_chunks"]
        assert total == 24
        acknowledged: set[int] = set()
        pid = 0

        async def send(number: int) -> None:
            nonlocal pid
            piece = data[number * CHUNK : (number + 1) * CHUNK]
            url = f"/api/v1/upload/{session_id}/chunk"
            try:
                await bob.send_chunk(url, number, piece, hashlib.sha256(piece).hexdigest())
            except ConnectionLost:
                return
            acknowledged.add(number)
            if len(acknowledged) == 8 and not pid:
                pid = mesh.kill("upload")  # while other chunks are on their way

        await asyncio.gather(*map(send, range(total)))
        await mesh.restarted("upload", pid)
        status = await bob.upload_status(session_id)
        assert acknowledged <= set(status["uploaded_chunks"])
        assert len(acknowledged) >= 8
        upload |= {"upload_url": f"/api/v1/upload/{session_id}/chunk"}
        completed = await Sender(bob, upload, path, lambda _: None).send()
        assert completed["file_hash"] == hashlib.sha256(data).hexdigest()


async def test_a_merge_session_says_what_is_left_of_the_players_uploads(mesh: Harness) -> None:
    sizes = {"video_count": 3, "video_file_sizes": [1000] * 3, "video_durations": [2, 2, 2]}
    kinds = {"video_filenames": ["a.mp4"] * 3, "video_mime_types": ["video/mp4"] * 3, "request_id": "left"}
    url = f"{mesh.info.gateway_url}/api/v1/challenge-videos/upload-for-merge/initiate"
    bearer = {"Authorization": f"Bearer {mesh.keys.player_token('thrifty')}"}
    async with aiohttp.ClientSession(headers=bearer) as http, asyncio.timeout(60):
        while True:
            async with http.post(url, json=sizes | kinds) as answer:
                if answer.status != 503:  # upload may not be found again yet, on a busy machine
                    break
            await asyncio.sleep(0.2)
        assert answer.status == 200
        assert answer.headers["RateLimit"].startswith('"initiates";r=597;t=')
        assert answer.headers["RateLimit-Policy"].startswith('"initiates";q=600;w=60, "bytes";q=')


async def test_a_killed_gateway_comes_back_on_its_port(mesh: Harness) -> None:
    url, pid = mesh.info.gateway_url, mesh.kill("gateway")
    assert await mesh.restarted("gateway", pid) != pid
    assert mesh.info.gateway_url == url


def test_ctrl_c_lets_everything_stop_and_leaves_no_process(tmp_path: Path) -> None:
    own = Harness(tmp_path, workers=1)
    try:
        own.wait_until_healthy()
        processes = own.info.processes
        assert set(processes) == {"nats", "upload", "merge", "challenge", "worker-1", "gateway"}
        assert own.interrupt() == 0
    finally:
        own.close()
    assert own.state.read() is None
    for name, pid in processes.items():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert "stopped" in (own.state.logs / f"{name}.log").read_text() or name == "nats"
