"""Files made to harm: each ends in its own error, nothing they name is opened, and nothing is left of them."""

from __future__ import annotations

import ctypes
import io
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from mesh.clips import GREEN, RED, Colour, Sound, make_clip, to_yuv
from services.merge.media.coded import coded as coded_video
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.limits import Limits
from services.merge.media.runner import MediaRunner
from services.merge.media.source import Source
from services.merge.media.survey import survey
from services.merge.timeline import Canvas, Quality
from tests.contract.edit_lists import Edit, edit
from tests.contract.media_fixtures import looks_like, pictures
from tests.contract.media_locked import DONE, PRECISE, LockedJobs
from tests.contract.recordings import Recording, record

CANVAS = Canvas(64, 48)
SIZE = (64, 48)
WALL = 60.0
GRACE = 2.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where the test puts its file: alone in its folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder / "clip.mp4"


@pytest.fixture
async def good(tmp_path: Path, source: Path) -> AsyncIterator[None]:
    """At the end a good clip is done by a runner like the one before: it lives."""
    yield
    make_clip(tmp_path / "good.mp4", seconds=0.1, colour=GREEN, size=SIZE)
    assert (await MediaRunner().probe(tmp_path / "good.mp4")).duration == pytest.approx(0.1)


async def refusals(source: Path, limits: Limits | None = None) -> set[str]:
    """What the two jobs that read a clip say. In time; the folder holds the clip alone afterwards."""
    runner = MediaRunner(limits or Limits(wall_seconds=WALL))
    target = source.with_name("target.mov")
    began, said = time.monotonic(), set[str]()
    for job in (
        lambda: runner.probe(source),
        lambda: runner.normalise(source, target, CANVAS, Quality.LOW, lambda done, expected: None),
    ):
        with pytest.raises(MediaError) as caught:
            await job()
        assert not caught.value.retryable
        said.add(caught.value.error_type)
    assert time.monotonic() - began < 2 * (WALL + GRACE)
    assert list(source.parent.iterdir()) == [source]
    return said


# What names other files and addresses


class Watched:
    """A file and an address that nobody may touch."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(b"secret")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._libc.inotify_add_watch(self._events, os.fsencode(file), 0x21) >= 0  # IN_ACCESS | IN_OPEN
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]

    def touched(self) -> bool:
        with suppress(BlockingIOError):
            os.read(self._events, 4096)
            return True
        with suppress(BlockingIOError):
            self._listening.accept()
            return True
        return False

    def close(self) -> None:
        os.close(self._events)
        self._listening.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "secret.mp4")
    yield watched
    watched.close()


def concat(file: str, url: str) -> bytes:
    return f"ffconcat version 1.0\nfile '{file}'\nfile '{url}'\n".encode()


def hls(file: str, url: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXTINF:9,\nfile://{file}\n#EXT-X-ENDLIST\n".encode()


def dash(file: str, url: str) -> bytes:
    return f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
      mediaPresentationDuration="PT9S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
      <AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL>
      </Representation></AdaptationSet></Period></MPD>""".encode()


def sdp(file: str, url: str) -> bytes:
    port = int(url.split(":")[2].split("/", 1)[0])
    return f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n".encode()


def movie_of_another_file(file: str, url: str) -> bytes:
    """QuickTime lets a track say that its samples lie elsewhere (a data reference by URL)."""
    clip = Path(file).with_name("clip.mov")
    make_clip(clip, seconds=0.2, colour=RED, size=SIZE, sound=None)
    data = bytearray(clip.read_bytes())
    place = data.index(b"dref") - 4
    old = int.from_bytes(data[place : place + 4], "big")
    new = _box(
        b"dref", struct.pack(">II", 0, 1) + _box(b"url ", struct.pack(">I", 0) + f"file://{file}\0".encode())
    )
    for around in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        start = data.rindex(around, 0, place) - 4
        size = int.from_bytes(data[start : start + 4], "big") + len(new) - old
        data[start : start + 4] = size.to_bytes(4, "big")
    data[place : place + old] = new
    return bytes(data)


def _box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


Lure = Callable[[str, str], bytes]


