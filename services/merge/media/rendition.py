"""The merged video once more as fragmented MP4, for players that want HLS: the same packets, copied.

A playlist of byte ranges over the plain MP4 would be none: HLS wants fragments, each with its own index, behind a
common header (draft-pantos-hls-rfc8216bis, section 3.1.2). So there is a second file, in which a fragment begins
at every keyframe; fragments make parts of about :data:`PART_FRAMES`, and a statement always begins one.
The header is written late so that it can hold the edit lists: what B-frames and the encoder's priming delay is
hidden as it is in the MP4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

import av
from av.container import OutputContainer

from services.merge.media.chapters import CLOCK
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.source import Source, as_media_error, demux, seconds
from services.merge.timeline import FPS

PART_FRAMES = 4 * FPS
OPTIONS = {
    "movflags": "+frag_keyframe+delay_moov+default_base_moof+skip_trailer",
    "fflags": "+bitexact",
    **CLOCK,
}
BOX_HEADER = 8


def write_rendition(source: Source, target: BinaryIO, starts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Offsets in bytes and first frames of the parts. ``starts`` are the statements' first frames.

    Raises MediaError verification_failed if the fragments are not what the keyframes promise.
    """
    with as_media_error(ErrorType.WORKER_FAILED, "The rendition could not be written."):
        keyframes = _copy(source, target)
    fragments = [offset for kind, offset in _boxes(target) if kind == b"moof"]
    if len(fragments) != len(keyframes) or not set(starts) <= set(keyframes):
        raise MediaError(ErrorType.VERIFICATION_FAILED, "The rendition is not cut where it should be.")
    offsets: list[int] = []
    frames: list[int] = []
    for offset, frame in zip(fragments, keyframes, strict=True):
        if not frames or frame in starts or frame - frames[-1] >= PART_FRAMES:
            offsets.append(offset)
            frames.append(frame)
    return offsets, frames


def _copy(source: Source, target: BinaryIO) -> list[int]:
    """Copies sound and picture; the numbers of the frames that are keyframes."""
    keyframes = []
    with source.container() as container, av.open(target, "w", format="mp4", options=OPTIONS) as out:
        video, audio = container.streams.video[0], container.streams.audio[0]
        streams = {stream.index: _same(out, stream) for stream in (video, audio)}
        for packet in demux(container, video, audio):
            if not packet.size:
                continue
            if packet.stream.index == video.index and packet.is_keyframe:
                assert packet.pts is not None
                keyframes.append(round(seconds(packet.pts, packet.time_base) * FPS))
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    target.flush()
    return keyframes


def _same(out: OutputContainer, stream: av.VideoStream | av.AudioStream) -> av.VideoStream | av.AudioStream:
    copied = out.add_stream_from_template(stream)
    copied.time_base = stream.time_base or Fraction(1, FPS)
    copied.metadata.clear()
    return copied


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Type and offset of each box of the file (ISO/IEC 14496-12, 4.2)."""
    end = file.seek(0, 2)
    offset = 0
    while offset + BOX_HEADER <= end:
        file.seek(offset)
        header = file.read(2 * BOX_HEADER)
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # the size follows in eight bytes
            size = int.from_bytes(header[BOX_HEADER:], "big")
        yield header[4:BOX_HEADER], offset
        if size < BOX_HEADER:
            raise MediaError(ErrorType.VERIFICATION_FAILED, "The rendition is damaged.")
        offset += size
