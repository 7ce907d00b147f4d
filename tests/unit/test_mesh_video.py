"""The demo's look at a merged video fails when a boundary is not exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import video
from mesh.clips import RED, make_clip
from mesh.errors import MeshError
from mesh.http import Json


def segment(index: int, start: int, count: int) -> Json:
    return {"statement_index": index, "start_frame": start, "frame_count": count, "start_time": start / 30}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames with one keyframe, the first."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    make_clip(path, seconds=20 / 30, colour=RED, size=(64, 64), sound=None)
    return path


def test_segments_that_tile_the_frames_are_right(clip: Path) -> None:
    assert video.check_segments(clip, [segment(0, 0, 20)]) == 20
    assert video.duration(clip) == pytest.approx(20 / 30)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([segment(0, 0, 10), segment(1, 10, 10)], "segment 1 does not start with a keyframe"),
        ([segment(0, 0, 10), segment(1, 11, 9)], "segment 1 starts at frame 11"),
        ([segment(0, 0, 21)], "the segments have 21 frames, the video 20"),
        ([segment(0, 0, 20), segment(1, 20, 1)], "segment 1 starts after the last of 20 frames"),
        ([segment(0, 0, 20) | {"start_time": 0.1}], "does not start with a keyframe at 0.100 s"),
    ],
)
def test_segments_that_are_off_are_refused(clip: Path, segments: list[Json], message: str) -> None:
    with pytest.raises(MeshError, match=message):
        video.check_segments(clip, segments)
