"""A whole mesh under measurement, and a phone that sends it clips."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.servers import descendants
from mesh.state import MeshInfo, StateDirectory
from services.common.keys import KeyRing

_TICKS = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 60.0
_URL = "/api/v1/challenge-videos"


@dataclass
class Mesh:
    """``mesh up`` on a state directory of its own."""

    info: MeshInfo
    token: str
    state: StateDirectory
    peak_rss: dict[str, int] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """A JSON call of the gateway. Raises OSError for 400 and above."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        request = urllib.request.Request(self.info.gateway_url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def initiate(self, clips: Sequence[Path]) -> dict[str, Any]:
        """A merge session for these files."""
        document = {
            "video_count": len(clips),
            "video_filenames": [clip.name for clip in clips],
            "video_file_sizes": [clip.stat().st_size for clip in clips],
            "video_mime_types": ["video/mp4"] * len(clips),
        }
        return self.call("POST", f"{_URL}/upload-for-merge/initiate", document)

    def upload(self, upload: dict[str, Any], clip: Path) -> None:
        """Sends one clip and completes it."""
        data, size = clip.read_bytes(), int(upload["chunk_size"])
        for number, at in enumerate(range(0, len(data), size)):
            self.call("POST", f"{upload['upload_url']}/{number}", data[at : at + size])
        self.call("POST", f"{_URL}/upload/{upload['session_id']}/complete", {})

    def until_completed(self, session_id: str) -> dict[str, Any]:
        """The session once its video is there, told by the server as it happens. Raises RuntimeError when it
        fails."""
        request = urllib.request.Request(
            f"{self.info.gateway_url}{_URL}/merge-session/{session_id}/events",
            headers={"Authorization": f"Bearer {self.token}", "Accept": "text/event-stream"},
        )
        with urllib.request.urlopen(request, timeout=600) as events:
            for line in events:
                session = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
                if session.get("overall_status") == "completed":
                    return dict(session)
                if session.get("overall_status") in {"failed", "cancelled"}:
                    raise RuntimeError(f"the merge failed: {session['error_type']}: {session['error_message']}")
        raise RuntimeError("the events ended before the merge")

    def video(self, session: dict[str, Any], target: Path) -> Path:
        """The merged file."""
        path = f"/api/v1/media/stream/{session['merged_video']['video_file_id']}"
        request = urllib.request.Request(
            self.info.gateway_url + path, headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            target.write_bytes(answer.read())
        return target

    def cpu(self) -> float:
        """CPU-seconds of all processes and of their children that have ended."""
        return sum(_cpu(pid) for pid in self.info.processes.values())

    @contextmanager
    def watching_children(self) -> Iterator[list[int]]:
        """The most memory, in bytes, that a worker's child had within the block."""
        peak, stop = [0], threading.Event()
        workers = [pid for name, pid in self.info.processes.items() if name.startswith("worker")]

        def watch() -> None:
            while not stop.wait(0.05):
                peak[0] = max([peak[0], *(_rss(child) for pid in workers for child in descendants(pid))])

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield peak
        finally:
            stop.set()
            watcher.join()


@contextmanager
def running(folder: Path, *, workers: int, **settings: object) -> Iterator[Mesh]:
    """A mesh with these settings, which is stopped at the end."""
    state = StateDirectory(folder)
    environment = os.environ | {f"TWOTRUTHS_{name.upper()}": str(value) for name, value in settings.items()}
    folder.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "mesh",
        "up",
        "--state",
        str(folder),
        "--workers",
        str(workers),
        "--free-ports",
    ]
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while (info := state.read()) is None or not info.healthy:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the mesh does not start: {(folder / 'up.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield Mesh(info, KeyRing.create(state.keys).player_token("bench"), state)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _cpu(pid: int) -> float:
    return sum(_own_cpu(process) for process in (pid, *descendants(pid)))


def _own_cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS  # its own, then that of the children it has waited for


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
