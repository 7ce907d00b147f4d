"""What both servicers of the merge service send, as messages."""

from __future__ import annotations

from services.merge.presets import DEFAULT, Preset
from services.merge.timeline import FPS, Segment
from twotruths.merge.v1 import merge_pb2, video_pb2


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


def preset_message(preset: Preset) -> merge_pb2.CompressionPreset:
    """A quality with its words and parameters."""
    return merge_pb2.CompressionPreset(
        quality=merge_pb2.Quality.Value(preset.quality),
        name=preset.name,
        description=preset.description,
        is_default=preset.quality is DEFAULT,
        video_codec="h264",
        encoder_preset=preset.encoding.preset,
        crf=preset.encoding.crf,
        frame_rate=FPS,
        audio_codec="aac",
        audio_bitrate=preset.encoding.audio_bitrate,
    )
