"""Bad input: every case has one exact status and a problem+json that names the field, and nothing is stored."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, connection, open_world

ID = "00000000-0000-4000-8000-000000000000"
CHALLENGES = "/api/v1/challenges"
INITIATE = "/api/v1/upload/initiate"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
GOOD = {"filename": "a.mp4", "file_size": 10, "mime_type": "video/mp4"}


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    limits: dict[str, Any] = {"gateway_max_body_bytes": 4096, "gateway_max_chunk_bytes": 65536}
    async with open_world(keys, tmp_path, **limits) as world:
        yield world


async def problem(call: Any, status: int) -> tuple[dict[str, Any], Any]:
    async with call as response:
        text = await response.text()
        assert response.status == status, text
        assert response.content_type == "application/problem+json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        document = json.loads(text)
        assert set(document) == {
            "type",
            "title",
            "status",
            "detail",
            "instance",
            "request_id",
            "reason",
            "errors",
        }
        assert document["status"] == status
        assert document["request_id"] == response.headers["X-Request-Id"]
        return document, response.headers


def pointers(document: dict[str, Any]) -> list[str]:
    return [error["pointer"] for error in document["errors"]]


BODIES = [
    (b"{", JSON, "MALFORMED_JSON", []),
    (b"\xff{}", JSON, "MALFORMED_JSON", []),
    (b'{"filename":"a","filename":"b"}', JSON, "MALFORMED_JSON", []),
    (b'{"file_size":NaN}', JSON, "MALFORMED_JSON", []),
    (b"[" * 3000, JSON, "MALFORMED_JSON", []),
    (b"1" * 4000, JSON, None, [""]),
    (b'{"file_size":' + b"9" * 30 + b"}", JSON, None, ["/file_size"]),
    (b"[]", JSON, None, [""]),
    (b"7", JSON, None, [""]),
    (json.dumps(GOOD | {"file_size": "ten"}).encode(), JSON, None, ["/file_size"]),
    (json.dumps(GOOD | {"file_size": 1.5}).encode(), JSON, None, ["/file_size"]),
    (json.dumps(GOOD | {"file_size": True}).encode(), JSON, None, ["/file_size"]),
    (json.dumps(GOOD | {"file_size": 2**63}).encode(), JSON, None, ["/file_size"]),
    (json.dumps(GOOD | {"file_size": -1}).encode(), JSON, None, ["/file_size"]),
    (json.dumps(GOOD | {"filename": 7, "metadata": []}).encode(), JSON, None, ["/filename", "/metadata"]),
    (json.dumps(GOOD | {"filename": "\ud800"}).encode(), JSON, None, ["/filename"]),
    (json.dumps(GOOD | {"metadata": {"a/b~c": 1}}).encode(), JSON, None, ["/metadata/a~1b~0c"]),
    (json.dumps(GOOD | {"mime_type": "nonsense"}).encode(), JSON, None, ["/mime_type"]),
    (json.dumps(GOOD | {"file_hash": "abc"}).encode(), JSON, None, ["/file_hash"]),
    (b"{}", JSON, None, ["/filename", "/mime_type"]),
    (b"", JSON, None, ["/filename", "/mime_type"]),
    (b"filename=a&file_size=x&mime_type=video/mp4", FORM, None, ["/file_size"]),
    (b"filename=a&filename=b&file_size=1&mime_type=video/mp4", FORM, None, ["/filename"]),
    (b"filename=%ff&file_size=1&mime_type=video/mp4", FORM, "MALFORMED_FORM", []),
    (b"metadata=notjson&filename=a&file_size=1&mime_type=video/mp4", FORM, None, ["/metadata"]),
    (b"&".join(b"a=1" for _ in range(1010)), FORM, "MALFORMED_FORM", []),
    (b"--b\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, "MALFORMED_FORM", []),
    (b"--b--\r\n", {"Content-Type": "multipart/form-data"}, "MALFORMED_FORM", []),
]


@pytest.mark.parametrize(("body", "headers", "reason", "wrong"), BODIES)
async def test_a_wrong_body_is_refused_by_field(
    world: World, body: bytes, headers: dict[str, str], reason: str | None, wrong: list[str]
) -> None:
    document, _ = await problem(world.call("POST", INITIATE, data=body, headers=headers), 400)
    assert document["reason"] == (reason or "INVALID_ARGUMENT")
    assert pointers(document) == wrong
    assert world.uploads.uploads == {}


async def test_lists_that_are_wrong_are_named_by_element(world: World) -> None:
    form = {"video_count": "2", "video_filenames": '["a.mp4",""]', "video_file_sizes": '[1,"x"]'}
    url = "/api/v1/challenge-videos/upload-for-merge/initiate"
    assert pointers((await problem(world.call("POST", url, data=form), 400))[0]) == ["/video_file_sizes/1"]
    form["video_file_sizes"] = "[1,2]"
    assert pointers((await problem(world.call("POST", url, data=form), 400))[0]) == ["/video_filenames/1"]


async def test_other_media_types_codings_and_sizes_are_refused(world: World) -> None:
    xml = world.call("POST", INITIATE, data=b"<a/>", headers={"Content-Type": "text/xml"})
    _, headers = await problem(xml, 415)
    assert "application/json" in headers["Accept-Post"]
    await problem(world.call("POST", INITIATE, data=b"x", headers=JSON | {"Content-Encoding": "gzip"}), 415)
    await problem(
        world.call("POST", INITIATE, data=b"{}", headers={"Content-Type": "application/json;charset=utf-16"}), 415
    )
    await problem(world.call("POST", INITIATE, data=b" " * 5000, headers=JSON), 413)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1000

    await problem(world.call("POST", INITIATE, data=endless(), headers=JSON), 413)


async def test_unknown_fields_are_ignored_only_where_the_phone_app_sends_them(world: World) -> None:
    async with world.call("POST", INITIATE + "?v=1", json=GOOD | {"app": 1}) as response:
        assert response.status == 200
    document, _ = await problem(world.call("GET", "/api/v1/leaderboard?page_size=5&colour=red&a.b=1"), 400)
    assert pointers(document) == ["/colour", "/a/b"]
    replace = f"/api/v1/challenge-videos/merge-session/{ID}/clips/0/replace"
    document, _ = await problem(world.call("POST", replace + "?q=1", json={"filename": "a", "colour": 1}), 400)
    assert pointers(document) == ["/q", "/colour"]
    await problem(world.call("GET", "/api/v1/leaderboard?page_size=5"), 501)


@pytest.mark.parametrize("id_", ["nope", "..", "%2e%2e", "a%2Fb", "%00", "%FF", "x" * 300, "{}", "'%3B--"])
async def test_an_id_that_is_none_is_refused(world: World, id_: str) -> None:
    import yarl

    url = yarl.URL(f"http://127.0.0.1:{world.port}/api/v1/upload/{id_}/status", encoded=True)
    async with world.http.get(url, headers=world.auth()) as response:
        assert response.status == 400
        assert pointers(await response.json(content_type=None)) == ["/session_id"]


async def test_unknown_paths_and_methods_are_problems(world: World) -> None:
    document, _ = await problem(world.call("GET", "/nowhere?signature=secret"), 404)
    assert (document["reason"], document["instance"]) == ("ROUTE_NOT_FOUND", "/nowhere")
    _, headers = await problem(world.call("PUT", f"{CHALLENGES}/{ID}"), 405)
    assert headers["Allow"] == "DELETE, GET, HEAD"
    async with world.call("OPTIONS", f"{CHALLENGES}/{ID}") as response:
        assert (response.status, response.headers["Allow"]) == (204, "DELETE, GET, HEAD, OPTIONS")
    await problem(world.call("GET", "/" + "x" * 5000), 414)


@pytest.mark.parametrize(
    "authorization",
    [None, "Basic YTpi", "Bearer", "Bearer ", "Bearer x", "Bearer a b", "Bearer " + "x" * 5000, "bearer ü"],
)
async def test_a_wrong_token_is_401_with_a_challenge(world: World, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    for url in (f"/api/v1/upload/{ID}/status", f"/api/v1/upload/{ID}/events", f"/api/v1/files/{ID}"):
        _, answer = await problem(world.call("GET", url, user="", headers=headers), 401)
        assert answer["WWW-Authenticate"].startswith("Bearer")
    await problem(world.call("POST", f"/api/v1/upload/{ID}/chunk/0", user="", headers=headers, data=b"x"), 401)


@pytest.mark.parametrize("token", ["x", "a b", "a.b.c", "x" * 4000, "x" * 5000, "x" * 15000, "ü"])
async def test_every_token_that_does_not_count_gets_the_same_answer(world: World, token: str) -> None:
    url = f"/api/v1/upload/{ID}/status"
    headers = {"Authorization": f"Bearer {token}"}
    document, answer = await problem(world.call("GET", url, user="", headers=headers), 401)
    assert (document["reason"], document["detail"]) == ("UNAUTHENTICATED", "the bearer token is not valid")
    assert answer["WWW-Authenticate"] == 'Bearer realm="twotruths", error="invalid_token"'
    assert world.uploads.metadata == []


async def test_anothers_upload_is_not_found(world: World) -> None:
    upload = world.uploads.add("bob", "a.mp4", 4, 4)
    url = f"/api/v1/upload/{upload.session_id}"
    for method, path in (("GET", "/status"), ("POST", "/complete"), ("DELETE", ""), ("POST", "/chunk/0")):
        await problem(world.call(method, url + path), 404)
    await problem(world.call("GET", f"{url}/events"), 404)
    await problem(world.call("GET", f"{url}/events", headers={"Accept": "image/png"}), 406)
    await problem(world.call("GET", f"{url}/status?owner=bob"), 403)


RAW = {"Content-Type": "application/octet-stream"}
OTHER = hashlib.sha256(b"other").hexdigest()
CHUNKS: list[tuple[str, bytes, dict[str, str], int, str, list[str]]] = [
    ("/chunk/9", b"abcd", RAW, 400, "CHUNK_OUT_OF_RANGE", ["/chunk_number"]),
    ("/chunk/-1", b"abcd", RAW, 400, "INVALID_ARGUMENT", ["/chunk_number"]),
    ("/chunk/one", b"abcd", RAW, 400, "INVALID_ARGUMENT", ["/chunk_number"]),
    ("/chunk/99999999999", b"abcd", RAW, 400, "INVALID_ARGUMENT", ["/chunk_number"]),
    ("/chunk", b"abcd", RAW, 400, "INVALID_ARGUMENT", ["/chunk_number"]),
    ("/chunk?chunk_number=0&chunk_number=1", b"abcd", RAW, 400, "INVALID_ARGUMENT", ["/chunk_number"]),
    ("/chunk/0", b"abc", RAW, 400, "CHUNK_SIZE_MISMATCH", [""]),
    ("/chunk/0", b"", RAW, 400, "CHUNK_SIZE_MISMATCH", [""]),
    ("/chunk/0", b"x" * 70000, RAW, 413, "BODY_TOO_LARGE", []),
    ("/chunk/0", b"abcd", RAW | {"X-Chunk-SHA256": OTHER}, 400, "CHUNK_DIGEST_MISMATCH", ["/X-Chunk-SHA256"]),
    (
        "/chunk/0",
        b"abcd",
        RAW | {"Content-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(OTHER)).decode()}:"},
        400,
        "CHUNK_DIGEST_MISMATCH",
        ["/Content-Digest"],
    ),
    ("/chunk/0", b"abcd", RAW | {"X-Chunk-SHA256": "zz"}, 400, "INVALID_ARGUMENT", ["/X-Chunk-SHA256"]),
    ("/chunk/0", b"abcd", RAW | {"Content-Digest": "sha-256=abc"}, 400, "INVALID_ARGUMENT", ["/Content-Digest"]),
    (
        "/chunk/0",
        b"abcd",
        RAW | {"Content-Digest": "sha-256=:YWJj:"},
        400,
        "INVALID_ARGUMENT",
        ["/Content-Digest"],
    ),
]


@pytest.mark.parametrize(("path", "body", "headers", "status", "reason", "wrong"), CHUNKS)
async def test_a_wrong_chunk_is_refused(
    world: World, path: str, body: bytes, headers: dict[str, str], status: int, reason: str, wrong: list[str]
) -> None:
    upload = world.uploads.add("alice", "a.mp4", 10, 4)
    call = world.call("POST", f"/api/v1/upload/{upload.session_id}{path}", data=body, headers=headers)
    document, _ = await problem(call, status)
    assert document["reason"] == reason
    assert pointers(document) == wrong
    assert world.uploads.chunks[upload.session_id] == {}


def form(*parts: tuple[str, bytes, str]) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, content, filename in parts:
        data.add_field(name, content if filename else content.decode(), filename=filename or None)
    return data


async def test_chunk_forms_that_do_not_add_up_are_refused(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 10, 4)
    url = f"/api/v1/upload/{upload.session_id}/chunk/0"
    good = hashlib.sha256(b"abcd").hexdigest().encode()
    cases = [
        (form(("chunk_hash", good, "")), "/file"),
        (form(("file", b"abcd", "c"), ("file", b"abcd", "c")), "/file"),
        (form(("file", b"abcd", "c"), ("chunk_hash", b"12", "")), "/chunk_hash"),
        (
            form(("chunk_hash", good, ""), ("file", b"abcd", "c"), ("chunk_hash", OTHER.encode(), "")),
            "/chunk_hash",
        ),
        (form(("file", b"abcd", "c"), ("chunk_hash", OTHER.encode(), "")), "/chunk_hash"),
        (form(("chunk_hash", OTHER.encode(), ""), ("file", b"abcd", "c")), "/chunk_hash"),
        (form(("file", b"abc", "c")), "/file"),
    ]
    for data, wrong in cases:
        document, _ = await problem(world.call("POST", url, data=data), 400)
        assert pointers(document) == [wrong]
        assert document["detail"].startswith(f"{wrong[1:]}: ")
    assert world.uploads.chunks[upload.session_id] == {}
    async with world.call("POST", url, data=form(("file", b"abcd", "c"), ("app", b"1", ""))) as response:
        assert response.status == 200


async def test_content_digest_is_checked_beside_other_algorithms(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 10, 4)
    digest = base64.b64encode(hashlib.sha256(b"abcd").digest()).decode()
    headers = RAW | {"Content-Digest": f"md5=:AAAA:, sha-256=:{digest}:"}
    async with world.call(
        "POST", f"/api/v1/upload/{upload.session_id}/chunk/0", data=b"abcd", headers=headers
    ) as r:
        assert (await r.json())["chunk_hash"] == hashlib.sha256(b"abcd").hexdigest()
    await problem(
        world.call("POST", f"/api/v1/upload/{upload.session_id}/chunk/0", data=b"dcba", headers=RAW), 409
    )


async def raw(world: World, head: str, body: bytes) -> bytes:
    """Sends a request whose body breaks off, and answers what came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    token = world.auth()["Authorization"]
    writer.write(f"{head}\r\nHost: x\r\nAuthorization: {token}\r\n".encode() + body)
    await writer.drain()
    writer.write_eof()
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Type: application/octet-stream\r\nContent-Length: 8\r\n\r\nabcd",
        b"Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n",
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 62\r\n\r\n--b\r\n"
        b'Content-Disposition: form-data; name="file"\r\n\r\nabcd\r\n--b',
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 500\r\n\r\n--b\r\n"
        b'Content-Disposition: form-data; name="file"\r\n\r\nabcd\r\n--b\r\n',
    ],
)
async def test_a_body_cut_short_is_never_a_chunk(world: World, body: bytes) -> None:
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    answer = await raw(world, f"POST /api/v1/upload/{upload.session_id}/chunk/0 HTTP/1.1", body)
    assert b" 200 " not in answer.split(b"\r\n")[0]
    url = f"/api/v1/upload/{upload.session_id}/chunk/0"
    async with world.call("POST", url, data=b"dcba", headers=RAW) as response:
        assert (await response.json())["status"] == "uploaded"
    assert world.uploads.chunks[upload.session_id] == {0: b"dcba"}


