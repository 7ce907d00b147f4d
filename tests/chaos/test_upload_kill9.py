"""What was acknowledged is there, however often the upload service and the gateway are killed under load.

``make test`` runs a short form; ``CHAOS=full``, as in ``make test-system``, a hundred kills.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
import grpc
import pytest

from services.common.errors import Unavailable
from services.common.keys import KeyRing
from tests.conftest import NatsServer
from tests.processes import Pair, ServiceProcess, running
from tests.rpc.upload_fixtures import Caller
from twotruths.upload.v1 import upload_service_pb2 as pb

T = TypeVar("T")
FULL = os.environ.get("CHAOS") == "full"
KILLS = 100 if FULL else 10
CHUNKS_AT_LEAST = 10_000 if FULL else 600
CHUNK, CHUNKS = 512, 200
UPLOADS_AT_ONCE = 3
TUS_AT_ONCE = 2
STREAM = 8  # chunks on one gRPC stream: acknowledged together
ACKS_BETWEEN_KILLS = (10, 60)
HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
RETRIED = {408, 429, 502, 503, 504}


@dataclass
class Ledger:
    """What the clients were told."""

    acknowledged: dict[str, set[int]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    completed: dict[str, bytes] = field(default_factory=dict)
    through: dict[str, int] = field(default_factory=lambda: {"gateway": 0, "upload": 0})
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def total(self) -> int:
        return self.through["upload"]

    async def acknowledge(self, id_: str, numbers: list[int], *, by_gateway: bool) -> None:
        self.acknowledged[id_].update(numbers)
        await self._count(len(numbers), by_gateway=by_gateway)

    async def reach(self, id_: str, offset: int) -> None:
        """Bytes from the beginning, acknowledged over tus."""
        chunks = offset // CHUNK - self.offsets[id_] // CHUNK
        self.offsets[id_] = offset
        await self._count(chunks, by_gateway=True)

    async def _count(self, chunks: int, *, by_gateway: bool) -> None:
        self.through["upload"] += chunks
        self.through["gateway"] += chunks if by_gateway else 0
        async with self.moved:
            self.moved.notify_all()

    async def grown(self, process: str, acks: int) -> None:
        """Returns once so many more were acknowledged through that process."""
        goal = self.through[process] + acks
        async with self.moved:
            await self.moved.wait_for(lambda: self.through[process] >= goal)


class Client:
    """Uploads files, half by the chunk route of the gateway, half by gRPC streams; what fails is tried again."""

    def __init__(self, pair: Pair, http: aiohttp.ClientSession, rpc: Caller, ledger: Ledger) -> None:
        self._pair, self._http, self._rpc, self._ledger = pair, http, rpc, ledger
        self._headers = pair.bearer("alice")

    async def upload(self, body: bytes) -> None:
        upload = await patiently(lambda: self._rpc.initiate(file_size=len(body), chunk_size=CHUNK))
        id_ = upload.session_id
        self._ledger.acknowledged[id_] = set()
        waiting = list(range(CHUNKS))
        random.shuffle(waiting)
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._by_gateway(id_, body, waiting))
            lanes.create_task(self._by_gateway(id_, body, waiting))
            lanes.create_task(self._by_stream(id_, body, waiting))
        digest = hashlib.sha256(body).hexdigest()
        done = await patiently(lambda: self._rpc.complete(id_, digest))
        assert done.file_hash == digest
        self._ledger.completed[id_] = body

    async def _by_gateway(self, id_: str, body: bytes, waiting: list[int]) -> None:
        while waiting:
            number = waiting.pop()
            piece = _piece(body, number)
            headers = self._headers | {"X-Chunk-SHA256": hashlib.sha256(piece).hexdigest()}
            while not await self._post(f"{self._pair.url}/api/v1/upload/{id_}/chunk/{number}", piece, headers):
                await asyncio.sleep(0.02)
            await self._ledger.acknowledge(id_, [number], by_gateway=True)

    async def _post(self, url: str, piece: bytes, headers: dict[str, str]) -> bool:
        """Whether the chunk was acknowledged; False is worth another try."""
        try:
            async with self._http.post(url, data=piece, headers=headers) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return False
        assert response.status in {200, *RETRIED}, (response.status, answer)
        return response.status == 200

    async def _by_stream(self, id_: str, body: bytes, waiting: list[int]) -> None:
        while waiting:
            numbers = [waiting.pop() for _ in range(min(STREAM, len(waiting)))]
            messages = [message for number in numbers for message in _chunk(id_, body, number)]
            stored = await patiently(functools.partial(self._rpc.send, *messages))
            assert [chunk.chunk_number for chunk in stored.chunks] == numbers
            await self._ledger.acknowledge(id_, numbers, by_gateway=False)


class TusClient:
    """Uploads files by PATCHes of any length; after one that failed it asks where to go on, as tus clients do."""

    def __init__(self, pair: Pair, http: aiohttp.ClientSession, ledger: Ledger) -> None:
        self._pair, self._http, self._ledger = pair, http, ledger
        self._headers = pair.bearer("alice") | {"Tus-Resumable": "1.0.0"}

    async def upload(self, body: bytes) -> None:
        name = base64.b64encode(b"clip.mp4").decode()
        made = {"Upload-Length": str(len(body)), "Upload-Metadata": f"filename {name}"}
        made["Idempotency-Key"] = uuid.uuid4().hex  # the answer may be lost
        url = (await self._until("POST", "/api/v1/tus/", made, 201))["Location"]
        id_ = url.rpartition("/")[2]
        self._ledger.offsets[id_] = offset = 0
        while offset < len(body):
            piece = body[offset : offset + random.randint(1, 4 * CHUNK)]
            headers = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            answer = await self._send("PATCH", url, headers, {204, 409}, piece)
            if answer is None or answer[0] == 409:  # 409: what the dead gateway passed on was stored meanwhile
                offset = int((await self._until("HEAD", url, {}, 200))["Upload-Offset"])
            else:
                offset = int(answer[1]["Upload-Offset"])
            assert self._ledger.offsets[id_] <= offset <= len(body), (id_, self._ledger.offsets[id_], offset)
            await self._ledger.reach(id_, offset)
        self._ledger.completed[id_] = body

    async def _until(self, method: str, url: str, headers: dict[str, str], status: int) -> Mapping[str, str]:
        while (answer := await self._send(method, url, headers, {status})) is None:
            await asyncio.sleep(0.02)
        return answer[1]

    async def _send(
        self, method: str, url: str, headers: dict[str, str], statuses: set[int], data: bytes | None = None
    ) -> tuple[int, Mapping[str, str]] | None:
        """None is worth another try."""
        given = self._headers | headers
        try:
            async with self._http.request(method, self._pair.url + url, data=data, headers=given) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return None
        assert response.status in statuses | RETRIED, (method, response.status, answer)
        return (response.status, response.headers) if response.status in statuses else None


def _piece(body: bytes, number: int) -> bytes:
    return body[number * CHUNK : (number + 1) * CHUNK]


def _chunk(id_: str, body: bytes, number: int) -> list[pb.UploadChunksRequest]:
    piece = _piece(body, number)
    return [
        pb.UploadChunksRequest(header=pb.ChunkHeader(session_id=id_, chunk_number=number)),
        pb.UploadChunksRequest(data=piece),
        pb.UploadChunksRequest(end=pb.ChunkEnd(sha256=hashlib.sha256(piece).hexdigest())),
    ]


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Calls until the service answers; every other error is one."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.02)


class Killer:
    """Kills one process again and again, whenever it has done some work since the last time."""

    def __init__(self, process: ServiceProcess, ledger: Ledger, rpc: Caller) -> None:
        self._process, self._ledger, self._rpc = process, ledger, rpc
        self.lost: list[tuple[str, object]] = []
        self.kills = 0

    async def run(self, kills: int) -> None:
        while self.kills < kills:
            await self._ledger.grown(self._process.name, random.randint(*ACKS_BETWEEN_KILLS))
            await self._process.kill()
            self.kills += 1
            told = {id_: set(n) for id_, n in self._ledger.acknowledged.items()}
            offsets = dict(self._ledger.offsets)
            finished = set(self._ledger.completed)
            await self._process.start()
            await self._process.listening()
            for id_ in told.keys() - finished:
                there = (await patiently(functools.partial(self._rpc.get, id_))).uploaded_chunks
                if missing := told[id_] - set(there):
                    self.lost.append((id_, missing))
            for id_ in offsets.keys() - finished:
                stands = await patiently(functools.partial(self._rpc.get, id_))
                if not offsets[id_] <= stands.upload_offset:
                    self.lost.append((id_, (offsets[id_], stands.upload_offset)))


@pytest.mark.xdist_group("chaos")
async def test_no_acknowledged_chunk_is_lost_however_often_processes_are_killed(
    keys: KeyRing, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    ledger = Ledger()
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    timeout = aiohttp.ClientTimeout(total=20)
    async with (
        running(keys, tmp_path, own_nats_server.url, log_level="WARNING", upload_chunk_size=CHUNK) as pair,
        grpc.aio.insecure_channel(pair.target, options=options) as channel,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        rpc = Caller(channel, keys.player_token("alice"))
        client, tus = Client(pair, http, rpc, ledger), TusClient(pair, http, ledger)
        killers = [Killer(process, ledger, rpc) for process in (pair.upload, pair.gateway)]

        async def load(by: Client | TusClient) -> None:
            while ledger.total < CHUNKS_AT_LEAST or sum(killer.kills for killer in killers) < KILLS:
                await by.upload(HEAD + random.randbytes(CHUNK * CHUNKS - len(HEAD)))

        async with asyncio.timeout(900), asyncio.TaskGroup() as tasks:
            for killer in killers:
                tasks.create_task(killer.run(KILLS // len(killers)))
            for _ in range(UPLOADS_AT_ONCE):
                tasks.create_task(load(client))
            for _ in range(TUS_AT_ONCE):
                tasks.create_task(load(tus))
        assert [loss for killer in killers for loss in killer.lost] == []
        assert sum(killer.kills for killer in killers) >= KILLS
        assert ledger.total >= CHUNKS_AT_LEAST
        acknowledged = {id_: len(numbers) * CHUNK for id_, numbers in ledger.acknowledged.items()}
        assert acknowledged | ledger.offsets == {id_: len(body) for id_, body in ledger.completed.items()}
        assert acknowledged
        assert ledger.offsets
        for id_, body in ledger.completed.items():
            assert pair.file(id_) == body
        for process in (pair.gateway, pair.upload):
            assert await process.stop() == 0, process.log.read_text()
