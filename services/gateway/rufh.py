"""Resumable Uploads for HTTP over the ledger that all protocols share.

After draft-ietf-httpbis-resumable-upload-12, interop version 8 (the protocol has been the same since -09; later
drafts were not at hand). POST /api/v1/rufh/ creates, every upload of the caller is at /api/v1/rufh/{session_id}.

- A 104 with the Location is sent to clients that show the same Upload-Draft-Interop-Version, as the draft
  demands, and to no other. There is none for progress: how much is stored is told at the end of a request.
- Content that breaks off is kept; Content-Digest (RFC 9530) makes it count all or not at all. Repr-Digest at the
  creation is the digest of the whole file, checked when it is complete.
- More bytes than the upload's length are refused, and what came before stays usable: the draft would have the
  upload given up, but nothing that was acknowledged is lost here.
- A final answer with ``Upload-Complete: ?1`` says what became of the file, be it an error; errors that may pass
  come without, so that clients ask for the offset and complete again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from services.gateway import bodies, digests, encode, structured
from services.gateway.appends import answering, session_id_of
from services.gateway.interim import send_104
from services.gateway.problems import FieldError, Problem, invalid
from services.gateway.resumable import Handler, ResumableRoutes, append_names, check_alive, handler_of
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1.upload_pb2 import Upload
from twotruths.upload.v1.upload_service_pb2 import CHECKSUM_ALGORITHM_SHA256, AppendHeader, InitiateUploadRequest

URL = "/api/v1/rufh/"
INTEROP_VERSION = "8"
BODY_TYPE = "application/partial-upload"
_TYPES = "https://iana.org/assignments/http-problem-types#"
_COMPLETE = {True: "?1", False: "?0"}
_PASSING = frozenset({408, 429, 499, 500, 502, 503, 504, 507})
_NAMES = {
    "filename": "Content-Disposition",
    "mime_type": "Content-Type",
    "file_size": "Upload-Length",
    "file_hash": "Repr-Digest",
}
_APPEND_NAMES = append_names("Content-Digest")


class RufhRoutes(ResumableRoutes):
    """At /api/v1/rufh/."""

    async def _answer(self, request: web.Request, handlers: Mapping[str, Handler]) -> web.Response:
        handler = handler_of(request.method, handlers)
        try:
            return await handler(request)
        except Problem as problem:
            if problem.status == 413:
                problem.headers = {**problem.headers, **await self._limit()}
            raise

    async def _options(self, request: web.Request) -> web.Response:
        methods = "OPTIONS, HEAD, PATCH, DELETE" if "session_id" in request.match_info else "OPTIONS, POST"
        headers = {"Allow": methods, "Accept-Patch": BODY_TYPE} | await self._limit()
        return web.Response(status=204, headers=headers)

    async def _create(self, request: web.Request) -> web.Response:
        last = _completes(request)
        length = _length(request, offset=0, last=last)
        checksum = _digest(request, "Content-Digest")
        upload, left = await self._appends.initiate(request, _initiation(request, length), _NAMES)
        limit = await self._limit(upload)
        location = {"Location": URL + upload.session_id}
        made = location | left
        if request.headers.get("Upload-Draft-Interop-Version", "").strip() == INTEROP_VERSION:
            await send_104(request, {"Upload-Draft-Interop-Version": INTEROP_VERSION} | location | limit)
        async with answering(made):
            # A creation that is sent again goes on where the upload of the first one stands.
            stored = 0 if checksum else upload.upload_offset
            header = AppendHeader(session_id=upload.session_id, offset=stored)
            if (request.body_exists or last) and upload.status != upload_pb2.UPLOAD_STATUS_COMPLETED:
                upload = await self._append(request, header, checksum, last=last, skip=stored)
        if last:
            return _result(upload, made)
        headers = made | limit | {"Upload-Complete": "?0", "Upload-Offset": str(upload.upload_offset)}
        return web.Response(status=201, headers=headers)

    async def _head(self, request: web.Request) -> web.Response:
        upload = await self._appends.get(request, session_id_of(request))
        check_alive(upload, refused={"Upload-Complete": "?1"})
        headers = _state(upload) | await self._limit(upload) | {"Cache-Control": "no-store"}
        if not upload.length_deferred:
            headers["Upload-Length"] = str(upload.file_size)
        return web.Response(status=204, headers=headers)

    async def _patch(self, request: web.Request) -> web.Response:
        session_id = session_id_of(request)
        if request.content_type != BODY_TYPE:
            headers = {"Accept-Patch": BODY_TYPE}
            raise Problem(415, "UNSUPPORTED_MEDIA_TYPE", f"the body must be {BODY_TYPE}", headers=headers)
        offset = structured.integer(request.headers.get("Upload-Offset"))
        if offset is None:
            raise invalid([FieldError("/Upload-Offset", "must be a number from 0")])
        last = _completes(request)
        length = _length(request, offset=offset, last=last)
        header = AppendHeader(session_id=session_id, offset=offset)
        if length is not None:
            header.upload_length = length
        checksum = _digest(request, "Content-Digest")
        try:
            upload = await self._append(request, header, checksum, last=last)
        except Problem as problem:
            if problem.reason == "UPLOAD_CLOSED":
                await self._explain_closed(request, session_id)
            raise
        if last:
            return _result(upload, {})
        return web.Response(status=204, headers=_state(upload) | await self._limit(upload))

    async def _append(
        self, request: web.Request, header: AppendHeader, checksum: str, *, last: bool, skip: int = 0
    ) -> Upload:
        """The upload with the content at its end; the file of it if the content is the ``last``."""
        if checksum:
            header.checksum_algorithm, header.checksum = CHECKSUM_ALGORITHM_SHA256, checksum

        async def work() -> Upload:
            upload = await self._appends.append(request, header, names=_APPEND_NAMES, skip=skip)
            if not last:
                return upload
            if upload.length_deferred:  # of content whose length only its end tells
                upload = await self._append_nothing(request, upload)
            if upload.upload_offset != upload.file_size:
                raise _inconsistent(f"{upload.upload_offset} bytes came of {upload.file_size}")
            return await self._complete(request, upload)

        try:
            return await self._appends.outlasting(request, header.session_id, work)
        except Problem as problem:
            _draft(problem, header.offset)
            raise

    async def _append_nothing(self, request: web.Request, upload: Upload) -> Upload:
        header = AppendHeader(
            session_id=upload.session_id, offset=upload.upload_offset, upload_length=upload.upload_offset
        )
        return await self._appends.append(request, header, names=_APPEND_NAMES, body=False)

    async def _complete(self, request: web.Request, upload: Upload) -> Upload:
        try:
            return await self._appends.complete(request, upload.session_id)
        except Problem as problem:
            if problem.status not in _PASSING:
                problem.headers = {**problem.headers, "Upload-Complete": "?1"}
            raise

    async def _explain_closed(self, request: web.Request, session_id: str) -> None:
        """Raises the problem that the draft has for an upload that is complete."""
        upload = await self._appends.get(request, session_id)
        if upload.status != upload_pb2.UPLOAD_STATUS_COMPLETED:
            return
        if request.body_exists and request.content_length != 0:
            raise _inconsistent(f"the upload is complete with {upload.file_size} bytes")
        detail = "the upload is complete"
        raise Problem(400, "UPLOAD_COMPLETED", detail, type=f"{_TYPES}completed-upload")

    async def _limit(self, upload: Upload | None = None) -> dict[str, str]:
        """Upload-Limit: sizes in bytes, the age in seconds from now."""
        limits = await self._appends.limits()
        members = {} if limits is None else {"max-size": limits.max_file_size}
        if upload is not None:
            members["max-age"] = max(0, upload.expires_at.seconds - int(time.time()))
        elif limits is not None:
            members["max-age"] = limits.expiry_seconds
        text = ", ".join(f"{name}={value}" for name, value in members.items())
        return {"Upload-Limit": text} if text else {}


def _completes(request: web.Request) -> bool:
    last = structured.boolean(request.headers.get("Upload-Complete"))
    if last is None:
        raise invalid([FieldError("/Upload-Complete", "must be ?1 for the last content, else ?0")])
    return last


def _length(request: web.Request, *, offset: int, last: bool) -> int | None:
    """The file's length, as far as a request tells: by Upload-Length, or by being the last."""
    told = structured.integer(request.headers.get("Upload-Length"))
    if not last or (request.content_length is None and request.body_exists):
        return told
    seen = offset + (request.content_length or 0)
    if told not in {None, seen}:
        raise _inconsistent(f"Upload-Length is {told}, and the last content ends at {seen}")
    return seen


