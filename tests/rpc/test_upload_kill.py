"""The real upload process, killed under load and started again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import sys
from collections import defaultdict
from pathlib import Path

import grpc
import pytest

from services.common.errors import Unavailable
from services.common.keys import KeyRing
from services.common.state import owned_key
from tests.conftest import NatsServer
from tests.processes import ServiceProcess
from tests.rpc.upload_fixtures import Caller
from twotruths.upload.v1 import upload_pb2
from twotruths.upload.v1 import upload_service_pb2 as pb

CHUNK, CHUNKS, UPLOADS = 4096, 120, 3
KILLS = 3
HEAD = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"


class Process:
    """``python -m services.upload`` on a port of its own."""

    def __init__(self, keys: KeyRing, root: Path, nats_url: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = keys.settings() | {
            "nats_url": nats_url,
            "data_dir": root,
            "upload_listen": f"127.0.0.1:{self.port}",
        }
        named = {f"TWOTRUTHS_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment = os.environ | named

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.upload", env=self._environment
        )

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; answers the exit status."""
        self._process.terminate()
        return await self._process.wait()


def files(random_: random.Random) -> list[bytes]:
    return [HEAD + random_.randbytes(CHUNK * CHUNKS - len(HEAD) - n) for n in range(UPLOADS)]


async def test_no_acknowledged_chunk_is_lost_when_the_process_is_killed_under_load(
    keys: KeyRing, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    contents = files(random.Random(7))
    process = Process(keys, tmp_path, own_nats_server.url)
    await process.start()
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{process.port}", options=options) as channel:
        async with asyncio.timeout(30):
            await channel.channel_ready()
        alice = Caller(channel, keys.player_token("alice"))
        ids = [(await alice.initiate(file_size=len(body), chunk_size=CHUNK)).session_id for body in contents]
        acknowledged: dict[str, set[int]] = defaultdict(set)
        more = asyncio.Event()

        async def upload(id_: str, body: bytes, numbers: list[int]) -> None:
            """Sends chunks one stream each; tries again what was not acknowledged."""
            while numbers:
                number = numbers[-1]
                piece = body[number * CHUNK : (number + 1) * CHUNK]
                try:
                    await alice.send(
                        pb.UploadChunksRequest(header=pb.ChunkHeader(session_id=id_, chunk_number=number)),
                        pb.UploadChunksRequest(data=piece),
                        pb.UploadChunksRequest(end=pb.ChunkEnd(sha256=hashlib.sha256(piece).hexdigest())),
                    )
                except Unavailable:
                    await asyncio.sleep(0.05)
                    continue
                acknowledged[id_].add(numbers.pop())
                more.set()

        async def killer() -> None:
            for kill in range(1, KILLS + 1):
                while sum(map(len, acknowledged.values())) < kill * UPLOADS * CHUNKS / (KILLS + 1):
                    more.clear()
                    await more.wait()
                await process.kill()
                seen = {id_: set(numbers) for id_, numbers in acknowledged.items()}
                await process.start()
                for id_, numbers in seen.items():
                    assert numbers <= set((await _patiently(alice, id_)).uploaded_chunks)

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(killer())
            for id_, body in zip(ids, contents, strict=True):
                order = list(range(CHUNKS))
                random.Random(id_).shuffle(order)
                for lane in range(2):
                    tasks.create_task(upload(id_, body, order[lane::2]))
        for id_, body in zip(ids, contents, strict=True):
            done = await alice.complete(id_)
            assert done.file_hash == hashlib.sha256(body).hexdigest()
            assert (tmp_path / "objects" / "uploads" / owned_key("alice", id_)).read_bytes() == body
    assert await process.stop() == 0


async def _patiently(caller: Caller, id_: str) -> upload_pb2.Upload:
    while True:
        try:
            return await caller.get(id_)
        except Unavailable:
            await asyncio.sleep(0.05)


async def test_a_second_directory_on_a_broker_does_not_start_and_fails_nobodys_upload(
    keys: KeyRing, tmp_path: Path, own_nats_server: NatsServer
) -> None:
    first = ServiceProcess("upload", _settings(keys, tmp_path / "first", own_nats_server), tmp_path)
    await first.start()
    await first.listening()
    second = ServiceProcess("upload", _settings(keys, tmp_path / "second", own_nats_server), tmp_path)
    await second.start()
    with pytest.raises(RuntimeError, match=r"the uploads of this broker are in the directory .*first of"):
        await second.listening()
    assert await first.stop() == 0


def _settings(keys: KeyRing, data: Path, broker: NatsServer) -> dict[str, object]:
    return keys.settings() | {"nats_url": broker.url, "data_dir": data}
