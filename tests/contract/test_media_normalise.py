"""What phones, cameras and browsers record comes out right: measured, frame by frame and sample by sample.

Normalising runs in the tests' own process: the recordings are the tests' own. The locked child is another suite's.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import av
import pytest
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from mesh.clips import BLUE, GREEN, RED, Colour
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.limits import Limits
from services.merge.media.normalise import normalise
from services.merge.media.probe import probe
from services.merge.media.source import Source
from services.merge.timeline import FPS, SAMPLES_PER_FRAME, Canvas, ClipInfo, NormalisedClip, Quality
from tests.contract.edit_lists import Edit, edit
from tests.contract.media_fixtures import (
    beeps,
    coded_samples,
    flashes,
    idr_frames,
    looks_like,
    pictures,
    samples,
    sync,
)
from tests.contract.recordings import BEEP_LEVEL, Audio, Recording, Tags, record

CANVAS = Canvas(160, 120)
SYNC = Fraction(5, 1000)
OPUS = Audio("opus")


def normalised(
    source: Path, canvas: Canvas = CANVAS, quality: Quality = Quality.LOW
) -> tuple[NormalisedClip, Path]:
    target = source.with_name(source.name + ".mov")
    with source.open("rb", buffering=0) as file, target.open("w+b") as out:
        clip = normalise(Source(file, Limits(), 1), out, canvas, quality, lambda done, expected: None)
    return clip, target


def probed(source: Path, limits: Limits | None = None) -> ClipInfo:
    with source.open("rb", buffering=0) as file:
        return probe(Source(file, limits or Limits(), 1))


def check(recording: Recording, source: Path, frames: int) -> Path:
    """All that holds for whatever was recorded. Returns the normalised file."""
    clip, target = normalised(source)
    shown = pictures(target)
    assert clip.frames == frames
    assert [picture.number for picture in shown] == list(range(frames))
    assert coded_samples(target) == frames * SAMPLES_PER_FRAME
    assert idr_frames(target)[0] == 0
    bright = [picture.yuv()[0] > 210 for picture in shown]
    assert all(looks_like(p.yuv(), recording.colour) for p, flash in zip(shown, bright, strict=True) if not flash)
    assert len(flashes(shown)) == len(recording.flashes)
    if recording.audio is not None:
        assert sync(target) < SYNC
    frame = shown[0].frame
    tags = (frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries, frame.format.name)
    assert tags == (1, 1, 1, 1, "yuv420p")
    return target


@pytest.mark.parametrize(
    ("recording", "frames"),
    [
        pytest.param(Recording(fps=Fraction(24), flash_at=Fraction(1, 2)), 30, id="24 fps"),
        pytest.param(Recording(fps=Fraction(25)), 30, id="25 fps"),
        pytest.param(Recording(fps=Fraction(30_000, 1001)), 29, id="29.97 fps"),
        pytest.param(Recording(fps=Fraction(50), suffix=".mov"), 30, id="50 fps"),
        pytest.param(Recording(fps=Fraction(60)), 30, id="60 fps"),
        pytest.param(Recording(fps=Fraction(120), suffix=".mov"), 30, id="120 fps"),
        pytest.param(Recording(fps=Fraction(15), seconds=Fraction(2)), 60, id="15 fps, two flashes"),
        pytest.param(Recording(codec="h264 with B-frames", seconds=Fraction(2)), 60, id="B-frames"),
        pytest.param(Recording(options={"profile": "baseline"}), 30, id="H.264 baseline"),
        pytest.param(Recording(codec="h264 with B-frames", options={"profile": "high"}), 30, id="H.264 high"),
        pytest.param(Recording(pix_fmt="yuv420p10le"), 30, id="H.264 high 10"),
        pytest.param(Recording(pix_fmt="yuv422p"), 30, id="4:2:2"),
        pytest.param(Recording(pix_fmt="yuv444p", size=(161, 121)), 30, id="4:4:4 of odd size"),
        pytest.param(Recording(codec="hevc", tag="hvc1", suffix=".mov"), 30, id="HEVC hvc1"),
        pytest.param(Recording(codec="hevc", tag="hev1"), 30, id="HEVC hev1"),
        pytest.param(Recording(codec="hevc", tag="hvc1", pix_fmt="yuv420p10le"), 30, id="HEVC of 10 bits, SDR"),
        pytest.param(Recording(codec="vp8", suffix=".webm", audio=OPUS, live=True), 30, id="VP8 without duration"),
        pytest.param(Recording(codec="vp9", suffix=".webm", audio=OPUS, live=True), 30, id="VP9 without duration"),
        pytest.param(
            Recording(codec="vp9", suffix=".webm", audio=OPUS, size=(163, 121)), 30, id="VP9 of odd size"
        ),
        pytest.param(Recording(live=True, options={"g": "15"}), 30, id="fragmented MP4"),
        pytest.param(Recording(live=True, audio=OPUS), 30, id="fragmented MP4 with Opus"),
        pytest.param(Recording(codec="av1"), 30, id="AV1 in MP4"),
        pytest.param(Recording(codec="av1", suffix=".webm", audio=OPUS, live=True), 30, id="AV1 in WebM"),
        pytest.param(Recording(audio=Audio(rate=44_100)), 30, id="44.1 kHz"),
        pytest.param(Recording(audio=Audio(rate=44_100, layout="mono")), 30, id="44.1 kHz mono"),
        pytest.param(Recording(audio=Audio(layout="5.1"), suffix=".mov"), 30, id="5.1"),
        pytest.param(Recording(audio=Audio("mp3", rate=44_100)), 30, id="MP3"),
        pytest.param(
            Recording(audio=Audio("pcm", rate=16_000, layout="mono"), suffix=".mov"), 30, id="PCM 16 kHz"
        ),
        pytest.param(Recording(audio=None), 30, id="no sound"),
        pytest.param(Recording(audio=Audio(delay=Fraction(3, 10))), 30, id="late sound"),
        pytest.param(Recording(audio=Audio(delay=Fraction(-1, 2)), start=Fraction(1)), 30, id="sound first"),
        pytest.param(Recording(audio=Audio(seconds=Fraction(6, 10))), 30, id="short sound"),
        pytest.param(Recording(audio=Audio(seconds=Fraction(3))), 30, id="long sound"),
        pytest.param(Recording(start=Fraction(7, 3)), 30, id="both begin late"),
        pytest.param(Recording(start=Fraction(3), suffix=".mkv"), 30, id="both begin late in Matroska"),
    ],
)
def test_clip_is_made_of_whole_frames_and_its_sound_is_with_them(
    tmp_path: Path, recording: Recording, frames: int
) -> None:
    target = check(recording, record(tmp_path / "a", recording), frames)
    heard = samples(target)
    if recording.audio is None:
        assert not any(heard)
        return
    first = max(0, round(recording.audio.delay * 48_000) - 1024)
    assert not any(heard[:first])
    if recording.audio.seconds is not None:
        assert not any(heard[round(recording.audio.seconds * 48_000) + 2048 :])


@pytest.mark.parametrize("codec", ["h264", "h264 with B-frames", "hevc"])
@pytest.mark.parametrize("gaps", [(1, 3, 2, 1, 6, 4, 2, 1, 1, 1, 5, 1, 2, 1, 3, 1), (1, 1, 1, 1, 8, 4, 1)])
def test_variable_rate_is_shown_at_its_own_times(tmp_path: Path, codec: str, gaps: tuple[int, ...]) -> None:
    times = tuple(Fraction(k, FPS) for k in accumulate(gaps, initial=0))
    recording = Recording(codec=codec, times=times, flash_at=times[5], seconds=times[-1] + Fraction(1, FPS))
    target = check(recording, record(tmp_path / "a", recording), sum(gaps) + 1)
    assert flashes(pictures(target)) == [times[5]]


@pytest.mark.parametrize("codec", ["h264", "h264 with B-frames", "hevc"])
@pytest.mark.parametrize(
    ("edits", "frames", "flash"),
    [
        pytest.param([Edit(Fraction(13, 10), Fraction(3, 10))], 39, Fraction(1, 10), id="beginning cut"),
        pytest.param([Edit(Fraction(1), Fraction(9, 10))], 30, Fraction(1, 2), id="both ends cut"),
        pytest.param([Edit(Fraction(1, 2)), Edit(Fraction(1), Fraction(0))], 30, Fraction(2, 5), id="delayed"),
    ],
)
def test_only_what_an_edit_list_shows_is_taken(
    tmp_path: Path, codec: str, edits: list[Edit], frames: int, flash: Fraction
) -> None:
    recording = Recording(codec=codec, seconds=Fraction(2))
    source = record(tmp_path / "a", recording)
    edit(source, edits)
    clip, target = normalised(source)

    assert clip.frames == frames
    assert coded_samples(target) == frames * SAMPLES_PER_FRAME
    assert flashes(pictures(target))[0] == flash
    assert sync(target) < SYNC
    assert probed(source).duration == pytest.approx(frames / FPS, abs=0.001)


def test_a_cut_in_the_middle_is_exact_in_picture_and_a_block_of_sound(tmp_path: Path) -> None:
    """FFmpeg begins the sound of a second edit with the next whole block (1024 samples of AAC)."""
    source = record(tmp_path / "a", Recording(seconds=Fraction(2)))
    edit(source, [Edit(Fraction(3, 5), Fraction(0)), Edit(Fraction(4, 5), Fraction(6, 5))])
    clip, target = normalised(source)

    assert clip.frames == 42
    assert flashes(pictures(target)) == [Fraction(2, 5), Fraction(4, 5)]
    assert sync(target) < Fraction(1024, 48_000)


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_clip_is_turned_upright_whatever_its_pixels(tmp_path: Path, rotation: int, codec: str) -> None:
    recording = Recording(
        codec=codec, rotation=rotation, suffix=".mov", seconds=Fraction(1, 5), aspect=Fraction(4, 3), audio=None
    )
    source = record(tmp_path / "a", recording)
    info = probed(source)
    across = (213, 120) if rotation == 180 else (120, 213)
    assert ((info.width, info.height), info.rotation) == (across, rotation)

    _, target = normalised(source, Canvas(240, 240))
    picture = pictures(target)[0]
    x, y = (0.05, 0.28) if rotation == 180 else (0.28, 0.05)  # just inside the longer side, outside the shorter
    corners = {place: picture.yuv(*place)[0] for place in ((x, y), (1 - x, y), (x, 1 - y), (1 - x, 1 - y))}
    dark = {90: (1 - x, y), 180: (1 - x, 1 - y), 270: (x, 1 - y)}[rotation]
    assert min(corners, key=lambda place: corners[place]) == dark
    assert sum(luma > 40 for luma in corners.values()) == 3
    assert picture.yuv(y - 0.1, x) == (16, 128, 128) if rotation == 180 else picture.yuv(0.15, 0.5)[0] == 16


# Colour

BT709, BT601 = Colorspace.ITU709, Colorspace.ITU601


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE])
@pytest.mark.parametrize(
    ("tags", "pix_fmt"),
    [
        pytest.param(Tags(BT709), "yuv420p", id="709"),
        pytest.param(Tags(BT601), "yuv420p", id="601"),
        pytest.param(Tags(BT709, full=True), "yuv420p", id="709, full range"),
        pytest.param(Tags(BT601, full=True), "yuvj420p", id="601, full range"),
        pytest.param(Tags(full=True), "yuvj420p", id="untagged, full range"),
        pytest.param(Tags(BT709, full=True), "yuv444p10le", id="709, full range, 10 bits"),
    ],
)
def test_colours_are_those_that_were_recorded(tmp_path: Path, tags: Tags, pix_fmt: str, colour: Colour) -> None:
    recording = Recording(tags=tags, pix_fmt=pix_fmt, colour=colour, audio=None, seconds=Fraction(1, 5))
    target = check(recording, record(tmp_path / "a", recording), 6)
    picture = pictures(target)[0]
    assert abs(picture.yuv(0.1, 0.1)[0] - 16) <= 1
    whole = replace(recording, flash_at=Fraction(0))
    _, target = normalised(record(tmp_path / "white", whole))
    assert abs(pictures(target)[0].yuv()[0] - 235) <= 1


HLG = Tags(Colorspace.BT2020, primaries=ColorPrimaries.BT2020, transfer=ColorTrc.ARIB_STD_B67)
PQ = replace(HLG, matrix=None, transfer=ColorTrc.SMPTE2084)


@pytest.mark.parametrize(
    ("tags", "grey", "white", "red"),
    [
        pytest.param(HLG, 0.38, 0.75, (79, 117, 179), id="HLG"),
        pytest.param(PQ, 0.38, 0.58, (66, 110, 215), id="PQ, matrix untagged"),
    ],
)
def test_hdr_is_shown_in_sdr_as_bright_as_it_was_meant(
    tmp_path: Path, tags: Tags, grey: float, white: float, red: Colour
) -> None:
    """BT.2408: 26 cd/m2 for grey, 203 for white; what is brighter has to fit above white.

    ``red`` is what BT.2020's matrix and primaries make of the same colour; without either it is paler.
    """
    levels = [round(16 + 219 * level) for level in (0, grey, white, 1)]
    codes = (*((luma, 128, 128) for luma in levels), (90, 110, 170))
    recording = Recording(
        suffix=".mov",
        codec="hevc",
        tag="hvc1",
        pix_fmt="yuv420p10le",
        tags=tags,
        codes=codes,
        seconds=Fraction(len(codes), FPS),
        audio=None,
    )
    shown = pictures(normalised(record(tmp_path / "a", recording), quality=Quality.HIGH)[1])

    *neutral, reddish = [picture.yuv() for picture in shown]
    black, grey_out, white_out, brightest = [luma for luma, _, _ in neutral]
    assert black == 16
    assert brightest > 225
    assert 75 < grey_out < 125
    assert 140 < white_out < 215
    assert all(abs(chroma - 128) <= 2 for picture in neutral for chroma in picture[1:])
    assert all(abs(a - b) <= 4 for a, b in zip(reddish, red, strict=True))
    frame = shown[0].frame
    assert (frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries) == (1, 1, 1, 1)


def test_fields_of_an_interlaced_clip_are_not_woven(tmp_path: Path) -> None:
    recording = Recording(codec="h264 interlaced", fps=Fraction(25), size=(160, 240), audio=None)
    _, target = normalised(record(tmp_path / "a", recording), Canvas(160, 240))
    for picture in pictures(target)[1:]:
        luma = picture.frame.planes[0]
        data = memoryview(luma)
        upper, lower = (data[row * luma.line_size :][:160] for row in (120, 121))
        assert sum(abs(a - b) for a, b in zip(upper, lower, strict=True)) < 200


# Sound


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_a_voice_is_as_loud_from_one_channel_as_from_all(tmp_path: Path, layout: str) -> None:
    recording = Recording(audio=Audio(layout=layout))
    heard = samples(normalised(record(tmp_path / "a", recording))[1])
    assert max(heard) == pytest.approx(BEEP_LEVEL, rel=0.05)


@pytest.mark.parametrize("pace", [Fraction(1003, 1000), Fraction(997, 1000)])
def test_sound_that_has_a_clock_of_its_own_stays_with_the_picture(tmp_path: Path, pace: Fraction) -> None:
    """Nine milliseconds in three seconds, which is sixty times worse than real ones."""
    recording = Recording(seconds=Fraction(3), suffix=".mkv", audio=Audio(pace=pace))
    check(recording, record(tmp_path / "a", recording), 90)


def test_sound_is_not_cut_up_for_timestamps_that_waver(tmp_path: Path) -> None:
    recording = Recording(seconds=Fraction(2), suffix=".mkv")
    assert recording.audio is not None
    wavering = replace(recording, audio=replace(recording.audio, jitter=Fraction(6, 1000)))
    heard = [samples(normalised(record(tmp_path / n, r))[1]) for n, r in (("a", recording), ("b", wavering))]
    assert heard[0] == heard[1]


def test_sound_is_taken_from_the_first_track_that_can_be_heard(tmp_path: Path) -> None:
    """A phone's recording has tracks that only its maker reads, sound among them."""
    recording = Recording()
    plain, source = record(tmp_path / "a", recording), tmp_path / "b.mp4"
    with av.open(plain) as container, av.open(source, "w") as out:
        video, sound = container.streams.video[0], container.streams.audio[0]
        picture = out.add_stream_from_template(video)
        sounds = [out.add_stream_from_template(sound) for _ in range(11)]
        for packet in container.demux(video, sound):
            for stream in (picture,) if packet.stream is video else sounds:
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    source.write_bytes(source.read_bytes().replace(b"mp4a", b"XYZa", 1).replace(b"esds", b"XYZd", 1))
    with av.open(source) as container:
        assert len(container.streams) == 12
        assert [bool(stream.codec_context) for stream in container.streams.audio] == [False] + 10 * [True]

    assert probed(source).audio_codec == "aac"
    check(recording, source, 30)


