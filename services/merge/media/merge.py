"""Normalised clips into one MP4: video packets are copied, the sound is encoded once, the result is verified.

Times are counted in frames: packet i of a clip that starts at frame S gets dts and pts S + its own, so the
boundaries are exact by construction. One AAC encode runs through all clips; its priming sits only at the
very start, where the edit list hides it. Nothing of a clip but its coded samples reaches the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from services.merge.media.sound import SAMPLE_BYTES
from services.merge.media.source import Source, as_media_error, demux, seconds
from services.merge.media.verify import verify
from services.merge.timeline import ENCODINGS, FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, MergedFile, Quality

AAC_SAMPLES = 1024
CONTAINER_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact", **CLOCK}


def merge(
    sources: Sequence[Source],
    target: BinaryIO,
    *,
    moved: BinaryIO,
    result: BinaryIO,
    quality: Quality,
    report: Report,
    even_loudness: bool = True,
) -> MergedFile:
    """Write to ``target``; ``moved`` and ``result`` are further handles on the same file, for reading.
    ``even_loudness`` makes all clips equally loud.

    Progress counts every frame twice: once copied, once decoded again. Raises MediaError
    verification_failed if the clips are not alike or the result is not what it must be.
    """
    shape, counts = _agreed(sources)
    progress = Progress(report, 2 * sum(counts))
    with as_media_error(ErrorType.WORKER_FAILED, "The video could not be written."):
        _write(list(zip(sources, counts, strict=True)), target, moved, quality, progress, even_loudness)
    target.flush()
    verify(result, counts, shape, sources[0].threads, progress)
    written = digest(result)
    progress.finish()
    return MergedFile(frames=counts, width=shape[0], height=shape[1], size=written.size, sha256=written.sha256)


def _agreed(sources: Sequence[Source]) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Size and frame counts; refuses clips whose packets cannot follow each other in one track."""
    kinds: set[tuple[object, ...]] = set()
    counts = []
    for source in sources:
        with source.container() as container:
            video = source.video(container)
            context = video.codec_context
            kinds.add((context.name, context.extradata, context.width, context.height, video.sample_aspect_ratio))
            counts.append(sum(1 for packet in demux(container, video) if packet.size))
    if len(kinds) != 1 or not all(counts):
        raise MediaError(ErrorType.VERIFICATION_FAILED, "The clips were prepared differently.")
    _, _, width, height, _ = kinds.pop()
    assert isinstance(width, int)
    assert isinstance(height, int)
    return (width, height), tuple(counts)


def _write(
    clips: Sequence[tuple[Source, int]],
    target: BinaryIO,
    moved: BinaryIO,
    quality: Quality,
    progress: Progress,
    even_loudness: bool,
) -> None:
    def reopen(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
        """What faststart asks for once the data is written: the same file again, to read from."""
        target.flush()
        return moved

    with av.open(target, "w", format="mp4", options=CONTAINER_OPTIONS, io_open=reopen) as out:
        video = _copied_stream(out, clips[0][0])
        audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        audio.codec_context.bit_rate = ENCODINGS[quality].audio_bitrate
        add_chapters(out, [count for _, count in clips])
        sound = _Sound(out, audio)
        start = 0
        for source, count in clips:
            pcm = _pcm(source, count)
            sound.append(evened(pcm) if even_loudness else pcm)
            for packet in _packets(source, start):
                packet.stream = video
                sound.until((packet.dts or 0) + 1)
                out.mux(packet)
                progress.advance()
            start += count
        sound.finish()


def _copied_stream(out: OutputContainer, pattern: Source) -> VideoStream:
    with pattern.container() as container:
        stream = out.add_stream_from_template(pattern.video(container))
    stream.time_base = Fraction(1, FPS)
    stream.metadata.clear()
    return stream


def _packets(source: Source, start: int) -> Iterator[Packet[Stream]]:
    """A clip's video packets, timed in frames of the merged video."""
    with source.container() as container:
        video = source.video(container)
        for packet in demux(container, video):
            if not packet.size:
                continue
            assert packet.pts is not None
            assert packet.dts is not None
            packet.pts = start + round(seconds(packet.pts, packet.time_base) * FPS)
            packet.dts = start + round(seconds(packet.dts, packet.time_base) * FPS)
            packet.duration, packet.time_base = 1, Fraction(1, FPS)
            yield packet


def _pcm(source: Source, count: int) -> bytes:
    """A clip's whole sound; a minute is 12 MB. Must be as long as its frames."""
    with source.container() as container:
        data = b"".join(bytes(packet) for packet in demux(container, container.streams.audio[0]))
    if len(data) != count * SAMPLES_PER_FRAME * SAMPLE_BYTES:
        raise MediaError(ErrorType.VERIFICATION_FAILED, "A clip's sound is not as long as its picture.")
    return data


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
