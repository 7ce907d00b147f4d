"""Proof that a merged file is what it must be, by decoding all of it: nothing is published unseen.

Checked: frame i is shown at exactly i/FPS and decodes without error, the frames are as many as the clips had,
every clip begins with an IDR (so a player may jump there), and the sound ends with the picture.
"""

from __future__ import annotations

from fractions import Fraction
from typing import BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.progress import Progress
from services.merge.media.source import FORMATS, READ_BYTES, seconds
from services.merge.timeline import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

AAC_SAMPLES = 1024
NAL_IDR = 5
STRICT = {"err_detect": "explode"}  # an error that a decoder would hide becomes one that is raised


def verify(
    file: BinaryIO, counts: tuple[int, ...], shape: tuple[int, int], threads: int, progress: Progress
) -> None:
    """Raises MediaError verification_failed."""
    try:
        file.seek(0)
        with av.open(file, "r", options={"format_whitelist": FORMATS}, buffer_size=READ_BYTES) as container:
            _verify_video(container, counts, shape, threads, progress)
        file.seek(0)
        with av.open(file, "r", options={"format_whitelist": FORMATS}, buffer_size=READ_BYTES) as container:
            _verify_audio(container, sum(counts))
    except av.error.FFmpegError as error:
        raise _failed("it does not decode") from error


def _verify_video(
    container: InputContainer, counts: tuple[int, ...], shape: tuple[int, int], threads: int, progress: Progress
) -> None:
    stream = container.streams.video[0]
    stream.codec_context.options = STRICT
    stream.codec_context.thread_count = threads
    stream.codec_context.thread_type = "FRAME"
    starts = {sum(counts[:i]) for i in range(len(counts))}
    shown = 0
    for packet in container.demux(stream):
        if packet.pts is not None and _frame_number(packet.pts, packet.time_base) in starts:
            starts.discard(int(_frame_number(packet.pts, packet.time_base)))
            if not (packet.is_keyframe and _has_idr(packet)):
                raise _failed("a statement does not begin with a keyframe")
        for frame in packet.decode():
            assert frame.pts is not None
            if frame.is_corrupt or (frame.width, frame.height) != shape:
                raise _failed("a frame is damaged")
            if _frame_number(frame.pts, frame.time_base) != shown:
                raise _failed(f"frame {shown} is not where it belongs")
            shown += 1
            progress.advance()
    if starts or shown != sum(counts):
        raise _failed(f"it has {shown} frames instead of {sum(counts)}")


def _verify_audio(container: InputContainer, frames: int) -> None:
    """The priming is hidden by an edit list; at the end the codec may add up to one block."""
    stream = container.streams.audio[0]
    stream.codec_context.options = STRICT
    samples, first = 0, None
    for frame in container.decode(stream):
        first = frame.pts if first is None else first
        samples += frame.samples
    if first != 0:
        raise _failed("the sound does not begin with the picture")
    if not 0 <= samples - frames * SAMPLES_PER_FRAME < AAC_SAMPLES:
        raise _failed("sound and picture differ in length")
    if stream.sample_rate != SAMPLE_RATE:
        raise _failed("the sound has another rate")


def _frame_number(pts: int, time_base: Fraction | None) -> Fraction:
    return seconds(pts, time_base) * FPS


def _has_idr(packet: Packet[VideoStream]) -> bool:
    """Walk the packet's NAL units, each behind its length in four bytes (ISO/IEC 14496-15, 5.3.3)."""
    data, position = bytes(packet), 0
    while position + 4 < len(data):
        if data[position + 4] & 0x1F == NAL_IDR:
            return True
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    return False


def _failed(why: str) -> MediaError:
    return MediaError(ErrorType.VERIFICATION_FAILED, f"The merged video is not right: {why}.")
