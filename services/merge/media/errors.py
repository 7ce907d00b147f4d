"""Why a media job failed, in the words that the job's record and the player's status carry.

The type alone decides whether trying again can help: a clip that is not a video stays one, a child that
was killed by something outside may succeed next time.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorType(StrEnum):
    """The closed list of failures; values are the ``error_type`` of a status."""

    NOT_A_VIDEO = "not_a_video"
    NO_VIDEO_STREAM = "no_video_stream"
    CLIP_TOO_LONG = "clip_too_long"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_STREAMS = "too_many_streams"
    TRUNCATED = "truncated"
    DECODE_FAILED = "decode_failed"
    TOO_MANY_FRAMES = "too_many_frames"
    MEMORY_EXCEEDED = "memory_exceeded"
    CPU_EXCEEDED = "cpu_exceeded"
    TIME_EXCEEDED = "time_exceeded"
    OUTPUT_TOO_LARGE = "output_too_large"
    WORKER_FAILED = "worker_failed"
    VERIFICATION_FAILED = "verification_failed"
    WORKER_LOST = "worker_lost"
    SOURCE_MISSING = "source_missing"
    COPY_REFUSED = "copy_refused"
    STORAGE_UNAVAILABLE = "storage_unavailable"


RETRYABLE = frozenset(
    {
        ErrorType.WORKER_FAILED,
        ErrorType.VERIFICATION_FAILED,
        ErrorType.WORKER_LOST,
        ErrorType.STORAGE_UNAVAILABLE,
    }
)


class MediaError(Exception):
    """A media job failed. ``message`` may be shown to the player: it names no path and no other clip. ``signal``
    is the one that ended its child, 0 if none did."""

    def __init__(self, error_type: ErrorType, message: str, *, signal: int = 0) -> None:
        super().__init__(f"{error_type}: {message}")
        self.error_type: str = error_type
        self.message = message
        self.signal = signal
        self.retryable = error_type in RETRYABLE
