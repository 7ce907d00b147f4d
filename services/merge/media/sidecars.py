"""What lies beside a merged file: posters, a storyboard, an HLS rendition.

They are made by the child that merges while it verifies, or by a job of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from services.merge.media.rendition import write_rendition
from services.merge.media.source import Source
from services.merge.media.stills import Stills, look_through
from services.merge.timeline import SidecarFiles


def make_sidecars(source: Source, targets: Sequence[BinaryIO], counts: tuple[int, ...]) -> SidecarFiles:
    """The job of their own: of a merged file that lies there. Raises what :func:`write_sidecars` does."""
    return write_sidecars(look_through(source, counts), source, targets, counts)


def write_sidecars(
    stills: Stills, source: Source, targets: Sequence[BinaryIO], counts: tuple[int, ...]
) -> SidecarFiles:
    """``targets`` are a file for each statement's poster, the storyboard's sheet and the rendition, in that order;
    ``counts`` the statements' frames, ``stills`` have seen the video. Raises MediaError, and whatever befell the
    stills."""
    *posters, sheet, rendition = targets
    board = stills.write(posters, sheet)
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
