"""New uploads: what callers ask for, under which id it is kept, and how a replay is recognised."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from services.common.errors import AlreadyExists, InvalidArgument
from services.upload.domain import Upload, UploadPurpose
from services.upload.limits import Limits
from services.upload.reasons import Reason

_REQUESTS = uuid.UUID("9a4f2c0e-6f0c-5c1f-8a44-3f1a0d6f7b21")


@dataclass(frozen=True, slots=True)
class NewFile:
    """Parameters of InitiateUpload. ``chunk_size`` 0 lets the server choose; digests in hex or ""."""

    filename: str
    size: int
    mime_type: str
    chunk_size: int = 0
    sha256: str = ""
    request_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    defer_length: bool = False
    partial: bool = False
    network_type: str = ""
    device_type: str = ""


@dataclass(frozen=True, slots=True)
class NewWhole:
    """Parameters of ConcatUploads: a file made of partial uploads."""

    source_ids: Sequence[str]
    filename: str
    mime_type: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class NewClip:
    """One clip of a merge session, under an id that the merge service chose."""

    id: str
    filename: str
    size: int
    mime_type: str


def new_upload(owner: str, file: NewFile, *, now: datetime, expiry: timedelta) -> Upload:
    """The record of a new upload, before its chunk size is settled: the same id for the same request id."""
    if file.defer_length and file.size:
        raise InvalidArgument.field("file_size", "must be left out with defer_length")
    upload = Upload(
        id=_id(owner, file.request_id),
        owner=owner,
        filename=file.filename,
        mime_type=file.mime_type,
        size=file.size,
        chunk_size=file.chunk_size,
        promised_sha256=file.sha256.lower(),
        purpose=UploadPurpose.PARTIAL if file.partial else UploadPurpose.GENERIC,
        metadata=dict(file.metadata),
        length_deferred=file.defer_length,
        network_type=file.network_type,
        device_type=file.device_type,
        created_at=now,
        updated_at=now,
        expires_at=now + expiry,
    )
    return _fingerprinted(upload)


def new_whole(owner: str, whole: NewWhole, *, now: datetime, expiry: timedelta) -> Upload:
    """The record of a file made of partial uploads, before its size is known from them."""
    upload = Upload(
        id=_id(owner, whole.request_id),
        owner=owner,
        filename=whole.filename,
        mime_type=whole.mime_type,
        size=0,
        chunk_size=0,
        source_ids=tuple(canonical_id(id_, f"session_ids[{n}]") for n, id_ in enumerate(whole.source_ids)),
        metadata=dict(whole.metadata),
        created_at=now,
        updated_at=now,
        expires_at=now + expiry,
    )
    return _fingerprinted(upload)


def _id(owner: str, request_id: str) -> str:
    return str(uuid.uuid5(uuid.uuid5(_REQUESTS, owner), request_id) if request_id else uuid.uuid4())


def new_clips(
    owner: str,
    merge_session_id: str,
    clips: Sequence[NewClip],
    sibling_ids: Sequence[str] = (),
    *,
    now: datetime,
    expiry: timedelta,
) -> list[Upload]:
    """The records of a merge session's uploads, each naming all; of some of them, when ``sibling_ids`` are all:
    whether such a request came before does not depend on the others, which may be replaced in turn. Raises
    InvalidArgument when two have one id, or one is not among its siblings."""
    ids = tuple(canonical_id(clip.id, f"clips[{index}].session_id") for index, clip in enumerate(clips))
    for index, id_ in enumerate(ids):
        if id_ in ids[:index]:
            raise InvalidArgument.field(f"clips[{index}].session_id", "must differ from the others")
    siblings = tuple(canonical_id(id_, f"sibling_ids[{i}]") for i, id_ in enumerate(sibling_ids)) or ids
    for index, id_ in enumerate(ids):
        if id_ not in siblings:
            raise InvalidArgument.field(f"clips[{index}].session_id", "must be one of sibling_ids")
    uploads = [
        Upload(
            id=ids[index],
            owner=owner,
            filename=clip.filename,
            mime_type=clip.mime_type,
            size=clip.size,
            chunk_size=0,
            purpose=UploadPurpose.MERGE_CLIP,
            merge_session_id=canonical_id(merge_session_id, "merge_session_id"),
            video_index=siblings.index(ids[index]),
            sibling_ids=() if sibling_ids else siblings,
            created_at=now,
            updated_at=now,
            expires_at=now + expiry,
        )
        for index, clip in enumerate(clips)
    ]
    return [replace(_fingerprinted(upload), sibling_ids=siblings) for upload in uploads]


def _fingerprinted(upload: Upload) -> Upload:
    # Not the network and the device: the same request may be sent again from another one.
    parameters: list[object] = [
        upload.filename,
        upload.size,
        upload.mime_type,
        upload.chunk_size,
        upload.promised_sha256,
        sorted(upload.metadata.items()),
        upload.merge_session_id,
        upload.video_index,
        upload.sibling_ids,
    ]
    if upload.source_ids or upload.length_deferred or upload.purpose is UploadPurpose.PARTIAL:
        parameters += [upload.source_ids, upload.length_deferred, upload.purpose]
    return replace(upload, request_fingerprint=hashlib.sha256(json.dumps(parameters).encode()).hexdigest())


def settled(upload: Upload, limits: Limits) -> Upload:
    """The record with its chunk size chosen. Raises InvalidArgument when a limit is broken."""
    clip = upload.purpose is UploadPurpose.MERGE_CLIP
    at = f"clips[{upload.video_index}]." if clip else ""
    if not upload.length_deferred:
        limits.check_size(upload.size, f"{at}file_size")
    if upload.purpose is not UploadPurpose.PARTIAL:
        limits.check_type(upload.mime_type, media=frozenset({"video"}) if clip else None, at=at)
    size = limits.max_file_size if upload.length_deferred else upload.size
    return replace(upload, chunk_size=limits.chunk_size_for(size, upload.chunk_size, upload.network_type))


def replayed(existing: Upload, asked: Upload) -> Upload:
    """The upload that the same request made before. Raises AlreadyExists (REQUEST_ID_REUSED) for another one."""
    require_same(existing.request_fingerprint, asked)
    return existing


def require_same(fingerprint: str, asked: Upload) -> None:
    """Raises AlreadyExists (REQUEST_ID_REUSED) unless this is the fingerprint of the same request."""
    if fingerprint != asked.request_fingerprint:
        raise AlreadyExists("this id was used before with other parameters", reason=Reason.REQUEST_ID_REUSED)


def canonical_id(text: str, field_name: str = "session_id") -> str:
    """A UUID in its usual form. Raises InvalidArgument."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidArgument.field(field_name, "must be a UUID") from None


def write_token(created_at: datetime, id_: str) -> str:
    """The page token for what comes after this upload, newest first."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {id_}".encode()).decode()


def read_token(token: str) -> tuple[datetime, str]:
    """What :func:`write_token` wrote. Raises InvalidArgument."""
    try:
        moment, _, id_ = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        return datetime.fromisoformat(moment).astimezone(UTC), id_
    except ValueError:
        raise InvalidArgument.field("page_token", "must be a next_page_token of this method") from None
