"""An upload service kept in memory, for a gateway to stand before: as much of the contract as tests look at."""

# ruff: noqa: N802  servicers have the names of their rpcs

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services.common import context
from services.common.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ServiceError,
    Unavailable,
)
from services.upload.limits import Limits
from twotruths.upload.v1 import upload_pb2, upload_service_pb2, upload_service_pb2_grpc

NOW = Timestamp(seconds=1_790_000_000)
U = upload_pb2
LIMITS = Limits(chunk_size=4, max_chunk_size=10_000_000, max_chunks=1024, max_file_size=1 << 30)
"""Small chunks, and few of them: what an upload's answer holds grows with their number."""


def find(things: Mapping[str, Any], id_: str) -> Any:
    thing = things.get(id_)
    if thing is None or thing[0] != context.owner():
        raise NotFound("there is no such thing", reason="UPLOAD_NOT_FOUND")
    return thing[1]


class FakeUploads(upload_service_pb2_grpc.UploadServiceServicer):
    def __init__(self) -> None:
        self.uploads: dict[str, tuple[str, U.Upload]] = {}
        self.chunks: dict[str, dict[int, bytes]] = {}
        self.pieces: list[int] = []
        self.files: dict[str, tuple[str, U.File]] = {}
        self.changed = asyncio.Condition()
        self.may_complete = asyncio.Event()
        self.may_complete.set()
        self.call_begun, self.data_came, self.call_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.error: ServiceError | None = None
        self.metadata: list[tuple[str, str]] = []
        self.tails: dict[str, bytes] = {}
        self.initiated: list[Any] = []
        self.completed: list[Any] = []
        self.complete_error: ServiceError | None = None
        self.append_error: ServiceError | None = None
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.watches = self.watches_refused = 0

    def add(self, owner: str, filename: str, size: int, chunk_size: int, **more: Any) -> U.Upload:
        total = -(-size // chunk_size)
        upload = U.Upload(
            session_id=str(uuid.uuid4()),
            filename=filename,
            file_size=size,
            chunk_size=chunk_size,
            total_chunks=total,
            remaining_chunks=range(total),
            status=U.UPLOAD_STATUS_PENDING,
            created_at=NOW,
            expires_at=NOW,
            **more,
        )
        self.uploads[upload.session_id] = (owner, upload)
        self.chunks[upload.session_id] = {}
        return upload

    async def InitiateUpload(self, request: Any, rpc: Any) -> Any:
        self.initiated.append(request)
        rpc.set_trailing_metadata(self.trailers)
        if self.error is not None:
            raise self.error
        if not request.defer_length:
            LIMITS.check_size(request.file_size)
        upload = self.add(
            context.owner(),
            request.filename,
            request.file_size,
            LIMITS.chunk_size_for(request.file_size, request.chunk_size),
            mime_type=request.mime_type,
            length_deferred=request.defer_length,
            purpose=U.UPLOAD_PURPOSE_PARTIAL if request.partial else U.UPLOAD_PURPOSE_GENERIC,
            file_hash=request.file_hash,
        )
        upload.metadata.update(request.metadata)
        return upload_service_pb2.InitiateUploadResponse(upload=upload)

    async def UploadChunks(self, requests: AsyncIterator[Any], _: Any) -> Any:
        try:
            return await self._take(requests)
        finally:
            self.call_ended.set()

    async def _take(self, requests: AsyncIterator[Any]) -> Any:
        first = (await anext(requests)).header
        self.call_begun.set()
        if self.error is not None:
            raise self.error
        upload = find(self.uploads, first.session_id)
        if not 0 <= first.chunk_number < upload.total_chunks:
            raise OutOfRange(
                "no such chunk",
                reason="CHUNK_OUT_OF_RANGE",
                violations=InvalidArgument.field("chunk_number", "x").violations,
            )
        data, promised, ended = b"", first.sha256, False
        async for message in requests:
            if message.HasField("data"):
                self.pieces.append(len(message.data))
                self.data_came.set()
                data += message.data
            else:
                promised, ended = message.end.sha256 or promised, True
        if not (ended or promised):  # as the service does: a call that is cut off looks like one that ended
            raise InvalidArgument("a chunk without a digest needs its end", reason="STREAM_MALFORMED")
        digest = hashlib.sha256(data).hexdigest()
        if promised not in {"", digest}:
            raise InvalidArgument.field("sha256", "is not the SHA-256 received", reason="CHUNK_DIGEST_MISMATCH")
        number = first.chunk_number
        expected = min(upload.chunk_size, upload.file_size - number * upload.chunk_size)
        if len(data) != expected:
            raise InvalidArgument.field("data", f"must have {expected} bytes", reason="CHUNK_SIZE_MISMATCH")
        stored = self.chunks[upload.session_id]
        status = U.CHUNK_STATUS_ALREADY_EXISTS if number in stored else U.CHUNK_STATUS_UPLOADED
        if stored.setdefault(number, data) != data:
            raise AlreadyExists("other bytes are stored", reason="CHUNK_CONFLICT")
        upload.status = U.UPLOAD_STATUS_IN_PROGRESS
        upload.uploaded_chunks[:] = sorted(stored)
        upload.remaining_chunks[:] = [n for n in range(upload.total_chunks) if n not in stored]
        upload.progress_percent = 100.0 * len(stored) / upload.total_chunks
        await self.notify()
        result = U.ChunkResult(chunk_number=number, status=status, sha256=digest)
        return upload_service_pb2.UploadChunksResponse(chunks=[result], upload=upload)

    async def AppendUpload(self, requests: AsyncIterator[Any], _: Any) -> Any:
        """Keeps what comes as it comes; with a checksum, at the end."""
        try:
            header = (await anext(requests)).header
            self.call_begun.set()
            if self.append_error is not None:
                raise self.append_error
            upload = find(self.uploads, header.session_id)
            if upload.status >= U.UPLOAD_STATUS_COMPLETED:
                raise FailedPrecondition("it takes no more bytes", reason="UPLOAD_CLOSED")
            if header.offset != upload.upload_offset:
                offset = {"offset": str(upload.upload_offset)}
                raise Aborted("the offset is another", reason="OFFSET_MISMATCH", metadata=offset)
            if header.HasField("upload_length"):
                if not upload.length_deferred and header.upload_length != upload.file_size:
                    raise FailedPrecondition("the length is another", reason="LENGTH_MISMATCH")
                if header.upload_length > upload.chunk_size * LIMITS.max_chunks:
                    raise InvalidArgument.field("upload_length", "is too large", reason="FILE_TOO_LARGE")
                upload.file_size, upload.length_deferred = header.upload_length, False
                upload.total_chunks = -(-upload.file_size // upload.chunk_size)
            held = b""
            async for message in requests:
                self.pieces.append(len(message.data))
                if header.checksum:
                    held += message.data
                else:
                    self._extend(upload, message.data)
                self.data_came.set()
            if header.checksum:
                name = {1: "sha1", 2: "sha256"}[header.checksum_algorithm]
                if hashlib.new(name, held).hexdigest() != header.checksum:
                    raise InvalidArgument.field("checksum", "is another", reason="CHUNK_DIGEST_MISMATCH")
                self._extend(upload, held)
            return upload_service_pb2.AppendUploadResponse(upload=upload)
        finally:
            self.call_ended.set()

    def _extend(self, upload: U.Upload, data: bytes) -> None:
        if not upload.length_deferred and upload.upload_offset + len(data) > upload.file_size:
            raise InvalidArgument("too many bytes", reason="LENGTH_EXCEEDED")
        id_, size = upload.session_id, upload.chunk_size
        tail = self.tails.get(id_, b"") + data
        upload.upload_offset += len(data)
        stored = self.chunks[id_]
        while len(tail) >= size or (tail and upload.upload_offset == upload.file_size):
            stored[len(stored)], tail = tail[:size], tail[size:]
        self.tails[id_] = tail
        upload.status = U.UPLOAD_STATUS_IN_PROGRESS
        upload.uploaded_chunks[:] = sorted(stored)
        upload.remaining_chunks[:] = [n for n in range(upload.total_chunks) if n not in stored]

    async def ConcatUploads(self, request: Any, _: Any) -> Any:
        parts = [find(self.uploads, id_) for id_ in request.session_ids]
        if any(p.purpose != U.UPLOAD_PURPOSE_PARTIAL or p.status != U.UPLOAD_STATUS_COMPLETED for p in parts):
            raise FailedPrecondition("one cannot be used", reason="PARTIAL_NOT_USABLE")
        size = sum(p.file_size for p in parts)
        upload = self.add(context.owner(), request.filename, size, 4, mime_type=request.mime_type)
        upload.metadata.update(request.metadata)
        for part in parts:
            chunks = self.chunks[part.session_id]
            self._extend(upload, b"".join(chunks[n] for n in sorted(chunks)))
        upload.status = U.UPLOAD_STATUS_COMPLETED
        return upload_service_pb2.ConcatUploadsResponse(upload=upload)

    async def GetLimits(self, request: Any, _: Any) -> Any:
        return upload_service_pb2.GetLimitsResponse(
            max_file_size=1_000_000,
            max_chunk_size=10_000,
            advised_chunk_size={"wifi": 2 << 20}.get(request.network_type, 256 << 10),
            allowed_types=["video"],
            expiry_seconds=3600,
        )

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def GetUpload(self, request: Any, rpc: Any) -> Any:
        self.metadata = list(rpc.invocation_metadata())
        context.owner(request.owner)
        if self.error is not None:
            raise self.error
        return upload_service_pb2.GetUploadResponse(upload=find(self.uploads, request.session_id))

    async def WatchUpload(self, request: Any, _: Any) -> AsyncIterator[Any]:
        self.watches += 1
        if self.watches <= self.watches_refused:
            raise Unavailable("not yet")
        try:
            while True:
                upload = find(self.uploads, request.session_id)
                if self.error is not None and upload.uploaded_chunks:
                    raise self.error
                async with self.changed:
                    yield upload_service_pb2.WatchUploadResponse(upload=upload)
                    if upload.status >= U.UPLOAD_STATUS_COMPLETED:
                        return
                    await self.changed.wait()
        finally:
            self.call_ended.set()

    async def CompleteUpload(self, request: Any, _: Any) -> Any:
        self.completed.append(request)
        self.call_begun.set()
        await self.may_complete.wait()
        upload = find(self.uploads, request.session_id)
        if self.complete_error is not None:
            raise self.complete_error
        if upload.remaining_chunks:
            raise FailedPrecondition("chunks 0 are missing", reason="CHUNKS_MISSING")
        stored = self.chunks[upload.session_id]
        digest = hashlib.sha256(b"".join(stored[n] for n in sorted(stored))).hexdigest()
        if request.file_hash.lower() not in {"", digest}:
            raise InvalidArgument.field("file_hash", "is not the file's", reason="FILE_DIGEST_MISMATCH")
        upload.status, upload.file_hash, upload.file_id = U.UPLOAD_STATUS_COMPLETED, digest, upload.session_id
        upload.completed_at.CopyFrom(NOW)
        await self.notify()
        return upload_service_pb2.CompleteUploadResponse(upload=upload)

    async def CancelUpload(self, request: Any, _: Any) -> Any:
        upload = find(self.uploads, request.session_id)
        if upload.status == U.UPLOAD_STATUS_COMPLETED:
            raise FailedPrecondition("it is completed", reason="UPLOAD_CLOSED")
        upload.status = U.UPLOAD_STATUS_CANCELLED
        await self.notify()
        return upload_service_pb2.CancelUploadResponse(upload=upload)

    async def GetFile(self, request: Any, _: Any) -> Any:
        return upload_service_pb2.GetFileResponse(file=find(self.files, request.file_id))

    async def ListUploads(self, request: Any, _: Any) -> Any:
        if request.page_token:
            raise InvalidArgument.field("page_token", "is none of this server's")
        uploads = [upload for owner, upload in self.uploads.values() if owner == context.owner()]
        return upload_service_pb2.ListUploadsResponse(uploads=uploads[: request.page_size or 50])
