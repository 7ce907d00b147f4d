"""What lies beside a merged video in its folder: posters, a storyboard, an HLS rendition.

The job that merges makes them too. They are worth less than the video: when they cannot be made they are tried
once more by a job of their own, and if that fails as well the video goes out without them and its metadata names
none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from services.merge.domain import Rendition, Sidecars, StoredFile, Storyboard
from services.merge.media.errors import MediaError
from services.merge.ports import Media
from services.merge.timeline import MergedFile, SidecarFiles

log = logging.getLogger(__name__)


def files_beside(video: Path, clips: int, key_prefix: str) -> dict[str, Path]:
    """By the keys they will be stored under: a poster for each clip, the storyboard's sheet, the rendition."""
    names = [*(f"poster{statement}.jpg" for statement in range(clips)), "storyboard.jpg", "hls.mp4"]
    return {key_prefix + name: video.with_name(name) for name in names}


async def described(
    media: Media, video: Path, merged: MergedFile, files: Mapping[str, Path]
) -> tuple[Sidecars | None, Mapping[str, Path]]:
    """What the metadata says of the ``files``, and which of them are to be stored: all, or none."""
    made = merged.beside or await _made(media, video, merged, files)
    if made is None:
        return None, {}
    *posters, sheet, rendition = [await asyncio.to_thread(_described, key, path) for key, path in files.items()]
    sidecars = Sidecars(
        posters=tuple(posters),
        storyboard=Storyboard(sheet, made.tile_width, made.tile_height, made.columns, made.tile_frames),
        rendition=Rendition(rendition, made.part_offsets, made.part_frames),
    )
    return sidecars, files


async def _made(media: Media, video: Path, merged: MergedFile, files: Mapping[str, Path]) -> SidecarFiles | None:
    try:
        return await media.sidecars(video, list(files.values()), merged.frames)
    except MediaError as error:
        log.warning("a video goes out without posters, storyboard and HLS", extra={"data": {"why": str(error)}})
        return None


def _described(key: str, path: Path) -> StoredFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return StoredFile(key, file.tell(), digest.hexdigest())
