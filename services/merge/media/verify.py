"""Proof that a merged file is what it must be: nothing is published unseen.

Checked: frame i is shown at exactly i/FPS and decodes without error, the frames are as many as the clips had,
every clip begins with an IDR (so a player may jump there), and the sound ends with the picture. Of what was
encoded all is decoded; of what was copied the groups of pictures on either side of each boundary, since inside of
a clip nothing was changed.

Whoever wants pictures of the video sees them here, where they are decoded anyway. What is decoded of a copy only
to be seen proves nothing: it came as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
# Pictures that no other refers to are left unsmoothed: what is checked is the same, and all others are exact.
UNSMOOTHED = {"skip_loop_filter": "noref"}


class Onlooker(Protocol):
    """Sees pictures of the video, in their order. Its methods raise nothing."""

    def needs(self, groups: Sequence[range]) -> list[range]:
        """What it needs to see of a video with these groups of pictures: packets from a keyframe on, in order."""

    def see(self, number: int, frame: VideoFrame) -> None:
        """Frame ``number``. There come others too than it needs."""

    def fail(self, error: Exception) -> None:
        """Something that it needs cannot be decoded."""


def verify(
    file: BinaryIO,
    counts: tuple[int, ...],
    shape: tuple[int, int],
    threads: int,
    progress: Progress,
    onlooker: Onlooker | None = None,
) -> None:
    """Raises MediaError verification_failed."""
    with _opened(file) as container:
        _verify_video(container, counts, shape, threads, progress, onlooker)
    with _opened(file) as container:
        _verify_audio(container, sum(counts))


def verify_copy(
    file: BinaryIO,
    counts: tuple[int, ...],
    shape: tuple[int, int],
    threads: int,
    onlooker: Onlooker | None = None,
) -> None:
    """The same for a copy. Raises MediaError verification_failed."""
    with _opened(file) as container:
        groups = _groups(container, counts)
    with _opened(file) as container:
        _verify_groups(container, groups, counts, shape, threads, onlooker)
    with _opened(file) as container:
        _verify_audio(container, sum(counts))


@contextmanager
def _opened(file: BinaryIO) -> Iterator[InputContainer]:
    try:
        file.seek(0)
        with av.open(file, "r", options={"format_whitelist": FORMATS}, buffer_size=READ_BYTES) as container:
            yield container
    except av.error.FFmpegError as error:
        raise _failed("it does not decode") from error


def _decoder(container: InputContainer, threads: int) -> VideoStream:
    stream = container.streams.video[0]
    stream.codec_context.options = STRICT | UNSMOOTHED
    stream.codec_context.thread_count = threads
    stream.codec_context.thread_type = "FRAME"
    return stream


def _groups(container: InputContainer, counts: tuple[int, ...]) -> list[range]:
    """The groups of pictures, as ranges of packets, which are ranges of frames: every one begins with an IDR
    frame, as does every clip, and is closed. That all frames are there, and no more, follows."""
    starts = set(_starts(counts))
    keyframes: list[int] = []
    shown: list[Fraction] = []
    for packet in container.demux(container.streams.video[0]):
        if not packet.size or packet.pts is None:
            continue
        number = len(shown)
        if packet.is_keyframe and _has_idr(packet):
            keyframes.append(number)
        shown.append(_frame_number(packet.pts, packet.time_base))
    if not starts <= set(keyframes):
        raise _failed("a statement does not begin with a keyframe")
    groups = [range(a, b) for a, b in zip(keyframes, [*keyframes[1:], len(shown)], strict=True)]
    if len(shown) != sum(counts) or any(sorted(shown[g.start : g.stop]) != list(g) for g in groups):
        raise _failed(f"it has {len(shown)} frames instead of {sum(counts)}, or not in their places")
    return groups


def _around_boundaries(groups: list[range], counts: tuple[int, ...]) -> list[range]:
    """The groups that a clip begins or ends with, those that follow each other as one range."""
    ends = {*_starts(counts), sum(counts)}
    chosen: list[range] = []
    for group in groups:
        if group.start not in ends and group.stop not in ends:
            continue
        if chosen and chosen[-1].stop == group.start:
            chosen[-1] = range(chosen[-1].start, group.stop)
        else:
            chosen.append(group)
    return chosen


def _verify_groups(
    container: InputContainer,
    groups: list[range],
    counts: tuple[int, ...],
    shape: tuple[int, int],
    threads: int,
    onlooker: Onlooker | None,
) -> None:
    stream = _decoder(container, threads)
    proofs = _around_boundaries(groups, counts)
    needed = onlooker.needs(groups) if onlooker is not None else []
    extra = [chosen for chosen in needed if not any(chosen.start in proof for proof in proofs)]
    packets = (packet for packet in container.demux(stream) if packet.size)
    seen: list[Fraction] = []
    position = 0
    for chosen in sorted([*proofs, *extra], key=lambda chosen: chosen.start):
        own = islice(packets, chosen.start - position, chosen.stop - position)
        position = chosen.stop
        if chosen in extra:
            assert onlooker is not None
            _show(stream, own, onlooker)
            continue
        for frame in _decoded(stream, own):
            if frame.pts is None or frame.is_corrupt or (frame.width, frame.height) != shape:
                raise _failed("a frame is damaged")
            seen.append(_frame_number(frame.pts, stream.time_base))  # a flushed frame has none
            if onlooker is not None:
                onlooker.see(int(seen[-1]), frame)
    if seen != [number for proof in proofs for number in proof]:
        raise _failed("frames around a boundary are not where they belong")


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


def _starts(counts: tuple[int, ...]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]


def _verify_video(
    container: InputContainer,
    counts: tuple[int, ...],
    shape: tuple[int, int],
    threads: int,
    progress: Progress,
    onlooker: Onlooker | None,
) -> None:
    stream = _decoder(container, threads)
    starts = set(_starts(counts))
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
            if onlooker is not None:
                onlooker.see(shown, frame)
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
    extradata = packet.stream.codec_context.extradata or bytes(5)
    return NAL_IDR in nal_types(bytes(packet), (extradata[4] & 3) + 1)


def _failed(why: str) -> MediaError:
    return MediaError(ErrorType.VERIFICATION_FAILED, f"The merged video is not right: {why}.")
