"""Measuring a video file in the tests' own process: what each frame looks like, where flashes and beeps start.

Only files that the tests or the code under test made are opened here.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.audio.resampler import AudioResampler
from av.video.frame import VideoFrame

from mesh.clips import Colour, to_yuv
from services.merge.timeline import FPS, SAMPLE_RATE

LOUD = 5000
BRIGHT = 210
PATCH = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame: its number by timestamp, whether it is a keyframe, and a way to its pixels."""

    number: Fraction
    keyframe: bool
    frame: VideoFrame

    def yuv(self, x: float = 0.5, y: float = 0.5) -> Colour:
        """Mean colour around a point, given as shares of width and height."""
        luma, cb, cr = (
            _mean(self.frame, plane, int(x * self.frame.width) // step, int(y * self.frame.height) // step)
            for plane, step in ((0, 1), (1, 2), (2, 2))
        )
        return luma, cb, cr


def pictures(path: Path) -> list[Picture]:
    """Decode all of it; an error in the stream is raised."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}
        shown = []
        for frame in container.decode(stream):
            assert frame.pts is not None
            assert frame.time_base is not None
            shown.append(Picture(frame.pts * frame.time_base * FPS, frame.key_frame, frame))
        return shown


def video_packets(path: Path) -> list[bytes]:
    """The video's packets, in the order of decoding."""
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def samples(path: Path) -> array[int]:
    """The left channel at 48 kHz, from the file's zero: what an edit list hides is left out."""
    heard = array("h")
    resampler = AudioResampler(format="s16", layout="stereo", rate=SAMPLE_RATE)
    with av.open(path) as container:
        for frame in (*container.decode(audio=0), None):
            for converted in resampler.resample(frame):
                if converted is not None:
                    heard.frombytes(bytes(converted.planes[0])[: converted.samples * 4])
    return heard[::2]


def flashes(shown: list[Picture]) -> list[Fraction]:
    """Seconds at which the picture turns white."""
    bright = [picture.yuv()[0] > BRIGHT for picture in shown]
    return [Fraction(i, FPS) for i, now in enumerate(bright) if now and (i == 0 or not bright[i - 1])]


def beeps(heard: array[int]) -> list[Fraction]:
    """Seconds at which a beep begins after a tenth of a second without one."""
    starts, last = [], -SAMPLE_RATE
    for i, value in enumerate(heard):
        if abs(value) > LOUD:
            if i - last > SAMPLE_RATE // 10:
                starts.append(Fraction(i, SAMPLE_RATE))
            last = i
    return starts


def sync(path: Path) -> Fraction:
    """How far the beeps are from the flashes, at worst, in seconds; there must be as many, and some."""
    seen, heard = flashes(pictures(path)), beeps(samples(path))
    assert len(seen) == len(heard) > 0
    return max(abs(a - b) for a, b in zip(seen, heard, strict=True))


def idr_frames(path: Path) -> list[int]:
    """Numbers of the H.264 frames that are IDR. No frame coded after one may be shown before it (a closed GOP)."""
    found: list[int] = []
    with av.open(path) as container:
        for packet in container.demux(video=0):
            if not packet.size:
                continue
            assert packet.pts is not None
            number = round(packet.pts * packet.time_base * FPS)
            assert not found or number > found[-1]
            if 5 in _nal_types(bytes(packet)):
                found.append(number)
    return found


def coded_samples(path: Path) -> int:
    """How many samples a PCM track of 16-bit stereo has, counted in its packets."""
    with av.open(path) as container:
        return sum(packet.size for packet in container.demux(audio=0)) // 4


def _nal_types(data: bytes) -> set[int]:
    types, position = set(), 0
    while position + 4 < len(data):
        types.add(data[position + 4] & 0x1F)
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    return types


def looks_like(measured: Colour, colour: Colour) -> bool:
    """In BT.709; brightness is loose, because of the texture, and colour is not."""
    wanted = to_yuv(colour, "bt709")
    return abs(measured[0] - wanted[0]) < 20 and all(abs(measured[i] - wanted[i]) <= 4 for i in (1, 2))


def _mean(frame: VideoFrame, index: int, x: int, y: int) -> int:
    plane = frame.planes[index]
    data, half = memoryview(plane), PATCH // 2
    rows = [data[row * plane.line_size + x - half :][:PATCH] for row in range(max(0, y - half), y + half)]
    return round(sum(sum(row) for row in rows) / (PATCH * len(rows)))