# Several pictures, several sizes


def test_a_size_that_changes_midway_is_fitted_anew(tmp_path: Path) -> None:
    """A browser does that when the phone is turned while recording."""
    parts = []
    for name, size, colour in (("a", (160, 120), RED), ("b", (120, 160), BLUE)):
        recording = Recording(
            suffix=".webm", codec="vp8", size=size, colour=colour, audio=None, seconds=Fraction(1, 3)
        )
        parts.append(record(tmp_path / name, recording))
    joined = tmp_path / "joined.webm"
    with av.open(joined, "w", format="webm") as out, av.open(parts[0]) as first:
        stream = out.add_stream_from_template(first.streams.video[0])
        for number, part in enumerate(parts):
            with av.open(part) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        assert packet.pts is not None
                        packet.pts = packet.dts = packet.pts + round(number / 3 / packet.time_base)
                        packet.stream = stream
                        out.mux(packet)
    clip, target = normalised(joined)

    shown = pictures(target)
    assert clip.frames == len(shown) == 20
    assert all(looks_like(picture.yuv(), RED) for picture in shown[:10])
    assert all(looks_like(picture.yuv(), BLUE) for picture in shown[10:])
    assert shown[-1].yuv(0.1, 0.5) == shown[-1].yuv(0.9, 0.5) == (16, 128, 128)