@pytest.mark.parametrize("lure", [concat, hls, dash, sdp, movie_of_another_file])
async def test_nothing_that_a_file_names_is_opened(source: Path, watched: Watched, good: None, lure: Lure) -> None:
    source.write_bytes(lure(str(watched.file), f"http://127.0.0.1:{watched.port}/a.mp4"))
    assert await refusals(source) <= {ErrorType.NOT_A_VIDEO, ErrorType.DECODE_FAILED}
    assert not watched.touched()

    # Nor without the lock: it is not even tried.
    with source.open("rb") as file, suppress(MediaError), Source(file, Limits(), 1).container():
        pass
    assert not watched.touched()
    watched.file.read_bytes()
    assert watched.touched()


# What is not all there


def prefixes(data: bytes, borders: list[int]) -> list[int]:
    """Lengths: every byte around the borders, samples in between."""
    near = {border + step for border in borders for step in range(-2, 10)}
    spread = range(0, len(data), max(1, len(data) // 40))
    return sorted(n for n in near | set(spread) if 0 <= n < len(data))


def box_borders(data: bytes) -> list[int]:
    """Where the boxes of an MP4 begin, those within ``moov`` too."""
    found, position = [], 0
    while position + 8 <= len(data):
        found.append(position)
        size = int.from_bytes(data[position : position + 4], "big")
        inside = data[position + 4 : position + 8] in {b"moov", b"trak", b"mdia", b"minf", b"stbl"}
        position += 8 if inside else max(8, size)
    return found


@contextmanager
def locked_jobs() -> Iterator[LockedJobs]:
    jobs = LockedJobs()
    try:
        yield jobs
    finally:
        jobs.close()


def test_every_beginning_of_a_file_with_its_index_first_is_short_of_its_end(source: Path) -> None:
    make_clip(source, seconds=1.6, colour=RED, size=SIZE)
    data = source.read_bytes()
    with locked_jobs() as jobs:
        said = {n: jobs.outcome(data[:n]) for n in prefixes(data, box_borders(data))}
        assert jobs.outcome(data) == DONE
        assert jobs.deaths == 0
    assert {outcome for n, outcome in said.items() if n < 8} == {ErrorType.NOT_A_VIDEO}
    assert {outcome for n, outcome in said.items() if 8 <= n < len(data) // 2} == {ErrorType.TRUNCATED}
    assert set(said.values()) <= {ErrorType.NOT_A_VIDEO, ErrorType.TRUNCATED, DONE}


def test_every_beginning_of_a_file_with_its_index_last_is_short_of_its_end(source: Path) -> None:
    make_clip(source.with_suffix(".mov"), seconds=0.2, colour=RED, size=SIZE)
    with av.open(source.with_suffix(".mov")) as whole, av.open(source, "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    data = source.read_bytes()
    assert data.index(b"moov") > data.index(b"mdat")
    with locked_jobs() as jobs:
        said = {n: jobs.outcome(data[:n]) for n in prefixes(data, box_borders(data))}
        assert jobs.outcome(data) == DONE
        assert jobs.deaths == 0
    tracks_end = box_borders(data)[-1]  # what follows them in the index, nobody needs
    assert {outcome for n, outcome in said.items() if 8 <= n < tracks_end} == {ErrorType.TRUNCATED}
    assert {outcome for n, outcome in said.items() if n >= tracks_end} <= {ErrorType.TRUNCATED, DONE}


def test_every_beginning_of_a_recording_is_done_or_refused(source: Path) -> None:
    """It tells no length: of one that was cut nobody can say so, and what is there is a clip."""
    recording = source.with_suffix(".webm")
    make_clip(recording, seconds=0.5, colour=RED, size=SIZE, codec="vp8", sound=Sound("opus"), live=True)
    data = recording.read_bytes()
    clusters = [i for i in range(len(data)) if data.startswith(b"\x1f\x43\xb6\x75", i)]
    with locked_jobs() as jobs:
        said = {n: jobs.outcome(data[:n]) for n in prefixes(data, [0, 40, *clusters])}
        assert jobs.outcome(data) == DONE
        assert jobs.deaths == 0
    assert set(said.values()) <= PRECISE
    assert {outcome for n, outcome in said.items() if n > clusters[0] + len(data) // 2} == {DONE}


async def test_a_file_whose_index_was_never_written_is_short_of_its_end(source: Path, good: None) -> None:
    make_clip(source, seconds=0.2, colour=RED, size=SIZE)
    source.write_bytes(source.read_bytes().replace(b"moov", b"void"))
    assert await refusals(source) == {ErrorType.TRUNCATED}


# What is too much


def repeated(
    source: Path, times: list[int], *, base: Fraction, size: tuple[int, int] = (64, 64), one_group: bool = False
) -> None:
    """One coded picture, shown at all these times. ``one_group``: the first alone is said to be a keyframe, and
    the index is at the end."""
    with av.open(source, "w", options={} if one_group else {"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.codec_context.width, stream.codec_context.height = size
        stream.codec_context.pix_fmt = "yuv420p"
        picture = VideoFrame(*size, "yuv420p")
        for plane in picture.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        picture.pts, picture.time_base = 0, Fraction(1, 30)
        (packet,) = [*stream.encode(picture), *stream.encode(None)]
        stream.time_base = base
        for moment in times:
            packet.pts = packet.dts = moment
            packet.duration, packet.time_base = 1, base
            packet.is_keyframe = not one_group or moment == times[0]
            packet.stream = stream
            out.mux(packet)


async def test_four_hours_of_a_small_picture_are_too_long(source: Path, good: None) -> None:
    repeated(source, list(range(4 * 3600)), base=Fraction(1))
    assert await refusals(source) == {ErrorType.CLIP_TOO_LONG}


async def test_more_pictures_than_any_camera_takes_are_too_many(source: Path, good: None) -> None:
    repeated(source, list(range(16_000)), base=Fraction(1, 90_000))
    assert await refusals(source) == {ErrorType.TOO_MANY_FRAMES}


async def test_pictures_that_an_edit_list_hides_are_too_many_as_well(source: Path, good: None) -> None:
    """One group of them, of which the last second is shown: all would have to be decoded for it."""
    ticks = list(range(0, 16_000 * 3_000, 3_000))
    repeated(source, ticks, base=Fraction(1, 90_000), one_group=True)
    with pytest.raises(MediaError) as caught:
        await MediaRunner().probe(source)
    assert caught.value.error_type == ErrorType.CLIP_TOO_LONG
    edit(source, [Edit(Fraction(1), Fraction(15_970, 30))])
    began = time.monotonic()
    assert await refusals(source) == {ErrorType.TOO_MANY_FRAMES}
    assert time.monotonic() - began < WALL / 2


@pytest.mark.parametrize(("limit", "refused"), [(29, True), (30, False)])
@pytest.mark.parametrize("pass_over", ["survey", "frames", "coded"])
def test_every_packet_counts_wherever_packets_are_read(
    source: Path, pass_over: str, limit: int, refused: bool
) -> None:
    record(source.with_suffix(""), Recording(audio=None, options={"g": "60"}))
    edit(source, [Edit(Fraction(1, 2), Fraction(1, 2))])
    with source.open("rb") as file:
        clip = Source(file, Limits(max_source_frames=limit), 1)
        with pytest.raises(MediaError, match="many pictures") if refused else nullcontext():
            if pass_over == "survey":
                survey(clip)
            elif pass_over == "coded":
                coded_video(clip, VideoFrame(64, 48))
            else:
                with clip.container() as container:
                    assert len(list(clip.frames(container, clip.video(container)))) == 15


async def test_one_picture_is_a_clip(source: Path, tmp_path: Path) -> None:
    repeated(source, [0], base=Fraction(1, 30))
    runner, target = MediaRunner(), tmp_path / "one.mov"
    assert (await runner.probe(source)).duration == pytest.approx(1 / 30, abs=1e-3)
    done = await runner.normalise(source, target, CANVAS, Quality.LOW, lambda done, expected: None)
    assert done.frames == len(pictures(target)) == 1


def wide(source: Path) -> None:
    """A picture 16,384 wide, of which a few kilobytes tell."""
    with av.open(source, "w", format="mov") as out:
        stream = out.add_stream("png", rate=30)
        stream.codec_context.width, stream.codec_context.height = 16_384, 1_024
        stream.codec_context.pix_fmt = "gray"
        picture = VideoFrame(16_384, 1_024, "gray")
        picture.planes[0].update(bytes(picture.planes[0].buffer_size))
        picture.pts, picture.time_base = 0, Fraction(1, 30)
        out.mux([*stream.encode(picture), *stream.encode(None)])


async def test_a_picture_of_16_thousand_is_too_large(source: Path, good: None) -> None:
    wide(source)
    assert await refusals(source) == {ErrorType.TOO_MANY_PIXELS}


async def test_a_picture_larger_than_its_header_says_is_not_decoded(source: Path, good: None) -> None:
    wide(source)
    data = source.read_bytes()
    place = data.index(b"png ") + 4 + 24  # into the visual sample entry: width, height
    assert struct.unpack(">HH", data[place : place + 4]) == (16_384, 1_024)
    source.write_bytes(data[:place] + struct.pack(">HH", 64, 48) + data[place + 4 :])
    assert await refusals(source, Limits(memory_bytes=600 << 20)) <= {
        ErrorType.TOO_MANY_PIXELS,
        ErrorType.DECODE_FAILED,
    }


@pytest.mark.parametrize("count", [100, 1_500])
async def test_a_thousand_tracks_are_too_many(source: Path, good: None, count: int) -> None:
    """Above a thousand FFmpeg itself gives up."""
    make_clip(source, seconds=0.1, colour=RED, size=SIZE, sound=None)
    data = source.read_bytes()
    start = data.index(b"moov") - 4
    size = int.from_bytes(data[start : start + 4], "big")
    moov = data[start + 8 : start + size]
    track = moov.index(b"trak") - 4
    length = int.from_bytes(moov[track : track + 4], "big")
    many = moov + moov[track : track + length] * (count - 1)
    source.write_bytes(data[:start] + _box(b"moov", many) + data[start + size :])
    assert await refusals(source) == {ErrorType.TOO_MANY_STREAMS}


def test_a_larger_canvas_has_more_time() -> None:
    limits = Limits(wall_seconds=100, cpu_seconds=200)
    assert limits.for_canvas(Canvas(64, 48)) == limits.for_canvas(Canvas(720, 1280)) == limits
    assert limits.for_canvas(Canvas(1920, 1080)).wall_seconds == 225
    assert limits.for_canvas(Canvas(1080, 1920)).cpu_seconds == 450


async def test_h264_that_changes_its_size_midway_is_shown_as_it_is(source: Path, tmp_path: Path) -> None:
    """With its parameters in the stream, as cameras that switch their lens may write it."""
    changing, target = source.with_suffix(".mkv"), tmp_path / "changed.mov"
    stream = b"".join(coded(size, colour) for size, colour in (((160, 120), RED), ((96, 72), GREEN)))
    with av.open(io.BytesIO(stream), "r", format="h264") as raw, av.open(changing, "w") as out:
        track = out.add_stream_from_template(raw.streams.video[0])
        for number, packet in enumerate(packet for packet in raw.demux() if packet.size):
            packet.pts = packet.dts = number * 33
            packet.duration, packet.time_base, packet.stream = 33, Fraction(1, 1000), track
            out.mux(packet)
    done = await MediaRunner().normalise(changing, target, Canvas(160, 120), Quality.LOW, lambda *step: None)

    shown = pictures(target)
    assert done.frames == len(shown) == 20
    for picture, colour in ((shown[0], RED), (shown[9], RED), (shown[10], GREEN), (shown[19], GREEN)):
        for x, y in ((0.1, 0.9), (0.5, 0.5), (0.9, 0.1)):
            assert looks_like(picture.yuv(x, y), colour)


def coded(size: tuple[int, int], colour: Colour) -> bytes:
    """Ten pictures as a raw H.264 stream, parameter sets included."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
    encoder.time_base, encoder.options = Fraction(1, 30), {"preset": "ultrafast", "tune": "zerolatency"}
    packets = []
    for number in range(10):
        picture = VideoFrame(*size, "yuv420p")
        for plane, value in zip(picture.planes, to_yuv(colour, "smpte170m"), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        picture.pts, picture.time_base = number, Fraction(1, 30)
        packets += encoder.encode(picture)
    return b"".join(bytes(packet) for packet in [*packets, *encoder.encode(None)])