def _initiation(request: web.Request, length: int | None) -> InitiateUploadRequest:
    if length == 0:
        raise invalid([FieldError("/Upload-Length", "must be at least 1: empty files are not taken")])
    return InitiateUploadRequest(
        filename=structured.filename(request.headers.get("Content-Disposition", "")) or "upload",
        mime_type=request.content_type,
        file_size=length or 0,
        defer_length=length is None,
        file_hash=_digest(request, "Repr-Digest"),
    )


def _digest(request: web.Request, header: str) -> str:
    return digests.from_digest_field(",".join(request.headers.getall(header, [])), header)


def _state(upload: Upload) -> dict[str, str]:
    whole = upload.status == upload_pb2.UPLOAD_STATUS_COMPLETED
    offset = upload.file_size if whole else upload.upload_offset
    return {"Upload-Complete": _COMPLETE[whole], "Upload-Offset": str(offset)}


def _result(upload: Upload, headers: Mapping[str, str]) -> web.Response:
    """What became of the file, as POST …/complete tells it."""
    body: Any = encode.dumps(encode.to_json(upload))
    return web.Response(body=body, content_type=bodies.JSON, headers={**_state(upload), **headers})


def _inconsistent(detail: str) -> Problem:
    return Problem(400, "LENGTH_MISMATCH", detail, type=f"{_TYPES}inconsistent-upload-length")


def _draft(problem: Problem, offset: int) -> None:
    """Gives what the upload service says of offsets and lengths the problem types of the draft."""
    expected = problem.metadata.get("offset", "")
    if problem.reason == "OFFSET_MISMATCH" and expected.isdigit():
        problem.type = f"{_TYPES}mismatching-upload-offset"
        problem.members = {"expected-offset": int(expected), "provided-offset": offset}
        problem.headers = {**problem.headers, "Upload-Offset": expected}
    if problem.reason in {"LENGTH_MISMATCH", "LENGTH_EXCEEDED"}:
        problem.status, problem.type = 400, f"{_TYPES}inconsistent-upload-length"