# Refusals


def refusal(source: Path) -> tuple[str, str]:
    """Of the probe, and of normalising."""
    types = []
    for job in (probed, normalised):
        with pytest.raises(MediaError) as caught:
            job(source)
        assert not caught.value.retryable
        types.append(caught.value.error_type)
    return types[0], types[1]


def test_an_upload_that_is_cut_off_is_refused_in_every_container_that_says_how_long_it_is(tmp_path: Path) -> None:
    for suffix, codec, audio in ((".webm", "vp8", OPUS), (".mkv", "h264", Audio())):
        recording = Recording(suffix=suffix, codec=codec, audio=audio, seconds=Fraction(3))
        source = record(tmp_path / "a", recording)
        whole = source.read_bytes()
        assert probed(source).duration == pytest.approx(3, abs=0.05)
        source.write_bytes(whole[: len(whole) * 6 // 10])
        assert refusal(source) == (ErrorType.TRUNCATED, ErrorType.TRUNCATED)


def test_pictures_that_cannot_be_decoded_are_not_passed_over(tmp_path: Path) -> None:
    """Two thirds of the packets are noise; the first second, more than a probe decodes, is whole."""
    source = record(tmp_path / "a", Recording(seconds=Fraction(3), audio=None, options={"g": "1"}))
    data = bytearray(source.read_bytes())
    with av.open(source) as container:
        places = [(p.pos, p.size) for p in list(container.demux(video=0))[FPS + 1 :] if p.size]
    for position, size in places:
        assert position is not None
        data[position + 4 : position + size] = bytes([0xFF]) * (size - 4)
    source.write_bytes(data)
    assert probed(source).duration == 3
    with pytest.raises(MediaError) as caught:
        normalised(source)
    assert caught.value.error_type in (ErrorType.DECODE_FAILED, ErrorType.TRUNCATED)


def test_a_clip_that_hides_most_of_its_length_is_as_long_as_what_it_shows(tmp_path: Path) -> None:
    source = record(tmp_path / "a", Recording(seconds=Fraction(3)))
    with pytest.raises(MediaError) as caught:
        probed(source, Limits(max_clip_seconds=1))
    assert caught.value.error_type == ErrorType.CLIP_TOO_LONG
    edit(source, [Edit(Fraction(1), Fraction(1))])
    assert probed(source, Limits(max_clip_seconds=1)).duration == pytest.approx(1, abs=0.001)


def test_beeps_are_found_where_they_were_written(tmp_path: Path) -> None:
    """The ruler itself: what was recorded is what is measured, before anything was normalised."""
    recording = Recording(suffix=".mov", audio=Audio("pcm"), seconds=Fraction(2))
    source = record(tmp_path / "a", recording)
    assert flashes(pictures(source)) == recording.flashes == [Fraction(2, 5), Fraction(7, 5)]
    assert all(
        abs(a - b) < Fraction(1, 1000) for a, b in zip(beeps(samples(source)), recording.flashes, strict=True)
    )
