"""Clips into one MP4: video packets are copied, the sound is encoded once, the result is verified.

The clips are normalised ones, a long one's picture in several files, or ones as they were sent that were ruled to
be copied: then the sound is first cut to exactly the length of the picture, and what is verified is the packets
and the pictures around each boundary.

Times are counted in frames: what is shown as frame i of a clip that starts at frame S gets pts S + i, and packets
in the order of decoding get one dts each, so the boundaries are exact by construction. One AAC encode runs through
all clips; its priming sits only at the very start, where the edit list hides it. Nothing of a clip but its coded
samples reaches the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from services.merge.media.chapters import CLOCK, add_chapters
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.files import digest
from services.merge.media.loudness import evened
from services.merge.media.progress import Progress, Report
from services.merge.media.sound import SAMPLE_BYTES, pcm
from services.merge.media.source import Source, as_media_error, demux, seconds
from services.merge.media.verify import Joined, Onlooker, verify_join
from services.merge.timeline import ENCODINGS, FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, MergedFile, Quality

AAC_SAMPLES = 1024
CONTAINER_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact", **CLOCK}


def merge(
    join: Join,
    target: BinaryIO,
    *,
    moved: BinaryIO,
    result: BinaryIO,
    quality: Quality,
    report: Report,
    even_loudness: bool = True,
    copied: bool = False,
    onlooker: Onlooker | None = None,
) -> MergedFile:
    """Write to ``target``; ``moved`` and ``result`` are further handles on the same file, for reading.
    ``even_loudness`` makes all clips equally loud; ``copied``: they are as they were sent. ``onlooker`` sees the
    pictures that verification decodes.

    The size is as stored. Progress counts every frame twice: once written, once verified. Raises MediaError
    verification_failed if the result is not what it must be.
    """
    progress = Progress(report, 2 * sum(join.counts))
    digests = _write(join, target, moved, quality, progress, even_loudness)
    joined = Joined(join.counts, digests, join.shape)
    verify_join(result, joined, join.threads, copied=copied, onlooker=onlooker)
    progress.advance(joined.frames)
    written = digest(result)
    progress.finish()
    width, height = join.shape
    return MergedFile(frames=join.counts, width=width, height=height, size=written.size, sha256=written.sha256)


def agreed(clips: Sequence[Clip]) -> Join:
    """Raises MediaError verification_failed for clips whose packets cannot follow each other in one track."""
    join = Join(tuple(clips))
    if len({file.kind for file in join.files}) != 1:
        raise MediaError(ErrorType.VERIFICATION_FAILED, "The clips were prepared differently.")
    return join


def as_sent(sources: Sequence[Source]) -> list[Clip]:
    """Clips as they were sent. Raises MediaError."""
    files = [_surveyed(source) for source in sources]
    return [Clip((file,), file.source, file.start) for file in files]


def normalised(sources: Sequence[Source], layout: Sequence[tuple[int, str]] = ()) -> list[Clip]:
    """The normalised clips that these files are: ``layout`` has for each clip its number of pieces, after which
    comes its source, and its start; 0 pieces for a file that is a whole clip, as all are without a layout.
    Raises MediaError."""
    files, clips = list(sources), list[Clip]()
    for count, start in layout or [(0, "")] * len(files):
        pieces, last = files[:count], files[count]
        begins = Fraction(start) if count else None
        clips.append(Clip(tuple(_surveyed(piece) for piece in pieces or [last]), last, begins))
        del files[: count + 1]
    return clips


@dataclass(frozen=True, slots=True)
class _File:
    """A file's video packets: ``count`` of them, the first shown at ``start`` seconds, decoded at most ``delay``
    packets before they are shown. ``kind`` is what files must agree in to follow each other."""

    source: Source
    count: int
    start: Fraction
    delay: int
    kind: tuple[object, ...]
    shape: tuple[int, int]
    aspect: Fraction


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip's picture, in one file or several, and its sound: stored as it is to be, or to be decoded from
    ``start`` on."""

    files: tuple[_File, ...]
    sound: Source
    start: Fraction | None = None

    @property
    def count(self) -> int:
        return sum(file.count for file in self.files)

    def pcm(self) -> bytes:
        """The whole sound, as long as the frames; a minute is 12 MB."""
        if self.start is not None:
            return b"".join(pcm(self.sound, self.start, self.count * SAMPLES_PER_FRAME))
        with self.sound.container() as container:
            data = b"".join(bytes(packet) for packet in demux(container, container.streams.audio[0]))
        if len(data) != self.count * SAMPLES_PER_FRAME * SAMPLE_BYTES:
            raise MediaError(ErrorType.VERIFICATION_FAILED, "A clip's sound is not as long as its picture.")
        return data


