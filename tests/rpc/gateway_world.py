"""A real gateway on port 0 in front of real gRPC servers whose servicers are small fakes kept in memory."""

# ruff: noqa: N802  servicers have the names of their rpcs

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import aiohttp
from google.protobuf.timestamp_pb2 import Timestamp
from multidict import CIMultiDict

from services.common import context
from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ServiceError,
    Unavailable,
    Unimplemented,
)
from services.common.identity import TokenVerifier
from services.common.keys import KeyRing
from services.common.lifecycle import App
from services.common.objects import ObjectStore
from services.common.playback import PlaybackSigner
from services.common.server import GrpcServer
from services.common.settings import CommonSettings
from services.gateway import wiring
from services.gateway.config import GatewaySettings
from twotruths.challenge.v1 import challenge_pb2, challenge_service_pb2, challenge_service_pb2_grpc
from twotruths.merge.v1 import (
    merge_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    video_pb2,
    video_service_pb2,
    video_service_pb2_grpc,
)
from twotruths.upload.v1 import upload_pb2, upload_service_pb2, upload_service_pb2_grpc

NOW = Timestamp(seconds=1_790_000_000)
U = upload_pb2


UNLIMITED = {"gateway_requests_per_second_user": 0, "gateway_requests_per_second_address": 0}
"""Tests ask faster than anybody may; those of the limits set their own."""


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
        upload = self.add(
            context.owner(),
            request.filename,
            request.file_size,
            request.chunk_size or max(4, request.file_size >> 10),  # an answer has bounds
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
        upload.status = U.UPLOAD_STATUS_CANCELLED
        await self.notify()
        return upload_service_pb2.CancelUploadResponse(upload=upload)

    async def GetFile(self, request: Any, _: Any) -> Any:
        return upload_service_pb2.GetFileResponse(file=find(self.files, request.file_id))

    async def ListUploads(self, request: Any, _: Any) -> Any:
        uploads = [upload for owner, upload in self.uploads.values() if owner == context.owner()]
        return upload_service_pb2.ListUploadsResponse(uploads=uploads)


class FakeMerges(merge_service_pb2_grpc.MergeServiceServicer, video_service_pb2_grpc.VideoServiceServicer):
    def __init__(self, uploads: FakeUploads) -> None:
        self.playback: video_service_pb2.GetPlaybackResponse | None = None
        self.uploads = uploads
        self.merges: dict[str, tuple[str, merge_pb2.MergeSession]] = {}
        self.videos: dict[str, tuple[str, video_pb2.Video]] = {}
        self.initiated: list[Any] = []
        self.asked_by: list[str] = []
        self.played: list[Any] = []

    async def InitiateMerge(self, request: Any, _: Any) -> Any:
        self.initiated.append(request)
        for name in ("video_filenames", "video_file_sizes"):
            if len(getattr(request, name)) != request.video_count:
                raise InvalidArgument.field(name, "must have as many elements as video_count says")
        id_ = str(uuid.uuid4())
        answer = merge_service_pb2.InitiateMergeResponse(
            merge_session_id=id_,
            total_videos=request.video_count,
            total_file_size_bytes=sum(request.video_file_sizes),
            total_duration_seconds=sum(d / 1000 if d > 1000 else d for d in request.video_durations),
            status="initiated",
            created_at=NOW,
        )
        session = merge_pb2.MergeSession(
            merge_session_id=id_, overall_status=merge_pb2.MERGE_STATUS_UPLOADING, total_videos=request.video_count
        )
        for i, (name, size) in enumerate(zip(request.video_filenames, request.video_file_sizes, strict=True)):
            upload = self.uploads.add(context.owner(), name, size, 4, merge_session_id=id_, video_index=i)
            session.videos.add(session_id=upload.session_id, video_index=i, status=merge_pb2.CLIP_STATUS_PENDING)
            answer.upload_sessions.add(
                video_index=i,
                session_id=upload.session_id,
                filename=name,
                file_size=size,
                upload_url=f"/api/v1/challenge-videos/upload/{upload.session_id}/chunk",
                chunk_size=4,
                total_chunks=upload.total_chunks,
            )
        self.merges[id_] = (context.owner(), session)
        return answer

    def _session(self, id_: str) -> merge_pb2.MergeSession:
        session: merge_pb2.MergeSession = find(self.merges, id_)
        done = sum(
            self.uploads.uploads[v.session_id][1].status == U.UPLOAD_STATUS_COMPLETED for v in session.videos
        )
        session.completed_videos = done
        session.ready_for_merge = session.merge_triggered = done == session.total_videos
        return session

    async def GetMerge(self, request: Any, _: Any) -> Any:
        return merge_service_pb2.GetMergeResponse(merge_session=self._session(request.merge_session_id))

    async def WatchMerge(self, request: Any, _: Any) -> AsyncIterator[Any]:
        session = self._session(request.merge_session_id)
        for percent in (10.0, 50.0, 100.0):
            session.merge_progress_percent = percent
            yield merge_service_pb2.WatchMergeResponse(merge_session=session)
        session.overall_status = session.merge_status = merge_pb2.MERGE_STATUS_COMPLETED
        yield merge_service_pb2.WatchMergeResponse(merge_session=session)

    async def TriggerMerge(self, request: Any, _: Any) -> Any:
        session = self._session(request.merge_session_id)
        if not session.ready_for_merge:
            raise FailedPrecondition("not completely uploaded", reason="CLIPS_MISSING")
        return merge_service_pb2.TriggerMergeResponse(merge_session=session)

    async def RetryMerge(self, request: Any, _: Any) -> Any:
        find(self.merges, request.merge_session_id)
        raise FailedPrecondition("it has not failed", reason="RETRY_NOT_AVAILABLE")

    async def CancelMerge(self, request: Any, _: Any) -> Any:
        session = find(self.merges, request.merge_session_id)
        session.overall_status = merge_pb2.MERGE_STATUS_CANCELLED
        return merge_service_pb2.CancelMergeResponse(merge_session=session)

    async def GetVideo(self, request: Any, _: Any) -> Any:
        caller = context.principal()
        self.asked_by.append(caller.subject)
        owner, video = self.videos.get(request.video_file_id, ("", None))
        if video is None or not (
            caller.is_service or caller.subject == owner or video.visibility == video_pb2.VISIBILITY_PUBLIC
        ):
            raise NotFound("there is no such video", reason="VIDEO_NOT_FOUND")
        return video_service_pb2.GetVideoResponse(video=video)

    async def GetPlayback(self, request: Any, _: Any) -> Any:
        self.played.append(request)
        if self.playback is not None:
            return self.playback
        return video_service_pb2.GetPlaybackResponse(
            streaming_url=f"/api/v1/media/stream/{request.video_file_id}",
            delivery_type=video_pb2.DELIVERY_TYPE_DIRECT
            if request.HasField("prefer_signed") and not request.prefer_signed
            else video_pb2.DELIVERY_TYPE_GATEWAY_SIGNED,
            supports_range=True,
        )


class FakeChallenges(challenge_service_pb2_grpc.ChallengeServiceServicer):
    def __init__(self) -> None:
        self.created: list[Any] = []
        self.listed: list[Any] = []

    async def CreateChallenge(self, request: Any, _: Any) -> Any:
        self.created.append(request)
        challenge = challenge_pb2.Challenge(
            challenge_id=str(uuid.uuid4()),
            title=request.title,
            status=challenge_pb2.CHALLENGE_STATUS_DRAFT,
            is_merged_video=True,
            merged_video_metadata=request.merged_video_metadata,
        )
        return challenge_service_pb2.CreateChallengeResponse(challenge=challenge)

    async def ListChallenges(self, request: Any, _: Any) -> Any:
        self.listed.append(request)
        return challenge_service_pb2.ListChallengesResponse()

    async def SubmitGuess(self, request: Any, _: Any) -> Any:
        return challenge_service_pb2.SubmitGuessResponse(
            challenge_id=request.challenge_id,
            statement_index=request.statement_index,
            guessed_at=NOW,
        )

    async def GetLeaderboard(self, request: Any, _: Any) -> Any:
        raise Unimplemented("GetLeaderboard is not served yet")

    async def PublishChallenge(self, request: Any, _: Any) -> Any:
        raise RuntimeError("a secret that must not leave the house")


class World:
    """The gateway's address, its players and what is behind it."""

    def __init__(self, http: aiohttp.ClientSession, keys: KeyRing, store: ObjectStore, folder: Path) -> None:
        self.http = http
        self.keys = keys
        self.store = store
        self.remote = RemoteStore(store)
        self.folder = folder
        # The generated bases are abstract to the type checker; what a fake lacks is UNIMPLEMENTED.
        self.uploads: FakeUploads = cast(Any, FakeUploads)()
        self.merges: FakeMerges = cast(Any, FakeMerges)(self.uploads)
        self.challenges: FakeChallenges = cast(Any, FakeChallenges)()
        self.servers: dict[str, GrpcServer] = {}
        self._tokens: dict[str, str] = {}
        self.gateway: App
        self.signer = PlaybackSigner.from_file(keys.directory / "playback.json")

    @property
    def port(self) -> int:
        return self.gateway.server.port

    def auth(self, user: str = "alice") -> dict[str, str]:
        if user not in self._tokens:
            self._tokens[user] = self.keys.player_token(user)
        return {"Authorization": f"Bearer {self._tokens[user]}"}

    def call(self, method: str, path: str, user: str = "alice", **kwargs: Any) -> Any:
        given = CIMultiDict(kwargs.pop("headers", {}))  # of which one may come twice
        headers = CIMultiDict(self.auth(user) if user and "Authorization" not in given else {})
        headers.extend(given)
        return self.http.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, **kwargs)

    async def add_video(self, content: bytes, owner: str = "alice", *, public: bool = False) -> str:
        """A merged video in the object store."""
        source = self.folder / uuid.uuid4().hex
        source.write_bytes(content)
        id_ = str(uuid.uuid4())
        await self.store.put_file(f"videos/{id_}/v.mp4", source)
        video = video_pb2.Video(
            video_file_id=id_,
            owner=owner,
            visibility=video_pb2.VISIBILITY_PUBLIC if public else video_pb2.VISIBILITY_PRIVATE,
            object_key=f"videos/{id_}/v.mp4",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            mime_type="video/mp4",
            created_at=NOW,
        )
        self.merges.videos[id_] = (owner, video)
        return id_

    async def add_sidecars(self, video_id: str, rendition: bytes) -> None:
        """Posters, a storyboard and a rendition beside a video: three statements of 60, 45 and 15 frames."""
        video = self.merges.videos[video_id][1]
        files = []
        for number, content in enumerate((b"one", b"two", b"three", b"sheet", rendition)):
            source, key = self.folder / uuid.uuid4().hex, f"videos/{video_id}/beside{number}"
            source.write_bytes(content)
            await self.store.put_file(key, source)
            digest = hashlib.sha256(content).hexdigest()
            files.append(video_pb2.StoredFile(object_key=key, size=len(content), sha256=digest))
        *posters, sheet, hls = files
        starts = (0, 60, 105)
        video.fps, video.frame_count = 30, 120
        video.sidecars.posters.extend(posters)
        video.sidecars.storyboard.CopyFrom(
            video_pb2.Storyboard(file=sheet, tile_width=160, tile_height=90, columns=2, start_frames=starts)
        )
        video.sidecars.rendition.CopyFrom(
            video_pb2.Rendition(file=hls, offsets=(100, 300, 700), start_frames=starts)
        )


