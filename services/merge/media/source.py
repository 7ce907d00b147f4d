"""The one way to open a file somebody sent: by descriptor, as a known container, opening nothing else.

FFmpeg looks at content, not names: a playlist or a concat script under any name makes it open other
files and addresses. ``format_whitelist`` stops that before such a demuxer runs; the refusing ``io_open``
stops what a whitelisted demuxer might still ask for.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from typing import BinaryIO, Never

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from services.merge.media.boxes import cut_off, tracks
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.files import Digest, digest
from services.merge.media.limits import Limits

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
READ_BYTES = 1 << 20  # 40 reads of a 40 MB clip instead of over a thousand
TOLERATED_BAD_PACKETS = 0.1  # a phone's file may have a damaged packet; more than a tenth is not a video
UNREADABLE = frozenset({ErrorType.NOT_A_VIDEO, ErrorType.NO_VIDEO_STREAM, ErrorType.DECODE_FAILED})
FFMPEG_STREAMS = 1000  # its own limit on the tracks of a file
SPARE_BYTES = 32 << 20  # less address space than this below RLIMIT_AS is too little to decode in


class Source:
    """An untrusted file, opened once by the child and read as often as a job needs it."""

    def __init__(self, file: BinaryIO, limits: Limits, threads: int) -> None:
        self._file = file
        self.limits = limits
        self.threads = threads

    def digest(self) -> Digest:
        """Of the whole file."""
        return digest(self._file)

    @contextmanager
    def container(self) -> Iterator[InputContainer]:
        """Open from the start. Raises MediaError not_a_video, too_many_streams."""
        try:
            container = self._open({"max_pixels": str(self.limits.max_pixels)})
        except MediaError as error:
            if error.error_type == ErrorType.MEMORY_EXCEEDED:  # also how FFmpeg refuses a track too many
                self._check_streams(count if (count := tracks(self._file)) > FFMPEG_STREAMS else 0)
            raise
        with container:
            self._check_streams(len(container.streams))
            yield container

    def _open(self, options: dict[str, str]) -> InputContainer:
        self._file.seek(0)
        with as_media_error(ErrorType.NOT_A_VIDEO, "This file is not a video we can read."):
            return av.open(
                self._file,
                "r",
                options={"format_whitelist": FORMATS, **options},
                buffer_size=READ_BYTES,
                metadata_errors="replace",  # a title in Latin-1 is no reason to refuse a clip
                io_open=_refuse,
            )

    def _check_streams(self, count: int) -> None:
        if count > self.limits.max_streams:
            raise MediaError(ErrorType.TOO_MANY_STREAMS, "This file has too many tracks.")

    def video(self, container: InputContainer) -> VideoStream:
        """The first moving picture (cover art is none), its decoder set up but not yet opened.

        Raises MediaError no_video_stream, decode_failed (unknown codec), too_many_pixels.
        """
        for stream in container.streams.video:
            if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
                continue
            if stream.codec_context is None:
                raise MediaError(ErrorType.DECODE_FAILED, "This video's codec is not supported.")
            self.check_pixels(*self._size(stream))
            # Works only here, not on av.open: the size in the bit stream may differ from the container's.
            stream.codec_context.options = {"max_pixels": str(self.limits.max_pixels)}
            stream.codec_context.thread_count = self.threads
            stream.codec_context.thread_type = "FRAME"
            return stream
        raise MediaError(ErrorType.NO_VIDEO_STREAM, "This file has no video.")

    def _size(self, stream: VideoStream) -> tuple[int, int]:
        """As the header tells it. FFmpeg tells none when it met one larger than it may decode: then it is asked
        again without that limit, for which the memory's limit stands in."""
        width, height = stream.codec_context.width, stream.codec_context.height
        if width and height:
            return width, height
        with self._open({}) as container:
            context = container.streams[stream.index].codec_context
            return (context.width, context.height) if isinstance(context, VideoCodecContext) else (0, 0)

    def check_pixels(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            raise MediaError(ErrorType.TOO_MANY_PIXELS, "This video's picture is too large.")

    def check_frames(self, count: int) -> None:
        if count > self.limits.max_source_frames:
            raise MediaError(ErrorType.TOO_MANY_FRAMES, "This video has too many pictures.")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Says truncated of a file that cannot be read because its end is missing."""
        try:
            yield
        except MediaError as error:
            if error.error_type in UNREADABLE and cut_off(self._file):
                raise MediaError(ErrorType.TRUNCATED, "This video ends before its end.") from error
            raise

    def frames(self, container: InputContainer, stream: VideoStream, skip: int = 0) -> Iterator[VideoFrame]:
        """Decode in display order. Every frame has a pts; what precedes an edit list is left out, as are the first
        ``skip`` packets.

        Raises MediaError truncated, decode_failed, too_many_pixels, too_many_frames, memory_exceeded.
        """
        packets = bad = decoded = 0
        for packet in islice(demux(container, stream), skip, None):
            packets += 1
            self.check_frames(packets - (not packet.size))  # also those that nothing is shown of
            try:
                frames = packet.decode()
            except av.error.MemoryError as error:
                raise MediaError(ErrorType.MEMORY_EXCEEDED, "This video needs too much memory.") from error
            except av.error.FFmpegError:
                bad += 1
                frames = []
            for frame in frames:
                if not isinstance(frame, VideoFrame) or frame.pts is None:
                    bad += 1
                    continue
                self.check_pixels(frame.width, frame.height)
                decoded += 1
                yield frame
        if not decoded or bad > TOLERATED_BAD_PACKETS * packets:
            if _memory_is_short():  # a decoder that gets no memory may blame its input
                raise MediaError(ErrorType.MEMORY_EXCEEDED, "This video needs too much memory.")
            raise MediaError(ErrorType.DECODE_FAILED, "This video cannot be decoded.")


def _memory_is_short() -> bool:
    try:
        mmap.mmap(-1, SPARE_BYTES).close()
    except (OSError, MemoryError):
        return True
    return False


def demux(container: InputContainer, *streams: Stream) -> Iterator[Packet[Stream]]:
    """Packets of the streams, then an empty one per stream that flushes its decoder. Raises truncated."""
    with as_media_error(ErrorType.TRUNCATED, "This video ends before its end."):
        yield from container.demux(*streams)


def seconds(ticks: int, time_base: Fraction | None) -> Fraction:
    """Exact time of a pts: never through a float, or a frame on the edge falls into the wrong slot."""
    assert time_base is not None
    return ticks * time_base


@contextmanager
def as_media_error(error_type: ErrorType, message: str) -> Iterator[None]:
    """Translate what FFmpeg raises; running out of memory, output or disk keeps its own type.

    "External" is how an encoder library reports a failed allocation; settings it refuses come otherwise.
    """
    try:
        yield
    except (MemoryError, av.error.ExternalError) as error:  # PyAV's own ENOMEM is a MemoryError
        raise MediaError(ErrorType.MEMORY_EXCEEDED, "This video needs too much memory.") from error
    except av.error.FFmpegError as error:
        if error.errno == errno.EFBIG:
            raise MediaError(ErrorType.OUTPUT_TOO_LARGE, "The result would be too large.") from error
        if error.errno == errno.ENOSPC:
            raise MediaError(ErrorType.STORAGE_UNAVAILABLE, "A worker's disk is full.") from error
        raise MediaError(error_type, message) from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> Never:
    raise PermissionError("a clip may not open other files")
