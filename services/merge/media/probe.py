"""What a clip is, before anything is spent on it: its packets, and the first of its pictures decoded.

A probe refuses what can be refused cheaply; normalising is what establishes the truth.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import islice

from av.container import InputContainer
from av.video.frame import VideoFrame

from services.merge.media.coded import coded
from services.merge.media.orientation import orientation
from services.merge.media.source import Source, seconds
from services.merge.media.survey import survey
from services.merge.timeline import ClipInfo

DECODED_FRAMES = 10


def probe(source: Source) -> ClipInfo:
    """Raises MediaError of every type that names a fault of the clip."""
    seen = survey(source)
    with source.container() as container:
        video = source.video(container)
        first = _decode_some(source, container)
        aspect = video.sample_aspect_ratio or Fraction(1)
        width, height = orientation(first).displayed(max(1, round(first.width * aspect)), first.height)
        audio = next((s.codec_context for s in container.streams.audio if s.codec_context), None)
        return ClipInfo(
            container=container.format.name,
            video_codec=video.codec_context.name,
            width=width,
            height=height,
            rotation=orientation(first).degrees,
            duration=round(float(seen.span), 6),
            frame_rate=round(float(seen.frame_rate), 3),
            has_audio=audio is not None and seen.audio,
            audio_codec=audio.name if audio is not None and seen.audio else "",
            sha256=source.digest().sha256,
            coded=coded(source, first),
            start=_fraction(seconds(first.pts or 0, first.time_base)),
        )


def _fraction(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def _decode_some(source: Source, container: InputContainer) -> VideoFrame:
    """Prove that it decodes; return the first displayed frame."""
    first, *_ = islice(source.frames(container, source.video(container)), DECODED_FRAMES)
    return first  # Source.frames raises if there is none
