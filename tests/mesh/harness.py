"""A whole mesh of real processes, as ``mesh up`` runs it, and the means to look at it and to hurt it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import aiohttp
import nats

from mesh.client import Clip, Phone
from mesh.health import http, until_healthy
from mesh.http import Json
from mesh.sender import Sender
from mesh.state import MeshInfo, StateDirectory
from mesh.together import together
from services.common.keys import KeyRing
from services.common.state import owned_key
from twotruths.merge.v1.record_pb2 import MergeRecord

CANVAS = (320, 180)
START_SECONDS = 180.0
# What a killed worker held is delivered again soon, so that the tests need not wait for it.
QUICK = {"TWOTRUTHS_JOB_ACK_WAIT_SECONDS": "2"}
NONE: Mapping[str, str] = MappingProxyType({})


class Harness:
    """A running ``mesh up`` on free ports and a state directory of its own."""

    def __init__(self, directory: Path, workers: int = 2, *more: str, settings: Mapping[str, str] = NONE) -> None:
        self.state = StateDirectory(directory / "state")
        self.data = (self.state.s3 if "--s3" in more else self.state.root) / "data"
        environment = {name: value for name, value in os.environ.items() if name != "NATS_URL"}
        options = ("--free-ports", "--workers", str(workers), "--state", str(self.state.root), *more)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mesh", "up", *options],
            env={
                **environment,
                **QUICK,
                **settings,
                "TWOTRUTHS_GATEWAY_GUEST_KEY_FILE": str(self.state.keys / "players.pem"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_healthy(self) -> None:
        """Reads what ``mesh up`` says until it says that all are healthy; then goes on reading, so that it
        never blocks."""
        assert self.process.stdout is not None
        overdue = threading.Timer(START_SECONDS, self.process.kill)
        overdue.start()
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ctrl-C stops everything" in line:
                break
        else:
            raise RuntimeError("mesh up did not start:\n" + "".join(said))
        overdue.cancel()
        overdue.join()
        self._drain = threading.Thread(target=self.process.stdout.read, daemon=True)
        self._drain.start()

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        finally:
            self.close()

    def close(self) -> None:
        """Ends it by force if it still runs: its children go with it."""
        self.process.kill()
        self.process.wait()
        if hasattr(self, "_drain"):
            self._drain.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def info(self) -> MeshInfo:
        info = self.state.read()
        assert info is not None, "mesh.json is gone"
        return info

    @property
    def keys(self) -> KeyRing:
        return KeyRing(self.state.keys)

    @asynccontextmanager
    async def phone(self, user: str) -> AsyncIterator[Phone]:
        """A phone of a player."""
        async with aiohttp.ClientSession() as session:
            yield Phone(session, self.info.gateway_urls, self.keys.player_token(user))

    def kill(self, name: str) -> int:
        """SIGKILLs a process by its name; the pid it had."""
        pid = self.info.processes[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    async def restarted(self, name: str, pid: int) -> int:
        """Waits until the process that had ``pid`` runs again and the gateway is healthy; the new pid."""
        async with asyncio.timeout(30):
            while self.info.processes.get(name, pid) == pid:
                await asyncio.sleep(0.05)
            for url in self.info.gateway_urls:
                await until_healthy(http(f"{url}/api/v1/health"))
        return self.info.processes[name]

    def busy_workers(self) -> dict[str, list[int]]:
        """The workers that have a job's child process, with the children's pids."""
        workers = {name: pid for name, pid in self.info.processes.items() if name.startswith("worker-")}
        children = {
            name: [c for c in _descendants(pid) if _is_of_a_job(c, self.data)] for name, pid in workers.items()
        }
        return {name: pids for name, pids in children.items() if pids}

    def objects(self, prefix: str) -> list[Path]:
        """The files of the stored objects below ``prefix``."""
        return sorted(path for path in (self.state.data / "objects" / prefix).rglob("*") if path.is_file())

    def video(self, merge_session_id: str) -> Path:
        """The session's merged video: there is one, and what lies beside it."""
        files = self.objects(f"videos/{merge_session_id}")
        (video,) = (path for path in files if path.name == "video.mp4")
        assert {path.parent for path in files} == {video.parent}
        return video

    async def record(self, owner: str, merge_session_id: str) -> MergeRecord:
        """The session as merge wrote it down."""
        client = await nats.connect(self.info.nats_url.split(","))
        try:
            bucket = await client.jetstream().key_value("merges")
            entry = await bucket.get(owned_key(owner, merge_session_id))
        finally:
            await client.close()
        assert entry.value is not None
        return MergeRecord.FromString(entry.value)


def _is_of_a_job(pid: int, data: Path) -> bool:
    """Whether it has a file of the mesh's data open. A worker has also children that wait for a job."""
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if descriptor.readlink().is_relative_to(data):
                return True
        except OSError:
            continue  # it has ended, or closed it
    return False


def _descendants(pid: int) -> list[int]:
    """Jobs are children of the process that a worker has them forked from."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue  # the thread has ended
    return found + [below for child in found for below in _descendants(child)]


async def upload_all(phone: Phone, clips: Sequence[Path], canvas: tuple[int, int] = CANVAS) -> str:
    """Makes a merge session and uploads its clips; the session's id."""
    initiated = await phone.initiate([Clip(path) for path in clips], "test", canvas)
    sessions = initiated["upload_sessions"]
    await together(
        Sender(phone, session, path, lambda _: None).send() for session, path in zip(sessions, clips, strict=True)
    )
    merge_session_id: str = initiated["merge_session_id"]
    return merge_session_id


async def finished(
    phone: Phone, merge_session_id: str, within: float = 60.0, *, never_falls: bool = False
) -> Json:
    """Follows a merge to its end, ``within`` seconds; the completed session. ``never_falls``: its percentage."""
    percent = 0.0
    async with asyncio.timeout(within):
        async for session in phone.follow_merge(merge_session_id):
            last = session
            assert not never_falls or last["overall_progress_percent"] >= percent
            percent = last["overall_progress_percent"]
    assert last["overall_status"] == "completed", last
    return last
