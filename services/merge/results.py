"""What the worker believes of what a media child says.

A child that a hostile clip took over may answer anything that looks like a result. It can spoil the video of the
player who sent the clip; numbers that no clip can have must not get into the record, where the controller computes
with them for everybody. Such an answer is a broken child: the attempt failed, and is tried again.
"""

from __future__ import annotations

from typing import TypeVar

from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.limits import Limits
from services.merge.timeline import ClipInfo, MergedFile, NormalisedClip

T = TypeVar("T")
_LATE_SECONDS = 1.0  # recorders stop late: half of it is allowed


def believed_clip(clip: ClipInfo, limits: Limits) -> ClipInfo:
    """What a probe saw. Raises MediaError (WORKER_FAILED) if no clip is like that."""
    return _believed(
        clip,
        plausible=0 < clip.duration <= limits.max_clip_seconds + _LATE_SECONDS
        and min(clip.width, clip.height) >= 1
        and clip.coded.frames <= limits.max_source_frames
        and clip.coded.hidden <= limits.max_source_frames,
    )


def believed_frames(clip: NormalisedClip, limits: Limits) -> NormalisedClip:
    """A normalised clip or a piece of one. Raises MediaError (WORKER_FAILED) if none has so many frames."""
    return _believed(clip, plausible=1 <= clip.frames <= limits.max_frames)


def believed_video(video: MergedFile, clips: int, limits: Limits) -> MergedFile:
    """A video of so many clips. Raises MediaError (WORKER_FAILED) if there is none like that."""
    fits = len(video.frames) == clips and all(1 <= frames <= limits.max_frames for frames in video.frames)
    return _believed(video, plausible=fits and min(video.width, video.height) >= 1)


def _believed(result: T, *, plausible: bool) -> T:
    if not plausible:
        raise MediaError(ErrorType.WORKER_FAILED, "The video could not be processed.")
    return result
