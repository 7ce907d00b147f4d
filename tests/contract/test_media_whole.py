"""Any clips, joined: the segments tile the file, to the frame and to the sample.

A few mixes in ``make test``, always the same; more by ``MEDIA_MIXES=500``, which then are new ones each time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from av.video.reformatter import Colorspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.clips import BLUE, GREEN, RED, Colour
from services.merge.media.limits import Limits
from services.merge.media.normalise import normalise
from services.merge.media.runner import MediaRunner
from services.merge.media.source import Source
from services.merge.timeline import FPS, SAMPLES_PER_FRAME, Canvas, Quality, segments
from tests.contract.media_fixtures import beeps, flashes, idr_frames, looks_like, pictures, samples
from tests.contract.recordings import Audio, Recording, Tags, record

COLOURS: Sequence[Colour] = (RED, GREEN, BLUE, (190, 160, 30))
CANVASES = (Canvas(160, 120), Canvas(120, 160), Canvas(160, 90))
BROWSER = [("vp8", ".webm"), ("vp9", ".webm")]
PHONE = [("h264", ".mp4"), ("h264 with B-frames", ".mov"), ("hevc", ".mov"), ("av1", ".mp4"), ("h264", ".mkv")]
SYNC = Fraction(5, 1000)
MIXES = int(os.environ.get("MEDIA_MIXES", "0"))


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    browser = draw(st.booleans())
    codec, suffix = draw(st.sampled_from(BROWSER if browser else PHONE))
    # Matroska rounds to milliseconds: only rates whose last frame then ends in no slot's middle.
    rounded = suffix in (".webm", ".mkv")
    fps = Fraction(draw(st.sampled_from((25, 30, 50) if rounded else (24, 25, 30, 50, 60))))
    seconds = Fraction(draw(st.integers(3, 6)), 5)
    recording = Recording(
        suffix=suffix,
        codec=codec,
        seconds=seconds,
        fps=fps,
        flash_at=Fraction(1, 2) if fps == 24 else Fraction(2, 5),
        start=draw(st.sampled_from((Fraction(0), Fraction(1), Fraction(3)))),
        size=draw(st.sampled_from(((160, 120), (120, 160), (98, 162), (320, 180)))),
        rotation=0 if rounded else draw(st.sampled_from((0, 90, 180, 270))),
        audio=draw(sounds(browser)),
        live=browser,
    )
    if recording.start == 0 and recording.audio is not None and recording.audio.delay < 0:
        recording = replace(recording, start=Fraction(1))
    if draw(st.booleans()):
        kept = draw(st.lists(st.booleans(), min_size=len(recording.shown), max_size=len(recording.shown)))
        recording = irregular(recording, kept)
    return recording


def sounds(browser: bool) -> st.SearchStrategy[Audio | None]:
    sound = st.builds(
        Audio,
        codec=st.just("opus") if browser else st.sampled_from(("aac", "mp3")),
        rate=st.just(48_000) if browser else st.sampled_from((44_100, 48_000)),
        layout=st.sampled_from(("mono", "stereo")),
        delay=st.sampled_from((Fraction(0), Fraction(1, 5), Fraction(-1, 5))),
        seconds=st.sampled_from((None, Fraction(3, 2))),
    )
    return st.none() | sound


def irregular(recording: Recording, kept: list[bool]) -> Recording:
    """Frames are missing: never the first, the last two, or the flash's first and the one after it."""
    shown = recording.shown
    needed = {shown[0], *shown[-2:]}
    for flash in recording.flashes:
        needed |= {flash, next((t for t in shown if t >= flash + Fraction(1, 10)), shown[-1])}
    return replace(recording, times=tuple(t for t, keep in zip(shown, kept, strict=True) if keep or t in needed))


def expected_frames(recording: Recording) -> int:
    end = recording.shown[-1] + 1 / recording.fps
    return int(end * FPS + Fraction(1, 2))


