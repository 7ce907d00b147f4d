"""What a media child says is believed only if it can be: it may be in the hands of who made the clip."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.merge.media.errors import MediaError
from services.merge.media.limits import Limits
from services.merge.media.protocol import MAX_NUMBER, ProtocolError, parse_progress, parse_result
from services.merge.results import believed_clip, believed_frames, believed_video
from services.merge.timeline import ClipInfo, Coded, MergedFile, NormalisedClip

CLIP = ClipInfo("mp4", "h264", 1280, 720, 0, 3.0, 30.0, True, "aac")


@pytest.mark.parametrize("value", [[-1, 5], [6, 5], [0, 0], [1, MAX_NUMBER + 1], [1.0, 2], ["1", "2"], [1], None])
def test_progress_that_cannot_be_is_a_broken_child(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse_progress(value)
    assert parse_progress([0, 5]) == (0, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -1},
        {"size": 10**400},
        {"size": True},
        {"frames": [90, -90]},
        {"frames": [10**400]},
        {"sha256": "0" * 10_000},
        {"sha256": 0},
        {"more": 1},
        {"beside": 1},
        {"beside": {"tile_width": 160}},
    ],
)
def test_a_result_that_cannot_be_is_a_broken_child(wrong: dict[str, object]) -> None:
    right: dict[str, object] = {"frames": [90], "width": 1280, "height": 720, "size": 9, "sha256": "0" * 64}
    right["beside"] = None
    assert parse_result(MergedFile, dict(right)) == MergedFile((90,), 1280, 720, 9, "0" * 64)
    with pytest.raises(ProtocolError):
        parse_result(MergedFile, right | wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"duration": float(MAX_NUMBER)},
        {"duration": 61.5},
        {"duration": 0.0},
        {"width": 0},
        {"height": 0},
        {"coded": Coded(frames=MAX_NUMBER)},
        {"coded": Coded(hidden=15_001)},
    ],
)
def test_a_clip_that_cannot_be_is_a_broken_child(changes: dict[str, object]) -> None:
    assert believed_clip(replace(CLIP, duration=60.5), Limits()).duration == 60.5
    with pytest.raises(MediaError, match="worker_failed"):
        believed_clip(replace(CLIP, **changes), Limits())  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("frames", [0, 1816, MAX_NUMBER])
def test_a_normalised_clip_that_cannot_be_is_a_broken_child(frames: int) -> None:
    assert believed_frames(NormalisedClip(1815, 1, ""), Limits()).frames == 1815
    with pytest.raises(MediaError, match="worker_failed"):
        believed_frames(NormalisedClip(frames, 1, ""), Limits())


@pytest.mark.parametrize("frames", [(), (90,), (90, 90, 90), (90, 0), (90, MAX_NUMBER)])
def test_a_video_that_cannot_be_is_a_broken_child(frames: tuple[int, ...]) -> None:
    video = MergedFile((90, 90), 1280, 720, 1, "")
    assert believed_video(video, 2, Limits()) == video
    for wrong in (replace(video, frames=frames), replace(video, width=0)):
        with pytest.raises(MediaError, match="worker_failed"):
            believed_video(wrong, 2, Limits())


@pytest.mark.parametrize("duration", [float("nan"), float("inf"), -1.0])
def test_a_clip_lasts_a_number_of_seconds(duration: float) -> None:
    right = {field: getattr(CLIP, field) for field in ClipInfo.__slots__}
    with pytest.raises(ProtocolError):
        parse_result(ClipInfo, right | {"duration": duration})
