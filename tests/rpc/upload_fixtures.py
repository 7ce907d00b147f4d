"""A running upload service, on records in memory or in JetStream, and its callers."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest

from services.common.adapters.memory import MemoryProgressBus, MemoryStateStore
from services.common.errors import Unavailable
from services.common.identity import ServiceTokens
from services.common.keys import KeyRing
from services.common.lifecycle import App
from services.common.outcome import Outcome
from services.common.state import owned_key
from services.common.status import from_rpc_error
from services.upload import wiring
from services.upload.adapters.memory_events import MemoryEvents
from services.upload.config import UploadSettings
from services.upload.domain import Upload
from services.upload.index import Noted
from services.upload.ports import UploadStore
from services.upload.quotas import Usage
from services.upload.wiring import Shared
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1 import upload_service_pb2 as pb
from twotruths.upload.v1.upload_service_pb2_grpc import UploadServiceStub

if TYPE_CHECKING:
    from twotruths.upload.v1.upload_service_pb2_grpc import UploadServiceAsyncStub

T = TypeVar("T")
CHUNK = 1000
FILE = (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(range(256)) * 17)[:4300]
TOTAL = 5
DIGEST = hashlib.sha256(FILE).hexdigest()


SESSION = "5b0d3a52-6d5e-4d62-8f0e-6b1df4b4e0d1"


def clips() -> list[pb.ClipUpload]:
    return [
        pb.ClipUpload(
            session_id=str(uuid.uuid4()), filename=f"{n}.mp4", file_size=len(FILE), mime_type="video/mp4"
        )
        for n in range(3)
    ]


class Time:
    """A clock that a test may set forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Caller:
    """The stub as one caller sees it. Failed calls raise the ServiceError they stand for."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self.stub: UploadServiceAsyncStub = UploadServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"),)

    async def initiate(self, **changes: object) -> upload_pb2.Upload:
        fields = {"filename": "clip.mp4", "file_size": len(FILE), "mime_type": "video/mp4", "chunk_size": CHUNK}
        request = pb.InitiateUploadRequest(**(fields | changes))  # type: ignore[arg-type]  # test data
        with service_errors():
            return (await self.stub.InitiateUpload(request, metadata=self.metadata)).upload

    async def batch(
        self, clips: Sequence[pb.ClipUpload], owner: str = "alice", siblings: Sequence[str] = ()
    ) -> list[upload_pb2.Upload]:
        request = pb.BatchInitiateUploadsRequest(
            owner=owner, merge_session_id=SESSION, clips=clips, sibling_ids=siblings
        )
        with service_errors():
            return list((await self.stub.BatchInitiateUploads(request, metadata=self.metadata)).uploads)

    async def send(self, *messages: pb.UploadChunksRequest) -> pb.UploadChunksResponse:
        async def stream() -> AsyncIterator[pb.UploadChunksRequest]:
            for message in messages:
                yield message

        return await answer(self.stub.UploadChunks(stream(), metadata=self.metadata))

    async def put(self, session_id: str, *numbers: int) -> pb.UploadChunksResponse:
        return await self.send(*(m for n in numbers for m in chunk(session_id, n)))

    async def append(
        self, session_id: str, offset: int, *pieces: bytes, length: int | None = None, **checksum: object
    ) -> upload_pb2.Upload:
        start = pb.AppendHeader(session_id=session_id, offset=offset, upload_length=length, **checksum)  # type: ignore[arg-type]  # test data
        messages = [pb.AppendUploadRequest(header=start), *(pb.AppendUploadRequest(data=p) for p in pieces)]

        async def stream() -> AsyncIterator[pb.AppendUploadRequest]:
            for message in messages:
                yield message

        return (await answer(self.stub.AppendUpload(stream(), metadata=self.metadata))).upload

    async def concat(self, *session_ids: str, **changes: object) -> upload_pb2.Upload:
        fields = {"session_ids": session_ids, "filename": "whole.mp4", "mime_type": "video/mp4"}
        request = pb.ConcatUploadsRequest(**(fields | changes))  # type: ignore[arg-type]  # test data
        with service_errors():
            return (await self.stub.ConcatUploads(request, metadata=self.metadata)).upload

    async def list(self, page_size: int = 0, page_token: str = "") -> tuple[list[str], str]:
        request = pb.ListUploadsRequest(page_size=page_size, page_token=page_token)
        with service_errors():
            page = await self.stub.ListUploads(request, metadata=self.metadata)
        return [upload.session_id for upload in page.uploads], page.next_page_token

    async def limits(self, network_type: str = "") -> pb.GetLimitsResponse:
        with service_errors():
            return await self.stub.GetLimits(
                pb.GetLimitsRequest(network_type=network_type), metadata=self.metadata
            )

    async def get(self, session_id: str, owner: str = "") -> upload_pb2.Upload:
        request = pb.GetUploadRequest(session_id=session_id, owner=owner)
        with service_errors():
            return (await self.stub.GetUpload(request, metadata=self.metadata)).upload

    async def complete(self, session_id: str, file_hash: str = "", request_id: str = "") -> upload_pb2.Upload:
        request = pb.CompleteUploadRequest(session_id=session_id, file_hash=file_hash, request_id=request_id)
        with service_errors():
            return (await self.stub.CompleteUpload(request, metadata=self.metadata)).upload

    async def cancel(self, session_id: str, owner: str = "") -> upload_pb2.Upload:
        request = pb.CancelUploadRequest(session_id=session_id, owner=owner)
        with service_errors():
            return (await self.stub.CancelUpload(request, metadata=self.metadata)).upload

    async def file(self, file_id: str, owner: str = "") -> upload_pb2.File:
        request = pb.GetFileRequest(file_id=file_id, owner=owner)
        with service_errors():
            return (await self.stub.GetFile(request, metadata=self.metadata)).file

    async def watch(self, session_id: str) -> AsyncIterator[upload_pb2.Upload]:
        with service_errors():
            call = self.stub.WatchUpload(pb.WatchUploadRequest(session_id=session_id), metadata=self.metadata)
            async for response in call:
                yield response.upload

    async def uploaded(self, **changes: object) -> str:
        """The id of an upload whose chunks are all stored."""
        id_ = (await self.initiate(**changes)).session_id
        await self.put(id_, *range(TOTAL))
        return id_


async def answer(call: grpc.aio.StreamUnaryCall[Any, T]) -> T:
    """What a client-streaming call is answered; a refusal before the stream's end as the server said it."""
    outcome = Outcome(call)
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise (await outcome.error(error)) from None
    except asyncio.CancelledError:
        # grpc.aio cancels a call by itself when its connection breaks as the last message is sent. A task group
        # would take that for the end of a task that somebody cancelled.
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        raise Unavailable("the connection broke") from None


