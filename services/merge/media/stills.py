"""Stills of a merged video: a poster for each statement, and a storyboard to look at while seeking. JPEG.

They need little of a video decoded, the first second of every statement and of the rest a keyframe here and there:
when it is verified, or of a video that lies there already. A poster is the one of three pictures of that second
that shows most (its brightness varies most), so neither black nor a flash. A tile of the storyboard is a keyframe
and stands for all frames up to the next tile; every statement begins one.

JPEG is BT.601 in full range (JFIF), the video BT.709 in limited range.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
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
REORDERED = 4  # a frame may come behind so many that are shown later
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


class Stills:
    """Takes what it needs of the pictures that it sees. ``counts`` are the statements' frames, ``aspect`` is the
    shape of a stored pixel, width over height."""

    def __init__(self, counts: Sequence[int], aspect: Fraction, threads: int) -> None:
        self._starts = [sum(counts[:statement]) for statement in range(len(counts))]
        self._apart = max(TILE_FRAMES, -(-sum(counts) // MAX_TILES))
        self._candidates = [
            [start + place for place in candidates(count)]
            for start, count in zip(self._starts, counts, strict=True)
        ]
        self._small = _Shrinker(aspect, TILE, threads)
        self._large = _Shrinker(aspect, POSTER, threads)
        self._seen: list[list[VideoFrame]] = [[] for _ in counts]
        self._posters: dict[int, VideoFrame] = {}
        self._tiles: dict[int, VideoFrame] = {}
        self._error: Exception | None = None

    def needs(self, groups: Sequence[range]) -> list[range]:
        """What has to be decoded of a video with these groups of pictures, as ranges of packets."""
        found: dict[int, range] = {}
        for start, wanted in zip(self._starts, self._candidates, strict=True):
            last = wanted[-1] + REORDERED + 1
            found |= {g.start: range(g.start, min(g.stop, last)) for g in groups if start <= g.start <= wanted[-1]}
        tile = -self._apart
        for group in groups:
            if self._begins_tile(group.start, tile):
                tile = group.start
                found.setdefault(tile, range(tile, tile + 1))
        return [found[start] for start in sorted(found)]

    def see(self, number: int, frame: VideoFrame) -> None:
        """Shows frame ``number``; they come in order, and of those that are needed none is left out. Raises
        nothing: whoever decodes has other things to do, and :meth:`write` will tell."""
        if self._error is not None:
            return
        try:
            self._take(number, frame)
        except Exception as error:
            self._error = error

    def fail(self, error: Exception) -> None:
        """What is needed cannot be shown."""
        self._error = self._error or error

    def write(self, posters: Sequence[BinaryIO], sheet: BinaryIO) -> Storyboard:
        """Raises MediaError, and whatever went wrong before."""
        with as_media_error(ErrorType.WORKER_FAILED, "The stills could not be made."):
            if self._error is not None:
                raise self._error
            if not self._tiles or len(self._posters) != len(posters):
                raise MediaError(ErrorType.VERIFICATION_FAILED, "A keyframe of the merged video does not decode.")
            for statement, poster in enumerate(posters):
                poster.write(_jpeg(self._posters[statement]))
            sheet.write(_jpeg(_sheet(list(self._tiles.values()))))
        first = next(iter(self._tiles.values()))
        return Storyboard(first.width, first.height, min(COLUMNS, len(self._tiles)), tuple(self._tiles))

    def _begins_tile(self, keyframe: int, last: int) -> bool:
        return keyframe in self._starts or keyframe - last >= self._apart

    def _take(self, number: int, frame: VideoFrame) -> None:
        if frame.key_frame and self._begins_tile(number, next(reversed(self._tiles), -self._apart)):
            self._tiles[number] = self._small.shrunk(frame)
        statement = bisect_right(self._starts, number) - 1
        wanted = self._candidates[statement]
        if number in wanted:
            self._seen[statement].append(frame)
        if number == wanted[-1]:
            self._posters[statement] = self._large.shrunk(most_telling(self._seen[statement]))
            self._seen[statement].clear()


def look_through(source: Source, counts: Sequence[int]) -> Stills:
    """What :class:`Stills` needs to see of a merged video, decoded for that alone."""
    with as_media_error(ErrorType.WORKER_FAILED, "The stills could not be made."):
        groups = _groups(source)
        with source.container() as container:
            stream = source.video(container)
            stills = Stills(counts, stream.sample_aspect_ratio or Fraction(1), source.threads)
            packets = (packet for packet in demux(container, stream) if packet.size)
            position = 0
            for needed in stills.needs(groups):
                for frame in _decoded(stream, islice(packets, needed.start - position, needed.stop - position)):
                    assert frame.pts is not None
                    stills.see(round(seconds(frame.pts, stream.time_base) * FPS), frame)
                position = needed.stop
    return stills


def _groups(source: Source) -> list[range]:
    """From keyframe to keyframe, in packets."""
    with source.container() as container:
        packets = (packet for packet in demux(container, source.video(container)) if packet.size)
        keys = [packet.is_keyframe for packet in packets]
    return [range(a, b) for a, b in pairwise([*(number for number, key in enumerate(keys) if key), len(keys)])]


def _decoded(stream: VideoStream, packets: Iterable[Packet[Stream]]) -> Iterator[VideoFrame]:
    for packet in packets:
        yield from (frame for frame in packet.decode() if isinstance(frame, VideoFrame))
    yield from stream.codec_context.decode(None)
    stream.codec_context.flush_buffers()


def candidates(count: int) -> list[int]:
    """Which frames may become the poster of a statement of so many."""
    return sorted({min(place, count - 1) for place in CANDIDATES})


def most_telling(frames: Sequence[VideoFrame]) -> VideoFrame:
    """The one whose brightness varies most."""
    return max(frames, key=_variety)


def _variety(frame: VideoFrame) -> float:
    grey = frame.reformat(*SAMPLE, format="gray").planes[0]
    return pvariance([value for row in _rows(grey, *SAMPLE) for value in row])


def _rows(plane: VideoPlane, width: int, height: int) -> Iterator[bytes]:
    data = bytes(plane)
    for row in range(height):
        yield data[row * plane.line_size :][:width]


class _Shrinker:
    """Pictures as they are displayed, within a size."""

    def __init__(self, aspect: Fraction, within: Canvas, threads: int) -> None:
        self._aspect = aspect
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