def _surveyed(source: Source) -> _File:
    with source.container() as container:
        video = source.video(container)
        context = video.codec_context
        aspect = video.sample_aspect_ratio or Fraction(1)
        kind = (context.name, context.extradata, context.width, context.height, video.sample_aspect_ratio)
        times = [_time(packet) for packet in demux(container, video) if packet.size]
        shape = (context.width, context.height)
    start = min(times, default=Fraction(0))
    slots = [round((time - start) * FPS) for time in times]
    if not slots or sorted(slots) != list(range(len(slots))):
        raise MediaError(ErrorType.VERIFICATION_FAILED, "A clip's frames are not one after the other.")
    delay = max(number - slot for number, slot in enumerate(slots))
    return _File(source, len(slots), start, delay, kind, shape, aspect)


@dataclass(frozen=True, slots=True)
class Join:
    """Clips whose packets can follow each other in one track; :func:`agreed` makes it."""

    clips: tuple[Clip, ...]

    @property
    def files(self) -> list[_File]:
        return [file for clip in self.clips for file in clip.files]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(clip.count for clip in self.clips)

    @property
    def shape(self) -> tuple[int, int]:
        return self.files[0].shape

    @property
    def threads(self) -> int:
        return self.files[0].source.threads

    @property
    def aspect(self) -> Fraction:
        """Of a stored pixel, width over height."""
        return self.files[0].aspect


def _time(packet: Packet[Stream]) -> Fraction:
    if packet.pts is None:
        raise MediaError(ErrorType.VERIFICATION_FAILED, "A clip's frame has no time.")
    return seconds(packet.pts, packet.time_base)


def _write(
    join: Join, target: BinaryIO, moved: BinaryIO, quality: Quality, progress: Progress, even_loudness: bool
) -> tuple[str, ...]:
    """The SHA-256 of each clip's packets."""

    def reopen(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
        """What faststart asks for once the data is written: the same file again, to read from."""
        target.flush()
        return moved

    with (
        as_media_error(ErrorType.WORKER_FAILED, "The video could not be written."),
        av.open(target, "w", format="mp4", options=CONTAINER_OPTIONS, io_open=reopen) as out,
    ):
        video = _copied_stream(out, join.files[0].source)
        audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        audio.codec_context.bit_rate = ENCODINGS[quality].audio_bitrate
        add_chapters(out, join.counts)
        sound = _Sound(out, audio)
        start, delay = 0, max(file.delay for file in join.files)
        digests: list[str] = []
        for clip in join.clips:
            sound.append(evened(clip.pcm()) if even_loudness else clip.pcm())
            packets = hashlib.sha256()
            for file in clip.files:
                for packet in _packets(file, start, delay):
                    packets.update(bytes(packet))
                    packet.stream = video
                    sound.until((packet.dts or 0) + 1)
                    out.mux(packet)
                    progress.advance()
                start += file.count
            digests.append(packets.hexdigest())
        sound.finish()
    target.flush()
    return tuple(digests)


def _copied_stream(out: OutputContainer, pattern: Source) -> VideoStream:
    with pattern.container() as container:
        stream = out.add_stream_from_template(pattern.video(container))
    stream.time_base = Fraction(1, FPS)
    stream.metadata.clear()
    return stream


def _packets(file: _File, start: int, delay: int) -> Iterator[Packet[Stream]]:
    """A file's video packets, timed in frames of the merged video."""
    with file.source.container() as container:
        packets = demux(container, file.source.video(container))
        for number, packet in enumerate(packet for packet in packets if packet.size):
            packet.pts = start + round((_time(packet) - file.start) * FPS)
            packet.dts = start + number - delay
            packet.duration, packet.time_base = 1, Fraction(1, FPS)
            yield packet


class _Sound:
    """One AAC encoder over all clips. Blocks go across clip boundaries: there is no joint to hear."""

    def __init__(self, out: OutputContainer, stream: AudioStream) -> None:
        self._out = out
        self._stream = stream
        self._pending = bytearray()
        self._position = 0

    def append(self, data: bytes) -> None:
        self._pending += data

    def until(self, frames: int) -> None:
        """Encode what is heard before that many frames, so that the file is interleaved."""
        while self._position < frames * SAMPLES_PER_FRAME and len(self._pending) >= AAC_SAMPLES * SAMPLE_BYTES:
            self._encode(AAC_SAMPLES)

    def finish(self) -> None:
        while self._pending:
            self._encode(min(AAC_SAMPLES, len(self._pending) // SAMPLE_BYTES))
        self._out.mux(self._stream.encode(None))

    def _encode(self, samples: int) -> None:
        frame = AudioFrame("s16", "stereo", samples)
        frame.planes[0].update(bytes(self._pending[: samples * SAMPLE_BYTES]))
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self._position, Fraction(1, SAMPLE_RATE)
        del self._pending[: samples * SAMPLE_BYTES]
        self._position += samples
        self._out.mux(self._stream.encode(frame))
