"""What comes with a merged video (chapters, even loudness, stills, the HLS rendition), measured in the files."""

from __future__ import annotations

import asyncio
import math
import random
import sys
from array import array
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import pytest
from av.video.frame import VideoFrame

from mesh.clips import BLUE, FLASH_AT, FLASH_SECONDS, GREEN, RED, WHITE, Colour, make_clip
from services.merge.media import forked, loudness
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.limits import Limits
from services.merge.media.loudness import PEAK_DBTP, TARGET_LUFS, evened, measured
from services.merge.media.runner import MediaRunner
from services.merge.media.stills import CANDIDATES, candidates, most_telling
from services.merge.timeline import FPS, SAMPLE_RATE, Canvas, MergedFile, Quality, SidecarFiles, segments
from tests.contract.media_fixtures import Picture, looks_like, pictures, samples
from tests.contract.test_media_copy import encoded

COLOURS = (RED, GREEN, BLUE)
SECONDS = (1.0, 22 / 30, 5.4)  # the second ends at no whole millisecond
SIZE = (192, 108)


@dataclass(frozen=True)
class Made:
    """A merged video of three clips and all that lies beside it."""

    folder: Path
    merged: MergedFile
    files: SidecarFiles

    @property
    def video(self) -> Path:
        return self.folder / "merged.mp4"

    @property
    def targets(self) -> list[Path]:
        return beside(self.folder, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return asyncio.run(make(tmp_path_factory.mktemp("sidecars")))


async def make(folder: Path) -> Made:
    media, parts = MediaRunner(), []
    for number, (seconds, colour) in enumerate(zip(SECONDS, COLOURS, strict=True)):
        source, part = folder / f"{number}.mp4", folder / f"{number}.mov"
        make_clip(source, seconds=seconds, colour=colour, size=SIZE)
        await media.normalise(source, part, Canvas(*SIZE), Quality.LOW, lambda *_: None)
        parts.append(part)
    targets = beside(folder, len(parts))
    merged = await media.merge(parts, folder / "merged.mp4", Quality.LOW, lambda *_: None, targets)
    assert merged.beside is not None
    return Made(folder, merged, merged.beside)


def beside(folder: Path, clips: int) -> list[Path]:
    """Targets: posters, storyboard, rendition."""
    return [folder / name for name in (*(f"{clip}.jpg" for clip in range(clips)), "board.jpg", "hls.mp4")]


def picture(path: Path) -> VideoFrame:
    with av.open(path) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
        return next(container.decode(video=0))


def shows(frame: VideoFrame, x: float, y: float, colour: Colour) -> bool:
    """Whether the picture has this colour there, as a browser shows a JPEG."""
    return all(abs(a - b) < 24 for a, b in zip(_rgb(frame, x, y), colour, strict=True))


def _rgb(frame: VideoFrame, x: float, y: float) -> tuple[int, int, int]:
    shown = frame.reformat(format="rgb24", src_color_range="JPEG", src_colorspace="ITU601")
    plane = shown.planes[0]
    at = int(y * frame.height) * plane.line_size + 3 * int(x * frame.width)
    red, green, blue = bytes(plane)[at : at + 3]
    return red, green, blue


# Chapters


def test_chapters_tile_the_video_to_the_frame_and_say_nothing_but_their_numbers(made: Made) -> None:
    with av.open(made.video) as container:
        chapters = container.chapters()
    places: list[tuple[int | Fraction, int | Fraction]] = []
    for chapter in chapters:
        assert chapter["time_base"] is not None
        places.append((chapter["start"] * chapter["time_base"] * FPS, chapter["end"] * chapter["time_base"] * FPS))
    assert places == [(s.start_frame, s.start_frame + s.frame_count) for s in segments(made.merged.frames)]
    assert [chapter["metadata"] for chapter in chapters] == [{"title": f"Statement {n}"} for n in (1, 2, 3)]


# Loudness


def speech(lufs: float, *, seconds: float = 3.01, crest: float = 1.0) -> bytes:
    """Stereo of about this loudness: a tone with noise and pauses, and clicks ``crest`` times as high."""
    noise, wave = random.Random(1), array("h")
    level = 32_767 * 10 ** ((lufs + 0.6) / 20)
    for i in range(int(seconds * SAMPLE_RATE)):
        time = i / SAMPLE_RATE
        value = math.sin(2 * math.pi * 500 * time) * 0.9 + 0.3 * (noise.random() - 0.5)
        value *= crest if i % 12_000 < 12 else 1.0
        value *= 0.0 if time % 1 > 0.8 else 1.0
        sample = max(-32_768, min(32_767, round(level * value)))
        wave.extend((sample, sample))
    return wave.tobytes()


@pytest.mark.parametrize(("lufs", "crest"), [(-30, 1.0), (-10, 1.0), (-30, 8.0)])
def test_clips_of_any_loudness_come_out_alike_and_never_over_the_peak(lufs: float, crest: float) -> None:
    pcm = speech(lufs, crest=crest)
    assert abs(measured(pcm)[0] - lufs) < 2
    result = evened(pcm)
    loud, peak = measured(result)
    assert abs(loud - TARGET_LUFS) < 1
    assert peak <= PEAK_DBTP + 0.2
    assert len(result) == len(pcm)


def test_a_cry_at_the_very_end_is_held_below_the_peak_too() -> None:
    cry = array("h", [12_000 if i // 48 % 2 else -12_000 for i in range(2 * 480)]).tobytes()
    pcm = speech(-30, seconds=3) + cry
    result = evened(pcm)
    assert abs(measured(result[: -len(cry)])[0] - TARGET_LUFS) < 3, "it is amplified"
    assert max(map(abs, array("h", result[-len(cry) :]))) < 32_768 * 10 ** ((PEAK_DBTP + 0.2) / 20)


def test_the_limiter_moves_nothing_in_time() -> None:
    pcm = speech(-30, crest=8.0)
    before, after = array("h", pcm)[::2], array("h", evened(pcm))[::2]
    begins, ends = round(0.8 * SAMPLE_RATE), SAMPLE_RATE
    assert not any(before[begins + 1 : ends])
    # What is heard begins again within a fifth of a millisecond of where it did (the filter rings).
    assert max(map(abs, after[begins + 480 : ends - 10])) < 100 < max(map(abs, after[ends : ends + 48]))
    assert evened(pcm) == evened(pcm)


@pytest.mark.parametrize(
    "pcm",
    [bytes(SAMPLE_RATE * 4), bytes(1600 * 4), speech(-70), speech(-20, seconds=0.3)],
    ids=["long", "short", "hiss", "a click"],
)
def test_what_says_nothing_is_left_alone(pcm: bytes) -> None:
    assert evened(pcm) == pcm


def test_a_whisper_is_not_amplified_without_end() -> None:
    pcm = speech(-45)
    assert measured(evened(pcm))[0] == pytest.approx(measured(pcm)[0] + loudness.MOST_GAIN_DB, abs=0.5)


async def test_a_merge_evens_its_clips_unless_told_not_to(made: Made) -> None:
    parts = [made.folder / f"{number}.mov" for number in (0, 2)]
    as_they_are = made.folder / "as_they_are.mp4"
    await MediaRunner(even_loudness=False).merge(parts, as_they_are, Quality.LOW, lambda *_: None)
    frames = made.merged.frames
    last = sum(frames[:2]) * SAMPLE_RATE // FPS
    evenly = samples(made.video)[last:]
    plain = samples(as_they_are)[frames[0] * SAMPLE_RATE // FPS :]
    source = samples(parts[1])

    def loud(channel: array[int]) -> float:
        return measured(array("h", [value for sample in channel for value in (sample, sample)]).tobytes())[0]

    assert abs(loud(plain) - loud(source)) < 0.5
    assert abs(loud(evenly) - TARGET_LUFS) < 1 < abs(loud(plain) - TARGET_LUFS)


# Stills


def test_each_statement_has_a_poster_of_itself(made: Made) -> None:
    for path, colour in zip(made.targets, COLOURS, strict=False):
        poster = picture(path)
        assert (poster.width, poster.height) == (640, 360)
        assert shows(poster, 0.5, 0.5, colour), "neither the flash nor other colours than the video's"
        assert b"Lavc" not in path.read_bytes()


@pytest.mark.parametrize("place", CANDIDATES)
@pytest.mark.parametrize("count", [1, 10, 40])
def test_a_poster_is_neither_black_nor_a_flash_if_the_first_second_shows_more(place: int, count: int) -> None:
    def plain(luma: int) -> VideoFrame:
        frame = VideoFrame(64, 36, "yuv420p")
        for plane, value in zip(frame.planes, (luma, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        return frame

    frames = [plain(16 if number % 2 else 235) for number in range(count)]
    telling = frames[min(place, count - 1)]
    half = telling.planes[0].buffer_size // 2
    telling.planes[0].update(bytes([60]) * half + bytes([120]) * half)
    assert most_telling([frames[n] for n in candidates(count)]) is telling


def test_the_storyboards_tiles_begin_at_every_statement_and_show_it(made: Made) -> None:
    files, starts = made.files, [segment.start_frame for segment in segments(made.merged.frames)]
    board = picture(made.targets[3])
    assert (files.tile_width, files.tile_height) == (160, 90)
    assert files.columns == len(files.tile_frames) == board.width // 160
    assert board.height == 90
    assert set(starts) < set(files.tile_frames), "and the long one has a second"
    assert list(files.tile_frames) == sorted(files.tile_frames)
    for tile, frame in enumerate(files.tile_frames):
        statement = max(i for i, start in enumerate(starts) if start <= frame)
        flash = FLASH_AT <= Fraction(frame - starts[statement], FPS) % 1 < FLASH_AT + FLASH_SECONDS
        assert shows(board, (tile + 0.5) / files.columns, 0.6, WHITE if flash else COLOURS[statement])


# HLS


def test_each_part_of_the_rendition_decodes_alone_to_exactly_its_frames(made: Made) -> None:
    data, files = made.targets[4].read_bytes(), made.files
    total = sum(made.merged.frames)
    assert {segment.start_frame for segment in segments(made.merged.frames)} < set(files.part_frames)
    ends = [*files.part_offsets[1:], len(data)]
    header = data[: files.part_offsets[0]]
    for start, end, first, after in zip(
        files.part_offsets, ends, files.part_frames, [*files.part_frames[1:], total], strict=True
    ):
        with av.open(BytesIO(header + data[start:end]), "r") as container:
            shown = [
                Picture(frame.pts * frame.time_base * FPS, frame.key_frame, frame)
                for frame in container.decode(video=0)
                if frame.pts is not None and frame.time_base is not None
            ]
        assert [one.number for one in shown] == list(range(first, after))
        assert shown[0].keyframe


def test_the_rendition_is_the_video_frame_by_frame_and_sample_by_sample(made: Made) -> None:
    plain, fragmented = pictures(made.video), pictures(made.targets[4])
    assert [one.number for one in fragmented] == [one.number for one in plain]
    assert all(
        bytes(a.frame.planes[0]) == bytes(b.frame.planes[0]) for a, b in zip(plain, fragmented, strict=True)
    )
    assert samples(made.targets[4]) == samples(made.video)
    assert looks_like(fragmented[-1].yuv(), BLUE)


async def test_a_job_that_fails_leaves_no_sidecar(made: Made, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        await MediaRunner().sidecars(made.video, beside(tmp_path, 3), (29, 23, 162))
    assert caught.value.error_type == ErrorType.VERIFICATION_FAILED
    assert list(tmp_path.iterdir()) == []


# In the job that merges, and in one of their own


async def test_a_job_of_their_own_makes_the_same_files_as_the_merge(made: Made, tmp_path: Path) -> None:
    targets = beside(tmp_path, 3)
    assert await MediaRunner().sidecars(made.video, targets, made.merged.frames) == made.files
    assert [path.read_bytes() for path in targets] == [path.read_bytes() for path in made.targets]


@pytest.mark.parametrize("group", [5, 12, 200])
async def test_a_copy_makes_the_same_files_as_a_job_of_their_own(tmp_path: Path, group: int) -> None:
    """Also when a poster's pictures, or a tile, lie in groups that need no verification."""
    for number, colour in enumerate(COLOURS):
        encoded(tmp_path / f"{number}.mov", colour, 5.2, {"g": str(group), "sc_threshold": "0"})
    media, video = MediaRunner(), tmp_path / "merged.mp4"
    sources = [tmp_path / f"{number}.mov" for number in range(3)]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    merged = await media.copy(sources, video, Quality.LOW, lambda *_: None, beside(first, 3))
    assert merged.beside == await media.sidecars(video, beside(second, 3), merged.frames)
    assert merged.beside is not None
    assert len(merged.beside.tile_frames) == (3 if group == 200 else 9)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("stills.Stills._take", "raise ValueError"),
        ("child.write_sidecars", "raise ValueError"),
        ("child.write_sidecars", "ctypes.string_at(0)"),
        ("child.write_sidecars", "time.sleep(60)"),
    ],
)
async def test_a_merge_stands_whatever_becomes_of_what_lies_beside_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: str
) -> None:
    program = f"""
import ctypes, os, time
from services.merge.media import child, nursery, stills
def fault(*_): {fault}
{place} = fault
nursery.main()
"""
    monkeypatch.setattr(forked, "COMMAND", (sys.executable, "-c", program))
    parts, video = [made.folder / f"{number}.mov" for number in range(3)], tmp_path / "merged.mp4"
    limits = Limits(wall_seconds=5 if "sleep" in fault else 60)
    merged = await MediaRunner(limits).merge(parts, video, Quality.LOW, lambda *_: None, beside(tmp_path, 3))
    assert merged == replace(made.merged, beside=None)
    assert list(tmp_path.iterdir()) == [video]
    assert video.read_bytes() == made.video.read_bytes()


async def test_what_lies_beside_a_video_that_was_copied_is_turned_as_it_is(tmp_path: Path) -> None:
    sources = [tmp_path / f"{number}.mov" for number in range(2)]
    for source, colour in zip(sources, COLOURS, strict=False):
        make_clip(source, seconds=1, colour=colour, size=SIZE, rotation=90)
    media, video = MediaRunner(), tmp_path / "merged.mp4"
    merged = await media.copy(sources, video, Quality.LOW, lambda *_: None)
    targets = [tmp_path / name for name in ("0.jpg", "1.jpg", "board.jpg", "hls.mp4")]
    files = await media.sidecars(video, targets, merged.frames)
    assert files.tile_frames == files.part_frames == (0, 30)
    assert (files.tile_width, files.tile_height) == (90, 160)
    for path, colour in zip(targets[:2], COLOURS, strict=False):
        poster = picture(path)
        assert (poster.width, poster.height) == (360, 640)
        assert shows(poster, 0.5, 0.6, colour)
        corners = {(x, y): Picture(Fraction(0), True, poster).yuv(x, y)[0] for x in (0.1, 0.9) for y in (0.1, 0.9)}
        assert min(corners, key=lambda place: corners[place]) == (0.9, 0.1), "the stored top left corner, turned"
    plain, fragmented = pictures(video), pictures(targets[3])
    assert [one.number for one in fragmented] == [one.number for one in plain] == list(range(60))
    assert {one.frame.rotation for one in fragmented} == {one.frame.rotation for one in plain} != {0}
    assert samples(targets[3]) == samples(video)
