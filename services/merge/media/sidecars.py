"""The job that makes what lies beside a merged file: posters, a storyboard, an HLS rendition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from services.merge.media.rendition import write_rendition
from services.merge.media.source import Source
from services.merge.media.stills import write_stills
from services.merge.timeline import SidecarFiles


def make_sidecars(source: Source, targets: Sequence[BinaryIO], counts: tuple[int, ...]) -> SidecarFiles:
    """``targets`` are a file for each statement's poster, the storyboard's sheet and the rendition, in that order;
    ``counts`` the statements' frames."""
    *posters, sheet, rendition = targets
    board = write_stills(source, posters, sheet, counts)
    offsets, frames = write_rendition(source, rendition, [sum(counts[:i]) for i in range(len(counts))])
    for target in targets:
        target.flush()
    return SidecarFiles(
        tile_width=board.width,
        tile_height=board.height,
        columns=board.columns,
        tile_frames=board.frames,
        part_offsets=tuple(offsets),
        part_frames=tuple(frames),
    )
