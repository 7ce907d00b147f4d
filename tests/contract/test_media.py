"""The media jobs as workers run them: real child processes on real files, measured in what they wrote."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest

from mesh.clips import BLUE, GREEN, RED, Colour, Sound, make_clip, make_demo_clips
from services.merge.media import forked
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.forked import Child, Nursery
from services.merge.media.limits import Limits
from services.merge.media.progress import Progress as Ticker
from services.merge.media.runner import MediaRunner
from services.merge.media.verify import verify_clip
from services.merge.timeline import FPS, SAMPLES_PER_FRAME, Canvas, Quality, canvas_for, segments
from tests.contract.media_fixtures import flashes, looks_like, pictures, samples, sync, video_packets

CANVAS = Canvas(160, 120)
SYNC = Fraction(5, 1000)

Progress = list[tuple[int, int]]


@pytest.fixture
def runner() -> MediaRunner:
    return MediaRunner()


@pytest.fixture
def progress() -> Progress:
    return []


async def normalised(source: Path, canvas: Canvas = CANVAS, runner: MediaRunner | None = None) -> Path:
    target = source.with_name(source.name + ".mov")
    await (runner or MediaRunner()).normalise(source, target, canvas, Quality.LOW, lambda done, expected: None)
    return target


async def failure(job: Awaitable[object]) -> str:
    with pytest.raises(MediaError) as caught:
        await job
    return caught.value.error_type


# Joined


async def test_merge_is_exact_to_the_frame_and_the_sample(tmp_path: Path, progress: Progress) -> None:
    colours = (RED, GREEN, BLUE)
    names = ("a.mov", "b.mp4", "c.webm")
    make_clip(tmp_path / names[0], seconds=1.5, colour=RED, rotation=90, sound=Sound(rate=44_100))
    make_clip(tmp_path / names[1], seconds=1.2, colour=GREEN, size=(194, 110))
    make_clip(
        tmp_path / names[2], seconds=1.3, colour=BLUE, codec="vp8", sound=Sound("opus", channels=1), live=True
    )
    runner, target = MediaRunner(), tmp_path / "merged.mp4"
    parts = [await normalised(tmp_path / name) for name in names]
    merged = await runner.merge(parts, target, Quality.MEDIUM, lambda *step: progress.append(step))

    assert merged.frames == (45, 36, 39)
    assert (merged.width, merged.height, merged.size) == (160, 120, target.stat().st_size)
    shown = pictures(target)
    assert [picture.number for picture in shown] == list(range(sum(merged.frames)))
    for segment, colour in zip(segments(merged.frames), colours, strict=True):
        own = shown[segment.start_frame :][: segment.frame_count]
        assert own[0].keyframe
        assert looks_like(own[0].yuv(), colour)
        assert looks_like(own[-1].yuv(), colour)
    heard = samples(target)
    assert 0 <= len(heard) - sum(merged.frames) * SAMPLES_PER_FRAME < 1024
    assert sync(target) < SYNC
    assert progress == sorted(progress)
    assert progress[-1] == (2 * sum(merged.frames), 2 * sum(merged.frames))


async def test_merged_file_starts_with_its_index_and_tells_nothing_about_clips(tmp_path: Path) -> None:
    for name in ("secret-name.mp4", "b.mp4"):
        make_clip(tmp_path / name, seconds=0.5, colour=RED)
    parts = [await normalised(tmp_path / name) for name in ("secret-name.mp4", "b.mp4")]
    await MediaRunner().merge(parts, tmp_path / "m.mp4", Quality.LOW, lambda *step: None)

    data = (tmp_path / "m.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"secret" not in data
    with av.open(tmp_path / "m.mp4") as container:
        assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
        for stream in container.streams:
            assert set(stream.metadata) <= {"language", "handler_name"}


async def test_clips_that_were_prepared_differently_are_not_joined(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", seconds=0.5, colour=RED)
    make_clip(tmp_path / "b.mp4", seconds=0.5, colour=RED)
    parts = [await normalised(tmp_path / "a.mp4"), await normalised(tmp_path / "b.mp4", Canvas(120, 160))]
    target = tmp_path / "m.mp4"

    job = MediaRunner().merge(parts, target, Quality.LOW, lambda *step: None)
    assert await failure(job) == ErrorType.VERIFICATION_FAILED
    assert not target.exists()


def test_verification_sees_a_clip_that_is_not_right(tmp_path: Path) -> None:
    """It decodes every picture: also one that nothing but a decoder would find broken."""
    path = tmp_path / "a.mp4"
    make_clip(path, seconds=1, colour=RED)
    data = path.read_bytes()

    def verified(frames: int = 30) -> list[tuple[int, int]]:
        steps: list[tuple[int, int]] = []
        with path.open("rb") as file:
            verify_clip(file, frames, (160, 120), 1, Ticker(lambda *step: steps.append(step), 30))
        return steps

    assert verified()[-1] == (30, 30)
    with pytest.raises(MediaError, match="30 frames instead of 31"):
        verified(31)
    for packet in video_packets(path):
        at, after = data.index(packet) + 5, data.index(packet) + len(packet)
        path.write_bytes(data[:at] + b"\xa5" * (after - at) + data[after:])
        with pytest.raises(MediaError, match="video is not right"):
            verified()


async def test_demo_clips_are_what_phones_send(tmp_path: Path, runner: MediaRunner) -> None:
    portrait, landscape, browser = [await runner.probe(path) for path in make_demo_clips(tmp_path)]

    assert (portrait.width, portrait.height, portrait.rotation) == (360, 640, 90)
    assert canvas_for(portrait) == Canvas(720, 1280)
    assert (landscape.width, landscape.height, landscape.frame_rate) == (960, 540, 25)
    assert (browser.video_codec, browser.audio_codec) == ("vp8", "opus")
    with av.open(tmp_path / "three.webm") as container:
        assert not container.duration
    assert [round(info.duration, 1) for info in (portrait, landscape, browser)] == [3.5, 3.0, 3.2]


# One clip


@pytest.mark.parametrize(
    ("rotation", "mirrored", "corner"),
    [
        (0, False, (0.1, 0.1)),
        (90, False, (0.9, 0.1)),
        (180, False, (0.9, 0.9)),
        (270, False, (0.1, 0.9)),
        (0, True, (0.9, 0.1)),
    ],
)
async def test_clip_is_turned_upright(
    tmp_path: Path, runner: MediaRunner, rotation: int, mirrored: bool, corner: tuple[float, float]
) -> None:
    source = tmp_path / "a.mov"
    make_clip(source, seconds=0.2, colour=GREEN, rotation=rotation, mirrored=mirrored, sound=None)
    info = await runner.probe(source)
    canvas = Canvas(info.width, info.height)
    assert (info.rotation, canvas) == (rotation, Canvas(120, 160) if rotation % 180 else Canvas(160, 120))

    picture = pictures(await normalised(source, canvas))[0]
    corners = {(x, y): picture.yuv(x, y)[0] for x in (0.1, 0.9) for y in (0.1, 0.9)}
    assert min(corners, key=lambda place: corners[place]) == corner


async def test_another_shape_is_fitted_and_padded_in_the_middle(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=0.2, colour=RED, size=(121 * 2, 60), sound=None)
    picture = pictures(await normalised(source, Canvas(160, 120)))[0]

    assert (picture.frame.width, picture.frame.height) == (160, 120)
    assert looks_like(picture.yuv(), RED)
    assert picture.yuv(0.5, 0.1) == picture.yuv(0.5, 0.9) == (16, 128, 128)


async def test_stored_pixels_that_are_not_square_are_shown_in_their_shape(
    tmp_path: Path, runner: MediaRunner
) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=0.2, colour=RED, size=(120, 120), aspect=Fraction(4, 3), sound=None)
    info = await runner.probe(source)
    assert (info.width, info.height) == (160, 120)
    assert looks_like(pictures(await normalised(source))[0].yuv(0.06, 0.7), RED)


@pytest.mark.parametrize("size", [(160, 120), (64, 720)])
@pytest.mark.parametrize("colour", [RED, BLUE])
async def test_untagged_colours_come_out_as_players_show_them(
    tmp_path: Path, size: tuple[int, int], colour: Colour
) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=0.1, colour=colour, size=size, sound=None)
    picture = pictures(await normalised(source, Canvas(*size)))[0]

    assert looks_like(picture.yuv(), colour)
    assert (picture.frame.colorspace, picture.frame.color_range) == (1, 1)


@pytest.mark.parametrize(
    ("name", "seconds", "fps", "codec", "sound"),
    [
        ("a.webm", 1.2, 30, "vp8", Sound("opus")),
        ("a.webm", 1.2, 30, "vp9", Sound("opus", channels=1)),
        ("a.mp4", 1.2, 60, "h264", Sound(rate=44_100, channels=1)),
        ("a.mkv", 1.2, 30, "h264", Sound("pcm", rate=16_000, channels=1)),
    ],
)
async def test_sound_stays_with_the_picture(
    tmp_path: Path, name: str, seconds: float, fps: int, codec: str, sound: Sound
) -> None:
    source = tmp_path / name
    live = name.endswith(".webm")
    make_clip(source, seconds=seconds, fps=fps, colour=RED, codec=codec, sound=sound, live=live)
    target = await normalised(source)

    assert len(pictures(target)) == 36
    assert len(samples(target)) == 36 * SAMPLES_PER_FRAME
    assert sync(target) < SYNC


@pytest.mark.parametrize(
    "sound",
    [
        Sound(delay=Fraction(2, 5)),
        Sound(delay=Fraction(2, 5), seconds=Fraction(3, 10)),
        Sound(seconds=Fraction(3)),
    ],
    ids=["late", "late and short", "long"],
)
async def test_sound_of_another_length_is_placed_and_cut_to_the_picture(tmp_path: Path, sound: Sound) -> None:
    source = tmp_path / "a.mov"
    make_clip(source, seconds=1, colour=RED, sound=sound, start=Fraction(2))
    target = await normalised(source)

    heard = samples(target)
    assert len(heard) == FPS * SAMPLES_PER_FRAME
    assert sync(target) < SYNC
    if sound.delay:
        assert not any(heard[: int(sound.delay * 48_000) - 2048])


async def test_silence_is_made_for_a_clip_without_sound(tmp_path: Path, runner: MediaRunner) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=0.5, colour=RED, sound=None)
    assert not (await runner.probe(source)).has_audio

    heard = samples(await normalised(source))
    assert len(heard) == 15 * SAMPLES_PER_FRAME
    assert not any(heard)


async def test_variable_rate_is_made_constant_in_time(tmp_path: Path, runner: MediaRunner) -> None:
    source = tmp_path / "a.mp4"
    irregular = [Fraction(0), Fraction(1, 30), Fraction(1, 5), Fraction(1, 2), Fraction(3, 5), Fraction(9, 10)]
    make_clip(source, seconds=1, colour=RED, times=irregular)
    target = await normalised(source)

    shown = pictures(target)
    assert [picture.number for picture in shown] == list(range(len(shown)))
    assert flashes(shown) == [Fraction(1, 2)]
    assert [i for i, picture in enumerate(shown) if picture.yuv()[0] > 210] == [15, 16, 17]
    assert sync(target) < SYNC


async def test_parameter_sets_do_not_depend_on_the_source(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", seconds=0.3, colour=RED, size=(320, 180))
    make_clip(tmp_path / "b.webm", seconds=1, fps=15, colour=BLUE, codec="vp8", sound=None, live=True)
    extradata = set()
    for name in ("a.mp4", "b.webm"):
        with av.open(await normalised(tmp_path / name)) as container:
            extradata.add(container.streams.video[0].codec_context.extradata)
    assert len(extradata) == 1


async def test_progress_counts_frames_and_never_goes_back(tmp_path: Path, progress: Progress) -> None:
    source = tmp_path / "a.webm"
    make_clip(source, seconds=1, colour=RED, codec="vp8", sound=None, live=True)
    target = tmp_path / "n.mov"
    done = await MediaRunner().normalise(source, target, CANVAS, Quality.LOW, lambda *step: progress.append(step))
    assert done.frames == 30
    assert [step[0] for step in progress] == sorted(step[0] for step in progress)
    assert progress[0] == (0, 30)
    assert progress[-1] == (30, 30)


# What is not a clip

Attack = Callable[[Path, Path], None]


def text(path: Path, trap: Path) -> None:
    path.write_text("This is not a video.\n" * 100)


def nothing(path: Path, trap: Path) -> None:
    path.write_bytes(b"")


def concat_script(path: Path, trap: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '{trap}'\n")


def playlist(path: Path, trap: Path) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{trap}\n#EXT-X-ENDLIST\n")


def session_description(path: Path, trap: Path) -> None:
    path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n")


def picture_file(path: Path, trap: Path) -> None:
    make_clip(trap.with_name("p.mp4"), seconds=0.1, colour=RED, sound=None)
    pictures(trap.with_name("p.mp4"))[0].frame.save(trap.with_name("p.png"))
    trap.with_name("p.png").rename(path)


@pytest.mark.parametrize("attack", [text, nothing, concat_script, playlist, session_description, picture_file])
async def test_only_a_video_container_is_read_and_nothing_it_names(tmp_path: Path, attack: Attack) -> None:
    """Opening the trap, a pipe that nobody writes to, would hang until the wall limit: another error."""
    trap, source = tmp_path / "trap", tmp_path / "innocent.mp4"
    os.mkfifo(trap)
    attack(source, trap)
    runner = MediaRunner(Limits(wall_seconds=10))

    assert await failure(runner.probe(source)) == ErrorType.NOT_A_VIDEO
    assert await failure(normalised(source, runner=runner)) == ErrorType.NOT_A_VIDEO


async def test_truncated_upload_is_refused(tmp_path: Path, runner: MediaRunner) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=3, colour=RED)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) * 6 // 10])

    assert await failure(runner.probe(source)) == ErrorType.TRUNCATED
    assert await failure(normalised(source)) == ErrorType.TRUNCATED


async def test_sound_alone_is_refused(tmp_path: Path, runner: MediaRunner) -> None:
    source = tmp_path / "a.mp4"
    with av.open(source, "w") as out:
        stream = out.add_stream("aac", rate=48_000, layout="stereo")
        frame = av.AudioFrame("s16", "stereo", 1024)
        frame.sample_rate, frame.pts = 48_000, 0
        out.mux([*stream.encode(frame), *stream.encode(None)])

    assert await failure(runner.probe(source)) == ErrorType.NO_VIDEO_STREAM


async def test_too_many_tracks_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=0.1, colour=RED)
    assert await failure(MediaRunner(Limits(max_streams=1)).probe(source)) == ErrorType.TOO_MANY_STREAMS


async def test_too_large_a_picture_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=0.1, colour=RED)
    runner = MediaRunner(Limits(max_pixels=160 * 120 - 1))
    assert await failure(runner.probe(source)) == ErrorType.TOO_MANY_PIXELS


async def test_too_long_a_clip_is_refused_with_half_a_second_of_grace(tmp_path: Path) -> None:
    runner = MediaRunner(Limits(max_clip_seconds=1))
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=1.5, colour=RED, sound=None)
    assert (await runner.probe(source)).duration == 1.5

    make_clip(source, seconds=1.6, colour=RED, sound=None)
    assert await failure(runner.probe(source)) == ErrorType.CLIP_TOO_LONG
    assert await failure(normalised(source, runner=runner)) == ErrorType.CLIP_TOO_LONG


async def test_two_frames_six_hours_apart_are_refused(tmp_path: Path, runner: MediaRunner) -> None:
    source = tmp_path / "a.mp4"
    make_clip(source, seconds=1, colour=RED, times=[Fraction(0), Fraction(6 * 3600)], sound=None)

    assert await failure(runner.probe(source)) == ErrorType.CLIP_TOO_LONG
    assert await failure(normalised(source)) == ErrorType.CLIP_TOO_LONG


# The child and its limits


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """Every child that a runner starts during the test."""
    started: list[Child] = []
    start = Nursery.child

    async def starting(nursery: Nursery) -> Child:
        child = await start(nursery)
        started.append(child)
        return child

    monkeypatch.setattr(Nursery, "child", starting)
    return started


async def test_cancelling_kills_the_child_and_leaves_no_file(tmp_path: Path, children: list[Child]) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "n.mov"
    make_clip(source, seconds=2, colour=RED, size=(320, 240))
    encoding = asyncio.Event()
    job = asyncio.create_task(
        MediaRunner().normalise(
            source, target, Canvas(1280, 960), Quality.HIGH, lambda done, expected: encoding.set()
        )
    )
    await encoding.wait()
    assert target.exists()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job

    assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert not target.exists()


async def test_a_full_disk_is_no_fault_of_the_clip_and_is_tried_again(tmp_path: Path) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mov"
    make_clip(source, seconds=1, colour=RED)
    target.symlink_to("/dev/full")
    with pytest.raises(MediaError, match="storage_unavailable") as caught:
        await MediaRunner().normalise(source, target, CANVAS, Quality.LOW, lambda *step: None)
    assert caught.value.retryable
    assert not target.is_symlink()


@pytest.mark.parametrize(
    ("limits", "canvas", "error_type"),
    [
        (Limits(wall_seconds=1), Canvas(1280, 720), ErrorType.TIME_EXCEEDED),
        (Limits(cpu_seconds=1), Canvas(1280, 720), ErrorType.CPU_EXCEEDED),
        (Limits(output_bytes=20_000), CANVAS, ErrorType.OUTPUT_TOO_LARGE),
        (Limits(memory_bytes=330 << 20), Canvas(1920, 1440), ErrorType.MEMORY_EXCEEDED),
    ],
    ids=["wall", "cpu", "output", "memory"],
)
async def test_limits_end_a_job_that_is_not_tried_again(
    tmp_path: Path,
    limits: Limits,
    canvas: Canvas,
    error_type: ErrorType,
    children: list[Child],
) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "n.mov"
    make_clip(source, seconds=4, colour=RED, size=(320, 240))
    with pytest.raises(MediaError) as caught:
        await MediaRunner(limits).normalise(source, target, canvas, Quality.HIGH, lambda *step: None)
    assert caught.value.error_type == error_type
    assert not caught.value.retryable
    assert not target.exists()
    assert [child.returncode is not None for child in children] == [True]


@pytest.mark.parametrize(
    ("script", "error_type", "retryable"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", ErrorType.DECODE_FAILED, False),
        ("os.kill(os.getpid(), signal.SIGKILL)", ErrorType.WORKER_FAILED, True),
        ("os.kill(os.getpid(), signal.SIGXCPU)", ErrorType.CPU_EXCEEDED, False),
        ("sys.exit(3)", ErrorType.WORKER_FAILED, True),
        ("print('x' * 1_000_000); time.sleep(60)", ErrorType.WORKER_FAILED, True),
        ("print('[1]')", ErrorType.WORKER_FAILED, True),
        ('print(\'{"result": {"container": 1}}\')', ErrorType.WORKER_FAILED, True),
        ('print(\'{"error": ["invented", "x"]}\')', ErrorType.WORKER_FAILED, True),
        ("sys.stderr.write('x' * 10_000_000); sys.exit(3)", ErrorType.WORKER_FAILED, True),
    ],
)
async def test_a_child_that_dies_or_talks_nonsense_is_a_typed_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error_type: str, retryable: bool
) -> None:
    program = f"""
