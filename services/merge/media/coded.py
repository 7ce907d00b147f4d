"""How a clip's video is coded, from its packets alone: what decides whether they can be copied.

Observed, not believed: times, hidden packets and frame types are those of the packets, since headers lie. H.264 in
these containers has its NAL units each behind its length and its parameter sets apart (ISO/IEC 14496-15, 5.3.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from typing import cast

from av.buffer import Buffer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

from services.merge.media.source import Source, demux, seconds
from services.merge.timeline import FPS, Coded

NAL_IDR, NAL_PARAMETERS = 5, frozenset({7, 8})  # ITU-T H.264, table 7-1
AVCC_VERSION = 1
MAX_NALS = 512  # in a packet; a picture has one for each slice and a few more
TOLERANCE = Fraction(1, 10)  # of a frame: a clock of 1/600 s rounds by a twentieth


def coded(source: Source, first: VideoFrame) -> Coded:
    """Read all packets; ``first`` is the first frame shown. Raises what Source raises."""
    with source.container() as container:
        video = source.video(container)
        context = video.codec_context
        packets = Packets(context.extradata or b"", context.name)
        for packet in demux(container, video):
            if packet.size and packet.pts is not None:
                time = seconds(packet.pts, packet.time_base)
                packets.see(time, bytes(packet), keyframe=packet.is_keyframe, hidden=packet.is_discard)
            elif packet.size:
                packets.untimed = True
            source.check_frames(len(packets.times))
        return Coded(
            profile=context.profile or "",
            pixel_format=context.pix_fmt or "",
            colour=f"{context.color_primaries}/{context.color_trc}/{context.colorspace}/{context.color_range}",
            width=context.width,
            height=context.height,
            aspect=_text(video.sample_aspect_ratio or Fraction(1)),
            matrix=_display_matrix(first).hex(),
            time_base=_text(video.time_base or Fraction(0)),
            parameter_sets=hashlib.sha256(context.extradata or b"").hexdigest(),
            bit_rate=8 * packets.size * FPS // max(1, len(packets.times)),
            frames=len(packets.times) - packets.hidden,
            hidden=packets.hidden,
            regular=packets.regular,
            closed=packets.closed,
            in_band=packets.in_band,
            interlaced=first.interlaced_frame,
        )


def nal_types(data: bytes, length_bytes: int = 4) -> Iterator[int]:
    """The types of a packet's NAL units."""
    position = 0
    while position + length_bytes < len(data):
        yield data[position + length_bytes] & 0x1F
        position += length_bytes + int.from_bytes(data[position : position + length_bytes], "big")


class Packets:
    """What is seen of the packets, in the order of decoding."""

    def __init__(self, extradata: bytes, codec: str) -> None:
        self._apart = len(extradata) > 4 and extradata[0] == AVCC_VERSION
        self._length_bytes = (extradata[4] & 3) + 1 if self._apart else 4
        self._keyframe: Fraction | None = None
        self.times: list[Fraction] = []
        self.size = 0
        self.hidden = 0
        self.untimed = False
        self.closed = codec == "h264" and self._apart
        self.in_band = not self._apart

    def see(self, time: Fraction, data: bytes, *, keyframe: bool, hidden: bool) -> None:
        self.times.append(time)
        self.size += len(data)
        self.hidden += hidden
        if not self.closed:
            return
        types = list(islice(nal_types(data, self._length_bytes), MAX_NALS + 1))
        if len(types) > MAX_NALS:
            self.closed = False
            return
        self.in_band = self.in_band or not NAL_PARAMETERS.isdisjoint(types)
        if keyframe:
            self._keyframe = time
            self.closed = NAL_IDR in types
        elif self._keyframe is None or time < self._keyframe:
            self.closed = False

    @property
    def regular(self) -> bool:
        return not self.untimed and are_regular(self.times)


def are_regular(times: Sequence[Fraction]) -> bool:
    """Whether the times are, in some order, those of frames 0, 1, 2… at :data:`FPS` from the first shown."""
    if not times:
        return False
    start = min(times)
    places = sorted((time - start) * FPS for time in times)
    return all(abs(place - number) <= TOLERANCE for number, place in enumerate(places))


def _display_matrix(frame: VideoFrame) -> bytes:
    side_data = cast("Mapping[Type, Buffer]", frame.side_data)  # PyAV's stub knows motion vectors only
    return bytes(side_data[Type.DISPLAYMATRIX]) if Type.DISPLAYMATRIX in side_data else b""


def _text(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"
