"""How a stored picture has to be turned for display: phones store what the sensor saw plus a matrix.

The matrix maps a stored point (x, y) to (a·x + c·y, b·x + d·y). Only its signs matter here: whatever is
not a quarter turn is taken as the nearest one. A front camera may add a mirror.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from av.buffer import Buffer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame


@dataclass(frozen=True, slots=True)
class Orientation:
    """Transpose first (swap x and y), then mirror left-right, then top-bottom."""

    transposed: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def degrees(self) -> int:
        """Clockwise turn, a mirror set aside: 0, 90, 180 or 270."""
        if self.transposed:
            return 270 if self.mirror_y else 90
        return 180 if self.mirror_y else 0

    def displayed(self, width: int, height: int) -> tuple[int, int]:
        """The size a stored picture is shown in; its own inverse."""
        return (height, width) if self.transposed else (width, height)

    def filters(self) -> list[tuple[str, str]]:
        """libavfilter steps; ``transpose`` has the mirrors built in."""
        if self.transposed:
            direction = {
                (False, False): "cclock_flip",
                (True, False): "clock",
                (False, True): "cclock",
                (True, True): "clock_flip",
            }[self.mirror_x, self.mirror_y]
            return [("transpose", direction)]
        return [("hflip", "")] * self.mirror_x + [("vflip", "")] * self.mirror_y


def orientation(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a decoded frame; upright if it has none."""
    side_data = cast("Mapping[Type, Buffer]", frame.side_data)  # PyAV's stub knows motion vectors only
    if Type.DISPLAYMATRIX not in side_data:
        return Orientation()
    raw = bytes(side_data[Type.DISPLAYMATRIX])
    a, b, _, c, d = memoryview(raw).cast("i")[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transposed=True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(mirror_x=a < 0, mirror_y=d < 0)
