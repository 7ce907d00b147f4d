"""A clip encoded in pieces: joined, they are what one encode of it is, to the frame and the sample."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from mesh.clips import BLUE, RED, Sound, make_clip
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.files import open_source
from services.merge.media.limits import Limits
from services.merge.media.runner import MediaRunner
from services.merge.media.source import Source
from services.merge.media.survey import entry
from services.merge.timeline import SAMPLES_PER_FRAME, Canvas, CutClip, Piece, Quality
from tests.contract.media_fixtures import Picture, beeps, flashes, pictures, samples
from tests.contract.test_media_copy import SYNC, encoded

CANVAS = Canvas(160, 120)


async def whole(source: Path) -> Path:
    target = source.with_suffix(".whole.mov")
    await MediaRunner().normalise(source, target, CANVAS, Quality.LOW, lambda *step: None)
    return target


async def cut(source: Path, *cuts: int) -> CutClip:
    """The clip encoded in pieces, the last of them first."""
    runner, start = MediaRunner(), (await MediaRunner().probe(source)).start
    files = [source.with_suffix(f".{n}.mov") for n in range(len(cuts) + 1)]
    for n in reversed(range(len(files))):
        piece = Piece(start, (0, *cuts)[n], (*cuts, 0)[n])
        made = await runner.normalise(source, files[n], CANVAS, Quality.LOW, lambda *step: None, piece)
        assert not piece.end or made.frames == piece.end - piece.first
    return CutClip(tuple(files), source, start)


def b_frames(path: Path) -> None:
    encoded(path, RED, 2.6, {"x264-params": "scenecut=0"}, shift=3)


def variable(path: Path) -> None:
    times = [Fraction(n * n, 900) + Fraction(n, 40) for n in range(42)]
    make_clip(path, seconds=3, colour=RED, times=times, start=Fraction(3, 2), sound=Sound(rate=44_100))


def browser(path: Path) -> None:
    make_clip(path, seconds=2.5, fps=25, colour=RED, codec="vp8", sound=Sound("opus"), live=True)


def alike(a: Picture, b: Picture) -> bool:
    return all(abs(x - y) <= 4 for x, y in zip(a.yuv(), b.yuv(), strict=True))


@pytest.mark.parametrize(("make", "name"), [(b_frames, "a.mov"), (variable, "a.mp4"), (browser, "a.webm")])
async def test_pieces_are_exact_to_the_frame_and_the_sample(tmp_path: Path, make: object, name: str) -> None:
    source, target, cuts = tmp_path / name, tmp_path / "merged.mp4", (29, 65)
    assert callable(make)
    make(source)
    alone = await whole(source)
    one = pictures(alone)
    make_clip(tmp_path / "short.mp4", seconds=0.7, colour=BLUE)
    clips: list[Path | CutClip] = [await cut(source, *cuts), await whole(tmp_path / "short.mp4")]
    merged = await MediaRunner().merge(clips, target, Quality.LOW, lambda *step: None)

    assert merged.frames == (len(one), 21)
    shown = pictures(target)
    assert [picture.number for picture in shown] == list(range(len(one) + 21))
    assert all(alike(a, b) for a, b in zip(one, shown, strict=False))
    assert all(shown[n].keyframe for n in (*cuts, len(one)))
    assert flashes(shown[: len(one)]) == flashes(one)
    heard, expected = beeps(samples(target)), beeps(samples(alone))
    assert len(heard) == len(expected) + 1 > 2
    assert max(abs(a - b) for a, b in zip(heard, expected, strict=False)) < SYNC
    assert 0 <= len(samples(target)) - len(shown) * SAMPLES_PER_FRAME < 1024


def test_a_piece_is_decoded_from_a_keyframe_before_it_and_not_from_the_beginning(tmp_path: Path) -> None:
    b_frames(tmp_path / "a.mov")
    with open_source(str(tmp_path / "a.mov")) as file:
        source = Source(file, Limits(), 1)
        begin = Fraction(1, 10)
        assert entry(source, begin) == (0, None)
        assert entry(source, begin + Fraction(5, 4)) == (0, None)
        assert entry(source, begin + 2) == (24, begin + Fraction(24, 30))


@pytest.mark.parametrize("piece", [Piece("0/1", 20, 40), Piece("0/1", 30, 0), Piece("0/1", 40, 50)])
async def test_a_piece_that_is_not_there_is_a_truncated_clip(tmp_path: Path, piece: Piece) -> None:
    make_clip(tmp_path / "a.mp4", seconds=1, colour=RED, sound=None)
    with pytest.raises(MediaError) as caught:
        await MediaRunner().normalise(
            tmp_path / "a.mp4", tmp_path / "p.mov", CANVAS, Quality.LOW, lambda *step: None, piece
        )
    assert caught.value.error_type == ErrorType.TRUNCATED
    assert not (tmp_path / "p.mov").exists()
