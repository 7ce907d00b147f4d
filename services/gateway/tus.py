"""tus 1.0.0 (https://tus.io/protocols/resumable-upload) over the ledger that all protocols share.

The core and the extensions creation, creation-with-upload, creation-defer-length, expiration, checksum,
termination and concatenation. Every upload of the caller is at /api/v1/tus/{session_id}, whoever began it.

To tus an upload is done when its last byte is in: that byte completes it, and what the completion says (a wrong
type, say) is the answer to that request. If that answer was lost, or the completion could not be made just
then, HEAD makes up for it, so an Upload-Offset equal to the Upload-Length always means that the file is there.
An upload that was refused, given up or has expired is 410; one that is complete takes no bytes: 403.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from aiohttp import web

from services.gateway import tus_fields
from services.gateway.appends import answering, session_id_of
from services.gateway.problems import FieldError, Problem, invalid
from services.gateway.resumable import Handler, ResumableRoutes, append_names, check_alive, handler_of
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1.upload_pb2 import Upload
from twotruths.upload.v1.upload_service_pb2 import AppendHeader, ConcatUploadsRequest, InitiateUploadRequest

URL = "/api/v1/tus/"
VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,expiration,checksum,termination,concatenation"
BODY_TYPE = "application/offset+octet-stream"
ALWAYS = {"Tus-Resumable": VERSION}
# What fields of the requests are called in a creation.
_NAMES = {
    "filename": "Upload-Metadata",
    "mime_type": "Upload-Metadata",
    "metadata": "Upload-Metadata",
    "file_size": "Upload-Length",
    "session_ids": "Upload-Concat",
}
_APPEND_NAMES = append_names("Upload-Checksum")


class TusRoutes(ResumableRoutes):
    """At /api/v1/tus/."""

    async def _answer(self, request: web.Request, handlers: Mapping[str, Handler]) -> web.Response:
        """Goes by the method that is meant: clients that cannot send PATCH or DELETE override theirs."""
        async with answering(ALWAYS):
            method = request.headers.get("X-HTTP-Method-Override", request.method).strip().upper()
            handler = handler_of(method, handlers)
            if method != "OPTIONS" and request.headers.getall("Tus-Resumable", []) != [VERSION]:
                raise Problem(
                    412,
                    "TUS_VERSION_UNSUPPORTED",
                    f"Tus-Resumable: must be {VERSION}",
                    headers={"Tus-Version": VERSION},
                )
            response = await handler(request)
            response.headers.update(ALWAYS)
            return response

    async def _options(self, request: web.Request) -> web.Response:
        headers = {
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Checksum-Algorithm": tus_fields.CHECKSUM_NAMES,
        }
        limits = await self._appends.limits()
        if limits is not None:
            headers["Tus-Max-Size"] = str(limits.max_file_size)
        return web.Response(status=204, headers=headers)

    async def _create(self, request: web.Request) -> web.Response:
        concat = request.headers.get("Upload-Concat", "").strip()
        if concat.startswith("final;"):
            return await self._concat(request, tus_fields.parts(concat))
        if concat not in {"", "partial"}:
            raise invalid([FieldError("/Upload-Concat", "must be partial, or final; and URLs of partial uploads")])
        message = _initiation(request, partial=concat == "partial")
        with_body = request.body_exists
        if with_body:
            _check_body_type(request)
        header = _append_header(request, offset=0)
        upload, left = await self._appends.initiate(request, message, _NAMES)
        made = {"Location": URL + upload.session_id} | left
        headers = made | {"Upload-Expires": tus_fields.expires(upload)}
        if with_body:
            header.session_id = upload.session_id
            async with answering(made):
                upload = await self._append_first(request, header, upload)
            headers = made | _offset(upload)
        return web.Response(status=201, headers=headers)

    async def _concat(self, request: web.Request, session_ids: list[str]) -> web.Response:
        for name in ("Upload-Length", "Upload-Defer-Length"):
            if name in request.headers:
                raise invalid([FieldError(f"/{name}", "is that of the parts of a final upload")])
        file = tus_fields.description(request.headers.get("Upload-Metadata", ""))
        message = ConcatUploadsRequest(
            session_ids=session_ids,
            filename=file.filename,
            mime_type=file.mime_type,
            metadata=dict(file.metadata) | tus_fields.remembered(session_ids),
        )
        # The partial uploads go into the file, so they cannot make it again. A client whose answer was lost sends
        # the same once more: also without a key of its own that is to find what was made.
        if "Idempotency-Key" not in request.headers:
            message.request_id = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
        upload = await self._appends.concat(request, message, _NAMES)
        return web.Response(status=201, headers={"Location": URL + upload.session_id} | _offset(upload))

    async def _head(self, request: web.Request) -> web.Response:
        session_id = session_id_of(request)
        upload = await self._appends.get(request, session_id)
        check_alive(upload)
        if _is_whole(upload) and upload.status != upload_pb2.UPLOAD_STATUS_COMPLETED:
            upload = await self._appends.outlasting(
                request, session_id, lambda: self._appends.complete(request, session_id)
            )
        headers = _offset(upload) | {"Upload-Metadata": tus_fields.metadata(upload), "Cache-Control": "no-store"}
        headers |= {"Upload-Defer-Length": "1"} if upload.length_deferred else _length(upload)
        if concat := tus_fields.concat(upload, URL):
            headers["Upload-Concat"] = concat
        return web.Response(status=200, headers=headers)

    async def _patch(self, request: web.Request) -> web.Response:
        session_id = session_id_of(request)
        _check_body_type(request)
        offset = tus_fields.number(request.headers, "Upload-Offset")
        if offset is None:
            raise invalid([FieldError("/Upload-Offset", "is missing")])
        header = _append_header(request, offset=offset)
        header.session_id = session_id
        if (length := tus_fields.number(request.headers, "Upload-Length")) is not None:
            header.upload_length = length
        try:
            upload = await self._append(request, header)
        except Problem as problem:
            if problem.reason == "UPLOAD_CLOSED":
                await self._explain_closed(request, session_id)
            raise
        return web.Response(status=204, headers=_offset(upload))

    async def _append_first(self, request: web.Request, header: AppendHeader, upload: Upload) -> Upload:
        """The creation's body; one that is sent again goes on where the upload of the first one stands."""
        if upload.status == upload_pb2.UPLOAD_STATUS_COMPLETED:
            return upload
        if not header.checksum:
            header.offset = upload.upload_offset
        return await self._append(request, header, skip=header.offset)

    async def _append(self, request: web.Request, header: AppendHeader, *, skip: int = 0) -> Upload:
        """The upload with the body at its end, completed if it is whole."""

        async def work() -> Upload:
            upload = await self._appends.append(request, header, names=_APPEND_NAMES, skip=skip)
            if _is_whole(upload) and upload.status != upload_pb2.UPLOAD_STATUS_COMPLETED:
                upload = await self._appends.complete(request, header.session_id)
            return upload

        try:
            return await self._appends.outlasting(request, header.session_id, work)
        except Problem as problem:
            if problem.reason == "CHUNK_DIGEST_MISMATCH":
                problem.status = 460
            if problem.reason == "OFFSET_MISMATCH" and "offset" in problem.metadata:
                problem.headers = {**problem.headers, "Upload-Offset": problem.metadata["offset"]}
            raise

    async def _explain_closed(self, request: web.Request, session_id: str) -> None:
        """409 would make clients try again. Raises Problem for what cannot go on."""
        upload = await self._appends.get(request, session_id)
        check_alive(upload)
        if upload.status == upload_pb2.UPLOAD_STATUS_COMPLETED:
            raise Problem(403, "UPLOAD_COMPLETED", "the upload is complete and takes no more bytes")


