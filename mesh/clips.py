"""Small real videos for the demo and the tests: known colour, known flashes, known beeps, nothing downloaded.

A clip shows one colour under a drifting texture, and black in the top left quarter of the stored width and
height, which tells how it was turned. Half a second into every second it turns white for
:data:`FLASH_SECONDS` and a beep of the same length starts at the same instant, over a soft tone. So from any
file made out of such clips one can measure which clip a frame is from and how far sound and picture are apart.

Colours are RGB. Files are untagged, as many phones' are, and use the matrix a player assumes for their size.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

Colour = tuple[int, int, int]

RED: Colour = (200, 40, 40)
GREEN: Colour = (40, 160, 60)
BLUE: Colour = (50, 60, 200)
WHITE: Colour = (255, 255, 255)

FLASH_AT = Fraction(1, 2)
FLASH_SECONDS = Fraction(1, 10)
BEEP_HERTZ, TONE_HERTZ = 1000, 220
BEEP_LEVEL, TONE_LEVEL = 14_000, 700
CLOCK = Fraction(1, 90_000)  # of clips with a variable rate: fits 24, 25, 30 and 60 fps
SD_LINES = 576
BLACK = 16

VIDEO_CODECS = {
    "h264": ("libx264", {"preset": "ultrafast", "crf": "20"}),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "b": "2M"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "2M"}),
}
AUDIO_CODECS = {"aac": "aac", "opus": "libopus", "pcm": "pcm_s16le"}


@dataclass(frozen=True, slots=True)
class Sound:
    """A clip's audio: ``delay`` after the picture's start, ``seconds`` long (None: as long as the picture)."""

    codec: str = "aac"
    rate: int = 48_000
    channels: int = 2
    delay: Fraction = Fraction(0)
    seconds: Fraction | None = None


def make_demo_clips(directory: Path) -> list[Path]:
    """Three clips as different phones send them, 3 to 4 s each; made in about a second."""
    directory.mkdir(parents=True, exist_ok=True)
    portrait, landscape, browser = (directory / name for name in ("one.mov", "two.mp4", "three.webm"))
    make_clip(portrait, seconds=3.5, fps=30, size=(640, 360), colour=RED, rotation=90)
    make_clip(landscape, seconds=3.0, fps=25, size=(960, 540), colour=GREEN, sound=Sound(rate=44_100))
    make_clip(
        browser, seconds=3.2, fps=30, size=(640, 480), colour=BLUE, codec="vp8", sound=Sound("opus"), live=True
    )
    return [portrait, landscape, browser]


def make_clip(
    path: Path,
    *,
    seconds: float,
    colour: Colour,
    fps: int = 30,
    size: tuple[int, int] = (160, 120),
    codec: str = "h264",
    sound: Sound | None = Sound(),
    rotation: int = 0,
    mirrored: bool = False,
    times: Sequence[Fraction] | None = None,
    start: Fraction = Fraction(0),
    live: bool = False,
    aspect: Fraction | None = None,
) -> None:
    """Write a clip; the name's ending chooses the container.

    ``size`` is as stored, ``rotation`` the clockwise turn that a player has to make. ``times`` are the
    frames' times in seconds if they are not at a constant rate. ``start`` shifts all timestamps. ``live`` writes
    as a browser's recorder does: to something that cannot seek, so without a duration.
    """
    shown = times if times is not None else [Fraction(i, fps) for i in range(round(seconds * fps))]
    options = {"live": "1"} if live else {"movflags": "+faststart"}
    with path.open("wb") as file:
        target = _Pipe(file) if live else file
        with av.open(target, "w", format=_format(path), options=options) as out:
            video = _video(out, codec, fps, size, times is not None)
            if rotation or mirrored:
                video.set_display_rotation(-rotation, hflip=mirrored)
            if aspect:
                video.codec_context.sample_aspect_ratio = aspect
            pictures = _pictures(video, shown, colour, size, start)
            beeps: Iterator[Packet[AudioStream]] = iter(())
            if sound is not None:
                length = sound.seconds if sound.seconds is not None else Fraction(round(seconds * 1000), 1000)
                beeps = _beeps(_audio(out, sound), sound, length, start)
            packets: list[Packet[Any]] = [*pictures, *beeps]
            for packet in _by_time(packets) if live else packets:
                out.mux(packet)


class _Pipe:
    """A file that can only be appended to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)


def _format(path: Path) -> str:
    return {".mkv": "matroska"}.get(path.suffix, path.suffix.removeprefix("."))


