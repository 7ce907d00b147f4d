"""``make bench``: merging against the ffmpeg command line, side by side on this machine.

The peer is what people run, ``ffmpeg -f concat … -c:v libx264 -preset medium -crf 23 -c:a aac -b:a 128k -movflags
+faststart``, on the same files. Ours is a whole mesh: the clips go through the gateway, and what counts is all
that its processes used. bench/README.md tells what each figure means.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.mesh import Mesh, running
from bench.report import Result, against, publish
from services.common.adapters.jetstream import connect
from services.common.adapters.jetstream_state import JetStreamStateStore
from services.common.state import owned_key
from services.merge.domain import JobKind, Session, Unit, UnitState
from services.merge.media.runner import MediaRunner
from services.merge.timeline import Quality
from services.merge.wiring import SESSIONS

HERE = Path(__file__).parent
SECONDS = (15.0, 12.5, 18.2)
APART = 15.0
LONG = 60.0
CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Peer:
    """What the ffmpeg command took for its file."""

    file: Path
    wall: float
    cpu: float


def ffmpeg(*arguments: object) -> str:
    """Runs Debian's ffmpeg; its messages. Raises RuntimeError."""
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ffmpeg failed: {done.stderr[-2000:]}")
    return done.stderr


def noisy(target: Path, seconds: float, size: str = "1280x720", *, closed: bool = False, rate: str = "") -> Path:
    """A clip as a phone makes it: H.264 and AAC at 30 fps, a moving picture with noise. Only ``closed`` groups of
    pictures can be taken as they are. ``rate``: bits a second, as ffmpeg writes them, instead of a quality."""
    picture = f"testsrc2=size={size}:rate=30:duration={seconds},noise=alls=8:allf=t,format=yuv420p"
    groups = ("-g", 30, "-x264-params", f"open-gop={int(not closed)}")
    encode = (
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        *(("-b:v", rate) if rate else ("-crf", 23)),
        *groups,
        "-c:a",
        "aac",
    )
    tone = f"sine=frequency=440:sample_rate=48000:duration={seconds}"
    ffmpeg("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone, *encode, "-ac", 2, "-shortest", target)
    return target


def reference(clips: Sequence[Path], folder: Path) -> Peer:
    """The command that people run, on these clips."""
    listing = folder / "list.txt"
    listing.write_text("".join(f"file '{clip}'\n" for clip in clips))
    target = folder / "reference.mp4"
    before, started = os.times(), time.perf_counter()
    encode = ("-c:v", "libx264", "-preset", "medium", "-crf", 23, "-c:a", "aac", "-b:a", "128k")
    ffmpeg("-f", "concat", "-safe", 0, "-i", listing, *encode, "-movflags", "+faststart", target)
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Peer(target, wall, cpu)


def ssim(made: Path, clips: Sequence[Path], frames: Sequence[int]) -> float:
    """How like what was made is the clips, of so many ``frames`` each (1: the same): the mean over all clips and
    their frames but the last. Where frames came a place too late, as the command's do, that is not held against
    them."""
    total, start = 0.0, 0
    for clip, count in zip(clips, frames, strict=True):
        total += count * max(_ssim(made, start + late, clip, count - 1) for late in (0, 1))
        start += count
    return total / start


def _ssim(made: Path, start: int, clip: Path, frames: int) -> float:
    cut = f"[0:v]trim=start_frame={start}:end_frame={start + frames},setpts=N/30/TB[a]"
    graph = f"{cut};[1:v]trim=end_frame={frames},setpts=N/30/TB[b];[a][b]ssim"
    found = re.search(r"SSIM .*All:([0-9.]+)", ffmpeg("-i", made, "-i", clip, "-lavfi", graph, "-f", "null", "-"))
    if found is None:
        raise RuntimeError("ffmpeg tells no SSIM")
    return float(found[1])


@dataclass(frozen=True)
class Merged:
    """What a merge through the mesh took: CPU of everything, wall from the last upload's end."""

    file: Path
    wall: float
    cpu: float
    actions: tuple[str, ...]


def merge(mesh: Mesh, clips: Sequence[Path], target: Path, *, apart: float = 0.0) -> Merged:
    """Sends the clips, ``apart`` seconds from each other or all at once, and waits for the video."""
    cpu = mesh.cpu()
    made = mesh.initiate(clips)
    uploads = made["upload_sessions"]
    if apart:
        started = time.perf_counter()
        for number, (upload, clip) in enumerate(zip(uploads, clips, strict=True)):
            time.sleep(max(0.0, started + number * apart - time.perf_counter()))
            mesh.upload(upload, clip)
    else:
        senders = [threading.Thread(target=mesh.upload, args=pair) for pair in zip(uploads, clips, strict=True)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    ended = time.perf_counter()
    session = mesh.until_completed(made["merge_session_id"])
    wall = time.perf_counter() - ended
    actions = tuple(step["action"] for step in session.get("plan", ()))
    return Merged(mesh.video(session, target), wall, mesh.cpu() - cpu, actions)


def transcodes(scratch: Path, rounds: int) -> Iterator[Result]:
    """Three clips that have to be encoded anew."""
    clips = [noisy(scratch / f"transcode{n}.mp4", seconds) for n, seconds in enumerate(SECONDS)]
    ours, staggered, peers = [], [], []
    with running(scratch / "transcode", workers=1, worker_threads=CORES) as mesh:
        for number in range(rounds):
            peers.append(reference(clips, scratch))
            ours.append(merge(mesh, clips, scratch / "ours.mp4"))
            staggered.append(merge(mesh, clips, scratch / f"staggered{number}.mp4", apart=APART))
    cpu = statistics.median(peer.cpu for peer in peers)
    wall = statistics.median(peer.wall for peer in peers)
    mine = statistics.median(merged.cpu for merged in ours)
    frames = [round(seconds * 30) for seconds in SECONDS]
    alike = [ssim(made.file, clips, frames) for made in (ours[-1], peers[-1])]
    yield against("merge.transcode_cpu_vs_ffmpeg", mine, cpu, "CPU-s", 1.10, at_most=True)
    yield against("merge.transcode_ssim_vs_ffmpeg", alike[0], alike[1], "SSIM", 1.0, at_most=False)
    waits = statistics.median(merged.wall for merged in staggered)
    yield against("merge.wait_staggered_vs_ffmpeg", waits, wall, "s", 0.55, at_most=True)


def copies(scratch: Path, rounds: int) -> Iterator[Result]:
    """Three clips that can be taken as they are."""
    clips = [noisy(scratch / f"copy{n}.mp4", seconds, closed=True) for n, seconds in enumerate(SECONDS)]
    waits, walls = [], []
    with running(scratch / "copy", workers=CORES) as mesh:
        for _ in range(rounds):
            walls.append(reference(clips, scratch).wall)
            merged = merge(mesh, clips, scratch / "copied.mp4")
            if set(merged.actions) != {"copy"}:
                raise RuntimeError(f"the clips were not copied: {merged.actions}")
            waits.append(merged.wall)
    yield against(
        "merge.copy_vs_ffmpeg", statistics.median(waits), statistics.median(walls), "s", 0.08, at_most=True
    )


def chunked(scratch: Path) -> Iterator[Result]:
    """One long clip, on one worker and on two, each with one thread. The others are short."""
    clips = [noisy(scratch / f"chunked{n}.mp4", seconds) for n, seconds in enumerate((LONG, 1.0, 1.0))]
    walls = []
    for workers in (1, 2):
        with running(scratch / f"chunked-{workers}", workers=workers, worker_threads=1) as mesh:
            walls.append(merge(mesh, clips, scratch / "chunked.mp4").wall)
    yield Result("merge.chunked_speedup", walls[1], walls[0], walls[0] / walls[1], "s", 1.7, at_most=False)


def memory(scratch: Path) -> Iterator[Result]:
    """The most that a worker's child takes for clips of 1080p."""
    clips = [noisy(scratch / f"large{n}.mp4", 4.0, "1920x1080") for n in range(2)]
    with running(scratch / "memory", workers=1, worker_threads=CORES) as mesh, mesh.watching_children() as peak:
        merge(mesh, clips, scratch / "large.mp4")
    yield Result("merge.worker_rss_mib_1080p", peak[0] / 2**20, None, None, "MiB", 600, at_most=True)


def dispatch(scratch: Path) -> Iterator[Result]:
    """From a job's being asked for until a child has read a clip of a fifth of a second and said what it is: all
    of the way there, and a little more. On workers that have nothing else to do."""
    clip = noisy(scratch / "tiny.mp4", 0.2, "128x72")
    with running(scratch / "dispatch", workers=2) as mesh:
        waits = asyncio.run(_dispatches(mesh, clip, 20))
    yield Result("merge.dispatch_ms_p50", statistics.median(waits), None, None, "ms", 100, at_most=True)


async def _dispatches(mesh: Mesh, clip: Path, count: int) -> list[float]:
    client = await connect(mesh.info.nats_url, "bench")
    sessions = JetStreamStateStore(client, "merges", SESSIONS)
    waits = []
    for _ in range(count):
        made = await asyncio.to_thread(mesh.initiate, [clip, clip])
        key = owned_key("bench", made["merge_session_id"])
        await asyncio.to_thread(mesh.upload, made["upload_sessions"][0], clip)
        probe = await _probe(sessions, key)
        assert probe.finished_at is not None
        assert probe.queued_at is not None
        waits.append((probe.finished_at - probe.queued_at).total_seconds() * 1000)
        await asyncio.to_thread(
            mesh.call, "DELETE", f"/api/v1/challenge-videos/merge-session/{made['merge_session_id']}"
        )
        await asyncio.sleep(2.0)  # what it had begun besides is stopped
    await client.close()
    return waits


async def _probe(sessions: JetStreamStateStore[Session], key: str) -> Unit:
    """The first clip's probe once it is done. Raises RuntimeError."""
    for _ in range(1000):
        entry = await sessions.get(key)
        unit = entry.value.unit(JobKind.PROBE, 0) if entry is not None else None
        if unit is not None and unit.state is UnitState.DONE:
            return unit
        await asyncio.sleep(0.02)
    raise RuntimeError("the clip was not probed")


def remux(scratch: Path) -> Iterator[Result]:
    """Joining 400 MB of clips as they are, verified."""
    clip = noisy(scratch / "dense.mp4", 10.0, closed=True, rate="80M")
    clips = [clip] * max(1, round(400e6 / clip.stat().st_size))
    started = time.perf_counter()
    asyncio.run(
        MediaRunner(threads=CORES).copy(clips, scratch / "joined.mp4", Quality.HIGH, lambda done, total: None)
    )
    seconds = (time.perf_counter() - started) * 400e6 / (clip.stat().st_size * len(clips))
    yield Result("merge.remux_400mb_s", seconds, None, None, "s", None, at_most=True)


PARTS: dict[str, Callable[[Path, int], Iterator[Result]]] = {
    "transcodes": transcodes,
    "copies": copies,
    "chunked": lambda folder, _: chunked(folder),
    "memory": lambda folder, _: memory(folder),
    "dispatch": lambda folder, _: dispatch(folder),
    "remux": lambda folder, _: remux(folder),
}


def measure(rounds: int, parts: Sequence[str]) -> Iterator[Result]:
    """The figures of these parts."""
    if shutil.which("ffmpeg") is None:
        raise SystemExit("Debian's ffmpeg is not installed: make bench-deps")
    for name in parts:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=HERE) as folder:
            yield from PARTS[name](Path(folder), rounds)


def main() -> None:
    """Measures, writes the lines and shows the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each pair is measured")
    parser.add_argument("--only", choices=PARTS, help="measure one part alone")
    arguments = parser.parse_args()
    parts = [arguments.only] if arguments.only else list(PARTS)
    publish(measure(arguments.rounds, parts), "merge.jsonl")


if __name__ == "__main__":
    main()