import os, signal, sys, time
from services.merge.media import child, nursery
def main(parent):
    {script}
    return 0
child.main = main
nursery.main()
"""
    monkeypatch.setattr(forked, "COMMAND", (sys.executable, "-c", program))
    with pytest.raises(MediaError) as caught:
        await MediaRunner().probe(tmp_path / "a.mp4")
    assert (caught.value.error_type, caught.value.retryable) == (error_type, retryable)
    assert (caught.value.signal != 0) == ("os.kill" in script)


async def test_a_missing_source_is_our_failure_and_may_be_retried(tmp_path: Path) -> None:
    assert await failure(MediaRunner().probe(tmp_path / "none.mp4")) == ErrorType.WORKER_FAILED


async def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """The child is met at its first pipe and then waits at the second; its parent gets no chance to clean up."""
    first, second = tmp_path / "first", tmp_path / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    script = f"""
import asyncio, pathlib
from services.merge.media.forked import Nursery
from services.merge.media.runner import MediaRunner, Quality
start = Nursery.child
async def starting(nursery):
    child = await start(nursery)
    print(child.pid, flush=True)
    return child
Nursery.child = starting
pipes = [pathlib.Path({str(first)!r}), pathlib.Path({str(second)!r})]
asyncio.run(MediaRunner().merge(pipes, pathlib.Path({str(tmp_path / "m.mp4")!r}), Quality.LOW, print))
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=forked.ROOT
    )
    assert parent.stdout is not None
    child = os.pidfd_open(int(await parent.stdout.readline()))
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(child, gone.set)
    met = await asyncio.to_thread(os.open, first, os.O_WRONLY)
    try:
        parent.kill()
        await parent.wait()
        async with asyncio.timeout(10):
            await gone.wait()
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
        asyncio.get_running_loop().remove_reader(child)
        os.close(child)
        os.close(met)
