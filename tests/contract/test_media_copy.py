"""Clips copied as they were sent: exact where they meet, and refused when a copy would not be right."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import pytest
from av.video.frame import PictureType, VideoFrame

from mesh.clips import BLUE, GREEN, RED, Colour, Sound, make_clip, to_yuv
from services.merge.media.coded import MAX_NALS, Packets, are_regular, nal_types
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.runner import MediaRunner
from services.merge.media.verify import Joined, verify_join
from services.merge.timeline import SAMPLES_PER_FRAME, MergedFile, Quality, segments
from tests.contract.media_fixtures import beeps, flashes, pictures, samples, video_packets

SYNC = Fraction(5, 1000)
COLOURS = (RED, GREEN, BLUE)
LENGTHS = (1.2, 0.7, 1.1)


def encoded(path: Path, colour: Colour, seconds: float, options: dict[str, str], *, shift: int = 0) -> None:
    """A clip with B-frames and several groups of pictures, as better phones make them. ``shift`` moves its video
    by so many frames, of which those before zero are hidden by an edit list."""
    plain = path.with_suffix(".plain.mov")
    make_clip(plain, seconds=seconds, colour=colour, sound=Sound("pcm"))
    wanted = {"preset": "veryfast", "bf": "2", "g": "12", **options}
    movflags = {"avoid_negative_ts": "disabled"} if shift else {"movflags": "+faststart"}
    with av.open(plain) as source, av.open(path, "w", format="mov", options=movflags) as out:
        video = out.add_stream("libx264", rate=30, options=wanted)
        video.codec_context.width, video.codec_context.height = 160, 120
        video.codec_context.thread_count = 1
        sound = out.add_stream_from_template(source.streams.audio[0])
        frames: list[VideoFrame | None] = [*source.decode(video=0), None]
        for frame in frames:
            if frame is not None:
                frame.pict_type = PictureType.NONE
            for packet in video.encode(frame):
                assert packet.pts is not None
                assert packet.dts is not None
                ticks = round(Fraction(shift, 30) / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                out.mux(packet)
        source.seek(0)
        for beep in source.demux(audio=0):
            if beep.size:
                beep.stream = sound
                out.mux(beep)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("copied")
    paths = [folder / f"{i}.mov" for i in range(3)]
    for path, colour, seconds in zip(paths, COLOURS, LENGTHS, strict=True):
        encoded(path, colour, seconds, {})
    return paths


async def copied(clips: list[Path], target: Path) -> MergedFile:
    return await MediaRunner().copy(clips, target, Quality.LOW, lambda *step: None)


async def test_a_copy_is_exact_to_the_frame_and_the_sample_and_encodes_no_picture(
    clips: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "merged.mp4"
    merged = await copied(clips, target)
    assert merged.frames == (36, 21, 33)
    shown = pictures(target)
    assert [picture.number for picture in shown] == list(range(90))
    for segment, colour in zip(segments(merged.frames), COLOURS, strict=True):
        own = shown[segment.start_frame :][: segment.frame_count]
        assert own[0].keyframe
        for end in (own[0], own[-1]):  # untagged, so BT.601 at this size
            chroma = zip(end.yuv()[1:], to_yuv(colour, "smpte170m")[1:], strict=True)
            assert all(abs(a - b) <= 4 for a, b in chroma)
    seen, heard = flashes(shown), beeps(samples(target))
    assert len(seen) == len(heard) == 3
    assert max(abs(a - b) for a, b in zip(seen, heard, strict=True)) < SYNC
    assert 0 <= len(samples(target)) - 90 * SAMPLES_PER_FRAME < 1024
    assert video_packets(target) == [packet for clip in clips for packet in video_packets(clip)]


async def test_a_copy_is_turned_as_its_clips_are(tmp_path: Path) -> None:
    sources = [tmp_path / f"{i}.mp4" for i in range(2)]
    for source, colour in zip(sources, COLOURS, strict=False):
        make_clip(source, seconds=0.4, colour=colour, rotation=90, sound=Sound(rate=44_100, channels=1))
    await copied(sources, tmp_path / "merged.mp4")
    info = await MediaRunner().probe(tmp_path / "merged.mp4")
    assert (info.width, info.height, info.rotation) == (120, 160, 90)


async def test_the_probe_says_what_a_copy_needs(clips: list[Path], tmp_path: Path) -> None:
    infos = [await MediaRunner().probe(clip) for clip in clips]
    first = infos[0].coded
    assert (first.profile, first.pixel_format, first.width, first.height) == ("High", "yuv420p", 160, 120)
    assert (first.regular, first.closed, first.in_band, first.interlaced) == (True, True, False, False)
    assert (first.frames, first.hidden, first.aspect) == (36, 0, "1/1")
    assert {info.coded.parameter_sets for info in infos} == {first.parameter_sets}
    assert len({info.sha256 for info in infos}) == 3
    assert first.bit_rate == 8 * 30 * sum(map(len, video_packets(clips[0]))) // 36


@pytest.mark.parametrize(
    ("options", "shift", "field", "value"),
    [
        ({"x264-params": "open-gop=1:keyint=6:min-keyint=3:scenecut=0"}, 0, "closed", False),
        ({"x264-params": "interlaced=1"}, 0, "interlaced", True),
        ({"x264-params": "repeat-headers=1"}, 0, "in_band", True),
        ({}, -5, "hidden", 5),
    ],
)
async def test_the_probe_sees_what_cannot_be_copied(
    tmp_path: Path, options: dict[str, str], shift: int, field: str, value: object
) -> None:
    encoded(tmp_path / "a.mov", RED, 0.8, options, shift=shift)
    info = await MediaRunner().probe(tmp_path / "a.mov")
    assert getattr(info.coded, field) == value


@pytest.mark.parametrize(
    ("times", "regular"),
    [
        ([0, 20, 40, 60], True),
        ([60, 0, 40, 20], True),
        ([7, 27, 47, 66], True),
        ([0, 24, 48, 72], False),
        ([0, 20, 60, 80], False),
        ([0, 20, 20, 40], False),
        ([0, 20, 43, 60], False),
        ([], False),
    ],
)
def test_frames_are_regular_when_they_lie_on_the_grid(times: list[int], regular: bool) -> None:
    assert are_regular([Fraction(time, 600) for time in times]) is regular


def test_a_rate_that_is_almost_right_is_not() -> None:
    assert not are_regular([Fraction(1001 * i, 30_000) for i in range(300)])


def test_nal_units_that_claim_more_than_there_is_end_the_packet() -> None:
    assert list(nal_types(b"\xff\xff\xff\xff\x65")) == [5]
    assert list(nal_types(b"\x00\x00\x00\x00")) == []


def test_a_packet_of_countless_nal_units_is_no_picture_and_is_not_counted() -> None:
    for count, closed in ((MAX_NALS, True), (MAX_NALS + 1, False), (10_000_000, False)):
        packets = Packets(b"\x01\x64\x00\x0a\xff", "h264")
        packets.see(Fraction(0), b"\x00\x00\x00\x01\x65" * count, keyframe=True, hidden=False)
        assert packets.closed is closed


async def test_clips_that_are_not_alike_are_not_copied(clips: list[Path], tmp_path: Path) -> None:
    make_clip(tmp_path / "other.mp4", seconds=0.4, colour=RED)
    with pytest.raises(MediaError) as caught:
        await copied([clips[0], tmp_path / "other.mp4"], tmp_path / "merged.mp4")
    assert caught.value.error_type == ErrorType.VERIFICATION_FAILED
    assert not (tmp_path / "merged.mp4").exists()


def as_it_is(path: Path, counts: tuple[int, ...]) -> Joined:
    """The merged file's own packets, cut where these clips would end."""
    left, digests = iter(video_packets(path)), []
    for count in counts:
        digests.append(hashlib.sha256(b"".join(islice(left, count))).hexdigest())
    return Joined(counts, tuple(digests), (160, 120))


