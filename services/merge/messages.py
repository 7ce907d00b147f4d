"""What both servicers of the merge service send, as messages."""

from __future__ import annotations

from services.merge.timeline import Segment
from twotruths.merge.v1 import video_pb2


def segment_message(segment: Segment) -> video_pb2.Segment:
    """A segment in frames and, derived from them, in seconds."""
    return video_pb2.Segment(
        statement_index=segment.statement_index,
        start_time=segment.start_time,
        end_time=segment.end_time,
        duration=segment.duration,
        start_frame=segment.start_frame,
        frame_count=segment.frame_count,
    )
