"""What a job does: gets its files, has the media child work on them, and stores what came out.

The result lies under a key that holds the claim's token, so two workers on one job never write one object.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from services.common.errors import NotFound, Unavailable
from services.common.objects import ObjectStore
from services.merge.delivery import is_copied
from services.merge.domain import Clip, JobKind, Outcome, Session, UnitRef, folder_of
from services.merge.media.errors import ErrorType, MediaError
from services.merge.media.limits import Limits
from services.merge.patience import Patience
from services.merge.ports import Media, OnProgress
from services.merge.results import believed_clip, believed_frames, believed_video
from services.merge.scratch import Scratch
from services.merge.sidecars import described, files_beside
from services.merge.timeline import ClipInfo, CutClip, MergedFile, Piece


class MergeWork:
    """The three kinds of work, on files of this machine."""

    def __init__(
        self,
        objects: ObjectStore,
        media: Media,
        scratch: Scratch,
        *,
        limits: Limits | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._objects = objects
        self._media = media
        self._scratch = scratch
        self._limits = limits or Limits()
        self._patience = patience or Patience()

    async def do(self, session: Session, ref: UnitRef, token: str, on_progress: OnProgress) -> Outcome:
        """Does the unit. Raises MediaError, also for an object store that stays full or away. Whatever it raises,
        what was stored is gone."""
        made: list[Outcome] = []
        try:
            async with self._scratch.folder() as folder:
                made.append(await self._do(session, ref, token, folder, on_progress))
        except asyncio.CancelledError:  # while the folder was removed, of what was made nobody has heard
            for outcome in made:
                await self.undo(outcome)
            raise
        return made[0]

    async def _do(
        self, session: Session, ref: UnitRef, token: str, folder: Path, on_progress: OnProgress
    ) -> Outcome:
        if ref.kind is JobKind.PROBE:
            source = await self._fetch(session.clips[ref.clip_index].source_key, folder / "source")
            return Outcome(clip=believed_clip(await self._media.probe(source), self._limits))
        if ref.kind is JobKind.NORMALISE:
            return await self._normalise(session, ref, token, folder, on_progress)
        if is_copied(session):
            return await self._copy(session, token, folder, on_progress)
        return await self._merge(session, token, folder, on_progress)

    async def undo(self, outcome: Outcome) -> None:
        """Removes what was stored for an outcome that does not count."""
        for key in outcome.object_keys:
            await self._objects.delete(key)

    async def _normalise(
        self, session: Session, ref: UnitRef, token: str, folder: Path, on_progress: OnProgress
    ) -> Outcome:
        assert session.canvas is not None, "the planner asks for it once the canvas is set"
        target = folder / "normalised.mov"
        source = await self._fetch(session.clips[ref.clip_index].source_key, folder / "source")
        piece = _piece(session, ref)
        clip = await self._media.normalise(source, target, session.canvas, session.quality, on_progress, piece)
        clip = believed_frames(clip, self._limits)
        key = f"merges/{session.id}/{ref.name}-{token}.mov"
        await self._store(key, target)
        return Outcome(object_key=key, size=clip.size, sha256=clip.sha256, frames=(clip.frames,))

    async def _merge(self, session: Session, token: str, folder: Path, on_progress: OnProgress) -> Outcome:
        target = folder / "merged.mp4"
        clips = [await self._normalised(session, clip, folder) for clip in session.clips]
        beside = files_beside(target, len(clips), _folder(session, token))
        merged = await self._media.merge(clips, target, session.quality, on_progress, list(beside.values()))
        return await self._finished(session, token, target, merged, beside)

    async def _normalised(self, session: Session, clip: Clip, folder: Path) -> Path | CutClip:
        """The clip's files, here. Of a clip that was cut the source too, for its sound."""
        made = session.normalised(clip.index)
        assert made, "the planner asks for it once all clips are normalised"
        files = [
            await self._verified(outcome, folder / f"clip{clip.index}c{chunk}.mov")
            for chunk, outcome in enumerate(made)
        ]
        if len(files) == 1:
            return files[0]
        source = await self._fetch(clip.source_key, folder / f"source{clip.index}")
        return CutClip(tuple(files), source, _probed(session, clip.index).start)

    async def _verified(self, outcome: Outcome, target: Path) -> Path:
        """What was verified when it was made, and still is that: a merge does not decode it again."""
        file = await self._fetch(outcome.object_key, target)
        if await asyncio.to_thread(_sha256, file) != outcome.sha256:
            raise MediaError(ErrorType.VERIFICATION_FAILED, "A prepared clip is not what was stored.")
        return file

    async def _copy(self, session: Session, token: str, folder: Path, on_progress: OnProgress) -> Outcome:
        """What cannot be copied after all is encoded instead: no fault of the clips, whatever it is."""
        target = folder / "merged.mp4"
        sources = [await self._fetch(clip.source_key, folder / f"clip{clip.index}") for clip in session.clips]
        beside = files_beside(target, len(sources), _folder(session, token))
        try:
            merged = await self._media.copy(sources, target, session.quality, on_progress, list(beside.values()))
        except MediaError as error:
            if error.retryable and error.error_type != ErrorType.VERIFICATION_FAILED:
                raise
            raise MediaError(ErrorType.COPY_REFUSED, error.message) from error
        outcome = await self._finished(session, token, target, merged, beside)
        probed = _probed(session, 0)
        return replace(outcome, width=probed.width, height=probed.height, copied=True)

    async def _finished(
        self, session: Session, token: str, video: Path, merged: MergedFile, beside: Mapping[str, Path]
    ) -> Outcome:
        """Stores a merged video and what lies beside it, in a folder of this claim's."""
        merged = believed_video(merged, len(session.clips), self._limits)
        sidecars, files = await described(self._media, video, merged, beside)
        key = f"{_folder(session, token)}video.mp4"
        await self._store_all({**files, key: video})
        return Outcome(
            object_key=key,
            size=merged.size,
            sha256=merged.sha256,
            frames=merged.frames,
            width=merged.width,
            height=merged.height,
            sidecars=sidecars,
        )

    async def _store_all(self, files: Mapping[str, Path]) -> None:
        """Stores files by key: all of them, or none."""
        stored: list[str] = []
        try:
            for key, file in files.items():
                await self._store(key, file)
                stored.append(key)
        except BaseException:
            with suppress(Unavailable):  # it goes with the session
                for key in stored:
                    await self._objects.delete(key)
            raise

    async def _store(self, key: str, file: Path) -> None:
        await self._patience(lambda: self._put(key, file))

    async def _put(self, key: str, file: Path) -> None:
        """Stores a file. Cancelled, it leaves none: it may be there already, or appear from a thread that nothing
        can stop, and after its session was cleaned up it would stay for ever."""
        storing = asyncio.ensure_future(self._objects.put_file(key, file))
        try:
            await asyncio.shield(storing)
        except asyncio.CancelledError:
            await asyncio.gather(storing, return_exceptions=True)
            await self._objects.delete(key)
            raise

    async def _fetch(self, key: str, target: Path) -> Path:
        """The object as a file of this machine: where it is, or copied to ``target``."""
        local = self._objects.local_path(key)
        if local is not None:
            return local
        try:
            await self._patience(lambda: self._read(key, target))
        except NotFound:
            raise MediaError(ErrorType.SOURCE_MISSING, "the clip's file is gone") from None
        return target

    async def _read(self, key: str, target: Path) -> None:
        with target.open("wb") as file:
            async for piece in self._objects.read(key):
                await asyncio.to_thread(file.write, piece)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(session: Session, token: str) -> str:
    """A claim's folder: no two workers on one job write one object."""
    return f"{folder_of(session.id)}{token}/"


def _probed(session: Session, clip_index: int) -> ClipInfo:
    outcome = session.done(JobKind.PROBE, clip_index)
    assert outcome is not None, "nothing else is planned for a clip before its probe"
    assert outcome.clip is not None
    return outcome.clip


def _piece(session: Session, ref: UnitRef) -> Piece | None:
    """The piece that a unit is about; None for a whole clip."""
    unit = session.unit(ref.kind, ref.clip_index, ref.chunk)
    if unit is None or (unit.first_frame, unit.end_frame) == (0, 0):
        return None
    return Piece(_probed(session, ref.clip_index).start, unit.first_frame, unit.end_frame)