@asynccontextmanager
async def open_world(
    keys: KeyRing,
    folder: Path,
    *,
    remote: bool = False,
    store: ObjectStore | None = None,
    ticks: Callable[[], int] = time.monotonic_ns,
    **settings: Any,
) -> AsyncIterator[World]:
    """Starts everything. ``store``: another one than a directory; ``remote``: one without local files, and a way
    to see when a read ended."""
    common = CommonSettings(**keys.settings())
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        store = store or DirectoryObjectStore(folder / "data")
        world = World(http, keys, store, folder)
        targets = {}
        for name in ("upload", "merge", "challenge"):
            verifier = TokenVerifier.from_settings(common, name)
            server = GrpcServer(common, name=name, listen="127.0.0.1:0", verifier=verifier)
            for service, register, servicer in _services(world)[name]:
                server.add(service, register, servicer)
            await server.start()
            await server.set_serving(True)
            stack.push_async_callback(server.stop, 0)
            world.servers[name] = server
            targets[f"{name}_target"] = f"127.0.0.1:{server.port}"
        here = {"gateway_listen": "127.0.0.1:0", "data_dir": folder}
        values = keys.settings() | targets | here | UNLIMITED | settings
        build = wiring.build(
            GatewaySettings(**values),
            store=world.remote if remote else store,
            clock=lambda: datetime.fromtimestamp(NOW.seconds, UTC),
            ticks=ticks,
        )
        world.gateway = await stack.enter_async_context(build)
        await world.gateway.server.start()
        await world.gateway.server.set_serving(True)
        stack.push_async_callback(world.gateway.server.stop, 1)
        yield world


@asynccontextmanager
async def connection(
    port: int, *, source: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to the gateway from the address ``source``, closed at the end of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class RemoteStore:
    """A store whose objects are not local files; says when a read was ended."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.read_ended = asyncio.Event()

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._store.read(key, start, end)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.read_ended.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def local_path(self, key: str) -> Path | None:
        return None


def _services(world: World) -> dict[str, list[tuple[str, Any, Any]]]:
    add_upload = upload_service_pb2_grpc.add_UploadServiceServicer_to_server
    add_merge = merge_service_pb2_grpc.add_MergeServiceServicer_to_server
    add_video = video_service_pb2_grpc.add_VideoServiceServicer_to_server
    add_challenge = challenge_service_pb2_grpc.add_ChallengeServiceServicer_to_server
    return {
        "upload": [("twotruths.upload.v1.UploadService", add_upload, world.uploads)],
        "merge": [
            ("twotruths.merge.v1.MergeService", add_merge, world.merges),
            ("twotruths.merge.v1.VideoService", add_video, world.merges),
        ],
        "challenge": [("twotruths.challenge.v1.ChallengeService", add_challenge, world.challenges)],
    }
