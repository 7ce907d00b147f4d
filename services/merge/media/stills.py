"""Stills of a merged video: a poster for each statement, and a storyboard to look at while seeking. JPEG.

Little is decoded: the first second of every statement, and of the rest a keyframe here and there. A poster is the
one of three pictures of that second that shows most (its brightness varies most), so neither black nor a flash. A
tile of the storyboard is a keyframe and stands for all frames up to the next tile; every statement begins one.

JPEG is BT.601 in full range (JFIF), the video BT.709 in limited range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import pvariance
from typing import BinaryIO

from av.codec.context import CodecContext, Flags
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.orientation import orientation
from services.merge.media.picture import Fitter, fitted
from services.merge.media.source import Source, as_media_error, demux, seconds
from services.merge.timeline import FPS, Canvas

POSTER = Canvas(640, 640)
TILE = Canvas(160, 160)
COLUMNS = 10
MAX_TILES = 100  # and one a statement
TILE_FRAMES = 2 * FPS  # no closer
CANDIDATES = (9, 18, 27)
RUN_PACKETS = CANDIDATES[-1] + 5  # the last candidate may be behind a few frames that are shown later
JPEG_QUANTISER = 4
SAMPLE = 32, 18  # of a picture, to see how much it shows
NEUTRAL = 128


@dataclass(frozen=True, slots=True)
class Storyboard:
    """The sheet's tiles: ``frames`` has the first frame that each stands for."""

    width: int
    height: int
    columns: int
    frames: tuple[int, ...]


def write_stills(
    source: Source, posters: Sequence[BinaryIO], sheet: BinaryIO, counts: Sequence[int]
) -> Storyboard:
    """A poster for each statement, ``counts`` being their frames, and the sheet."""
    starts = {sum(counts[:i]): poster for i, poster in enumerate(posters)}
    apart = max(TILE_FRAMES, -(-sum(counts) // MAX_TILES))
    tiles: dict[int, VideoFrame] = {}
    with as_media_error(ErrorType.WORKER_FAILED, "The stills could not be made."), source.container() as container:
        stream = source.video(container)
        small = _Shrinker(stream, TILE, source.threads)
        large = _Shrinker(stream, POSTER, source.threads)
        for start, packets in _runs(demux(container, stream), starts, apart):
            frames = _decoded(stream, packets)
            tiles[start] = small.shrunk(frames[0])
            if start in starts:
                own = frames[: counts[list(starts).index(start)]]
                starts[start].write(_jpeg(large.shrunk(most_telling(own))))
        board = _sheet(list(tiles.values()))
        sheet.write(_jpeg(board))
    first = next(iter(tiles.values()))
    return Storyboard(first.width, first.height, min(COLUMNS, len(tiles)), tuple(tiles))


def _runs(
    packets: Iterator[Packet[Stream]], starts: dict[int, BinaryIO], apart: int
) -> Iterator[tuple[int, list[Packet[Stream]]]]:
    """Packets that are decoded together: a keyframe, by its number, and as many after it as are needed."""
    run: list[Packet[Stream]] = []
    first = -apart
    for packet in packets:
        if not packet.size:
            continue
        if packet.is_keyframe:
            assert packet.pts is not None
            frame = round(seconds(packet.pts, packet.time_base) * FPS)
            if frame in starts or frame - first >= apart:
                if run:
                    yield first, run
                run, first = [], frame
        if not run or (first in starts and len(run) < RUN_PACKETS):
            run.append(packet)
    if run:
        yield first, run


def _decoded(stream: VideoStream, packets: Sequence[Packet[Stream]]) -> list[VideoFrame]:
    context = stream.codec_context
    frames = [frame for packet in packets for frame in packet.decode() if isinstance(frame, VideoFrame)]
    frames += context.decode(None)
    context.flush_buffers()
    if not frames:
        raise MediaError(ErrorType.VERIFICATION_FAILED, "A keyframe of the merged video does not decode.")
    return frames


def most_telling(frames: Sequence[VideoFrame]) -> VideoFrame:
    """The candidate whose brightness varies most; of a short clip, what there is."""
    return max((frames[min(i, len(frames) - 1)] for i in CANDIDATES), key=_variety)


def _variety(frame: VideoFrame) -> float:
    grey = frame.reformat(*SAMPLE, format="gray").planes[0]
    return pvariance([value for row in _rows(grey, *SAMPLE) for value in row])


def _rows(plane: VideoPlane, width: int, height: int) -> Iterator[bytes]:
    data = bytes(plane)
    for row in range(height):
        yield data[row * plane.line_size :][:width]


class _Shrinker:
    """Pictures as they are displayed, within a size."""

    def __init__(self, stream: VideoStream, within: Canvas, threads: int) -> None:
        self._aspect = stream.sample_aspect_ratio or Fraction(1)
        self._within = within
        self._threads = threads
        self._fitter: Fitter | None = None

    def shrunk(self, frame: VideoFrame) -> VideoFrame:
        """In BT.709 limited range, like the video."""
        if self._fitter is None:
            shown = orientation(frame).displayed(max(1, round(frame.width * self._aspect)), frame.height)
            self._fitter = Fitter(Canvas(*fitted(shown, self._within)), self._aspect, self._threads)
        return self._fitter.fit(frame)


def _sheet(tiles: Sequence[VideoFrame]) -> VideoFrame:
    """The tiles in rows; what is left of the last row is black."""
    width, height = tiles[0].width, tiles[0].height
    columns, rows = min(COLUMNS, len(tiles)), -(-len(tiles) // COLUMNS)
    sheet = VideoFrame(columns * width, rows * height, "yuv420p")
    for number, plane in enumerate(sheet.planes):
        half = 1 if number == 0 else 2
        data = bytearray([16 if number == 0 else NEUTRAL]) * plane.buffer_size
        for i, tile in enumerate(tiles):
            x, y = i % COLUMNS * width // half, i // COLUMNS * height // half
            for k, row in enumerate(_rows(tile.planes[number], width // half, height // half)):
                at = (y + k) * plane.line_size + x
                data[at : at + len(row)] = row
        plane.update(bytes(data))
    return sheet


def _jpeg(frame: VideoFrame) -> bytes:
    picture = frame.reformat(
        format="yuvj420p",
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU601,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    context = CodecContext.create("mjpeg", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = picture.width, picture.height, "yuvj420p"
    context.time_base = Fraction(1, FPS)
    context.color_range = ColorRange.JPEG
    context.qmin = context.qmax = JPEG_QUANTISER
    context.thread_count = 1
    context.flags |= Flags.bitexact  # no library's name in the file
    picture.pts, picture.time_base = 0, Fraction(1, FPS)
    return b"".join(bytes(packet) for packet in (*context.encode(picture), *context.encode(None)))