def damage(path: Path, number: int) -> None:
    """A packet's pictures, not what says of which kind they are."""
    data, packet = path.read_bytes(), video_packets(path)[number]
    after = data.index(packet) + len(packet)
    at = after - min(len(packet) - 5, 60)
    path.write_bytes(data[:at] + b"\xa5" * (after - at) + data[after:])


@pytest.mark.parametrize(
    ("counts", "why"), [((36, 21, 34), "frames"), ((36, 21, 32), "frames"), ((37, 20, 33), "keyframe")]
)
@pytest.mark.parametrize("copied_as_sent", [True, False])
async def test_verification_sees_clips_that_are_not_where_they_belong(
    clips: list[Path], tmp_path: Path, counts: tuple[int, ...], why: str, copied_as_sent: bool
) -> None:
    target = tmp_path / "merged.mp4"
    await copied(clips, target)
    with target.open("rb") as file:
        verify_join(file, as_it_is(target, (36, 21, 33)), 1, copied=copied_as_sent)
        with pytest.raises(MediaError, match=why):
            verify_join(file, as_it_is(target, counts), 1, copied=copied_as_sent)


@pytest.mark.parametrize("number", [0, 20, 35, 36, 50, 60, 89])
@pytest.mark.parametrize("copied_as_sent", [True, False])
async def test_verification_sees_that_packets_are_not_those_that_were_put_in(
    clips: list[Path], tmp_path: Path, number: int, copied_as_sent: bool
) -> None:
    target = tmp_path / "merged.mp4"
    await copied(clips, target)
    right = as_it_is(target, (36, 21, 33))
    damage(target, number)
    with target.open("rb") as file, pytest.raises(MediaError, match="put in"):
        verify_join(file, right, 1, copied=copied_as_sent)


@pytest.mark.parametrize(
    ("number", "as_sent", "as_encoded"),
    [(0, True, True), (35, True, False), (36, True, True), (60, True, False), (57, True, True), (81, True, False)],
)
async def test_verification_decodes_what_was_not_decoded_before(
    clips: list[Path], tmp_path: Path, number: int, as_sent: bool, as_encoded: bool
) -> None:
    """Of what was sent the groups around boundaries; of what was encoded, and decoded then, how a clip begins."""
    target = tmp_path / "merged.mp4"
    await copied(clips, target)
    damage(target, number)
    for copied_as_sent, sees in ((True, as_sent), (False, as_encoded)):
        with (
            target.open("rb") as file,
            pytest.raises(MediaError, match=r"decode|damaged") if sees else nullcontext(),
        ):
            verify_join(file, as_it_is(target, (36, 21, 33)), 1, copied=copied_as_sent)
