"""Texts about a merged video that are written for each request, so that they carry the request's permission.

Addresses in them are relative to the text's own: ``hls.mp4`` and ``storyboard.jpg`` beside it, with the query of a
signed URL when the text was asked for with one; absolute where another than the gateway delivers. All else follows
from the video's metadata, to the frame.
"""

from __future__ import annotations

from itertools import pairwise

from twotruths.merge.v1.video_pb2 import Video

RENDITION = "hls.mp4"
SHEET = "storyboard.jpg"


def playlist(video: Video, uri: str) -> str:
    """An HLS media playlist (RFC 8216) of byte ranges over the rendition, which is at ``uri``."""
    rendition = video.sidecars.rendition
    offsets = [*rendition.offsets, rendition.file.size]
    seconds = [
        (after - start) / video.fps for start, after in pairwise([*rendition.start_frames, video.frame_count])
    ]
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{max(1, *(-int(-part // 1) for part in seconds))}",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{uri}",BYTERANGE="{offsets[0]}@0"',
    ]
    for duration, (start, end) in zip(seconds, pairwise(offsets), strict=True):
        lines += [f"#EXTINF:{duration:.6f},", f"#EXT-X-BYTERANGE:{end - start}@{start}", uri]
    return "\n".join([*lines, "#EXT-X-ENDLIST", ""])


def storyboard(video: Video, uri: str) -> str:
    """WebVTT whose cues name a part of the sheet (Media Fragments URI 1.0, ``xywh``), which is at ``uri``."""
    board = video.sidecars.storyboard
    cues = ["WEBVTT\n"]
    for tile, (start, after) in enumerate(pairwise([*board.start_frames, video.frame_count])):
        x, y = tile % board.columns * board.tile_width, tile // board.columns * board.tile_height
        place = f"#xywh={x},{y},{board.tile_width},{board.tile_height}"
        cues.append(f"{_clock(start, video.fps)} --> {_clock(after, video.fps)}\n{uri}{place}\n")
    return "\n".join(cues)


def _clock(frame: int, fps: int) -> str:
    """A frame's time as hh:mm:ss.ttt."""
    seconds, thousandths = divmod(round(frame * 1000 / fps), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{thousandths:03}"
