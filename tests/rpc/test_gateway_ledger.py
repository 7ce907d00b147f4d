"""One ledger behind all protocols: the gateway in front of the real upload service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tusclient.client
import tusclient.exceptions

from services.common.adapters.directory_objects import DirectoryObjectStore
from services.common.adapters.memory import MemoryStateStore
from services.common.keys import KeyRing
from services.gateway import wiring
from services.gateway.config import GatewaySettings
from services.upload.domain import Upload
from tests.rpc.gateway_world import UNLIMITED, connection
from tests.rpc.upload_fixtures import SESSION, Mesh, running
from twotruths.upload.v1 import upload_service_pb2 as pb

FILE = (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(range(256)) * 400)[:100_003]
DIGEST = hashlib.sha256(FILE).hexdigest()
TUS, RUFH = "/api/v1/tus/", "/api/v1/rufh/"
BODY = {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}
PART = {"Content-Type": "application/partial-upload"}
NAMED = {"Upload-Metadata": f"filename {base64.b64encode(b'a.mp4').decode()}"}


class Edge:
    """A gateway, and alice who calls it."""

    def __init__(self, http: aiohttp.ClientSession, port: int, token: str, mesh: Mesh) -> None:
        self.http, self.mesh = http, mesh
        self.base = f"http://127.0.0.1:{port}"
        self.port = port
        self.auth = {"Authorization": f"Bearer {token}"}

    async def send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, *, status: int, **more: Any
    ) -> tuple[Mapping[str, str], Any]:
        given = {**self.auth, **(headers or {})}
        async with self.http.request(method, self.base + path, headers=given, **more) as response:
            text = await response.text()
            assert response.status == status, text
            body = await response.json(content_type=None) if text else None
            return response.headers, body

    async def tus(self, method: str, path: str, headers: Mapping[str, str], *, status: int, **more: Any) -> Any:
        return (await self.send(method, path, {**BODY, **headers}, status=status, **more))[0]

    async def create(self, size: int = len(FILE), **more: str) -> str:
        """The id of an upload begun over tus."""
        headers = {"Upload-Length": str(size)} | NAMED | {k.replace("_", "-"): v for k, v in more.items()}
        location: str = (await self.send("POST", TUS, {"Tus-Resumable": "1.0.0"} | headers, status=201))[0][
            "Location"
        ]
        return location.removeprefix(TUS)

    async def offset(self, id_: str) -> int:
        return int((await self.tus("HEAD", TUS + id_, {}, status=200))["Upload-Offset"])

    async def downloaded(self, id_: str) -> bytes:
        async with self.http.get(f"{self.base}/api/v1/files/{id_}", headers=self.auth) as response:
            assert response.status == 200
            return await response.read()


@asynccontextmanager
async def edge_of(keys: KeyRing, tmp_path: Path, **changes: object) -> AsyncIterator[Edge]:
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            running(keys, tmp_path, MemoryStateStore[Upload](), upload_chunk_size=16 << 10, **changes)
        )
        away = dict.fromkeys(("merge_target", "challenge_target"), "127.0.0.1:9")
        values = keys.settings() | away | {"gateway_listen": "127.0.0.1:0", "data_dir": tmp_path} | UNLIMITED
        settings = GatewaySettings(**values, upload_target=f"127.0.0.1:{mesh.app.server.port}")
        gateway = await stack.enter_async_context(wiring.build(settings, store=DirectoryObjectStore(tmp_path)))
        await gateway.server.start()
        await gateway.server.set_serving(True)
        stack.push_async_callback(gateway.server.stop, 1)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Edge(http, gateway.server.port, keys.player_token("alice"), mesh)


@pytest.fixture
async def edge(keys: KeyRing, tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_of(keys, tmp_path) as edge:
        yield edge


async def test_an_upload_begun_over_tus_goes_on_by_chunks_and_ends_over_rufh(edge: Edge) -> None:
    id_ = await edge.create()
    size = 16 << 10
    await edge.tus("PATCH", TUS + id_, {"Upload-Offset": "0"}, status=204, data=FILE[: size + 5000])
    _, status = await edge.send("GET", f"/api/v1/upload/{id_}/status", status=200)
    assert (status["chunk_size"], status["uploaded_chunks"], status["upload_offset"]) == (size, [0], size + 5000)
    # A whole chunk over the tail, and one that leaves a gap.
    for number in (1, 3):
        data = FILE[number * size : (number + 1) * size]
        digest = {"X-Chunk-SHA256": hashlib.sha256(data).hexdigest(), "Content-Type": "application/octet-stream"}
        await edge.send("POST", f"/api/v1/upload/{id_}/chunk/{number}", digest, status=200, data=data)
    headers, _ = await edge.send("HEAD", RUFH + id_, status=204)
    assert (headers["Upload-Offset"], headers["Upload-Complete"]) == (str(2 * size), "?0")
    more = PART | {"Upload-Complete": "?0", "Upload-Offset": str(2 * size)}
    await edge.send("PATCH", RUFH + id_, more, status=204, data=FILE[2 * size : 3 * size])
    offset = await edge.offset(id_)
    assert offset == 4 * size  # the chunk beyond the gap counts too
    last = PART | {"Upload-Complete": "?1", "Upload-Offset": str(offset)}
    _, document = await edge.send("PATCH", RUFH + id_, last, status=200, data=FILE[offset:])
    assert (document["status"], document["file_hash"]) == ("completed", DIGEST)
    assert await edge.downloaded(id_) == FILE
    assert await edge.offset(id_) == len(FILE)


async def test_a_clip_of_a_merge_session_goes_in_over_tus(edge: Edge) -> None:
    clips = [
        pb.ClipUpload(session_id=str(uuid.uuid4()), filename="0.mp4", file_size=len(FILE), mime_type="video/mp4")
    ]
    upload = (await edge.mesh.merge.batch(clips))[0]
    assert upload.merge_session_id == SESSION
    headers = await edge.tus("PATCH", TUS + upload.session_id, {"Upload-Offset": "0"}, status=204, data=FILE)
    assert headers["Upload-Offset"] == str(len(FILE))
    assert (await edge.mesh.alice.get(upload.session_id)).ready_for_merge


async def test_bytes_of_the_wrong_kind_are_refused_by_the_last_of_them(edge: Edge) -> None:
    id_ = await edge.create(4)
    _, document = await edge.send("PATCH", TUS + id_, BODY | {"Upload-Offset": "0"}, status=400, data=b"text")
    assert document["reason"] == "FILE_TYPE_MISMATCH"
    await edge.tus("HEAD", TUS + id_, {}, status=410)
    given = {"Upload-Complete": "?1", "Content-Type": "video/mp4"}
    headers, document = await edge.send("POST", RUFH, given, status=400, data=b"text")
    assert (headers["Upload-Complete"], document["reason"]) == ("?1", "FILE_TYPE_MISMATCH")
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    given |= {"Repr-Digest": f"sha-256=:{wrong}:"}
    _, document = await edge.send("POST", RUFH, given, status=400, data=FILE)
    assert document["reason"] == "FILE_DIGEST_MISMATCH"


async def test_lengths_and_offsets_that_are_wrong_change_nothing(edge: Edge) -> None:
    id_ = await edge.create()
    headers = await edge.tus("PATCH", TUS + id_, {"Upload-Offset": "7"}, status=409, data=FILE)
    assert headers["Upload-Offset"] == "0"
    await edge.tus("PATCH", TUS + id_, {"Upload-Offset": "0"}, status=413, data=FILE + b"more")
    offset = await edge.offset(id_)
    await edge.tus("PATCH", TUS + id_, {"Upload-Offset": str(offset)}, status=204, data=FILE[offset:])
    assert await edge.downloaded(id_) == FILE
    await edge.tus("PATCH", TUS + id_, {"Upload-Offset": str(len(FILE))}, status=403, data=b"x")
    headers, _ = await edge.send("OPTIONS", TUS, status=204)
    assert headers["Tus-Max-Size"] == "100000000"
    await edge.send("POST", TUS, {"Tus-Resumable": "1.0.0", "Upload-Length": "100000001"} | NAMED, status=413)


async def test_a_checksum_makes_bytes_count_all_or_not_at_all(edge: Edge) -> None:
    id_ = await edge.create()
    for name, data, status in (("sha1", b"x", 460), ("sha256", b"x", 460), ("sha256", FILE[:50_000], 204)):
        digest = base64.b64encode(hashlib.new(name, data).digest()).decode()
        given = {"Upload-Offset": "0", "Upload-Checksum": f"{name} {digest}"}
        await edge.tus("PATCH", TUS + id_, given, status=status, data=FILE[:50_000])
        assert await edge.offset(id_) == (50_000 if status == 204 else 0)


async def test_a_length_that_was_deferred_is_told_over_either_protocol(edge: Edge) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for start in range(0, len(FILE), 30_000):
            yield FILE[start : start + 30_000]

    given = {"Upload-Complete": "?1", "Content-Type": "video/mp4"}
    _, document = await edge.send("POST", RUFH, given, status=200, data=slowly())
    assert (document["file_size"], document["file_hash"]) == (len(FILE), DIGEST)
    deferred = {"Tus-Resumable": "1.0.0", "Upload-Defer-Length": "1"} | NAMED
    id_ = (await edge.send("POST", TUS, deferred, status=201))[0]["Location"].removeprefix(TUS)
    await edge.tus("PATCH", TUS + id_, {"Upload-Offset": "0"}, status=204, data=FILE[:30_000])
    told = {"Upload-Offset": "30000", "Upload-Length": str(len(FILE))}
    await edge.tus("PATCH", TUS + id_, told, status=204, data=FILE[30_000:])
    assert await edge.downloaded(id_) == FILE


async def test_partial_uploads_of_any_size_become_one_file(edge: Edge) -> None:
    partials = []
    for part in (FILE[:33_333], FILE[33_333:33_334], FILE[33_334:]):
        id_ = await edge.create(len(part), Upload_Concat="partial")
        await edge.tus("PATCH", TUS + id_, {"Upload-Offset": "0"}, status=204, data=part)
        partials.append(TUS + id_)
    final = {"Tus-Resumable": "1.0.0", "Upload-Concat": f"final;{' '.join(partials)}"} | NAMED
    url = (await edge.send("POST", TUS, final, status=201))[0]["Location"]
    assert (await edge.send("POST", TUS, final, status=201))[0]["Location"] == url  # as when an answer was lost
    state = await edge.tus("HEAD", url, {}, status=200)
    assert (state["Upload-Concat"], state["Upload-Length"]) == (f"final;{' '.join(partials)}", str(len(FILE)))
    assert await edge.downloaded(url.removeprefix(TUS)) == FILE
    await edge.tus("PATCH", url, {"Upload-Offset": str(len(FILE))}, status=403, data=b"x")


async def test_an_upload_that_expired_is_gone_on_every_way(edge: Edge) -> None:
    id_ = await edge.create()
    edge.mesh.clock.ahead = timedelta(days=2)
    await edge.tus("HEAD", TUS + id_, {}, status=410)
    await edge.tus("PATCH", TUS + id_, {"Upload-Offset": "0"}, status=410, data=FILE)
    await edge.send("HEAD", RUFH + id_, status=410)


async def test_a_creation_sent_again_under_its_key_is_the_same_upload(edge: Edge) -> None:
    first = await edge.create(Idempotency_Key="k1")
    assert await edge.create(Idempotency_Key="k1") == first
    assert await edge.create(Idempotency_Key="k2") != first
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Idempotency-Key": "k1"} | NAMED
    _, document = await edge.send("POST", TUS, headers, status=409)
    assert document["reason"] == "REQUEST_ID_REUSED"


async def test_a_creation_with_content_sent_again_goes_on_where_the_first_one_stands(edge: Edge) -> None:
    repr_digest = base64.b64encode(bytes.fromhex(DIGEST)).decode()
    given = {
        "Content-Type": "video/mp4",
        "Repr-Digest": f"sha-256=:{repr_digest}:",
        "Upload-Length": str(len(FILE)),
    }
    part = given | {"Upload-Complete": "?0"}
    first, _ = await edge.send("POST", RUFH, part, status=201, data=FILE[:40_000])
    # The client lost the answer. What it sends now is the open upload of the same file.
    again, _ = await edge.send("POST", RUFH, part, status=201, data=FILE[:40_000])
    assert (again["Location"], again["Upload-Offset"]) == (first["Location"], "40000")
    whole = given | {"Upload-Complete": "?1", "Idempotency-Key": "k"}
    _, document = await edge.send("POST", RUFH, whole, status=200, data=FILE)
    assert (document["status"], document["file_hash"]) == ("completed", DIGEST)
    tus = {**BODY, **NAMED, "Upload-Length": str(len(FILE)), "Idempotency-Key": "t"}
    first, _ = await edge.send("POST", TUS, tus, status=201, data=FILE[:30_000])
    for data in (FILE[:20_000], FILE, FILE):
        again, _ = await edge.send("POST", TUS, tus, status=201, data=data)
        assert again["Location"] == first["Location"]
    assert await edge.downloaded(first["Location"].removeprefix(TUS)) == FILE


async def test_what_came_over_a_connection_that_hangs_is_there_and_the_upload_goes_on_from_it(edge: Edge) -> None:
    file = FILE * 6
    id_ = await edge.create(len(file))
    lines = (
        f"PATCH {TUS}{id_} HTTP/1.1\r\nHost: t\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        f"Content-Type: {BODY['Content-Type']}\r\nContent-Length: {len(file)}\r\n"
        f"Authorization: {edge.auth['Authorization']}\r\n\r\n"
    )
    async with connection(edge.port) as (_, writer):
        writer.write(lines.encode() + file[:600_000])
        async with asyncio.timeout(20):
            offset = 0
            while offset < 600_000:  # though no whole piece came
                _, document = await edge.send("GET", f"/api/v1/upload/{id_}/status", status=200)
                offset = document["upload_offset"]
                await asyncio.sleep(0.01)
        # The client has lost sight of that request. Asking for the offset ends it.
        assert await edge.offset(id_) == offset == 600_000
        await edge.tus("PATCH", TUS + id_, {"Upload-Offset": str(offset)}, status=204, data=file[offset:])
    assert await edge.downloaded(id_) == file


async def test_the_python_tus_client_uploads_and_resumes(edge: Edge) -> None:
    client = tusclient.client.TusClient(edge.base + TUS, headers=edge.auth)

    def uploader(**more: Any) -> Any:
        metadata = {"filename": "a.mp4", "filetype": "video/mp4"}
        return client.uploader(file_stream=io.BytesIO(FILE), metadata=metadata, upload_checksum=True, **more)

    def first_half() -> str:
        begun = uploader(chunk_size=30_000)
        begun.upload(stop_at=60_000)
        return str(begun.url)

    url = await asyncio.to_thread(first_half)
    assert await edge.offset(url.rsplit("/", 1)[1]) == 60_000
    await asyncio.to_thread(lambda: uploader(url=url, chunk_size=7000).upload())
    assert await edge.downloaded(url.rsplit("/", 1)[1]) == FILE
    await edge.tus("DELETE", url.removeprefix(edge.base), {}, status=409)
    with pytest.raises(tusclient.exceptions.TusCommunicationError):
        await asyncio.to_thread(lambda: uploader(url=f"{edge.base}{TUS}{uuid.uuid4()}"))


async def test_every_creation_says_what_is_left_until_there_is_nothing(keys: KeyRing, tmp_path: Path) -> None:
    limits = {"upload_max_initiates_per_minute": 3, "upload_max_bytes_per_day": 1000, "upload_max_open": 9}
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "100"} | NAMED
    rufh = {"Content-Type": "video/mp4", "Upload-Complete": "?0", "Upload-Length": "200"}
    file = {"filename": "a.mp4", "mime_type": "video/mp4", "file_size": 300}
    async with edge_of(keys, tmp_path, **limits) as edge:
        key = {"Idempotency-Key": "one"}
        answers = [
            (await edge.send("POST", TUS, tus, status=201))[0],
            (await edge.send("POST", RUFH, rufh, status=201))[0],
            (await edge.send("POST", "/api/v1/upload/initiate", key, status=200, json=file))[0],
            (await edge.send("POST", "/api/v1/upload/initiate", key, status=200, json=file))[0],
            (await edge.send("POST", TUS, tus, status=429))[0],
        ]
    told = [re.sub(r";t=[1-9][0-9]*", "", answer.get("RateLimit", "")) for answer in answers]
    assert told == [
        '"initiates";r=2, "bytes";r=900',
        '"initiates";r=1, "bytes";r=700',
        '"initiates";r=0, "bytes";r=400',
        '"initiates";r=0, "bytes";r=400',  # a replay costs nothing
        '"initiates";r=0',
    ]
    policy = '"initiates";q=3;w=60'
    bytes_policy = '"bytes";q=1000;w=86400;qu="content-bytes"'
    assert [answer.get("RateLimit-Policy") for answer in answers] == [
        *[f"{policy}, {bytes_policy}"] * 4,
        policy,
    ]
    assert answers[-1]["Retry-After"] == answers[-1]["RateLimit"].rpartition("=")[2]


async def test_a_file_is_read_with_the_scope_for_reading_and_not_with_that_for_uploads(
    edge: Edge, keys: KeyRing
) -> None:
    id_ = await edge.create()
    await edge.tus("PATCH", TUS + id_, {"Upload-Offset": "0"}, status=204, data=FILE)
    for scope, files, uploads in (("media:read", 200, 403), ("media:upload", 403, 200)):
        token = keys.player_token("alice", scopes=[scope])
        for path, status in ((f"/api/v1/files/{id_}", files), (f"/api/v1/upload/{id_}/status", uploads)):
            given = {"Authorization": f"Bearer {token}"}
            async with edge.http.get(edge.base + path, headers=given) as response:
                assert response.status == status
