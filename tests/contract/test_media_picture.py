"""Pictures on their way to the canvas: what is copied, what is left behind, and how often filters may be built."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

from mesh.clips import RED
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.limits import Limits
from services.merge.media.normalise import normalise
from services.merge.media.picture import MAX_KINDS, Fitter
from services.merge.media.probe import probe
from services.merge.media.source import Source
from services.merge.timeline import Canvas, Quality
from tests.contract.recordings import Recording, record

CANVAS = Canvas(160, 120)
CAPTION = b"\xb5\x00\x31GA94\x03\x42\xff" + b"\xfc\x54\x52" * 2 + b"\xff"  # ATSC A/53, part 4, table 6.7


def flat(width: int, height: int) -> VideoFrame:
    frame = VideoFrame(width, height, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes([90]) * plane.buffer_size)
    frame.pts, frame.time_base = 0, Fraction(1, 30)
    return frame


@pytest.mark.parametrize(("size", "copied"), [((160, 120), False), ((160, 100), True), ((120, 90), True)])
def test_a_picture_that_needs_nothing_is_not_copied(size: tuple[int, int], copied: bool) -> None:
    frame = flat(*size)
    frame.colorspace = 1
    fitted = Fitter(CANVAS, Fraction(1), 1).fit(frame)
    assert (fitted.width, fitted.height) == (160, 120)
    assert (fitted.planes[0].buffer_ptr != frame.planes[0].buffer_ptr) is copied


def test_a_clip_that_changes_its_kind_all_the_time_is_refused() -> None:
    fitter = Fitter(CANVAS, Fraction(1), 1)
    for n in range(MAX_KINDS):
        for _ in range(2):
            fitter.fit(flat(160, 120 - 2 * (n % 2)))
    with pytest.raises(MediaError) as caught:
        fitter.fit(flat(160, 120))
    assert caught.value.error_type == ErrorType.DECODE_FAILED


@pytest.mark.parametrize("codec", ["h264", "h264 with B-frames", "hevc"])
def test_a_probe_decodes_a_few_pictures_and_no_more(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def counted(source: Source, frame_width: int, frame_height: int) -> None:
        decoded.append((frame_width, frame_height))

    source = record(tmp_path / "a", Recording(codec=codec, seconds=Fraction(2), audio=None))
    with source.open("rb", buffering=0) as file:
        monkeypatch.setattr(Source, "check_pixels", counted)
        assert probe(Source(file, Limits(), 1)).duration == 2
    assert 0 < len(decoded) <= 15


def captioned(source: Path, target: Path) -> None:
    """The same H.264 with a caption in front of every picture, as a TV recorder writes it (SEI of type 4)."""
    unit = b"\x06\x04" + bytes([len(CAPTION)]) + CAPTION + b"\x80"
    with av.open(source) as container, av.open(target, "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                other = Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
                other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
                other.time_base, other.is_keyframe, other.stream = packet.time_base, packet.is_keyframe, stream
                out.mux(other)


def test_captions_and_other_side_data_of_a_clip_stay_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "captioned.mp4", tmp_path / "target.mov"
    captioned(record(tmp_path / "a", Recording(colour=RED, seconds=Fraction(1, 2), audio=None)), source)
    with av.open(source) as container:
        frame = next(container.decode(video=0))
        assert Type.A53_CC in frame.side_data
        assert len(list(Fitter(CANVAS, Fraction(1), 1).fit(frame).side_data)) == 0
    with source.open("rb", buffering=0) as file, target.open("w+b") as out:
        assert normalise(Source(file, Limits(), 1), out, CANVAS, Quality.LOW, lambda *_: None).frames == 15
    assert b"GA94" in source.read_bytes()
    assert b"GA94" not in target.read_bytes()
