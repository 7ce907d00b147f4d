"""A real gateway on port 0 in front of real gRPC servers whose servicers are small fakes kept in memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import aiohttp
from multidict import CIMultiDict

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.identity import TokenVerifier
from services.common.keys import KeyRing
from services.common.lifecycle import App
from services.common.objects import ObjectStore
from services.common.playback import PlaybackSigner
from services.common.server import GrpcServer
from services.common.settings import CommonSettings
from services.gateway import wiring
from services.gateway.config import GatewaySettings
from tests.rpc import documented
from tests.rpc.fake_games import FakeChallenges, FakeMerges
from tests.rpc.fake_uploads import NOW, FakeUploads
from twotruths.challenge.v1 import challenge_service_pb2_grpc
from twotruths.merge.v1 import merge_service_pb2_grpc, video_pb2, video_service_pb2_grpc
from twotruths.upload.v1 import upload_service_pb2_grpc

UNLIMITED = {"gateway_requests_per_second_user": 0, "gateway_requests_per_second_address": 0}
"""Tests ask faster than anybody may; those of the limits set their own."""


class World:
    """The gateway's address, its players and what is behind it."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        keys: KeyRing,
        store: ObjectStore,
        folder: Path,
        guard: documented.Guard,
    ) -> None:
        self.http = http
        self.guard = guard
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
        guard = documented.Guard()
        session = aiohttp.ClientSession(auto_decompress=False, trace_configs=[guard.trace()])
        http = await stack.enter_async_context(session)
        store = store or DirectoryObjectStore(folder / "data")
        world = World(http, keys, store, folder, guard)
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
