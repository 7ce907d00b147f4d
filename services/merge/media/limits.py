"""What one media job may use and what a clip may be. No guard of the decoder replaces these.

A 416 KB file can ask for hundreds of megabytes before a decoder option is looked at, and two frames
hours apart ask for hours of held frames; so the process is limited (memory, CPU, time, output) and
the frames are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from services.merge.timeline import FPS, Canvas

HD_PIXELS = 1280 * 720


@dataclass(frozen=True, slots=True)
class Limits:
    """``memory_bytes`` is address space; the times are for a canvas of 1280x720 or less. ``max_pixels`` is width
    times height of one picture as coded, ``max_source_frames`` counts pictures as coded.
    Unless ``locked``, a job may also run where the kernel lacks what :mod:`sandbox` closes."""

    memory_bytes: int = 2 << 30
    cpu_seconds: int = 300
    wall_seconds: float = 300.0
    output_bytes: int = 4 << 30
    max_clip_seconds: float = 60.0
    max_pixels: int = 4096 * 2304
    max_streams: int = 16  # a phone adds spatial sound, depth and half a dozen tracks of metadata
    max_source_frames: int = 15_000
    locked: bool = True

    def for_canvas(self, canvas: Canvas) -> Limits:
        """With the times that a canvas takes: a minute of 1080p at high quality is 300 to 600 CPU-seconds."""
        share = max(1.0, canvas.width * canvas.height / HD_PIXELS)
        return replace(
            self, cpu_seconds=math.ceil(self.cpu_seconds * share), wall_seconds=self.wall_seconds * share
        )

    @property
    def max_frames(self) -> int:
        """Frames a clip may have: half a second is allowed on top, since recorders stop late."""
        return int(self.max_clip_seconds * FPS) + FPS // 2
