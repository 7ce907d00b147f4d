"""``make bench``: uploads against @tus/server, tuspyserver and the floor, side by side on this machine.

Every server gets the same files from the same raw driver (bench/driver.py), one after the other in turn,
``--rounds`` times; the median counts. Ours verifies the SHA-256 of every chunk. Times end when the file is
complete, which for ours takes in the SHA-256 of the whole file. bench/README.md tells what each figure means.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import servers
from bench.report import Result, against, publish
from bench.servers import Server

HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
MIB = 1 << 20
FILE_BYTES = 100_000_000
FILES = 3
GB = FILES * FILE_BYTES / 1e9
STREAMS = 32
STREAM_BYTES = 4 * MIB
PING_EVERY = 0.01
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """What one run cost: seconds to the end and to the last chunk; CPU-seconds and bytes written by the server."""

    seconds: float
    chunk_seconds: float
    cpu: float
    written: int


def drive(job: dict[str, Any]) -> dict[str, float]:
    """Runs the driver."""
    command = [sys.executable, str(HERE / "driver.py")]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the driver failed: {done.stderr[-2000:]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def run(server: Server, files: Sequence[Path], chunk: int, *, complete: bool = True) -> Run:
    """Uploads the files at once."""
    names = [name for name in server.pids if name != "nats"]
    cpu, written = server.cpu(*names), server.written(*names)
    answer = drive(server.job(files, chunk) | {"complete": complete})
    return Run(
        answer["seconds"],
        answer["chunk_seconds"],
        server.cpu(*names) - cpu,
        server.written(*names) - written,
    )


def floor(files: Sequence[Path], scratch: Path) -> float:
    """CPU-seconds a GB of what must be done: copy the bytes, hash them."""
    before = os.times()
    for path in files:
        subprocess.run(["cp", path, scratch / "copy"], check=True)
        subprocess.run(["openssl", "dgst", "-sha256", path], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    (scratch / "copy").unlink()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used / GB


def tidy(folder: Path) -> None:
    """Removes what was uploaded: the page cache is to be the same for all."""
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def warm(folder: Path) -> None:
    """Has the machine give memory to the page cache. The host of a virtual machine takes back what is free, and
    whoever writes first then pays 1.5 CPU-s/GB for it: several times what is measured here."""
    path, piece = folder / "warm", bytes(MIB)
    with path.open("wb") as file:
        for _ in range(3 * FILES * FILE_BYTES // (2 * MIB)):
            file.write(piece)
    path.unlink()


class Bench:
    """The measurements, on servers that run all the time."""

    def __init__(self, ours: Server, node: Server, python: Server, files: Sequence[Path], rounds: int) -> None:
        self.ours, self.node, self.python, self.files, self.rounds = ours, node, python, files, rounds
        self.clean: Callable[[], None] = lambda: None

    def rates(self, peer: Server, chunk: int) -> tuple[float, float]:
        """MB/s of ours and of the peer, alternating."""
        found: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(self.rounds):
            for name, server in (("ours", self.ours), ("peer", peer)):
                found[name].append(FILES * FILE_BYTES / 1e6 / run(server, self.files, chunk).seconds)
                self.clean()
        return statistics.median(found["ours"]), statistics.median(found["peer"])

    def faster(self, name: str, peer: Server, chunk: int, target: float) -> Result:
        """Our MB/s against the peer's."""
        ours, theirs = self.rates(peer, chunk)
        return against(name, ours, theirs, "MB/s", target, at_most=False)

    def cost(self, name: str, scratch: Path, target: float, *, complete: bool) -> Result:
        """CPU-seconds a GB of gateway and upload service against the floor."""
        used, least = [], []
        for _ in range(self.rounds):
            used.append(run(self.ours, self.files, MIB, complete=complete).cpu / GB)
            least.append(floor(self.files, scratch))
            self.clean()
        ours, theirs = statistics.median(used), statistics.median(least)
        return against(name, ours, theirs, "CPU-s/GB", target, at_most=True)

    def amplification(self) -> Result:
        """Bytes that our services wrote against bytes uploaded."""
        written = run(self.ours, self.files, MIB).written
        self.clean()
        total = FILES * FILE_BYTES
        return against("upload.write_amplification", written / 1e6, total / 1e6, "MB", 1.05, at_most=True)

    def ping(self) -> Result:
        """How long a status call through the gateway takes while files are uploaded: the 99th percentile."""
        times: list[float] = []
        stop = threading.Event()
        pinger = threading.Thread(target=_ping, args=(self.ours, times, stop))
        pinger.start()
        for _ in range(self.rounds):
            run(self.ours, self.files, MIB)
            self.clean()
        stop.set()
        pinger.join()
        p99 = statistics.quantiles(times, n=100)[98] * 1000
        return Result("upload.ping_p99_ms_during_upload", p99, None, None, "ms", 15, at_most=True)


