"""One trace from the request that begins a merge to its video, through all processes of a mesh."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.collector import Collector, Seen, collecting
from tests.mesh.harness import Harness, finished, upload_all

pytestmark = pytest.mark.xdist_group("traces")

LIE = 2
INITIATE = "/api/v1/challenge-videos/upload-for-merge/initiate"
BEGUN = [
    f"gateway: POST {INITIATE}",
    "gateway: twotruths.merge.v1.MergeService/InitiateMerge",
    "merge: twotruths.merge.v1.MergeService/InitiateMerge",
]


async def test_one_trace_leads_from_the_request_to_the_finished_video(clips: list[Path], tmp_path: Path) -> None:
    async with collecting() as collector:
        settings = {
            "TWOTRUTHS_TRACES_ENDPOINT": collector.endpoint,
            "TWOTRUTHS_LOG_FORMAT": "json",
            "TWOTRUTHS_LOG_LEVEL": "DEBUG",
            "TWOTRUTHS_JOB_ACK_WAIT_SECONDS": "30",  # on a busy machine too, nothing comes twice
        }
        harness = Harness(tmp_path, 1, settings=settings)
        try:
            await asyncio.to_thread(harness.wait_until_healthy)
            session, secrets = await played(harness, clips)
            # All that was kept back is sent when the processes stop.
            assert await asyncio.to_thread(harness.interrupt) == 0
        finally:
            await asyncio.to_thread(harness.close)
    (root,) = (seen for seen in collector.spans if seen.attributes.get("http.route") == INITIATE)
    assert root.span.parent_span_id == b""
    assert_request(root)
    ways = {tuple(seen.label for seen in way): way[-1] for way in collector.ways(root.span.trace_id)}
    assert_begun(ways)
    assert_worked(collector, root, ways)
    assert_finished(collector, root, session)
    assert_told(harness, root)
    assert_linked(collector, root)
    assert_secret(collector, secrets)


async def played(harness: Harness, clips: list[Path]) -> tuple[str, list[str]]:
    """Plays a game; its merge session, and what was secret in it."""
    async with harness.phone("alice") as alice, harness.phone("bob") as bob:
        merge_id = await upload_all(alice, clips)
        merged = (await finished(alice, merge_id))["merged_video"]
        draft = await alice.create_challenge("test", merged, LIE)
        challenge = await alice.publish(draft["challenge_id"])
        url = (await bob.playback(merged["video_file_id"]))["streaming_url"]
        await bob.read_range(url, "bytes=0-9")
        answer = (await bob.guess(challenge["challenge_id"], LIE))["answer"]
    return merge_id, [alice.token, bob.token, url.partition("?")[2], answer["salt"]]


def assert_request(root: Seen) -> None:
    assert root.span.name == f"POST {INITIATE}"
    assert root.span.kind == root.span.SPAN_KIND_SERVER
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": INITIATE,
        "http.response.status_code": 200,
        "url.path": INITIATE,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
    }


def assert_begun(ways: dict[tuple[str, ...], Seen]) -> None:
    batch = "twotruths.upload.v1.UploadService/BatchInitiateUploads"
    served = ways[(*BEGUN, f"merge: {batch}", f"upload: {batch}")]
    assert served.span.kind == served.span.SPAN_KIND_SERVER
    assert served.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": batch,
        "rpc.response.status_code": "OK",
    }
    called = ways[tuple(BEGUN[:2])]
    assert called.span.kind == called.span.SPAN_KIND_CLIENT
    assert called.attributes["rpc.response.status_code"] == "OK"


def assert_worked(collector: Collector, root: Seen, ways: dict[tuple[str, ...], Seen]) -> None:
    """Each job was sent once, taken once and done by a child."""
    labels = Counter(tuple(seen.label for seen in way) for way in collector.ways(root.span.trace_id))
    for kind in ("probe", "normalise", "merge"):
        way = (*BEGUN, f"merge: send jobs.{kind}", f"worker: process jobs.{kind}", f"worker: media {kind}")
        jobs = 1 if kind == "merge" else 3
        assert [labels[way[:length]] for length in (4, 5, 6)] == [jobs] * 3, (kind, labels)
        sent, taken, done = ways[way[:4]], ways[way[:5]], ways[way]
        assert sent.span.kind == sent.span.SPAN_KIND_PRODUCER
        assert taken.span.kind == taken.span.SPAN_KIND_CONSUMER
        assert taken.attributes["messaging.system"] == "nats"
        assert taken.attributes["messaging.destination.name"] == "JOBS"
        assert taken.attributes["twotruths.job.deliveries"] == 1
        assert int(done.attributes["process.pid"]) > 0
        begun = taken.span.start_time_unix_nano
        assert begun <= done.span.start_time_unix_nano <= done.span.end_time_unix_nano
        stages = [event.name for event in done.span.events]
        assert stages[-1] == "result"
        assert kind == "probe" or {"frames begun", "frames done"} <= set(stages)


def assert_finished(collector: Collector, root: Seen, session: str) -> None:
    reconciled = [way for way in collector.ways(root.span.trace_id) if way[-1].span.name == "reconcile merge"]
    assert all([seen.label for seen in way] == [*BEGUN, "merge: reconcile merge"] for way in reconciled)
    completed = {"twotruths.merge.id": session, "twotruths.merge.state": "completed"}
    assert completed in [way[-1].attributes for way in reconciled]
    assert {seen.service for seen in collector.trace(root.span.trace_id).values()} == {
        "gateway",
        "upload",
        "merge",
        "worker",
    }
    assert not any(seen.failed for seen in collector.trace(root.span.trace_id).values())


def assert_told(harness: Harness, root: Seen) -> None:
    """Log lines of every process carry the trace's id."""
    trace_id = root.span.trace_id.hex()
    messages = {
        name: {line["message"] for line in lines(harness.state.logs / f"{name}.log") if in_trace(line, trace_id)}
        for name in ("gateway", "upload", "merge", "worker-1")
    }
    expected = {"gateway": "request", "upload": "rpc", "merge": "rpc", "worker-1": "job done"}
    assert all(message in messages[name] for name, message in expected.items()), messages


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def in_trace(line: dict[str, Any], trace_id: str) -> bool:
    return line.get("trace_id") == trace_id


def assert_linked(collector: Collector, root: Seen) -> None:
    """Requests about its uploads are traces of their own, which say where they belong."""
    completed = [
        seen
        for seen in collector.spans
        if seen.label == "upload: twotruths.upload.v1.UploadService/CompleteUpload"
    ]
    assert len(completed) >= 3
    assert all([link.trace_id for link in seen.span.links] == [root.span.trace_id] for seen in completed)


def assert_secret(collector: Collector, secrets: list[str]) -> None:
    assert all(secret and secret.encode() not in collector.raw for secret in secrets)
    told = "\n".join(text for seen in collector.spans for text in seen.texts)
    assert "SubmitGuess" in told
    for word in ("Bearer", "signature", "?", "lie_", "salt", "alice", "bob"):
        assert word not in told, word
