"""What lies beside a merged video in its folder: posters, a storyboard, an HLS rendition.

They are worth less than the video: when they cannot be made it goes out without them, and its metadata names none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

from services.merge.domain import Rendition, Sidecars, StoredFile, Storyboard
from services.merge.media.errors import MediaError
from services.merge.ports import Media

log = logging.getLogger(__name__)


async def make_sidecars(
    media: Media, merged: Path, frames: tuple[int, ...], key_prefix: str
) -> tuple[Sidecars | None, dict[str, Path]]:
    """Makes them in the folder of ``merged``. What the metadata says of them, and the files to store by key."""
    names = [*(f"poster{statement}.jpg" for statement in range(len(frames))), "storyboard.jpg", "hls.mp4"]
    files = {key_prefix + name: merged.with_name(name) for name in names}
    try:
        made = await media.sidecars(merged, list(files.values()), frames)
    except MediaError as error:
        log.warning("a video goes out without posters, storyboard and HLS", extra={"data": {"why": str(error)}})
        return None, {}
    *posters, sheet, rendition = [await asyncio.to_thread(_described, key, path) for key, path in files.items()]
    return (
        Sidecars(
            posters=tuple(posters),
            storyboard=Storyboard(sheet, made.tile_width, made.tile_height, made.columns, made.tile_frames),
            rendition=Rendition(rendition, made.part_offsets, made.part_frames),
        ),
        files,
    )


def _described(key: str, path: Path) -> StoredFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return StoredFile(key, file.tell(), digest.hexdigest())