def _video(out: OutputContainer, codec: str, fps: int, size: tuple[int, int], variable: bool) -> VideoStream:
    encoder, options = VIDEO_CODECS[codec]
    stream = cast(VideoStream, out.add_stream(encoder, rate=fps, options=options))
    stream.codec_context.width, stream.codec_context.height = size
    stream.codec_context.pix_fmt = "yuv420p"
    stream.codec_context.time_base = CLOCK if variable else Fraction(1, fps)
    stream.codec_context.thread_count = 1
    return stream


def _audio(out: OutputContainer, sound: Sound) -> AudioStream:
    layout = {1: "mono", 2: "stereo"}[sound.channels]
    stream = out.add_stream(AUDIO_CODECS[sound.codec], rate=sound.rate, layout=layout)
    return cast(AudioStream, stream)


def _pictures(
    stream: VideoStream, times: Sequence[Fraction], colour: Colour, size: tuple[int, int], start: Fraction
) -> Iterator[Packet[VideoStream]]:
    base = stream.codec_context.time_base
    texture = _texture(size)
    for number, time in enumerate(times):
        flash = FLASH_AT <= time % 1 < FLASH_AT + FLASH_SECONDS
        frame = _picture(size, WHITE if flash else colour, b"" if flash else texture, 2 * number)
        frame.pts, frame.time_base = round((time + start) / base), base
        yield from _of(stream.encode(frame))
    yield from _of(stream.encode(None))


def _of(packets: list[Packet[Any]]) -> list[Packet[VideoStream]]:
    return cast("list[Packet[VideoStream]]", packets)


def _texture(size: tuple[int, int]) -> bytes:
    """Stripes and a little noise around zero, as bytes modulo 256; two pictures' worth, to drift through."""
    noise = random.Random(1).randbytes(4096).translate(bytes(v % 5 for v in range(256)))  # noqa: S311
    stripe = bytes(int(10 + 8 * math.sin(x / 10)) for x in range(4096))
    tile = bytes((a + b) % 256 for a, b in zip(noise, stripe, strict=True))
    return tile * (2 * (size[0] + 64) * size[1] // len(tile) + 2)


def _picture(size: tuple[int, int], colour: Colour, texture: bytes, drift: int) -> VideoFrame:
    frame = VideoFrame(*size, "yuv420p")
    luma, *chroma = to_yuv(colour, "bt709" if size[1] > SD_LINES else "smpte170m")
    plane = frame.planes[0]
    if texture:
        brighter = bytes(min(255, max(0, luma + v - 12)) for v in range(256))
        pixels = bytearray(texture[drift % 4096 :][: plane.buffer_size].translate(brighter))
        for row in range(0, size[1] // 4 * plane.line_size, plane.line_size):
            pixels[row : row + size[0] // 4] = bytes([BLACK]) * (size[0] // 4)
        plane.update(bytes(pixels))
    else:
        plane.update(bytes([luma]) * plane.buffer_size)
    for plane, value in zip(frame.planes[1:], chroma, strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return frame


def to_yuv(colour: Colour, matrix: str) -> Colour:
    """Limited-range Y'CbCr of an RGB colour; ``matrix`` is "bt709" or "smpte170m" (BT.601)."""
    kr, kb = (0.2126, 0.0722) if matrix == "bt709" else (0.299, 0.114)
    r, g, b = (component / 255 for component in colour)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    return round(16 + 219 * y), round(128 + 224 * cb), round(128 + 224 * cr)


def _beeps(stream: AudioStream, sound: Sound, length: Fraction, start: Fraction) -> Iterator[Packet[AudioStream]]:
    """Samples are of the picture's clock: what begins late begins in the middle of what is to be heard."""
    first, total = round(sound.delay * sound.rate), round(length * sound.rate)
    wave = array("h")
    for i in range(first, first + total):
        time = i / sound.rate
        beeping = FLASH_AT <= Fraction(i, sound.rate) % 1 < FLASH_AT + FLASH_SECONDS
        level, hertz = (BEEP_LEVEL, BEEP_HERTZ) if beeping else (TONE_LEVEL, TONE_HERTZ)
        wave.extend([int(level * math.sin(2 * math.pi * hertz * time))] * sound.channels)
    step = 960
    for offset in range(0, total, step):
        piece = wave[offset * sound.channels : (offset + step) * sound.channels].tobytes()
        frame = AudioFrame("s16", stream.layout.name, len(piece) // 2 // sound.channels)
        frame.planes[0].update(piece)
        frame.sample_rate, frame.time_base = sound.rate, Fraction(1, sound.rate)
        frame.pts = round(start * sound.rate) + first + offset
        yield from cast("list[Packet[AudioStream]]", stream.encode(frame))
    yield from cast("list[Packet[AudioStream]]", stream.encode(None))


def _by_time(packets: list[Packet[Any]]) -> list[Packet[Any]]:
    """A stream that cannot seek has to be interleaved as it is written."""
    return sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base)
