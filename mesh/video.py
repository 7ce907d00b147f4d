"""Looks at a merged video as a player's device would: are the statements where the segments say they are?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av

from mesh.errors import MeshError
from mesh.http import Json


def duration(path: Path) -> float:
    """What a clip's header says about its length in seconds, as a phone would; 0 if it says nothing."""
    try:
        with av.open(path) as container:
            return (container.duration or 0) / av.time_base
    except av.FFmpegError:
        return 0.0


def check_segments(path: Path, segments: Sequence[Json]) -> int:
    """How many frames the video has. Raises MeshError unless the segments tile them and each begins with a
    keyframe at its start_time."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        packets = sorted(
            (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None
        )
        half_frame = 0.5 / float(stream.average_rate or 30)
        times = [(float(pts * stream.time_base), keyframe) for pts, keyframe in packets]
    next_frame = 0
    for segment in segments:
        where = f"segment {segment['statement_index']}"
        if segment["start_frame"] != next_frame:
            raise MeshError(f"{where} starts at frame {segment['start_frame']}, not where the one before ends")
        if next_frame >= len(times):
            raise MeshError(f"{where} starts after the last of {len(times)} frames")
        time, keyframe = times[next_frame]
        if not keyframe or abs(time - segment["start_time"]) > half_frame:
            raise MeshError(f"{where} does not start with a keyframe at {segment['start_time']:.3f} s")
        next_frame += segment["frame_count"]
    if next_frame != len(times):
        raise MeshError(f"the segments have {next_frame} frames, the video {len(times)}")
    return len(times)