async def test_a_client_that_leaves_ends_its_chunk_call(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    token = world.auth()["Authorization"]
    head = f"POST /api/v1/upload/{upload.session_id}/chunk/0 HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
    writer.write(f"{head}Content-Type: application/octet-stream\r\nContent-Length: 4\r\n\r\nab".encode())
    await writer.drain()
    await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
    writer.transport.abort()
    await asyncio.wait_for(world.uploads.call_ended.wait(), 10)
    assert world.uploads.chunks[upload.session_id] == {}


async def test_a_change_is_made_though_the_phone_hung_up(world: World) -> None:
    upload = world.uploads.add("alice", "a.mp4", 0, 4)
    world.uploads.may_complete.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    token = world.auth()["Authorization"]
    head = f"POST /api/v1/upload/{upload.session_id}/complete HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
    writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
    await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
    writer.transport.abort()
    async with world.call("GET", f"/api/v1/upload/{upload.session_id}/events") as response:
        world.uploads.may_complete.set()
        assert b'"status":"completed"' in await asyncio.wait_for(response.read(), 10)


async def test_a_service_that_refuses_early_is_heard(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path) as world:
        upload = world.uploads.add("alice", "a.mp4", 4, 4)
        world.uploads.error = ResourceExhausted("full", reason="STORAGE_FULL")
        url = f"/api/v1/upload/{upload.session_id}/chunk/0"

        async def large() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield bytes(256 << 10)

        document, _ = await problem(world.call("POST", url, data=large(), headers=RAW), 507)
        assert document["reason"] == "STORAGE_FULL"


async def test_a_body_that_drips_times_out(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_body_timeout_seconds=0.3) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        token = world.auth()["Authorization"]
        writer.write(f"POST {INITIATE} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n".encode())
        writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")

        async def drip() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert b"408" in await reader.readline()
        dripping.cancel()
        writer.close()


async def test_a_silent_body_times_out(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_read_timeout_seconds=0.1) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        token = world.auth()["Authorization"]
        writer.write(f"POST {INITIATE} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n".encode())
        writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in await reader.readline()
        writer.close()


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (ResourceExhausted("full", reason="STORAGE_FULL", retry_after=60), 507, "60"),
        (InvalidArgument("big", reason="FILE_TOO_LARGE"), 413, None),
        (FailedPrecondition("late", reason="UPLOAD_EXPIRED"), 410, None),
        (FailedPrecondition("done", reason="UPLOAD_CLOSED"), 409, None),
        (ResourceExhausted("busy", reason="TOO_MANY_STREAMS", retry_after=0.2), 429, "1"),
        (Unavailable("10.0.0.1 refused"), 503, "2"),
    ],
)
async def test_a_services_error_becomes_its_status(
    world: World, error: ServiceError, status: int, retry_after: str | None
) -> None:
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    world.uploads.error = error
    world.guard.off = True  # GetUpload has not all of these errors
    url = f"/api/v1/upload/{upload.session_id}"
    for call in (
        world.call("GET", f"{url}/status"),
        world.call("POST", f"{url}/chunk/0", data=b"abcd", headers=RAW),
    ):
        document, headers = await problem(call, status)
        assert headers.get("Retry-After") == retry_after
        assert document["reason"] == (error.reason or error.code)
        assert "10.0.0.1" not in document["detail"]


