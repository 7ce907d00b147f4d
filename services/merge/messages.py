"""What both servicers of the merge service send, as messages."""

from __future__ import annotations

from services.merge.domain import Sidecars, StoredFile
from services.merge.presets import DEFAULT, Preset
from services.merge.timeline import FPS, Segment
from services.merge.videos import SidecarUrls
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


def chapter_message(segment: Segment) -> video_pb2.Chapter:
    """The chapter that a segment is in the file."""
    return video_pb2.Chapter(title=segment.title, start_time=segment.start_time, end_time=segment.end_time)


def storyboard_urls(urls: SidecarUrls) -> video_pb2.StoryboardUrls:
    """Where a video's storyboard is."""
    return video_pb2.StoryboardUrls(image_url=urls.storyboard_image, vtt_url=urls.storyboard_vtt)


def sidecars_message(sidecars: Sidecars) -> video_pb2.Sidecars:
    """What lies beside a video, as services see it."""
    board, rendition = sidecars.storyboard, sidecars.rendition
    return video_pb2.Sidecars(
        posters=[_file(poster) for poster in sidecars.posters],
        storyboard=video_pb2.Storyboard(
            file=_file(board.file),
            tile_width=board.tile_width,
            tile_height=board.tile_height,
            columns=board.columns,
            start_frames=board.start_frames,
        ),
        rendition=video_pb2.Rendition(
            file=_file(rendition.file), offsets=rendition.offsets, start_frames=rendition.start_frames
        ),
    )


def _file(file: StoredFile) -> video_pb2.StoredFile:
    return video_pb2.StoredFile(object_key=file.object_key, size=file.size, sha256=file.sha256)
