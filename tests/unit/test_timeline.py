"""Frame arithmetic: segments, the canvas, and the constant cadence made of any frame times."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.merge.media.cadence import Cadence, TooManyFrames
from services.merge.timeline import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Canvas, ClipInfo, canvas_for, segments

FRAME = Fraction(1, FPS)


def clip(width: int, height: int) -> ClipInfo:
    return ClipInfo("mov", "h264", width, height, 0, 1.0, 30.0, False)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_segments_tile_the_file(frames: list[int]) -> None:
    tiles = segments(tuple(frames))

    assert [tile.statement_index for tile in tiles] == list(range(len(frames)))
    assert tiles[0].start_time == 0
    assert tiles[-1].end_time == sum(frames) / FPS
    for before, after in pairwise(tiles):
        assert before.end_time == after.start_time
        assert before.start_frame + before.frame_count == after.start_frame
    assert [tile.frame_count for tile in tiles] == frames


def test_a_frame_has_a_whole_number_of_samples() -> None:
    assert SAMPLES_PER_FRAME * FPS == SAMPLE_RATE


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((1920, 1080), (1920, 1080)),
        ((1080, 1920), (1080, 1920)),
        ((3840, 2160), (1920, 1080)),
        ((1280, 720), (1280, 720)),
        ((640, 480), (1280, 960)),
        ((853, 481), (1280, 722)),
        ((1080, 2520), (822, 1920)),
        ((2, 4000), (786, 1920)),
        ((1000, 100), (1280, 524)),
    ],
)
def test_canvas_keeps_the_shape_with_even_sides(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    assert canvas_for(clip(*size)) == Canvas(*canvas)


def cadence(times: list[Fraction], duration: Fraction = Fraction(0), limit: int = 1000) -> list[int]:
    """The source frame's number in every slot."""
    shown: list[int] = []
    clock: Cadence[int] = Cadence(limit)
    for slot, repeats, number in clock.slots((time, duration, i) for i, time in enumerate(times)):
        assert slot == len(shown)
        shown += [number] * repeats
    assert clock.count == len(shown)
    return shown


def test_constant_rate_is_left_as_it_is() -> None:
    assert cadence([i * FRAME for i in range(10)], FRAME) == list(range(10))


def test_twice_the_rate_shows_every_other_frame_at_its_exact_time() -> None:
    assert cadence([i * FRAME / 2 for i in range(9)], FRAME / 2)[:4] == [0, 2, 4, 6]


def test_25_fps_becomes_30_without_changing_the_length() -> None:
    shown = cadence([Fraction(i, 25) for i in range(75)], Fraction(1, 25))
    assert len(shown) == 90
    assert set(shown) == set(range(75))


def test_a_gap_is_held_and_a_start_offset_removed() -> None:
    assert cadence([Fraction(7), 7 + FRAME, 7 + 4 * FRAME], FRAME) == [0, 1, 1, 1, 2]


def test_a_frame_that_goes_back_in_time_is_dropped() -> None:
    assert cadence([0 * FRAME, 2 * FRAME, FRAME, 3 * FRAME], FRAME) == [0, 0, 1, 3]


def test_a_last_frame_with_an_absurd_duration_stays_one_frame() -> None:
    assert cadence([0 * FRAME, FRAME], Fraction(10**6)) == [0, 1]


def test_two_frames_hours_apart_are_refused_before_any_is_held() -> None:
    with pytest.raises(TooManyFrames):
        cadence([Fraction(0), Fraction(6 * 3600)], limit=1815)


@given(
    st.lists(st.fractions(0, Fraction(1, 5), max_denominator=1000), min_size=1, max_size=60),
    st.fractions(0, 100, max_denominator=90_000),
)
def test_no_slot_shows_a_frame_further_than_half_a_slot_from_its_time(
    gaps: list[Fraction], start: Fraction
) -> None:
    times = [start]
    for gap in gaps:
        times.append(times[-1] + gap)
    shown = cadence(times)

    assert shown == sorted(shown)
    changes = [slot for slot in range(1, len(shown)) if shown[slot] != shown[slot - 1]]
    for slot in changes:
        assert abs(times[shown[slot]] - start - slot * FRAME) <= FRAME / 2
