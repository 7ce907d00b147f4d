"""The use case of recording one statement anew, and what is left to do of it when a call was cut off."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

from services.common.clock import Clock
from services.common.errors import (
    Aborted,
    AlreadyExists,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from services.common.state import mutate, owned_key
from services.merge.domain import Clip, Reason, Session
from services.merge.planner import ClipUpload, UploadStatus
from services.merge.ports import Begun, Sessions, Uploads
from services.merge.replacing import intend, released, require_replaceable, take_place, withdraw
from services.merge.requests import NewClip

_OPEN = (UploadStatus.PENDING, UploadStatus.IN_PROGRESS)
_REFUSALS = (InvalidArgument, AlreadyExists, ResourceExhausted)


class ClipReplacer:
    """Replaces clips. A session waits ``upload_seconds`` for the new one."""

    def __init__(self, sessions: Sessions, uploads: Uploads, *, clock: Clock, upload_seconds: float) -> None:
        self._sessions = sessions
        self._uploads = uploads
        self._clock = clock
        self._upload_seconds = upload_seconds

    async def replace(
        self, owner: str, session_id: str, index: int, new: NewClip, request_id: str = ""
    ) -> tuple[Clip, Begun]:
        """Gives the new clip and its upload. The same ``request_id`` gives the same; without one, the same clip
        does as long as none of its bytes have come.

        Raises NotFound, FailedPrecondition (ALREADY_COMPLETED, MERGE_CANCELLED, CLIPS_GONE), InvalidArgument and
        ResourceExhausted (the upload service refuses it; nothing has changed), AlreadyExists (REQUEST_ID_REUSED)
        and Aborted (another one was faster).
        """
        key = owned_key(owner, session_id)
        session = await self._read(key)
        if index >= len(session.clips):
            raise InvalidArgument.field("video_index", f"the session has {len(session.clips)} clips")
        made = await self._made_before(session, index, new, request_id)
        if made is not None:
            return session.clips[index], Begun([made])
        clip = _clip(session, index, new, request_id)
        await self._write(key, lambda s: intend(s, clip))
        try:
            begun = await self._uploads.initiate_clip(session, clip)
            if begun.uploads[0].status not in _OPEN:  # this request was answered, and the clip replaced once more
                raise _reused()
        except _REFUSALS as refused:
            session = await self._write(key, lambda s: withdraw(s, clip.upload_id))
            await self._release(key, session)
            if isinstance(refused, InvalidArgument):
                raise _in_the_callers_names(refused) from refused
            raise
        session = await self._write(key, lambda s: take_place(s, clip.upload_id, self._deadline(), self._clock()))
        if session.clips[index].upload_id != clip.upload_id:
            require_replaceable(session)
            raise Aborted("the clip was replaced by another call at the same time; try again")
        return session.clips[index], begun

    async def settle(self, key: str, session: Session) -> Session:
        """Carries out what calls that were cut off have left. Raises Unavailable and Aborted."""
        for clip in session.replacements:
            session = await self._settle_one(key, session, clip)
        return await self._release(key, session)

    async def _settle_one(self, key: str, session: Session, clip: Clip) -> Session:
        try:
            begun = await self._uploads.initiate_clip(session, clip)
        except _REFUSALS:
            begun = Begun(())
        if all(upload.status in _OPEN for upload in begun.uploads) and begun.uploads:
            return await self._write(key, lambda s: take_place(s, clip.upload_id, self._deadline(), self._clock()))
        return await self._write(key, lambda s: withdraw(s, clip.upload_id))

    async def _release(self, key: str, session: Session) -> Session:
        """Removes the uploads of clips that were replaced."""
        ids = session.superseded
        for id_ in ids:
            await self._uploads.discard(session.owner, id_)
        return await self._write(key, lambda s: released(s, ids)) if ids else session

    async def _made_before(self, session: Session, index: int, new: NewClip, request_id: str) -> ClipUpload | None:
        """The upload of the clip in the place, if it was this request that put it there."""
        present = session.clips[index]
        same = present.generation > 0 and _same(present, new)
        if request_id and present.upload_id == _upload_id(session, index, request_id):
            if not same:
                raise _reused()
            return await self._uploads.get(session.owner, present.upload_id) or ClipUpload(
                present.upload_id, UploadStatus.PENDING
            )
        require_replaceable(session)
        if not session.uploads_ready:
            raise Unavailable("the session is being made; try again", retry_after=1)
        if request_id or not same or present.source_key:
            return None
        upload = await self._uploads.get(session.owner, present.upload_id)
        return upload if upload is not None and upload.status is UploadStatus.PENDING else None

    def _deadline(self) -> datetime:
        return self._clock() + timedelta(seconds=self._upload_seconds)

    async def _read(self, key: str) -> Session:
        entry = await self._sessions.get(key)
        if entry is None:
            raise _not_found()
        return entry.value

    async def _write(self, key: str, change: Callable[[Session], Session]) -> Session:
        entry = await mutate(self._sessions, key, change)
        if entry is None:
            raise _not_found()
        return entry.value


def _clip(session: Session, index: int, new: NewClip, request_id: str) -> Clip:
    """The clip that is asked for; the one that is intended already, if it is the same."""
    for intended in session.replacements:
        if intended.index == index and not request_id and _same(intended, new):
            return intended
    id_ = _upload_id(session, index, request_id or uuid.uuid4().hex)
    return Clip(index, id_, new.filename, new.size, new.duration, new.mime_type)


def _same(clip: Clip, new: NewClip) -> bool:
    return (clip.filename, clip.size, clip.mime_type) == (new.filename, new.size, new.mime_type)


def _upload_id(session: Session, index: int, request: str) -> str:
    return str(uuid.uuid5(uuid.UUID(session.id), f"replace-{index}-{request}"))


def _reused() -> AlreadyExists:
    return AlreadyExists("this request_id was used for another clip", reason=Reason.REQUEST_ID_REUSED)


def _not_found() -> NotFound:
    return NotFound("no merge session of yours has this id", reason=Reason.MERGE_NOT_FOUND)


def _in_the_callers_names(refused: InvalidArgument) -> InvalidArgument:
    """The upload service names ``clips[0].file_size``; our caller sent ``file_size``."""
    violations = [FieldViolation(v.field.rpartition(".")[2], v.description) for v in refused.violations]
    text = f"{violations[0].field}: {violations[0].description}" if violations else refused.message
    return InvalidArgument(text, reason=refused.reason, violations=violations, domain=refused.domain)
