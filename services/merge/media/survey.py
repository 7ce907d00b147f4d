"""What a clip's packets say, read once without decoding: how long it is, and whether all of it is there.

Headers lie or are silent (a browser's webm has no duration), so the span comes from the packets and the header's
claim serves for one thing only: packets that stop well before it mean a truncated upload. A file without
such a claim (a recorder's webm, a fragmented MP4) that was cut off cannot be told from a shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from av.container import InputContainer
from av.video.stream import VideoStream

from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.source import Source, demux, seconds
from services.merge.timeline import FPS

ENTRY_MARGIN = Fraction(1)  # seconds; a stream may recover only some frames after what it calls a keyframe
TRUNCATION_SLACK = Fraction(1, 2)  # seconds; on top of a twentieth of the declared duration


@dataclass(frozen=True, slots=True)
class Survey:
    """``span`` in seconds from the first displayed frame to the end of the last; ``audio`` if any came."""

    span: Fraction
    frame_rate: Fraction
    audio: bool

    @property
    def expected_frames(self) -> int:
        return max(1, round(self.span * FPS))


def survey(source: Source) -> Survey:
    """Read all packets. Raises MediaError truncated, clip_too_long, too_many_frames, decode_failed, and
    what Source raises."""
    with source.container() as container:
        video = source.video(container)
        return _Reading(container, video, source).read()


def entry(source: Source, time: Fraction) -> tuple[int, Fraction | None]:
    """Where to begin to decode for what is shown at ``time``, in seconds of the file's own clock: the packets to
    leave out and the time of the keyframe after them, which lies well before it. (0, None) is the beginning."""
    skip, since = 0, None
    with source.container() as container:
        for number, packet in enumerate(demux(container, source.video(container))):
            if packet.pts is None or not packet.is_keyframe or packet.is_discard:
                continue
            shown = seconds(packet.pts, packet.time_base)
            if shown > time - ENTRY_MARGIN:
                break
            skip, since = number, shown
    return (skip, since) if skip else (0, None)


class _Reading:
    """One pass over the packets. ``first`` to ``last`` are displayed, ``earliest`` counts hidden ones too."""

    def __init__(self, container: InputContainer, video: VideoStream, source: Source) -> None:
        self._container = container
        self._video = video
        self._limits = source.limits
        self._check_frames = source.check_frames
        self._first: Fraction | None = None
        self._earliest: Fraction | None = None
        self._last = self._end = self._audio_span = Fraction(0)
        self._displayed = 0
        self._packets = 0
        self._audio = False

    def read(self) -> Survey:
        audio = self._container.streams.audio[:1]
        for packet in demux(self._container, self._video, *audio):
            if packet.stream is self._video and packet.size:
                self._packets += 1
                self._check_frames(self._packets)  # hidden ones too: all of them would be decoded
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None:
                continue
            start = seconds(pts, packet.time_base)
            end = start + seconds(packet.duration or 0, packet.time_base)
            if packet.stream is not self._video:
                self._audio = True
                self._audio_span = max(self._audio_span, end)
                continue
            self._see(start, end, displayed=not packet.is_discard)
        if self._first is None or self._earliest is None:
            raise MediaError(ErrorType.DECODE_FAILED, "This video has no frames.")
        between = (self._last - self._first) / (self._displayed - 1) if self._displayed > 1 else Fraction(0)
        if self._end == self._last:  # no duration on the last packet: it stays as long as the others did
            self._end += between or Fraction(1, FPS)
        self._refuse_truncated()
        return Survey(self._end - self._first, 1 / between if between else Fraction(FPS), self._audio)

    def _see(self, start: Fraction, end: Fraction, *, displayed: bool) -> None:
        self._earliest = start if self._earliest is None else min(self._earliest, start)
        if displayed:
            self._first = start if self._first is None else min(self._first, start)
            self._last = max(self._last, start)
            self._end = max(self._end, end)
            self._displayed += 1
            if (self._end - self._first) * FPS > self._limits.max_frames:
                limit = f"{self._limits.max_clip_seconds:g}"
                raise MediaError(ErrorType.CLIP_TOO_LONG, f"A clip may last {limit} seconds.")

    def _refuse_truncated(self) -> None:
        declared, read = self._declared()
        if read < declared - TRUNCATION_SLACK - declared / 20:
            raise MediaError(ErrorType.TRUNCATED, "This video ends before its end.")

    def _declared(self) -> tuple[Fraction, Fraction]:
        """Seconds the header claims, and the packets to hold against it. Nothing claimed is zero."""
        assert self._earliest is not None
        if self._video.duration:
            return seconds(self._video.duration, self._video.time_base), self._end - self._earliest
        rated = any(s.codec_context and s.codec_context.bit_rate for s in self._container.streams)
        if rated or not self._container.duration:  # with bit rates it may be FFmpeg's guess, not a claim
            return Fraction(0), Fraction(0)
        return Fraction(self._container.duration, 1_000_000), max(self._end, self._audio_span)
