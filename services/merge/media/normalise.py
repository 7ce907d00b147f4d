"""A clip made joinable: N whole frames at :data:`FPS` from an IDR, and PCM of exactly their length, in a .mov.

Two passes over the source. Video first: it establishes t0 and N. Then sound, placed relative to t0 and
cut to N frames. Sound stays PCM because AAC joined by copy carries priming at every joint. Then what was written
is decoded, to prove it.

A long clip is encoded in pieces, by as many workers as there are. A piece has no sound and begins with an IDR
frame like a clip; it decodes from a keyframe well before its first frame, and finds the same frames for its slots
as a clip's one encode does, because t0 is given. Where the clip ends is found by its last piece.

Every encoder setting comes from canvas and quality, none from the source, so the parameter sets of a
session's clips are byte-equal and a merge can copy their packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from services.merge.media.cadence import Cadence, TooManyFrames
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.files import digest
from services.merge.media.picture import Fitter
from services.merge.media.progress import Progress, Report
from services.merge.media.sound import SAMPLE_BYTES, pcm
from services.merge.media.source import Source, as_media_error, seconds
from services.merge.media.survey import Survey, entry, survey
from services.merge.media.verify import verify_clip
from services.merge.timeline import (
    ENCODINGS,
    FPS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Canvas,
    NormalisedClip,
    Piece,
    Quality,
)

GOP_FRAMES = 5 * FPS  # a seek decodes at most this much
ENCODED, VERIFIED = 5, 1  # what the passes over a frame cost, in proportion
NEUTRAL = {"fflags": "+bitexact"}  # no library versions, no dates in the file


def normalise(
    source: Source,
    target: BinaryIO,
    canvas: Canvas,
    quality: Quality,
    report: Report,
    piece: Piece | None = None,
) -> NormalisedClip:
    """Write the clip, or a piece of it, to ``target``. Raises MediaError of every type that names a fault of the
    clip, and verification_failed if what was written is not right."""
    seen = survey(source)
    if piece is not None:
        progress = Progress(report, _expected(piece, seen), ENCODED + VERIFIED)
        return _write_piece(source, target, canvas, quality, progress, piece, seen)
    progress = Progress(report, seen.expected_frames, ENCODED + VERIFIED)
    with (
        as_media_error(ErrorType.WORKER_FAILED, "The clip could not be written."),
        av.open(target, "w", format="mov", options=NEUTRAL) as out,
    ):
        video = _video_stream(out, canvas, quality, source.threads)
        audio = out.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="stereo")
        start, frames = _write_video(source, out, video, canvas, progress)
        _refuse_truncated(frames, seen)
        _write_audio(out, audio, pcm(source, start, frames * SAMPLES_PER_FRAME))
    return _verified(target, frames, canvas, source.threads, progress)


def _write_piece(
    source: Source,
    target: BinaryIO,
    canvas: Canvas,
    quality: Quality,
    progress: Progress,
    piece: Piece,
    seen: Survey,
) -> NormalisedClip:
    with (
        as_media_error(ErrorType.WORKER_FAILED, "The clip could not be written."),
        av.open(target, "w", format="mov", options=NEUTRAL) as out,
    ):
        video = _video_stream(out, canvas, quality, source.threads)
        _, end = _write_video(source, out, video, canvas, progress, piece)
        if end <= piece.first or end < piece.end:
            raise MediaError(ErrorType.TRUNCATED, "This video ends before its end.")
        if not piece.end:
            _refuse_truncated(end, seen)
    return _verified(target, end - piece.first, canvas, source.threads, progress)


def _verified(target: BinaryIO, frames: int, canvas: Canvas, threads: int, progress: Progress) -> NormalisedClip:
    """Whoever merges it joins packets, and need not decode them again."""
    target.flush()
    verify_clip(target, frames, (canvas.width, canvas.height), threads, progress)
    written = digest(target)
    progress.finish()
    return NormalisedClip(frames=frames, size=written.size, sha256=written.sha256)


def _expected(piece: Piece, seen: Survey) -> int:
    return max(1, (piece.end or seen.expected_frames) - piece.first)


def _refuse_truncated(frames: int, seen: Survey) -> None:
    if Fraction(frames, FPS) < seen.span * Fraction(9, 10) - 1:
        raise MediaError(ErrorType.TRUNCATED, "This video ends before its end.")


def _video_stream(out: OutputContainer, canvas: Canvas, quality: Quality, threads: int) -> VideoStream:
    encoding = ENCODINGS[quality]
    options = {"preset": encoding.preset, "crf": str(encoding.crf), "a53cc": "0"}
    stream = out.add_stream("libx264", rate=FPS, options=options)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = canvas.width, canvas.height, "yuv420p"
    context.time_base = Fraction(1, FPS)
    context.sample_aspect_ratio = Fraction(1)
    context.gop_size = GOP_FRAMES
    context.flags |= Flags.closed_gop
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    context.thread_count = threads
    context.thread_type = "FRAME"  # the default, slices, is slower and looks worse
    return stream


def _write_video(
    source: Source,
    out: OutputContainer,
    stream: VideoStream,
    canvas: Canvas,
    progress: Progress,
    piece: Piece | None = None,
) -> tuple[Fraction, int]:
    """Encode every slot, or every one of the piece. Returns t0 in seconds and the frame after the last."""
    start, first, stop = None, 0, source.limits.max_frames
    if piece is not None:
        start, first, stop = Fraction(piece.start), piece.first, piece.end or stop
    skip, since = entry(source, start + Fraction(first, FPS)) if start is not None else (0, None)
    cadence: Cadence[VideoFrame] = Cadence(source.limits.max_frames, start)
    end = first
    with source.container() as container:
        decoder = source.video(container)
        fitter = Fitter(canvas, decoder.sample_aspect_ratio or Fraction(1), source.threads)
        try:
            frames = _since(source.frames(container, decoder, skip), since)
            for slot, repeats, frame in cadence.slots(_shown(decoder, frames)):
                if slot >= stop:
                    break
                slots = range(max(slot, first), min(slot + repeats, stop))
                if not slots:
                    continue
                with as_media_error(ErrorType.DECODE_FAILED, "This video's pictures cannot be converted."):
                    picture = fitter.fit(frame)
                for k in slots:
                    picture.pts, picture.time_base = k - first, Fraction(1, FPS)
                    picture.pict_type = PictureType.I if k == first else PictureType.NONE
                    out.mux(stream.encode(picture))
                end = slots.stop
                progress.advance(ENCODED * len(slots))
        except TooManyFrames as error:
            raise MediaError(ErrorType.CLIP_TOO_LONG, "This clip is too long.") from error
    out.mux(stream.encode(None))
    assert cadence.start is not None
    return cadence.start, end


def _since(frames: Iterator[VideoFrame], time: Fraction | None) -> Iterator[VideoFrame]:
    """Without those that are shown before: they refer to what was not decoded."""
    for frame in frames:
        assert frame.pts is not None
        if time is None or seconds(frame.pts, frame.time_base) >= time:
            yield frame


def _shown(stream: VideoStream, frames: Iterator[VideoFrame]) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Time, duration and picture. Where frames are decoded in another order than they are shown in, a duration
    says when the next is decoded, not how long this one stays: it counts as unknown."""
    for frame in frames:
        assert frame.pts is not None
        lasts = 0 if stream.codec_context.has_b_frames else frame.duration or 0
        yield seconds(frame.pts, frame.time_base), seconds(lasts, frame.time_base), frame


def _write_audio(out: OutputContainer, stream: AudioStream, pieces: Iterator[bytes]) -> None:
    position = 0
    for piece in pieces:
        frame = AudioFrame("s16", "stereo", len(piece) // SAMPLE_BYTES)
        frame.planes[0].update(piece)
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, position, Fraction(1, SAMPLE_RATE)
        position += frame.samples
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
