"""The gRPC face of the upload service: messages to use cases and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message as ProtoMessage

from services.common import ratelimits, wire
from services.common.errors import InvalidArgument
from services.common.timestamps import timestamp
from services.upload.domain import Upload
from services.upload.ports import StoredPart
from services.upload.quotas import Allowance
from services.upload.records import UploadView
from services.upload.requests import NewClip, NewFile, NewWhole
from services.upload.service import UploadService
from services.upload.stream import AppendMessage, AppendStart, End, Header, Message, malformed
from twotruths.upload.v1 import upload_pb2, upload_service_pb2_grpc
from twotruths.upload.v1 import upload_service_pb2 as pb

T = TypeVar("T", bound=ProtoMessage)
SERVICE = pb.DESCRIPTOR.services_by_name["UploadService"].full_name


def _framed(message: type[T], field: int) -> Callable[[bytes], T | memoryview]:
    def deserialize(data: bytes) -> T | memoryview:
        framed = wire.framed(data, field)
        return message.FromString(data) if framed is None else framed

    return deserialize


DESERIALIZERS: Mapping[str, Callable[[bytes], Any]] = {
    f"/{SERVICE}/UploadChunks": _framed(pb.UploadChunksRequest, pb.UploadChunksRequest.DATA_FIELD_NUMBER),
    f"/{SERVICE}/AppendUpload": _framed(pb.AppendUploadRequest, pb.AppendUploadRequest.DATA_FIELD_NUMBER),
}
"""Full method name → what makes a message of bytes: of one that only has data, the data alone."""

_ALGORITHMS = {
    pb.CHECKSUM_ALGORITHM_UNSPECIFIED: "",
    pb.CHECKSUM_ALGORITHM_SHA1: "sha1",
    pb.CHECKSUM_ALGORITHM_SHA256: "sha256",
}

Context = grpc.aio.ServicerContext[Any, Any]


class UploadServicer(upload_service_pb2_grpc.UploadServiceServicer):
    """Implements ``twotruths.upload.v1.UploadService``."""

    def __init__(self, service: UploadService) -> None:
        self._service = service

    async def InitiateUpload(  # noqa: N802  named by the contract
        self, request: pb.InitiateUploadRequest, context: Context
    ) -> pb.InitiateUploadResponse:
        file = NewFile(
            filename=request.filename,
            size=request.file_size,
            mime_type=request.mime_type,
            chunk_size=request.chunk_size,
            sha256=request.file_hash,
            request_id=request.request_id,
            metadata=dict(request.metadata),
            defer_length=request.defer_length,
            partial=request.partial,
            network_type=request.network_type,
            device_type=request.device_type,
        )
        view, left = await self._service.initiate(file)
        ratelimits.tell(context, _rate_limits(left))
        return pb.InitiateUploadResponse(upload=_upload(view))

    async def BatchInitiateUploads(  # noqa: N802  named by the contract
        self, request: pb.BatchInitiateUploadsRequest, context: Context
    ) -> pb.BatchInitiateUploadsResponse:
        clips = [NewClip(c.session_id, c.filename, c.file_size, c.mime_type) for c in request.clips]
        views, left = await self._service.initiate_batch(
            request.owner, request.merge_session_id, clips, request.sibling_ids
        )
        ratelimits.tell(context, _rate_limits(left))
        return pb.BatchInitiateUploadsResponse(uploads=map(_upload, views))

    async def UploadChunks(  # noqa: N802  named by the contract
        self, request_iterator: AsyncIterator[pb.UploadChunksRequest], context: Context
    ) -> pb.UploadChunksResponse:
        stored, view = await self._service.upload_chunks(_messages(request_iterator))
        return pb.UploadChunksResponse(chunks=map(_chunk, stored), upload=_upload(view))

    async def AppendUpload(  # noqa: N802  named by the contract
        self, request_iterator: AsyncIterator[pb.AppendUploadRequest], context: Context
    ) -> pb.AppendUploadResponse:
        return pb.AppendUploadResponse(upload=_upload(await self._service.append(_appended(request_iterator))))

    async def ConcatUploads(  # noqa: N802  named by the contract
        self, request: pb.ConcatUploadsRequest, context: Context
    ) -> pb.ConcatUploadsResponse:
        whole = NewWhole(
            source_ids=request.session_ids,
            filename=request.filename,
            mime_type=request.mime_type,
            metadata=dict(request.metadata),
            request_id=request.request_id,
        )
        return pb.ConcatUploadsResponse(upload=_upload(await self._service.concat(whole)))

    async def GetLimits(  # noqa: N802  named by the contract
        self, request: pb.GetLimitsRequest, context: Context
    ) -> pb.GetLimitsResponse:
        policy, limits = self._service.policy, self._service.policy.limits
        return pb.GetLimitsResponse(
            max_file_size=limits.max_file_size,
            max_chunk_size=limits.max_chunk_size,
            max_chunks=limits.max_chunks,
            advised_chunk_size=limits.advised_chunk_size(request.network_type),
            allowed_types=sorted(limits.media),
            max_open_uploads=limits.max_open_uploads,
            max_bytes_per_day=limits.max_bytes_per_day,
            max_initiates_per_minute=limits.max_initiates_per_minute,
            expiry_seconds=int(policy.expiry),
        )

    async def GetUpload(  # noqa: N802  named by the contract
        self, request: pb.GetUploadRequest, context: Context
    ) -> pb.GetUploadResponse:
        view = await self._service.get(request.session_id, request.owner)
        return pb.GetUploadResponse(upload=_upload(view))

    async def ListUploads(  # noqa: N802  named by the contract
        self, request: pb.ListUploadsRequest, context: Context
    ) -> pb.ListUploadsResponse:
        views, token = await self._service.list_open(request.page_size, request.page_token)
        return pb.ListUploadsResponse(uploads=map(_upload, views), next_page_token=token)

    async def WatchUpload(  # noqa: N802  named by the contract
        self, request: pb.WatchUploadRequest, context: Context
    ) -> AsyncIterator[pb.WatchUploadResponse]:
        async for view in self._service.watch(request.session_id):
            yield pb.WatchUploadResponse(upload=_upload(view))

    async def CompleteUpload(  # noqa: N802  named by the contract
        self, request: pb.CompleteUploadRequest, context: Context
    ) -> pb.CompleteUploadResponse:
        view = await self._service.complete(request.session_id, request.file_hash, request.request_id)
        return pb.CompleteUploadResponse(upload=_upload(view))

    async def CancelUpload(  # noqa: N802  named by the contract
        self, request: pb.CancelUploadRequest, context: Context
    ) -> pb.CancelUploadResponse:
        view = await self._service.cancel(request.session_id, request.owner)
        return pb.CancelUploadResponse(upload=_upload(view))

    async def GetFile(  # noqa: N802  named by the contract
        self, request: pb.GetFileRequest, context: Context
    ) -> pb.GetFileResponse:
        return pb.GetFileResponse(file=_file(await self._service.file(request.file_id, request.owner)))


async def _messages(requests: AsyncIterator[pb.UploadChunksRequest | memoryview]) -> AsyncIterator[Message]:
    async for request in requests:
        if isinstance(request, memoryview):
            yield request
            continue
        kind = request.WhichOneof("piece")
        if kind == "data":
            yield request.data
        elif kind == "header":
            header = request.header
            yield Header(header.session_id, header.chunk_number, header.sha256)
        elif kind == "end":
            yield End(request.end.sha256)
        else:
            raise malformed("a message is empty")


async def _appended(
    requests: AsyncIterator[pb.AppendUploadRequest | memoryview],
) -> AsyncIterator[AppendMessage]:
    async for request in requests:
        if isinstance(request, memoryview):
            yield request
            continue
        kind = request.WhichOneof("piece")
        if kind == "data":
            yield request.data
        elif kind == "header":
            header = request.header
            length = header.upload_length if header.HasField("upload_length") else None
            yield AppendStart(
                header.session_id, header.offset, length, _algorithm(header.checksum_algorithm), header.checksum
            )
        else:
            raise malformed("a message is empty")


def _algorithm(value: pb.ChecksumAlgorithm.ValueType) -> str:
    try:
        return _ALGORITHMS[value]
    except KeyError:
        raise InvalidArgument.field("checksum_algorithm", "must be SHA1 or SHA256") from None


def _rate_limits(left: Sequence[Allowance]) -> ratelimits.Fields:
    if not left:
        return ()
    policy = ", ".join(allowance.policy for allowance in left)
    return (ratelimits.POLICY, policy), (ratelimits.STATE, ", ".join(allowance.state for allowance in left))


def _chunk(stored: StoredPart) -> upload_pb2.ChunkResult:
    status = upload_pb2.CHUNK_STATUS_ALREADY_EXISTS if stored.existed else upload_pb2.CHUNK_STATUS_UPLOADED
    return upload_pb2.ChunkResult(chunk_number=stored.part.number, status=status, sha256=stored.part.sha256)


def _upload(view: UploadView) -> upload_pb2.Upload:
    upload, grid = view.upload, view.upload.grid
    return upload_pb2.Upload(
        session_id=upload.id,
        merge_session_id=upload.merge_session_id,
        video_index=upload.video_index if upload.merge_session_id else None,
        filename=upload.filename,
        file_size=upload.size,
        mime_type=upload.mime_type,
        chunk_size=upload.chunk_size,
        total_chunks=0 if upload.length_deferred else grid.total,
        uploaded_chunks=view.uploaded,
        remaining_chunks=() if upload.length_deferred else grid.remaining(view.uploaded),
        progress_percent=view.percent,
        status=upload_pb2.UploadStatus.Value(view.status),
        created_at=timestamp(upload.created_at),
        updated_at=timestamp(view.updated_at),
        completed_at=timestamp(upload.completed_at),
        expires_at=timestamp(upload.expires_at),
        file_hash=upload.sha256 or upload.promised_sha256,
        ready_for_merge=view.merge_ready,
        merge_triggered=view.merge_ready,
        merge_status=("queued" if view.merge_ready else "uploading") if upload.merge_session_id else "",
        metadata=upload.metadata,
        error_type=upload.error_type,
        error_message=upload.error_message,
        file_id=upload.id if upload.object_key else "",
        purpose=upload_pb2.UploadPurpose.Value(upload.purpose),
        upload_offset=view.offset,
        length_deferred=upload.length_deferred,
        network_type=upload.network_type,
        device_type=upload.device_type,
    )


def _file(upload: Upload) -> upload_pb2.File:
    return upload_pb2.File(
        file_id=upload.id,
        filename=upload.filename,
        mime_type=upload.mime_type,
        size=upload.size,
        sha256=upload.sha256,
        object_key=upload.object_key,
        completed_at=timestamp(upload.completed_at),
    )
