"""What is known of a clip and of the video made from clips: values and frame arithmetic, no media code.

Segments are integers first. A normalised clip has N whole frames at :data:`FPS`; the merged video is
their concatenation, so statement i starts at the sum of the frames before it and ends where the next
begins. Seconds are derived from frames, never the other way round, and never from what a client or
a container header claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

FPS = 30
SAMPLE_RATE = 48_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
NARROWEST = 9 / 22  # short side to long side; the tallest phones record their screens as 9:21


class Quality(StrEnum):
    """How much the encoder spends; values are the names in the contract."""

    LOW = "QUALITY_LOW"
    MEDIUM = "QUALITY_MEDIUM"
    HIGH = "QUALITY_HIGH"


@dataclass(frozen=True, slots=True)
class Encoding:
    """Settings of the H.264 and AAC encoders: x264 preset and constant rate factor, AAC bits per second."""

    preset: str
    crf: int
    audio_bitrate: int


ENCODINGS = {
    Quality.LOW: Encoding("veryfast", 28, 96_000),
    Quality.MEDIUM: Encoding("medium", 23, 128_000),
    Quality.HIGH: Encoding("slow", 20, 192_000),
}


@dataclass(frozen=True, slots=True)
class Canvas:
    """The picture every clip of a session is fitted and padded to: even pixel counts, square pixels."""

    width: int
    height: int


LARGEST_CANVAS = Canvas(1920, 1920)  # that the contract takes


@dataclass(frozen=True, slots=True)
class Coded:
    """A clip's video as it is coded, without decoding it: what decides whether its packets can be copied.

    ``width`` and ``height`` are as stored; ``colour`` names primaries, transfer, matrix and range by number
    (ITU-T H.273), ``aspect`` and ``time_base`` are fractions as text, ``matrix`` the display matrix and
    ``parameter_sets`` the SHA-256 of the codec's extradata, both in hex. ``bit_rate`` is of the packets.
    ``hidden`` counts the packets that an edit list makes a player discard. ``regular``: shown frame n lies at
    n/:data:`FPS`. ``closed``: it begins with an IDR frame, every keyframe is one, and nothing after one is shown
    before it. ``in_band``: parameter sets lie in the stream itself.
    """

    profile: str = ""
    pixel_format: str = ""
    colour: str = ""
    width: int = 0
    height: int = 0
    aspect: str = ""
    matrix: str = ""
    time_base: str = ""
    parameter_sets: str = ""
    bit_rate: int = 0
    frames: int = 0
    hidden: int = 0
    regular: bool = False
    closed: bool = False
    in_band: bool = False
    interlaced: bool = False


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What the probe saw of a source. ``width`` and ``height`` are as displayed, after rotation; ``duration``
    is the span in seconds of the packets read, not a header's claim. ``sha256`` is of the whole file, in hex;
    ``start`` is when the first frame is shown, in seconds of the file's own clock, as a fraction."""

    container: str
    video_codec: str
    width: int
    height: int
    rotation: int
    duration: float
    frame_rate: float
    has_audio: bool
    audio_codec: str = ""
    sha256: str = ""
    coded: Coded = Coded()
    start: str = "0/1"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a clip that is encoded by itself, without sound: frames ``first`` up to and without ``end`` of
    the clip on the canvas, or up to its last one when ``end`` is 0. ``start`` is the clip's."""

    start: str
    first: int
    end: int = 0


@dataclass(frozen=True, slots=True)
class CutClip:
    """A clip whose picture was encoded in pieces: their files in order, and the source for its sound, which begins
    at ``start``."""

    chunks: tuple[Path, ...]
    source: Path
    start: str


@dataclass(frozen=True, slots=True)
class NormalisedClip:
    """A clip on the canvas: ``frames`` frames at :data:`FPS` starting with an IDR, PCM of exactly
    ``frames * SAMPLES_PER_FRAME`` samples. ``size`` in bytes, ``sha256`` in hex, of the file."""

    frames: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MergedFile:
    """The finished MP4: ``frames`` per clip in order, ``size`` in bytes, ``sha256`` in hex. ``beside`` is what was
    made beside it; None if nothing was asked for, or could be made."""

    frames: tuple[int, ...]
    width: int
    height: int
    size: int
    sha256: str
    beside: SidecarFiles | None = None


@dataclass(frozen=True, slots=True)
class SidecarFiles:
    """What was made beside a merged file.

    The storyboard's tiles are ``tile_width`` × ``tile_height`` pixels, ``columns`` a row; tile i stands for the
    frames from ``tile_frames[i]`` to the next one's. Part i of the HLS rendition begins with the IDR of frame
    ``part_frames[i]`` at byte ``part_offsets[i]`` and ends where the next begins; before the first is its header.
    """

    tile_width: int
    tile_height: int
    columns: int
    tile_frames: tuple[int, ...]
    part_offsets: tuple[int, ...]
    part_frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """One statement's place in the merged video, in frames; seconds are exact to 1/FPS by construction."""

    statement_index: int
    start_frame: int
    frame_count: int

    @property
    def title(self) -> str:
        """What its chapter is called: its number, from 1, and nothing else."""
        return f"Statement {self.statement_index + 1}"

    @property
    def start_time(self) -> float:
        return self.start_frame / FPS

    @property
    def end_time(self) -> float:
        return (self.start_frame + self.frame_count) / FPS

    @property
    def duration(self) -> float:
        return self.frame_count / FPS


def segments(frames: tuple[int, ...]) -> tuple[Segment, ...]:
    """Tile the merged video: segment i has ``frames[i]`` frames and starts where segment i-1 ended."""
    starts = [sum(frames[:i]) for i in range(len(frames))]
    return tuple(Segment(i, start, count) for i, (start, count) in enumerate(zip(starts, frames, strict=True)))


def canvas_for(clip: ClipInfo) -> Canvas:
    """The canvas a clip asks for: its own shape, long side 1920 if it has that many pixels, else 1280.

    Smaller clips are scaled up to 1280, so that one tiny clip cannot make the others unwatchable; a clip
    narrower than any phone's screen is padded to :data:`NARROWEST`, so that neither can a strip.
    """
    long_side = 1920 if max(clip.width, clip.height) >= 1920 else 1280
    scale = long_side / max(clip.width, clip.height)
    return Canvas(*(_even(max(side * scale, long_side * NARROWEST)) for side in (clip.width, clip.height)))


def _even(pixels: float) -> int:
    return max(2, 2 * round(pixels / 2))