async def test_a_service_that_is_away_is_503_and_health_says_which(world: World) -> None:
    async with world.call("GET", "/api/v1/health", user="") as response:
        assert (response.status, (await response.json())["status"]) == (200, "healthy")
    await world.servers["challenge"].stop(0)
    await problem(world.call("GET", CHALLENGES), 503)
    async with asyncio.timeout(10):
        status = 200
        while status == 200:  # what was found holds for a second
            async with world.call("GET", "/api/v1/health", user="") as response:
                status, services = response.status, (await response.json())["services"]
    assert status == 503
    assert services == {"upload": "serving", "merge": "serving", "challenge": "unreachable"}
    await world.gateway.server.set_serving(False)
    async with world.call("GET", "/api/v1/health", user="") as response:
        assert (await response.json())["gateway"] == "not_serving"


async def test_an_unknown_exception_shows_a_fixed_text(world: World) -> None:
    world.challenges.publish_error = RuntimeError("a secret that must not leave the house")
    document, _ = await problem(world.call("POST", f"{CHALLENGES}/{ID}/publish"), 500)
    assert document["detail"] == "internal error; the request id finds it in the log"


async def test_a_request_id_is_passed_on_if_it_is_harmless(world: World) -> None:
    url = f"/api/v1/upload/{world.uploads.add('alice', 'a', 1, 1).session_id}/status"
    async with world.call("GET", url, headers={"X-Request-Id": "phone-12345678"}) as response:
        assert response.headers["X-Request-Id"] == "phone-12345678"
    assert ("x-request-id", "phone-12345678") in world.uploads.metadata
    async with world.call("GET", url, headers={"X-Request-Id": "x" * 65}) as response:
        assert len(response.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("NONSENSE", 400),
        ("GET / HTTP/7.1", 400),
        ("GET / HTTP/1.1\r\nContent-Length: s3cret", 400),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("GET / HTTP/1.1\r\n" + "A: s3cret\r\n" * 300, 431),
        ("GET /" + "s3cret" * 2000 + " HTTP/1.1", 414),
        ("GET / HTTP/1.1\r\nAuthorization: Bearer " + "s3cret" * 4000, 431),
    ],
)
async def test_what_is_no_request_is_a_problem_and_not_quoted_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture, head: str, status: int
) -> None:
    async with connection(world.port) as (reader, writer):
        writer.write(f"{head}\r\n\r\n".encode())
        answer = (await asyncio.wait_for(reader.read(), 10)).decode()
    fields, _, body = answer.partition("\r\n\r\n")
    assert f" {status} " in fields.splitlines()[0]
    assert json.loads(body)["status"] == status
    names = {line.partition(":")[0].lower() for line in fields.splitlines()[1:]}
    assert {"x-request-id", "x-content-type-options"} <= names
    assert "s3cret" not in caplog.text + answer


async def test_secrets_in_a_url_do_not_reach_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    url = f"/api/v1/media/stream/{ID}?expires=9999999999&key_id=k&signature=topsecret"
    await problem(world.call("GET", url, user=""), 403)
    while not (lines := [getattr(r, "data", {}) for r in caplog.records if r.name == "aiohttp.access"]):
        await asyncio.sleep(0)
    assert lines[0]["path"].endswith("key_id=k&signature=***")
    assert "topsecret" not in str([r.__dict__ for r in caplog.records])