@contextmanager
def service_errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


def chunk(
    session_id: str, number: int, data: bytes | None = None, sha256: str = ""
) -> list[pb.UploadChunksRequest]:
    """The messages of one chunk; by default the file's own bytes, in two pieces, with their digest at the end."""
    body = FILE[number * CHUNK : (number + 1) * CHUNK] if data is None else data
    header = pb.ChunkHeader(session_id=session_id, chunk_number=number)
    end = pb.ChunkEnd(sha256=sha256 or hashlib.sha256(body).hexdigest())
    return [
        pb.UploadChunksRequest(header=header),
        pb.UploadChunksRequest(data=body[:600]),
        pb.UploadChunksRequest(data=body[600:]),
        pb.UploadChunksRequest(end=end),
    ]


class Mesh:
    """A running service and its callers. ``events``: what it told, on records in memory."""

    events: MemoryEvents

    def __init__(self, app: App, channel: grpc.aio.Channel, keys: KeyRing, root: Path, clock: Time) -> None:
        self.app, self.root, self.clock = app, root, clock
        self._channel, self._keys = channel, keys
        self.alice = Caller(channel, keys.player_token("alice"))
        self.mallory = Caller(channel, keys.player_token("mallory"))
        self.reader = Caller(channel, keys.player_token("alice", scopes=["media:read"]))
        self.nobody = Caller(channel, "nonsense")
        self.merge = Caller(channel, ServiceTokens(keys.directory / "services.pem", "merge").token("upload"))

    def newcomer(self) -> Caller:
        """A player of whom nothing is known, whatever other tests left in the broker."""
        return Caller(self._channel, self._keys.player_token(uuid.uuid4().hex))

    def stored_parts(self, session_id: str, owner: str = "alice") -> set[int]:
        """The chunk numbers that have a receipt on disk."""
        folder = self.root / "parts" / owned_key(owner, session_id)
        return {int(p.name.split("-")[0]) for p in folder.glob("*-*")} if folder.exists() else set()

    async def written(self, session_id: str, size: int) -> None:
        """Waits until that many bytes of the upload have reached the disk."""
        data = self.root / "parts" / owned_key("alice", session_id) / "data"
        async with asyncio.timeout(5):
            while not data.exists() or data.stat().st_size < size:
                await asyncio.sleep(0.005)

    def object(self, session_id: str) -> bytes | None:
        path = self.root / "objects" / "uploads" / owned_key("alice", session_id)
        return path.read_bytes() if path.exists() else None

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """Runs the service's background loop within the block."""
        loops = [asyncio.create_task(loop()) for loop in self.app.background]
        try:
            yield
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


@asynccontextmanager
async def running(
    keys: KeyRing, root: Path, uploads: UploadStore | Shared | None, **changes: object
) -> AsyncIterator[Mesh]:
    defaults: dict[str, object] = {
        "data_dir": root,
        "upload_listen": "127.0.0.1:0",
        "upload_stall_seconds": 5,
        "upload_sweep_seconds": 0.05,
        "upload_max_open": 0,  # the tests of a worker share one broker and one alice
        "upload_max_initiates_per_minute": 0,
    }
    settings = UploadSettings(**(keys.settings() | defaults | changes))
    clock = Time()
    events = MemoryEvents()
    if uploads is None or isinstance(uploads, Shared):
        shared = uploads
    else:
        index, usages = MemoryStateStore[Noted](), MemoryStateStore[Usage]()
        shared = Shared(uploads, index, usages, MemoryProgressBus(), events)
    async with wiring.build(settings, shared=shared, clock=clock) as app:
        await app.server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.server.port}") as channel:
            mesh = Mesh(app, channel, keys, root, clock)
            mesh.events = events
            yield mesh
        await app.server.stop(1)


@pytest.fixture(name="mesh", params=["memory", "jetstream"])
async def mesh_fixture(request: pytest.FixtureRequest, keys: KeyRing, tmp_path: Path) -> AsyncIterator[Mesh]:
    if request.param == "memory":
        async with running(keys, tmp_path, MemoryStateStore[Upload]()) as mesh:
            yield mesh
    else:
        url = request.getfixturevalue("nats_url")  # whose uploads are those of the test before
        async with running(keys, tmp_path, None, nats_url=url, upload_adopt_broker=True) as mesh:
            yield mesh


@pytest.fixture(name="small")
async def small_fixture(keys: KeyRing, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A service with tight bounds, on records in memory."""
    bounds = {
        "upload_max_streams": 2,
        "upload_stall_seconds": 1,
        "upload_max_file_size": 10_000,
        "upload_allowed_types": "video",
    }
    async with running(keys, tmp_path, MemoryStateStore[Upload](), **bounds) as mesh:
        yield mesh
