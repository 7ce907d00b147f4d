"""Recordings of every form that phones and browsers make, written by the tests: one colour, flashes and beeps.

A recording shows a flat colour with black in the top left quarter of the stored picture. Once a second, at
``flash_at``, it turns white for a tenth of a second, and a beep begins at the very time of the first white frame.
So in whatever is made of it one can measure whose frame is shown, how it was turned, and how far sound and
picture are apart. ``flash_at`` is a time that both the recording's frame grid and the output's have, else a
flash is up to half a frame off by nature.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from mesh.clips import RED, WHITE, Colour, to_yuv

CLOCK = 90_000
FLASH_SECONDS = Fraction(1, 10)
BEEP_HERTZ, BEEP_LEVEL = 1000, 14_000
PIECE = 960

ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "ultrafast", "crf": "20"}),
    "h264 with B-frames": ("libx264", {"preset": "veryfast", "crf": "20", "bf": "3", "rc-lookahead": "4"}),
    "h264 interlaced": ("libx264", {"preset": "ultrafast", "crf": "20", "flags": "+ildct+ilme"}),
    "hevc": ("libx265", {"preset": "ultrafast", "crf": "20", "x265-params": "log-level=error:pools=none"}),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "-8", "b": "2M"}),  # positive, it depends on the load
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "2M"}),
    "av1": ("libsvtav1", {"preset": "12", "crf": "20", "svtav1-params": "lp=1"}),
}
LIVE = {"webm": {"live": "1"}, "mp4": {"movflags": "frag_keyframe+delay_moov+default_base_moof"}}
SOUNDS = {"aac": "aac", "opus": "libopus", "pcm": "pcm_s16le", "mp3": "libmp3lame"}


@dataclass(frozen=True, slots=True)
class Tags:
    """What the file says of its colours; None is silence."""

    matrix: Colorspace | None = None
    full: bool = False
    primaries: ColorPrimaries | None = None
    transfer: ColorTrc | None = None

    @property
    def yuv(self) -> str:
        return "bt709" if self.matrix is Colorspace.ITU709 else "smpte170m"


@dataclass(frozen=True, slots=True)
class Audio:
    """``delay`` is when it begins on the picture's clock, before it if negative; no ``seconds``: to its end.

    By the timestamps each of its seconds takes ``pace`` seconds, and half of the packets are ``jitter`` off.
    """

    codec: str = "aac"
    rate: int = 48_000
    layout: str = "stereo"
    delay: Fraction = Fraction(0)
    seconds: Fraction | None = None
    pace: Fraction = Fraction(1)
    jitter: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class Recording:
    """``times`` of frames in seconds take the place of ``fps``; ``start`` is the first timestamp in the file.

    ``codes`` are Y'CbCr of 8 bits for successive frames, in place of colour and flashes.
    """

    suffix: str = ".mp4"
    codec: str = "h264"
    seconds: Fraction = Fraction(1)
    fps: Fraction = Fraction(30)
    times: tuple[Fraction, ...] = ()
    start: Fraction = Fraction(0)
    flash_at: Fraction = Fraction(2, 5)
    colour: Colour = RED
    codes: tuple[Colour, ...] = ()
    size: tuple[int, int] = (160, 120)
    pix_fmt: str = "yuv420p"
    tags: Tags = Tags()
    rotation: int = 0
    aspect: Fraction | None = None
    audio: Audio | None = Audio()
    live: bool = False
    tag: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> tuple[Fraction, ...]:
        """When each frame is shown, from the first one's zero."""
        return self.times or tuple(k / self.fps for k in range(math.floor(self.seconds * self.fps)))

    def bright(self, time: Fraction) -> bool:
        return not self.codes and self.flash_at <= time % 1 < self.flash_at + FLASH_SECONDS

    @property
    def flashes(self) -> list[Fraction]:
        """Times of the frames that turn white."""
        shown = self.shown
        return [t for k, t in enumerate(shown) if self.bright(t) and (k == 0 or not self.bright(shown[k - 1]))]


def record(path: Path, recording: Recording) -> Path:
    """Write it to ``path`` with the recording's suffix; the file's index is at its end. Returns that path."""
    path = path.with_name(path.name + recording.suffix)
    container = {".mkv": "matroska"}.get(recording.suffix, recording.suffix.removeprefix("."))
    with path.open("wb") as file:
        target = _Pipe(file) if recording.live else file
        options = LIVE[container] if recording.live else {}
        with av.open(target, "w", format=container, options=options) as out:
            video = _video(out, recording)
            audio = _audio(out, recording.audio) if recording.audio else None
            packets: list[Packet[Any]] = [*_pictures(video, recording)]
            if audio is not None:
                packets += _timed(_beeps(audio, recording), recording)
            for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
                out.mux(packet)
    return path


def _timed(packets: Iterator[Packet[AudioStream]], recording: Recording) -> Iterator[Packet[AudioStream]]:
    audio = recording.audio
    assert audio is not None
    for number, packet in enumerate(packets):
        if audio.pace != 1 or audio.jitter:
            assert packet.pts is not None
            off = (0, 0, audio.jitter, -audio.jitter)[number % 4]
            origin = recording.start / packet.time_base
            packet.pts = packet.dts = round(origin + (packet.pts - origin) * audio.pace + off / packet.time_base)
        yield packet


