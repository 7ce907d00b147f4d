"""``mesh jobs`` on a real broker: what is dead is listed with its reason, and can be tried again or dropped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh.__main__ import app
from mesh.state import MeshInfo, StateDirectory
from services.common.keys import KeyRing
from services.merge.media.errors import ErrorType, MediaError
from tests.mesh.test_command import mesh
from tests.rpc.merge_world import SteeredMedia, World, running
from twotruths.merge.v1 import merge_pb2, merge_service_pb2


@pytest.fixture
async def world(nats_client: Client, nats_url: str, keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with running(nats_url, keys, tmp_path) as world:
        yield world


@pytest.fixture
def state(nats_url: str, tmp_path: Path) -> str:
    """The state directory of a mesh that uses the broker of this test."""
    directory = StateDirectory(tmp_path / "state")
    directory.root.mkdir()
    directory.write(MeshInfo(os.getpid(), healthy=True, gateway_url="", gateway_urls=[], nats_url=nats_url))
    return str(directory.root)


async def dead(client: Client, count: int) -> None:
    """Waits until so many jobs are dead."""
    async with asyncio.timeout(10):
        while (await client.jetstream().stream_info("JOBS_DEAD")).state.messages != count:
            await asyncio.sleep(0.02)


async def test_a_dead_job_is_listed_and_its_session_can_be_tried_again(
    world: World, nats_client: Client, state: str
) -> None:
    broken = True

    def refuse(kind: str) -> None:
        if broken:
            raise MediaError(ErrorType.NO_VIDEO_STREAM, "there is no picture in it")

    await world.worker(SteeredMedia(refuse))
    assert await mesh("jobs", "dead", "--state", state) == (0, "no dead jobs\n", "")
    initiated = await world.initiate()
    session = initiated.merge_session_id
    await world.uploads.complete(initiated.upload_sessions[1].session_id)
    await world.until(session, merge_pb2.MERGE_STATUS_FAILED)
    await dead(nats_client, 1)

    status, out, err = await mesh("jobs", "dead", "--state", state)
    assert (status, err) == (0, "")
    header, row = out.splitlines()
    assert header.split() == ["ID", "KIND", "OWNER", "SESSION", "WHEN", "REASON"]
    job = f"{session}-probe1-0-1"
    assert row.split()[:4] == [job, "probe", "alice", session]
    assert row.endswith("no_video_stream: there is no picture in it")

    broken = False
    status, out, err = await mesh("jobs", "retry", session, "--state", state)  # the beginning of its id will do
    assert (status, out, err) == (0, f"{job}: session {session} is tried again\n", "")
    await world.upload_all(initiated)
    done = await world.until(session, merge_pb2.MERGE_STATUS_COMPLETED)
    assert done.retry_count == 1
    await dead(nats_client, 0)
    status, out, err = await mesh("jobs", "retry", job, "--state", state)
    assert (status, out) == (1, "")
    assert err == f"mesh: no dead job has the id '{job}': `mesh jobs dead` lists them\n"


async def test_a_job_can_be_dropped_and_one_whose_session_went_on_is_not_tried_again(
    world: World, nats_client: Client, state: str
) -> None:
    def refuse(kind: str) -> None:
        raise MediaError(ErrorType.NO_VIDEO_STREAM, "there is no picture in it")

    await world.worker(SteeredMedia(refuse))
    sessions = [await world.initiate(), await world.initiate()]
    for number, initiated in enumerate(sessions):
        await world.uploads.complete(initiated.upload_sessions[0].session_id)
        await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
        await dead(nats_client, number + 1)
    dropped, cancelled = (initiated.merge_session_id for initiated in sessions)

    assert (await mesh("jobs", "drop", dropped, "--state", state))[0] == 0
    request = merge_service_pb2.CancelMergeRequest(merge_session_id=cancelled)
    await world.merges.CancelMerge(request, metadata=world.as_player("alice"))
    status, out, err = await mesh("jobs", "retry", cancelled, "--state", state)
    assert (status, out) == (1, "")
    assert "is cancelled, not failed: `mesh jobs drop` removes it" in err
    await dead(nats_client, 1)


async def test_the_jobs_of_a_mesh_elsewhere_are_reached_by_its_broker(
    world: World, nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    def refuse(kind: str) -> None:
        raise MediaError(ErrorType.NO_VIDEO_STREAM, "there is no picture in it")

    await world.worker(SteeredMedia(refuse))
    initiated = await world.initiate()
    await world.uploads.complete(initiated.upload_sessions[0].session_id)
    await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
    await dead(nats_client, 1)
    where = ("--nats-url", nats_url, "--state", str(tmp_path / "nothing runs here"))
    status, out, _ = await mesh("jobs", "dead", *where)
    assert status == 0
    assert initiated.merge_session_id in out
    assert (await mesh("jobs", "retry", initiated.merge_session_id, *where))[0] == 0
    await world.until(initiated.merge_session_id, merge_pb2.MERGE_STATUS_FAILED)
    await dead(nats_client, 1)
    assert (await mesh("jobs", "drop", initiated.merge_session_id, *where))[0] == 0
    assert await mesh("jobs", "dead", *where) == (0, "no dead jobs\n", "")


def test_without_a_running_mesh_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        app(["jobs", "drop", "x", "--state", str(tmp_path)])
    other = "`mesh up` starts one, --state names another, --nats-url one elsewhere"
    said = f"mesh: no mesh runs on {tmp_path}: {other}\n"
    assert (left.value.code, capsys.readouterr().err) == (1, said)