def _initiation(request: web.Request, *, partial: bool) -> InitiateUploadRequest:
    length = tus_fields.number(request.headers, "Upload-Length")
    defer = request.headers.get("Upload-Defer-Length", "").strip()
    if (length is None) != (defer == "1") or defer not in {"", "1"}:
        raise invalid([FieldError("/Upload-Length", "must be given, or else Upload-Defer-Length as 1")])
    if length == 0:
        raise invalid([FieldError("/Upload-Length", "must be at least 1: empty files are not taken")])
    file = tus_fields.description(request.headers.get("Upload-Metadata", ""))
    return InitiateUploadRequest(
        filename=file.filename,
        mime_type=file.mime_type,
        metadata=file.metadata,
        file_size=length or 0,
        defer_length=length is None,
        partial=partial,
    )


def _append_header(request: web.Request, *, offset: int) -> AppendHeader:
    header = AppendHeader(offset=offset)
    if (checksum := tus_fields.checksum(request.headers.get("Upload-Checksum"))) is not None:
        header.checksum_algorithm, header.checksum = checksum
    return header


def _check_body_type(request: web.Request) -> None:
    if request.headers.get("Content-Type", "").strip().lower() != BODY_TYPE:
        raise Problem(
            415, "UNSUPPORTED_MEDIA_TYPE", f"the body must be {BODY_TYPE}", headers={"Accept-Patch": BODY_TYPE}
        )


def _is_whole(upload: Upload) -> bool:
    return not upload.length_deferred and upload.upload_offset == upload.file_size


def _offset(upload: Upload) -> dict[str, str]:
    if upload.status == upload_pb2.UPLOAD_STATUS_COMPLETED:
        return {"Upload-Offset": str(upload.file_size)}
    return {"Upload-Offset": str(upload.upload_offset), "Upload-Expires": tus_fields.expires(upload)}


def _length(upload: Upload) -> dict[str, str]:
    return {"Upload-Length": str(upload.file_size)}
