"""Mutants of good clips: each ends in a result or in a precise terminal error, in time, and the worker lives.

2,000 of them go through all jobs of a session; ``CHAOS=full`` tries 10,000 and a number in ``CHAOS`` as many.
Locked children do one after the other (see ``media_locked``), and a few go through a worker's own runner too.
A failure names the mutant's number, and ``FUZZ_SEED`` (a fixed number unless set) makes it again.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from mesh.clips import RED, Sound, make_clip
from services.merge.media.errors import MediaError
from services.merge.media.runner import MediaRunner
from services.merge.timeline import Quality
from tests.contract.media_locked import CANVAS, DONE, LIMITS, PRECISE, LockedJobs

ASKED = os.environ.get("CHAOS", "")
MUTANTS = int(ASKED) if ASKED.isdigit() else 10_000 if ASKED == "full" else 2_000
SEED = int(os.environ.get("FUZZ_SEED", "4"))
HALVES = 2  # for the two workers of a test run
THROUGH_A_RUNNER = 100  # every so many
TELLING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small ones of each kind: index first, index last, turned, irregular, a browser's recording, Matroska."""
    folder = tmp_path_factory.mktemp("clips")
    size = (64, 48)
    make_clip(folder / "a.mp4", seconds=0.3, colour=RED, size=size)
    make_clip(folder / "b.mov", seconds=0.2, colour=RED, size=size, rotation=90, sound=Sound("pcm", rate=8_000))
    times = [Fraction(0), Fraction(1, 20), Fraction(1, 4)]
    make_clip(folder / "c.mp4", seconds=0.3, colour=RED, size=size, times=times, sound=None)
    make_clip(folder / "d.webm", seconds=0.3, colour=RED, size=size, codec="vp8", sound=Sound("opus"), live=True)
    make_clip(folder / "e.mkv", seconds=0.2, colour=RED, size=size, codec="vp9", sound=None)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


Mutation = Callable[[random.Random, bytearray, list[bytes]], None]


def flip(dice: random.Random, data: bytearray, clips: list[bytes]) -> None:
    for _ in range(dice.choice((1, 1, 2, 8, 64))):
        data[_place(dice, data)] ^= 1 << dice.randrange(8)


def number(dice: random.Random, data: bytearray, clips: list[bytes]) -> None:
    width = dice.choice((1, 2, 4, 4, 8))
    value = dice.choice(TELLING) if dice.random() < 0.8 else dice.getrandbits(32)
    place = _place(dice, data)
    data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "big")


def cut(dice: random.Random, data: bytearray, clips: list[bytes]) -> None:
    del data[_place(dice, data) :]


def drop(dice: random.Random, data: bytearray, clips: list[bytes]) -> None:
    place = _place(dice, data)
    del data[place : place + dice.randrange(1, 400)]


def repeat(dice: random.Random, data: bytearray, clips: list[bytes]) -> None:
    place, source = _place(dice, data), _place(dice, data)
    data[place:place] = data[source : source + dice.randrange(1, 400)]


def splice(dice: random.Random, data: bytearray, clips: list[bytes]) -> None:
    other = dice.choice(clips)
    place = _place(dice, data)
    data[place:] = other[dice.randrange(len(other)) :]


def noise(dice: random.Random, data: bytearray, clips: list[bytes]) -> None:
    place = _place(dice, data)
    length = min(dice.randrange(1, 64), len(data) - place)
    data[place : place + length] = dice.randbytes(length)


MUTATIONS: tuple[Mutation, ...] = (flip, flip, number, number, number, cut, drop, repeat, splice, noise)


def _place(dice: random.Random, data: bytearray) -> int:
    """Mostly in what describes the clip: at either end of the file, or in the index wherever it lies."""
    if not data:
        data.append(0)
    index = data.find(b"moov")
    if index >= 0 and dice.random() < 0.7:
        return min(len(data) - 1, index + dice.randrange(1_200))
    if dice.random() < 0.4:
        return dice.randrange(min(len(data), 400))
    return dice.randrange(len(data))


def mutants(clips: list[bytes], half: int) -> Iterator[tuple[int, bytes]]:
    """Numbered; each depends on nothing but its number and the seed."""
    for n in range(half, MUTANTS, HALVES):
        dice = random.Random(SEED * 1_000_003 + n)
        data = bytearray(dice.choice(clips))
        for _ in range(dice.choice((1, 1, 2, 4))):
            dice.choice(MUTATIONS)(dice, data, clips)
        yield n, bytes(data)


@pytest.mark.parametrize("half", range(HALVES))
async def test_a_damaged_clip_ends_in_a_result_or_a_precise_error(
    clips: list[bytes], tmp_path: Path, half: int
) -> None:
    jobs, seen = LockedJobs(), Counter[str]()
    try:
        for n, data in mutants(clips, half):
            outcome = jobs.outcome(data)
            seen[outcome] += 1
            assert outcome in PRECISE, f"mutant {n}: {outcome}"
            if n // HALVES % THROUGH_A_RUNNER == 0:
                await through_a_runner(data, tmp_path, n)
        assert jobs.outcome(clips[0]) == DONE
    finally:
        jobs.close()
    assert 0 < seen[DONE] < seen.total()
    assert jobs.deaths <= seen.total() // 100


async def through_a_runner(data: bytes, tmp_path: Path, n: int) -> None:
    """Both jobs, as a worker does them: in time, and nothing is left."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    runner = MediaRunner(LIMITS)
    began = time.monotonic()
    try:
        await runner.probe(source)
        await runner.normalise(source, target, CANVAS, Quality.LOW, lambda done, expected: None)
        target.unlink()
    except MediaError as error:
        if error.retryable:
            pytest.fail(f"mutant {n}: {error}")
    assert time.monotonic() - began < 2 * (LIMITS.wall_seconds + 2)
    assert list(tmp_path.iterdir()) == [source]
