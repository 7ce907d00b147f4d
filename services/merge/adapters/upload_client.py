"""The upload service as the merge service sees it, over gRPC with a service token."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import grpc

from services.common import ratelimits
from services.common.errors import FailedPrecondition, NotFound
from services.common.status import remote_errors
from services.merge.domain import Clip, Session
from services.merge.planner import ClipUpload, UploadStatus
from services.merge.ports import Begun
from twotruths.upload.v1 import upload_pb2, upload_service_pb2, upload_service_pb2_grpc

_TIMEOUT_SECONDS = 5.0


class UploadClient:
    """Implements :class:`services.merge.ports.Uploads`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = upload_service_pb2_grpc.UploadServiceStub(channel)

    async def batch_initiate(self, session: Session) -> Begun:
        request = upload_service_pb2.BatchInitiateUploadsRequest(
            owner=session.owner,
            merge_session_id=session.id,
            clips=[
                upload_service_pb2.ClipUpload(
                    session_id=c.upload_id, filename=c.filename, file_size=c.size, mime_type=c.mime_type
                )
                for c in session.clips
            ],
        )
        return await self._begin(request)

    async def initiate_clip(self, session: Session, clip: Clip) -> Begun:
        siblings = [clip.upload_id if c.index == clip.index else c.upload_id for c in session.clips]
        request = upload_service_pb2.BatchInitiateUploadsRequest(
            owner=session.owner,
            merge_session_id=session.id,
            clips=[
                upload_service_pb2.ClipUpload(
                    session_id=clip.upload_id,
                    filename=clip.filename,
                    file_size=clip.size,
                    mime_type=clip.mime_type,
                )
            ],
            sibling_ids=siblings,
        )
        return await self._begin(request)

    async def _begin(self, request: upload_service_pb2.BatchInitiateUploadsRequest) -> Begun:
        with remote_errors():
            call = self._stub.BatchInitiateUploads(request, timeout=_TIMEOUT_SECONDS)
            response = await call
            rate_limits = ratelimits.told(await call.trailing_metadata())
        return Begun([_from_proto(upload, "") for upload in response.uploads], rate_limits)

    async def get(self, owner: str, upload_id: str) -> ClipUpload | None:
        request = upload_service_pb2.GetUploadRequest(owner=owner, session_id=upload_id)
        try:
            with remote_errors():
                upload = (await self._stub.GetUpload(request, timeout=_TIMEOUT_SECONDS)).upload
                object_key = ""
                if upload.status == upload_pb2.UPLOAD_STATUS_COMPLETED:
                    wanted = upload_service_pb2.GetFileRequest(owner=owner, file_id=upload.file_id)
                    object_key = (await self._stub.GetFile(wanted, timeout=_TIMEOUT_SECONDS)).file.object_key
        except NotFound:
            return None
        return _from_proto(upload, object_key)

    async def discard(self, owner: str, upload_id: str) -> None:
        request = upload_service_pb2.CancelUploadRequest(owner=owner, session_id=upload_id)
        with suppress(NotFound, FailedPrecondition), remote_errors():
            await self._stub.CancelUpload(request, timeout=_TIMEOUT_SECONDS)


def _from_proto(upload: upload_pb2.Upload, object_key: str) -> ClipUpload:
    completed_at: datetime | None = None
    if upload.HasField("completed_at"):
        completed_at = upload.completed_at.ToDatetime(UTC)
    return ClipUpload(
        id=upload.session_id,
        status=UploadStatus(upload_pb2.UploadStatus.Name(upload.status)),
        progress=upload.progress_percent / 100,
        object_key=object_key,
        completed_at=completed_at,
        error_type=upload.error_type,
        error_message=upload.error_message,
        chunk_size=upload.chunk_size,
        total_chunks=upload.total_chunks,
    )
