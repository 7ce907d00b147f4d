"""A clip's sound as PCM of exactly the video's length: 48 kHz stereo, placed by time relative to the video.

Decoded audio comes in runs: as long as a frame's time agrees with the samples counted so far it continues the
run, and is never stretched (webm rounds to milliseconds). A larger step is a gap or an overlap of the
recording: the run ends, and the next is placed by its own time, so sound stays with the picture. The same is
done when frames are late or early on average, because a recorder's two clocks differ. What lies before t0 or
after the last frame is cut; what is missing is silence.

One channel is heard from both sides at its own level, as players do it; the resampler would make it 3 dB
softer than the same voice in stereo. More than two channels are mixed down by it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from services.merge.media.errors import ErrorType
from services.merge.media.source import Source, as_media_error, demux, seconds
from services.merge.timeline import SAMPLE_RATE

SAMPLE_BYTES = 4  # two channels of 16 bits
SILENCE_BYTES = SAMPLE_RATE * SAMPLE_BYTES
TOLERANCE = Fraction(15, 1000)  # above the rounding of containers, below one lost Opus packet of 20 ms
DRIFT = 0.003  # seconds off on average; with a corrected start, 5 ms are never reached
SMOOTHING = 1 / 16  # of the average, per frame


def pcm(source: Source, start: Fraction, samples: int) -> Iterator[bytes]:
    """Interleaved 16-bit stereo, ``samples`` samples in all; ``start`` is the video's t0 in seconds.

    A packet that cannot be decoded is left out: its time becomes silence.
    """
    written = 0
    for position, data in _resampled(source, start, samples):
        skipped = max(0, written - position)
        gap = min(max(0, position - written), samples - written)
        yield from _silence(gap)
        written += gap
        piece = data[skipped * SAMPLE_BYTES :][: (samples - written) * SAMPLE_BYTES]
        if piece:
            yield piece
            written += len(piece) // SAMPLE_BYTES
    yield from _silence(samples - written)


def _silence(samples: int) -> Iterator[bytes]:
    left = samples * SAMPLE_BYTES
    while left > 0:
        yield bytes(min(left, SILENCE_BYTES))
        left -= SILENCE_BYTES


def _resampled(source: Source, start: Fraction, samples: int) -> Iterator[tuple[int, bytes]]:
    """Pieces with their position in samples from t0, which may be negative."""
    run: _Run | None = None
    for frame in _frames(source):
        assert frame.pts is not None
        time = seconds(frame.pts, frame.time_base) - start
        if time * SAMPLE_RATE >= samples:
            break
        if run is None or not run.continues(frame, time):
            if run is not None:
                yield from run.finish()
                time = run.corrected(time)
            run = _Run(frame, time)
        yield from run.add(frame)
    if run is not None:
        yield from run.finish()


def _frames(source: Source) -> Iterator[AudioFrame]:
    with source.container() as container:
        stream = next((s for s in container.streams.audio if s.codec_context), None)
        if stream is None:
            return
        stream.codec_context.thread_count = 1
        for packet in demux(container, stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in frames:
                if isinstance(frame, AudioFrame) and frame.pts is not None and frame.samples:
                    yield frame


class _Run:
    """Consecutive samples through one resampler, which keeps the first sample's place."""

    def __init__(self, frame: AudioFrame, time: Fraction) -> None:
        self._single = frame.layout.nb_channels == 1
        layout = "mono" if self._single else "stereo"
        self._resampler = AudioResampler(format="s16", layout=layout, rate=SAMPLE_RATE)
        self._shape = _shape(frame)
        self._time = time
        self._taken = 0
        self._off = 0.0
        self._position = round(time * SAMPLE_RATE)

    def continues(self, frame: AudioFrame, time: Fraction) -> bool:
        off = time - self._expected
        if _shape(frame) != self._shape or abs(off) > TOLERANCE:
            return False
        self._off += (float(off) - self._off) * SMOOTHING
        return abs(self._off) <= DRIFT

    def corrected(self, time: Fraction) -> Fraction:
        """Where the next run begins: if only the average was off, this frame's own deviation is no reason."""
        if abs(time - self._expected) > TOLERANCE:
            return time
        return self._expected + Fraction(self._off)

    @property
    def _expected(self) -> Fraction:
        return self._time + Fraction(self._taken, self._shape[0])

    def add(self, frame: AudioFrame) -> Iterator[tuple[int, bytes]]:
        self._taken += frame.samples
        frame.pts = None  # its place is known; a rounded pts must not make the filter fill or drop
        yield from self._out(frame)

    def finish(self) -> Iterator[tuple[int, bytes]]:
        yield from self._out(None)

    def _out(self, frame: AudioFrame | None) -> Iterator[tuple[int, bytes]]:
        with as_media_error(ErrorType.DECODE_FAILED, "This video's sound cannot be converted."):
            converted: Sequence[AudioFrame | None] = self._resampler.resample(frame)
        for piece in converted:
            if piece is None:  # what flushing gives when there was nothing to convert
                continue
            yield self._position, self._interleaved(piece)
            self._position += piece.samples

    def _interleaved(self, piece: AudioFrame) -> bytes:
        if not self._single:
            return bytes(piece.planes[0])[: piece.samples * SAMPLE_BYTES]
        one = array("h", bytes(piece.planes[0])[: piece.samples * SAMPLE_BYTES // 2])
        both = array("h", bytes(piece.samples * SAMPLE_BYTES))
        both[0::2] = both[1::2] = one
        return both.tobytes()


def _shape(frame: AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name
