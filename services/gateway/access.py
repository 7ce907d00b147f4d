"""Who may see which file: asked of the services, remembered for a few seconds.

A player seeks through a video with dozens of range requests; each would cost a call. What is remembered is
forgotten soon enough for a withdrawn video to vanish, and only a permission is remembered, never a refusal.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import grpc
from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.clock import Clock
from services.common.playback import PlaybackSigner
from services.common.status import from_rpc_error
from services.gateway import callers, problems
from services.gateway.callers import Metadata
from services.gateway.config import GatewaySettings
from services.gateway.problems import Problem
from twotruths.merge.v1.video_pb2 import VISIBILITY_PUBLIC, StoredFile, Video
from twotruths.merge.v1.video_service_pb2 import GetPlaybackRequest, GetPlaybackResponse, GetVideoRequest
from twotruths.merge.v1.video_service_pb2_grpc import VideoServiceStub
from twotruths.upload.v1.upload_pb2 import File
from twotruths.upload.v1.upload_service_pb2 import GetFileRequest
from twotruths.upload.v1.upload_service_pb2_grpc import UploadServiceStub

T = TypeVar("T")

_MAX_REMEMBERED = 4096
_SIGNED = "signature"


@dataclass(frozen=True, slots=True, eq=False)  # compared as itself: what is remembered of it is found fast
class Readable:
    """A file that the caller may read. ``modified_at`` has whole seconds, as HTTP dates do."""

    object_key: str
    size: int
    sha256: str
    mime_type: str
    filename: str
    modified_at: datetime


class _Found(Generic[T]):
    """What a service said of a file, the file, and those beside it that were asked for, by name. They are made
    once: players ask for them again and again."""

    def __init__(self, record: T, file: Readable) -> None:
        self.record = record
        self.file = file
        self.beside: dict[str, Readable] = {}


class Access:
    """Answers what a request may read. Raises Problem: 401, 403, 404 or what the service said."""

    def __init__(
        self,
        upload: grpc.aio.Channel,
        merge: grpc.aio.Channel,
        *,
        signer: PlaybackSigner,
        settings: GatewaySettings,
        clock: Clock,
    ) -> None:
        self._upload = UploadServiceStub(upload)
        self._videos = VideoServiceStub(merge)
        self._signer = signer
        self._settings = settings
        self._clock = clock
        self._remembered: OrderedDict[tuple[str, Metadata], tuple[float, _Found[Any]]] = OrderedDict()

    async def video(self, request: web.Request) -> Readable:
        """The video's own file."""
        return (await self._video(request)).file

    async def poster(self, request: web.Request) -> Readable:
        """The picture of one of its statements."""
        found, statement = await self._video(request), int(request.match_info["statement"])
        posters = found.record.sidecars.posters
        if statement >= len(posters):
            raise _no_sidecar()
        return _beside(found, posters[statement], f"poster{statement}.jpg", "image/jpeg")

    async def sheet(self, request: web.Request) -> Readable:
        """The sheet of its storyboard."""
        found = await self._with_sidecars(request)
        return _beside(found, found.record.sidecars.storyboard.file, "storyboard.jpg", "image/jpeg")

    async def rendition(self, request: web.Request) -> Readable:
        """The file that its HLS playlist is about."""
        found = await self._with_sidecars(request)
        return _beside(found, found.record.sidecars.rendition.file, "hls.mp4", "video/mp4")

    async def described(self, request: web.Request) -> Video:
        """What there is to say of the video and of what lies beside it."""
        return (await self._with_sidecars(request)).record

    async def _with_sidecars(self, request: web.Request) -> _Found[Video]:
        found = await self._video(request)
        if not found.record.HasField("sidecars"):
            raise _no_sidecar()
        return found

    async def _video(self, request: web.Request) -> _Found[Video]:
        """The video of a stream request: by the signature in its query, else by the player's token."""
        video_id = request.match_info["video_file_id"]
        if _SIGNED in request.query:
            query = request.query
            self._signer.verify(
                video_id,
                expires=query.get("expires", ""),
                key_id=query.get("key_id", ""),
                signature=query[_SIGNED],
                public=query.get("public", ""),
                now=self._clock().timestamp(),
            )
            metadata: Metadata = ()  # the channel adds the gateway's own token
        else:
            metadata = self._caller(request)

        async def ask() -> _Found[Video]:
            answer = await self._videos.GetVideo(
                GetVideoRequest(video_file_id=video_id),
                metadata=metadata,
                timeout=self._settings.gateway_call_timeout_seconds,
            )
            video = answer.video
            return _Found(video, _readable(video, f"{video.video_file_id}.mp4", video.created_at))

        found = await self._remember((f"video/{video_id}", metadata), ask)
        public = _SIGNED in request.query and "public" in request.query
        if public and found.record.visibility != VISIBILITY_PUBLIC:
            raise Problem(403, "VIDEO_WITHDRAWN", "this video is not public any more")
        return found

    async def elsewhere(self, request: web.Request) -> GetPlaybackResponse | None:
        """Where the bytes of a video are for whom the signature in the query permits it, once one of the above
        has said so; None when the gateway delivers them. That is always so for a bearer: clients send their token
        along to where they are sent, and S3 refuses a request that proves itself twice."""
        if self._settings.media_delivery == "gateway" or _SIGNED not in request.query:
            return None
        asked = GetPlaybackRequest(video_file_id=request.match_info["video_file_id"])
        timeout = self._settings.gateway_call_timeout_seconds
        try:
            return await self._videos.GetPlayback(asked, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(from_rpc_error(error)) from error

    async def file(self, request: web.Request) -> Readable:
        """The uploaded file of a request, by the player's token."""
        file_id, metadata = request.match_info["file_id"], self._caller(request)

        async def ask() -> _Found[File]:
            answer = await self._upload.GetFile(
                GetFileRequest(file_id=file_id),
                metadata=metadata,
                timeout=self._settings.gateway_call_timeout_seconds,
            )
            file = answer.file
            return _Found(file, _readable(file, file.filename, file.completed_at))

        return (await self._remember((f"file/{file_id}", metadata), ask)).file

    def _caller(self, request: web.Request) -> Metadata:
        return callers.metadata(request, max_token=self._settings.gateway_max_token_bytes)

    async def _remember(self, key: tuple[str, Metadata], ask: Callable[[], Awaitable[_Found[T]]]) -> _Found[T]:
        """``key`` begins with the kind of what is asked for, so what is remembered under it is of a ``T``."""
        now = time.monotonic()
        until, known = self._remembered.get(key, (0.0, None))
        if known is not None and now < until:
            return known
        try:
            found = await ask()
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(from_rpc_error(error)) from error
        self._remembered[key] = (now + self._settings.gateway_access_cache_seconds, found)
        self._remembered.move_to_end(key)
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return found


def permission(request: web.Request) -> str:
    """The query of a signed URL, with its question mark; empty for a request that has none."""
    if _SIGNED not in request.query:
        return ""
    names = ("expires", "key_id", _SIGNED, *(("public",) if "public" in request.query else ()))
    return "?" + urlencode({name: request.query.get(name, "") for name in names})


def _beside(found: _Found[Video], file: StoredFile, name: str, mime_type: str) -> Readable:
    if name not in found.beside:
        found.beside[name] = Readable(
            object_key=file.object_key,
            size=file.size,
            sha256=file.sha256,
            mime_type=mime_type,
            filename=f"{found.record.video_file_id}-{name}",
            modified_at=found.file.modified_at,
        )
    return found.beside[name]


def _no_sidecar() -> Problem:
    return Problem(404, "SIDECAR_NOT_FOUND", "the video has nothing like this beside it")


def _readable(stored: Video | File, filename: str, since: Timestamp) -> Readable:
    return Readable(
        object_key=stored.object_key,
        size=stored.size,
        sha256=stored.sha256,
        mime_type=stored.mime_type,
        filename=filename,
        modified_at=datetime.fromtimestamp(since.seconds, UTC),
    )