class _Pipe:
    """A file that can only be appended to: what a browser records has no duration."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)


def _video(out: OutputContainer, recording: Recording) -> VideoStream:
    encoder, options = ENCODERS[recording.codec]
    stream = cast(VideoStream, out.add_stream(encoder, rate=recording.fps, options=options | recording.options))
    context, tags = stream.codec_context, recording.tags
    context.width, context.height = recording.size
    context.pix_fmt = recording.pix_fmt
    context.time_base = Fraction(1, CLOCK) if recording.times else 1 / recording.fps
    context.thread_count = 1
    if tags.matrix is not None:
        context.colorspace = tags.matrix
    if tags.full:
        context.color_range = ColorRange.JPEG
    if tags.primaries is not None:
        context.color_primaries = tags.primaries
    if tags.transfer is not None:
        context.color_trc = tags.transfer
    if recording.aspect is not None:
        context.sample_aspect_ratio = recording.aspect
    if recording.tag:
        context.codec_tag = recording.tag
    if recording.rotation:
        stream.set_display_rotation(-recording.rotation)
    return stream


def _pictures(stream: VideoStream, recording: Recording) -> Iterator[Packet[VideoStream]]:
    base, tags = stream.codec_context.time_base, recording.tags
    kinds: dict[Colour, VideoFrame] = {}
    for number, time in enumerate(recording.shown):
        if recording.codes:
            code = recording.codes[number % len(recording.codes)]
        else:
            code = coded(WHITE if recording.bright(time) else recording.colour, tags)
        if code not in kinds:
            kinds[code] = _picture(recording, code, corner=not recording.codes and not recording.bright(time))
        frame = interlaced(number, recording.size) if "interlaced" in recording.codec else kinds[code]
        frame.pts, frame.time_base = round((time + recording.start) / base), base
        yield from cast("list[Packet[VideoStream]]", stream.encode(frame))
    yield from cast("list[Packet[VideoStream]]", stream.encode(None))


def coded(colour: Colour, tags: Tags) -> Colour:
    """8-bit Y'CbCr as the tags say; untagged is BT.601, as players take it for small pictures."""
    y, cb, cr = to_yuv(colour, tags.yuv)
    if not tags.full:
        return y, cb, cr
    cb, cr = (min(255, round((c - 128) * 255 / 224) + 128) for c in (cb, cr))
    return round((y - 16) * 255 / 219), cb, cr


def _picture(recording: Recording, code: Colour, *, corner: bool) -> VideoFrame:
    """Planar 4:2:0, 4:2:2 or 4:4:4 of 8 or 10 bits."""
    frame = VideoFrame(*recording.size, recording.pix_fmt)
    black = coded((0, 0, 0), recording.tags)
    deep = recording.pix_fmt.endswith("10le")
    for plane, value, dark in zip(frame.planes, code, black, strict=True):
        sample, shade = ((v * 4).to_bytes(2, "little") if deep else bytes([v]) for v in (value, dark))
        across = plane.line_size // len(sample)
        row = sample * across
        dark_row = shade * (plane.width // 4) + sample * (across - plane.width // 4)
        top = plane.height // 4 if corner else 0
        plane.update(dark_row * top + row * (plane.height - top))
    return frame


def interlaced(number: int, size: tuple[int, int]) -> VideoFrame:
    """A black bar that goes over grey; the lower field shows it a sixteenth of the width further on."""
    frame = VideoFrame(*size, "yuv420p")
    width, luma = size[0], frame.planes[0]
    rows = []
    for row in range(size[1]):
        begin = width // 4 + number + width // 16 * (row % 2)
        line = bytearray([150]) * luma.line_size
        line[begin : begin + width // 4] = bytes([16]) * (width // 4)
        rows.append(bytes(line))
    luma.update(b"".join(rows))
    for plane in frame.planes[1:]:
        plane.update(bytes([128]) * plane.buffer_size)
    graph = Graph()
    source = graph.add("buffer", f"video_size={size[0]}x{size[1]}:pix_fmt=yuv420p:time_base=1/{CLOCK}")
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def _audio(out: OutputContainer, audio: Audio) -> AudioStream:
    return cast(AudioStream, out.add_stream(SOUNDS[audio.codec], rate=audio.rate, layout=audio.layout))


def _beeps(stream: AudioStream, recording: Recording) -> Iterator[Packet[AudioStream]]:
    audio = recording.audio
    assert audio is not None
    rate, channels = audio.rate, stream.layout.nb_channels
    first = round(audio.delay * rate)
    seconds = audio.seconds if audio.seconds is not None else recording.seconds - audio.delay
    total = round(seconds * rate)
    wave = array("h", bytes(2 * total))
    for flash in recording.flashes:
        begin = math.ceil(flash * rate / audio.pace) - first
        for i in range(max(0, begin), min(total, begin + rate // 10)):
            wave[i] = int(BEEP_LEVEL * math.sin(2 * math.pi * BEEP_HERTZ * (i - begin + 1) / rate))
    for offset in range(0, total, PIECE):
        piece = wave[offset : offset + PIECE]
        spread = array("h", bytes(2 * len(piece) * channels))
        for channel in range(channels):
            spread[channel::channels] = piece
        frame = AudioFrame("s16", stream.layout.name, len(piece))
        frame.planes[0].update(spread.tobytes())
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(recording.start * rate) + first + offset
        yield from cast("list[Packet[AudioStream]]", stream.encode(frame))
    yield from cast("list[Packet[AudioStream]]", stream.encode(None))
