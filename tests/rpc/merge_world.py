"""The merge service with a real broker, a real server and real stores; uploads and media are stand-ins that a
test steers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.channel import open_channel
from services.common.errors import ServiceError, Unavailable
from services.common.identity import ServiceTokens
from services.common.keys import KeyRing
from services.common.lifecycle import App
from services.common.status import remote_errors
from services.merge import wiring
from services.merge.config import MergeSettings
from services.merge.domain import Clip, Session
from services.merge.media.errors import MediaError
from services.merge.planner import ClipUpload, UploadStatus
from services.merge.ports import Begun
from services.merge.timeline import (
    Canvas,
    ClipInfo,
    Coded,
    CutClip,
    MergedFile,
    NormalisedClip,
    Piece,
    Quality,
    SidecarFiles,
)
from twotruths.merge.v1 import merge_pb2, merge_service_pb2, merge_service_pb2_grpc, video_service_pb2_grpc

FRAMES = (90, 75, 105)
PROBED = ClipInfo("mp4", "h264", 1280, 720, 0, 3.0, 30.0, True, "aac")
DELIVERABLE = replace(
    PROBED,
    width=720,
    height=1280,
    rotation=90,
    coded=Coded("High", "yuv420p", "1/1/1/1", 1280, 720, "1/1", regular=True, closed=True),
)


class SteeredUploads:
    """Uploads that are where the test puts them."""

    def __init__(self, objects: DirectoryObjectStore, folder: Path) -> None:
        self.known: dict[str, ClipUpload] = {}
        self.discarded: list[str] = []
        self.refuse: ServiceError | None = None
        self.away = False
        self.rate_limits: tuple[tuple[str, str], ...] = ()
        self._objects = objects
        self._folder = folder

    async def batch_initiate(self, session: Session) -> Begun:
        if self.refuse is not None:
            raise self.refuse
        for clip in session.clips:
            fresh = ClipUpload(clip.upload_id, UploadStatus.PENDING, chunk_size=1024, total_chunks=1)
            self.known.setdefault(clip.upload_id, fresh)
        return Begun([self.known[clip.upload_id] for clip in session.clips], self.rate_limits)

    async def initiate_clip(self, session: Session, clip: Clip) -> Begun:
        if self.refuse is not None:
            raise self.refuse
        fresh = ClipUpload(clip.upload_id, UploadStatus.PENDING, chunk_size=1024, total_chunks=1)
        return Begun([self.known.setdefault(clip.upload_id, fresh)], self.rate_limits)

    async def get(self, owner: str, upload_id: str) -> ClipUpload | None:
        if self.away:
            raise Unavailable("the upload service is away")
        return self.known.get(upload_id)

    async def discard(self, owner: str, upload_id: str) -> None:
        self.discarded.append(upload_id)

    async def complete(self, upload_id: str) -> None:
        """The upload is whole from now on."""
        key = f"uploads/{upload_id}"
        file = self._folder / upload_id
        file.write_bytes(upload_id.encode())
        await self._objects.put_file(key, file)
        self.known[upload_id] = replace(
            self.known[upload_id],
            status=UploadStatus.COMPLETED,
            progress=1.0,
            object_key=key,
            completed_at=datetime.now(UTC),
        )


@dataclass
class SteeredMedia:
    """Media work that is quick, unless ``before`` (called with the kind of work) waits or raises."""

    before: Callable[[str], object] = lambda _: None
    info: ClipInfo = PROBED
    pieces: list[Piece | None] = field(default_factory=list)
    merged: list[Path | CutClip] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def _work(self, kind: str) -> None:
        self.running.append(kind)
        self.changed.set()
        try:
            result = self.before(kind)
            if asyncio.iscoroutine(result):
                await result
        except asyncio.CancelledError:
            self.cancelled.append(kind)
            raise
        finally:
            self.running.remove(kind)
            self.changed.set()
        self.done.append(kind)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds."""
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def probe(self, source: Path) -> ClipInfo:
        await self._work("probe")
        return self.info

    async def normalise(
        self,
        source: Path,
        target: Path,
        canvas: Canvas,
        quality: Quality,
        on_progress: Callable[[int, int], None],
        piece: Piece | None = None,
    ) -> NormalisedClip:
        self.pieces.append(piece)
        on_progress(10, 90)
        await self._work("normalise")
        target.write_bytes(b"normalised " + source.read_bytes())
        return NormalisedClip(FRAMES[0], target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest())

    async def merge(
        self,
        clips: Sequence[Path | CutClip],
        target: Path,
        quality: Quality,
        on_progress: Callable[[int, int], None],
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        await self._work("merge")
        self.merged = list(clips)
        whole = [clip.source if isinstance(clip, CutClip) else clip for clip in clips]
        target.write_bytes(b"".join(path.read_bytes() for path in whole))
        return await self._written(target, beside, len(clips))

    async def copy(
        self,
        sources: Sequence[Path],
        target: Path,
        quality: Quality,
        on_progress: Callable[[int, int], None],
        beside: Sequence[Path] = (),
    ) -> MergedFile:
        await self._work("copy")
        target.write_bytes(b"".join(source.read_bytes() for source in sources))
        return await self._written(target, beside, len(sources))

    async def _written(self, target: Path, beside: Sequence[Path], clips: int) -> MergedFile:
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        merged = MergedFile(FRAMES[:clips], 1280, 720, target.stat().st_size, digest)
        try:
            await self._work("beside")
        except MediaError:
            return merged
        return replace(merged, beside=self._beside(beside))

    async def sidecars(self, merged: Path, targets: Sequence[Path], frames: tuple[int, ...]) -> SidecarFiles:
        await self._work("sidecars")
        return self._beside(targets)

    def _beside(self, targets: Sequence[Path]) -> SidecarFiles:
        for target in targets:
            target.write_bytes(target.name.encode())
        starts = (0, FRAMES[0], sum(FRAMES[:2]))
        return SidecarFiles(160, 90, 3, starts, (2, 4, 6), starts)


class World:
    """One merge controller with its server, and workers."""

    def __init__(self, nats_url: str, keys: KeyRing, folder: Path, **settings: object) -> None:
        self.keys = keys
        self.settings = MergeSettings(
            nats_url=nats_url,
            data_dir=folder / "data",
            merge_listen="127.0.0.1:0",
            job_ack_wait_seconds=1,
            **({"sweep_seconds": 0.3} | settings | keys.settings()),  # type: ignore[arg-type]  # by name
        )
        self.objects = DirectoryObjectStore(self.settings.data_dir)
        incoming = folder / "incoming"
        incoming.mkdir()
        self.uploads = SteeredUploads(self.objects, incoming)
        self.stack = AsyncExitStack()
        self.channel: grpc.aio.Channel
        self.app: App
        self._feed_uploads = asyncio.Event()

    async def start(self) -> None:
        """Starts the controller and its server."""
        self._controller = stack = await self.stack.enter_async_context(AsyncExitStack())
        app = self.app = await stack.enter_async_context(
            wiring.build_controller(self.settings, uploads=self.uploads)
        )
        await app.server.start()
        await app.server.set_serving(True)
        stack.push_async_callback(app.server.stop, 0)
        await self._run(app, stack)
        self.channel = open_channel(f"127.0.0.1:{app.server.port}")
        stack.push_async_callback(self.channel.close)
        self.merges = merge_service_pb2_grpc.MergeServiceStub(self.channel)
        self.videos = video_service_pb2_grpc.VideoServiceStub(self.channel)

    async def restart(self) -> None:
        """Stops the controller and starts another one on the same broker."""
        await self._controller.aclose()
        await self.start()

    async def worker(self, media: SteeredMedia | None) -> App:
        """Starts a worker; without ``media`` it does real work."""
        app = await self.stack.enter_async_context(wiring.build_worker(self.settings, media=media))
        await self._run(app, self.stack)
        return app

    async def _run(self, app: App, stack: AsyncExitStack) -> None:
        tasks = [asyncio.create_task(loop()) for loop in app.background]

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        stack.push_async_callback(end)

    def as_player(self, user: str) -> tuple[tuple[str, str], ...]:
        """Metadata of a player's calls."""
        return (("authorization", f"Bearer {self.keys.player_token(user)}"),)

    def as_service(self, name: str = "challenge") -> tuple[tuple[str, str], ...]:
        """Metadata of a service's calls."""
        token = ServiceTokens.from_settings(self.settings, name).token("merge")
        return (("authorization", f"Bearer {token}"),)

    async def initiate(self, user: str = "alice", /, **changes: object) -> merge_service_pb2.InitiateMergeResponse:
        """A session of three clips."""
        return await self.merges.InitiateMerge(three_clips(**changes), metadata=self.as_player(user))

    async def status(self, session_id: str, user: str = "alice") -> merge_pb2.MergeSession:
        """The session now."""
        request = merge_service_pb2.GetMergeRequest(merge_session_id=session_id)
        return (await self.merges.GetMerge(request, metadata=self.as_player(user))).merge_session

    async def upload_all(self, initiated: merge_service_pb2.InitiateMergeResponse) -> None:
        """All clips are whole from now on."""
        for upload in initiated.upload_sessions:
            await self.uploads.complete(upload.session_id)

    async def until(self, session_id: str, status: int) -> merge_pb2.MergeSession:
        """Watches until the session has this status."""
        request = merge_service_pb2.WatchMergeRequest(merge_session_id=session_id)
        async with asyncio.timeout(30):
            watch = self.merges.WatchMerge(request, metadata=self.as_player("alice"))
            async for response in watch:
                if response.merge_session.overall_status == status:
                    watch.cancel()
                    return response.merge_session
        raise AssertionError("the watch ended before")


async def refusal(call: object) -> ServiceError:
    """The error that a call ends in."""
    with pytest.raises(ServiceError) as caught, remote_errors():
        await call  # type: ignore[misc]  # a grpc call is awaitable
    return caught.value


def three_clips(**changes: object) -> merge_service_pb2.InitiateMergeRequest:
    """The request for a session of three clips, changed."""
    fields: dict[str, object] = {
        "video_count": 3,
        "video_filenames": ["a.mp4", "b.mp4", "c.webm"],
        "video_file_sizes": [100, 200, 300],
        "video_durations": [3.0, 2500, 3.5],  # the second in milliseconds, as phones do
        "video_mime_types": ["video/mp4", "video/mp4", "video/webm"],
    }
    return merge_service_pb2.InitiateMergeRequest(**(fields | changes))  # type: ignore[arg-type]  # by name


@asynccontextmanager
async def running(nats_url: str, keys: KeyRing, folder: Path, **settings: object) -> AsyncIterator[World]:
    """A world that is stopped at the end; ``settings`` differ from the usual."""
    world = World(nats_url, keys, folder, **settings)
    async with world.stack:
        await world.start()
        yield world