def memory(ours: Server, small: Sequence[Path]) -> Result:
    """The most memory that gateway and upload service take over what they have idle, for each of 32 streams."""
    names = ("upload", "gateway")
    idle = peak = ours.rss(*names)
    sender = threading.Thread(target=lambda: run(ours, small, MIB))
    sender.start()
    while sender.is_alive():
        peak = max(peak, ours.rss(*names))
        time.sleep(0.01)
    sender.join()
    return Result("upload.rss_per_stream_mib", (peak - idle) / STREAMS, None, None, "MiB", 6, at_most=True)


def _ping(server: Server, times: list[float], stop: threading.Event) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    document = json.dumps({"filename": "ping.mp4", "file_size": 1000, "mime_type": "video/mp4"})
    headers = server.headers | {"Content-Type": "application/json"}
    connection.request("POST", "/api/v1/upload/initiate", document, headers)
    session = json.loads(connection.getresponse().read())["session_id"]
    while not stop.wait(PING_EVERY):
        started = time.perf_counter()
        connection.request("GET", f"/api/v1/upload/{session}/status", headers=server.headers)
        connection.getresponse().read()
        times.append(time.perf_counter() - started)
    connection.close()


def make_files(folder: Path, count: int, size: int) -> list[Path]:
    """Files of random bytes that begin as an MP4 does."""
    paths = [folder / f"{size}-{number}.mp4" for number in range(count)]
    for path in paths:
        path.write_bytes(HEAD + os.urandom(size - len(HEAD)))
    return paths


def measure(rounds: int) -> Iterator[Result]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=HERE) as name, ExitStack() as stack:
        scratch = Path(name)
        files = make_files(scratch, FILES, FILE_BYTES)
        small = make_files(scratch, STREAMS, STREAM_BYTES)
        ours = stack.enter_context(servers.ours(scratch / "ours"))
        yield memory(ours, small)
        node = stack.enter_context(servers.tus_node(scratch / "node"))
        python = stack.enter_context(servers.tus_python(scratch / "python"))
        bench = Bench(ours, node, python, files, rounds)

        def clean() -> None:
            for folder in (
                scratch / "node",
                scratch / "python",
                scratch / "ours" / "data" / "objects" / "uploads",
            ):
                tidy(folder)
            shutil.rmtree(scratch / "ours" / "data" / "parts", ignore_errors=True)
            (scratch / "ours" / "data" / "parts").mkdir()
            warm(scratch)

        bench.clean = clean
        clean()
        run(ours, files[:1], MIB)  # nobody's first time counts
        run(node, files[:1], MIB)
        run(python, files[:1], MIB)
        clean()
        yield bench.faster("upload.tus_node.1mib_x3", node, MIB, 1.0)
        yield bench.faster("upload.tus_node.5mib_x3", node, 5 * MIB, 0.8)
        yield bench.faster("upload.tuspyserver.1mib_x3", python, MIB, 2.0)
        yield bench.cost("upload.cpu_vs_floor", scratch, 2.0, complete=False)
        yield bench.cost("upload.cpu_vs_floor_file_digest", scratch, 2.8, complete=True)
        yield bench.amplification()
        yield bench.ping()


def main() -> None:
    """Measures, writes the lines and shows the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each pair is measured")
    publish(measure(parser.parse_args().rounds), "upload.jsonl")


if __name__ == "__main__":
    main()
