"""What one media job may use and what a clip may be. No guard of the decoder replaces these.

A 416 KB file can ask for hundreds of megabytes before a decoder option is looked at, and two frames
hours apart ask for hours of held frames; so the process is limited (memory, CPU, time, output) and
the frames are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.merge.timeline import FPS


@dataclass(frozen=True, slots=True)
class Limits:
    """``memory_bytes`` is address space; ``max_pixels`` is width times height of one picture as coded.
    Unless ``locked``, a job may also run where the kernel lacks what :mod:`sandbox` closes."""

    memory_bytes: int = 2 << 30
    cpu_seconds: int = 300
    wall_seconds: float = 300.0
    output_bytes: int = 4 << 30
    max_clip_seconds: float = 60.0
    max_pixels: int = 4096 * 2304
    max_streams: int = 8
    locked: bool = True

    @property
    def max_frames(self) -> int:
        """Frames a clip may have: half a second is allowed on top, since recorders stop late."""
        return int(self.max_clip_seconds * FPS) + FPS // 2