def mixes(usual: int) -> settings:
    return settings(
        max_examples=MIXES or usual,
        derandomize=not MIXES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@mixes(12)
@given(st.lists(recordings(), min_size=2, max_size=4), st.sampled_from(CANVASES))
async def test_segments_of_any_mix_of_clips_tile_the_file(mix: list[Recording], canvas: Canvas) -> None:
    with tempfile.TemporaryDirectory() as folder:
        coloured = [replace(one, colour=colour) for one, colour in zip(mix, COLOURS, strict=False)]
        sources = [record(Path(folder) / str(n), one) for n, one in enumerate(coloured)]
        parts, counts = [], []
        for source in sources:
            part = source.with_name(source.name + ".part")
            with source.open("rb", buffering=0) as file, part.open("w+b") as out:
                clip = normalise(Source(file, Limits(), 1), out, canvas, Quality.LOW, lambda *step: None)
            parts.append(part)
            counts.append(clip.frames)
        target = Path(folder) / "merged.mp4"
        merged = await MediaRunner().merge(parts, target, Quality.LOW, lambda *step: None)

        assert counts == [expected_frames(one) for one in coloured]
        assert merged.frames == tuple(counts)
        check(target, coloured, merged.frames)


@st.composite
def alike(draw: st.DrawFn) -> list[Recording]:
    """Clips whose video can be copied: one encoder, one size; everything else differs."""
    codec = draw(st.sampled_from(("h264", "h264 with B-frames")))
    rotation = draw(st.sampled_from((0, 90, 180)))
    clips = []
    for _ in range(draw(st.integers(2, 4))):
        start = draw(st.sampled_from((Fraction(0), Fraction(1), Fraction(7, 3))))
        sound = draw(sounds(browser=False))
        if sound is not None and sound.delay < 0:
            start = max(start, Fraction(1))
        seconds = Fraction(draw(st.integers(16, 40)), FPS)
        tags = Tags(Colorspace.ITU709)
        clips.append(
            Recording(codec=codec, rotation=rotation, seconds=seconds, start=start, audio=sound, tags=tags)
        )
    return clips


@mixes(6)
@given(alike())
async def test_segments_of_clips_that_are_copied_tile_the_file(mix: list[Recording]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        coloured = [replace(one, colour=colour) for one, colour in zip(mix, COLOURS, strict=False)]
        sources = [record(Path(folder) / str(n), one) for n, one in enumerate(coloured)]
        target = Path(folder) / "merged.mp4"
        merged = await MediaRunner().copy(sources, target, Quality.LOW, lambda *step: None)

        assert merged.frames == tuple(expected_frames(one) for one in coloured)
        check(target, coloured, merged.frames)


async def test_flash_and_beep_at_the_very_start_of_each_clip_are_at_its_start(tmp_path: Path) -> None:
    recordings = (
        Recording(suffix=".mov", rotation=90, flash_at=Fraction(0)),
        Recording(suffix=".webm", codec="vp8", audio=Audio("opus"), live=True, flash_at=Fraction(0)),
        Recording(codec="hevc", fps=Fraction(25), audio=Audio(rate=44_100, layout="mono"), flash_at=Fraction(0)),
    )
    parts = []
    for number, recording in enumerate(recordings):
        source = record(tmp_path / str(number), recording)
        parts.append(tmp_path / f"{number}.part")
        with source.open("rb", buffering=0) as file, parts[-1].open("w+b") as out:
            normalise(Source(file, Limits(), 1), out, CANVASES[0], Quality.LOW, lambda *step: None)
    merged = await MediaRunner().merge(parts, tmp_path / "m.mp4", Quality.LOW, lambda *step: None)

    starts = [Fraction(tile.start_frame, FPS) for tile in segments(merged.frames)]
    assert flashes(pictures(tmp_path / "m.mp4")) == starts
    heard = beeps(samples(tmp_path / "m.mp4"))
    assert all(abs(a - b) < SYNC for a, b in zip(heard, starts, strict=True))


def check(target: Path, recorded: list[Recording], frames: tuple[int, ...]) -> None:
    shown, heard = pictures(target), samples(target)
    assert [picture.number for picture in shown] == list(range(sum(frames)))
    assert 0 <= len(heard) - sum(frames) * SAMPLES_PER_FRAME < 1024
    tiles = segments(frames)
    assert {tile.start_frame for tile in tiles} <= set(idr_frames(target))
    for tile, recording in zip(tiles, recorded, strict=True):
        own = shown[tile.start_frame :][: tile.frame_count]
        assert all(looks_like(p.yuv(), recording.colour) or p.yuv()[0] > 210 for p in own)
        seen = flashes(own)
        assert seen == [Fraction(round(flash * FPS), FPS) for flash in recording.flashes]
        first = tile.start_frame * SAMPLES_PER_FRAME
        sounded = beeps(heard[first:][: tile.frame_count * SAMPLES_PER_FRAME])
        assert len(sounded) == (0 if recording.audio is None else len(seen))
        assert all(abs(a - b) < SYNC for a, b in zip(seen, sounded, strict=False))
