"""Proof that a file is what it must be: nothing is published unseen.

What was encoded is decoded as soon as it is: every picture of a normalised clip, each in its place. That happens
while the next clips still come in, so at the end only the join has to be proved: each clip's packets are the very
ones that were put in, frame i is shown at exactly i/FPS, every clip begins with an IDR frame (a player
may jump there) that decodes, and the sound ends with the picture. Of clips that were copied as they were sent the
groups of pictures on either side of each boundary are decoded, since inside of a clip nothing was changed.

Whoever wants pictures of the video sees them here. What is decoded of a copy only to be seen proves nothing: it
came as it is.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import BinaryIO, Protocol

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from services.merge.media.coded import NAL_IDR, nal_types
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.progress import Progress
from services.merge.media.source import FORMATS, READ_BYTES, seconds
from services.merge.timeline import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

AAC_SAMPLES = 1024
STRICT = {"err_detect": "explode"}  # an error that a decoder would hide becomes one that is raised
# The deblocking filter reads nothing of the stream, so without it as much is proved, a sixth cheaper. Its pictures
# are not fit to be seen.
UNSMOOTHED = {"skip_loop_filter": "all"}


class Onlooker(Protocol):
    """Sees pictures of the video, in their order. Its methods raise nothing."""

    def needs(self, groups: Sequence[range]) -> list[range]:
        """What it needs to see of a video with these groups of pictures: packets from a keyframe on, in order."""

    def see(self, number: int, frame: VideoFrame) -> None:
        """Frame ``number``. There come others too than it needs."""

    def fail(self, error: Exception) -> None:
        """Something that it needs cannot be decoded."""


def verify_clip(file: BinaryIO, frames: int, shape: tuple[int, int], threads: int, progress: Progress) -> None:
    """Decodes all ``frames`` of a normalised clip or a piece of one; progress counts each. Raises MediaError
    verification_failed."""
    with _opened(file) as container:
        stream = _decoder(container, threads, STRICT | UNSMOOTHED)
        shown = 0
        for packet in container.demux(stream):
            if packet.pts == 0 and not (packet.is_keyframe and _has_idr(packet)):
                raise _failed("it does not begin with a keyframe")
            for frame in packet.decode():
                _check(frame, shape)
                if _frame_number(frame.pts or 0, frame.time_base) != shown:
                    raise _failed(f"frame {shown} is not where it belongs")
                shown += 1
                progress.advance()
    if shown != frames:
        raise _failed(f"it has {shown} frames instead of {frames}")


@dataclass(frozen=True, slots=True)
class Joined:
    """What a merged file must hold: of each clip so many frames, and packets with this SHA-256."""

    counts: tuple[int, ...]
    digests: tuple[str, ...]
    shape: tuple[int, int]

    @property
    def starts(self) -> list[int]:
        return [sum(self.counts[:i]) for i in range(len(self.counts))]

    @property
    def frames(self) -> int:
        return sum(self.counts)


def verify_join(
    file: BinaryIO, joined: Joined, threads: int, *, copied: bool, onlooker: Onlooker | None = None
) -> None:
    """``copied``: the clips are as they were sent, not decoded before. Raises MediaError verification_failed."""
    with _opened(file) as container:
        index = _read(container, joined)
    with _opened(file) as container:
        proofs = (
            index.around_boundaries(joined) if copied else [range(start, start + 1) for start in joined.starts]
        )
        _decode(container, index, proofs, joined.shape, threads, onlooker)
    with _opened(file) as container:
        _verify_audio(container, joined.frames)


@contextmanager
def _opened(file: BinaryIO) -> Iterator[InputContainer]:
    try:
        file.seek(0)
        with av.open(file, "r", options={"format_whitelist": FORMATS}, buffer_size=READ_BYTES) as container:
            yield container
    except av.error.FFmpegError as error:
        raise _failed("it does not decode") from error


def _decoder(container: InputContainer, threads: int, options: Mapping[str, str]) -> VideoStream:
    stream = container.streams.video[0]
    stream.codec_context.options = dict(options)
    stream.codec_context.thread_count = threads
    stream.codec_context.thread_type = "FRAME"
    return stream


def _check(frame: VideoFrame, shape: tuple[int, int]) -> None:
    if frame.pts is None or frame.is_corrupt or (frame.width, frame.height) != shape:
        raise _failed("a frame is damaged")


@dataclass(frozen=True, slots=True)
class _Index:
    """The frame that each packet holds, and the groups of pictures as ranges of packets, which are ranges of
    frames: every one begins with an IDR frame and is closed."""

    shown: list[int]
    groups: list[range]

    def around_boundaries(self, joined: Joined) -> list[range]:
        """The groups that a clip begins or ends with, those that follow each other as one range."""
        ends = {*joined.starts, joined.frames}
        chosen: list[range] = []
        for group in self.groups:
            if group.start not in ends and group.stop not in ends:
                continue
            if chosen and chosen[-1].stop == group.start:
                chosen[-1] = range(chosen[-1].start, group.stop)
            else:
                chosen.append(group)
        return chosen


def _read(container: InputContainer, joined: Joined) -> _Index:
    """All packets are in their places, and those that were put in."""
    starts = joined.starts
    keyframes: list[int] = []
    shown: list[Fraction] = []
    digests = [hashlib.sha256() for _ in starts]
    for packet in container.demux(container.streams.video[0]):
        if not packet.size or packet.pts is None:
            continue
        number = len(shown)
        if packet.is_keyframe and _has_idr(packet):
            keyframes.append(number)
        digests[bisect_right(starts, number) - 1].update(bytes(packet))
        shown.append(_frame_number(packet.pts, packet.time_base))
    if not set(starts) <= set(keyframes):
        raise _failed("a statement does not begin with a keyframe")
    groups = [range(a, b) for a, b in zip(keyframes, [*keyframes[1:], len(shown)], strict=True)]
    if len(shown) != joined.frames or any(sorted(shown[g.start : g.stop]) != list(g) for g in groups):
        raise _failed(f"it has {len(shown)} frames instead of {joined.frames}, or not in their places")
    if tuple(digest.hexdigest() for digest in digests) != joined.digests:
        raise _failed("a statement's pictures are not those that were put in")
    return _Index([int(number) for number in shown], groups)


def _decode(
    container: InputContainer,
    index: _Index,
    proofs: list[range],
    shape: tuple[int, int],
    threads: int,
    onlooker: Onlooker | None,
) -> None:
    stream = _decoder(container, threads, STRICT)
    packets = (packet for packet in container.demux(stream) if packet.size)
    position = 0
    for chosen, proves in _chosen(proofs, onlooker.needs(index.groups) if onlooker is not None else []):
        own = islice(packets, chosen.start - position, chosen.stop - position)
        position = chosen.stop
        if onlooker is not None and not proves:
            _show(stream, own, onlooker)
            continue
        seen: list[Fraction] = []
        for frame in _decoded(stream, own):
            _check(frame, shape)
            seen.append(_frame_number(frame.pts or 0, stream.time_base))  # a flushed frame has no time base
            if onlooker is not None:
                onlooker.see(int(seen[-1]), frame)
        if seen != sorted(index.shown[chosen.start : chosen.stop]):
            raise _failed("frames around a boundary are not where they belong")


def _chosen(proofs: list[range], needed: list[range]) -> list[tuple[range, bool]]:
    """Which packets to decode, in order, and whether that proves something. What is needed of a group that proves
    something goes with the proof."""
    chosen = {proof.start: (proof, True) for proof in proofs}
    for wanted in needed:
        proof = next((proof for proof in proofs if wanted.start in proof), None)
        if proof is None:
            chosen[wanted.start] = wanted, False
        elif wanted.stop > proof.stop:
            chosen[proof.start] = range(proof.start, wanted.stop), True
    return [chosen[start] for start in sorted(chosen)]


def _decoded(stream: VideoStream, packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
    """A few packets from a keyframe on, by themselves."""
    for packet in packets:
        yield from stream.decode(packet)
    yield from stream.decode(None)
    stream.codec_context.flush_buffers()


def _show(stream: VideoStream, packets: Iterator[Packet[VideoStream]], onlooker: Onlooker) -> None:
    try:
        for frame in _decoded(stream, packets):
            if frame.pts is not None:
                onlooker.see(round(_frame_number(frame.pts, stream.time_base)), frame)
    except av.error.FFmpegError as error:
        onlooker.fail(error)
        stream.codec_context.flush_buffers()
        for _ in packets:  # the next ones are counted from here
            pass


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
    extradata = packet.stream.codec_context.extradata or bytes(5)
    return NAL_IDR in nal_types(bytes(packet), (extradata[4] & 3) + 1)


def _failed(why: str) -> MediaError:
    return MediaError(ErrorType.VERIFICATION_FAILED, f"The video is not right: {why}.")
