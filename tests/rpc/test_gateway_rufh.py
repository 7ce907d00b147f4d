"""Resumable Uploads for HTTP (draft 12, interop version 8), rule by rule, in front of a fake upload service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from services.common.errors import InvalidArgument, Unavailable
from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, connection, open_world
from twotruths.upload.v1 import upload_pb2

URL = "/api/v1/rufh/"
PART = {"Content-Type": "application/partial-upload"}
VIDEO = {"Content-Type": "video/mp4"}
ID = "00000000-0000-4000-8000-000000000000"
CONTENT = b"abcdefghij"
TYPES = "https://iana.org/assignments/http-problem-types#"


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path) as world:
        yield world


async def send(
    world: World, method: str, path: str, headers: Mapping[str, str], status: int, **more: Any
) -> tuple[CIMultiDict[str], Any]:
    """The headers and the JSON of an answer with ``status``."""
    async with world.call(method, path, headers=dict(headers), **more) as response:
        text = await response.text()
        assert response.status == status, text
        return CIMultiDict(response.headers), json.loads(text) if text else None


def complete(last: bool, **headers: str) -> dict[str, str]:
    return {"Upload-Complete": "?1" if last else "?0"} | {k.replace("_", "-"): v for k, v in headers.items()}


async def create(world: World, **headers: str) -> str:
    given = VIDEO | complete(False, Upload_Length="10") | headers
    return (await send(world, "POST", URL, given, 201))[0]["Location"]


def upload_of(world: World, url: str) -> upload_pb2.Upload:
    return world.uploads.uploads[url.removeprefix(URL)][1]


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


async def test_a_whole_file_goes_in_with_one_request(world: World) -> None:
    name = {"Content-Disposition": "inline; filename=\"x.mp4\"; filename*=UTF-8''%C3%A4%20%2F.mp4"}
    given = VIDEO | name | complete(True) | {"Repr-Digest": digest(CONTENT), "Content-Digest": digest(CONTENT)}
    headers, document = await send(world, "POST", URL, given, 200, data=CONTENT)
    assert (headers["Upload-Complete"], headers["Upload-Offset"]) == ("?1", "10")
    assert (document["status"], document["filename"], document["mime_type"]) == (
        "completed",
        "ä /.mp4",
        "video/mp4",
    )
    asked = world.uploads.initiated[0]
    assert (asked.file_size, asked.file_hash) == (10, hashlib.sha256(CONTENT).hexdigest())


async def test_a_file_goes_in_as_a_series_of_parts(world: World) -> None:
    headers, _ = await send(world, "POST", URL, VIDEO | complete(False), 201, data=CONTENT[:3])
    url = headers["Location"]
    assert (headers["Upload-Complete"], headers["Upload-Offset"]) == ("?0", "3")
    assert headers["Upload-Limit"].startswith("max-size=1000000, max-age=")
    headers, _ = await send(world, "PATCH", url, PART | complete(False, Upload_Offset="3"), 204, data=CONTENT[3:8])
    assert (headers["Upload-Complete"], headers["Upload-Offset"]) == ("?0", "8")
    headers, _ = await send(world, "HEAD", url, {}, 204)
    assert (headers["Upload-Complete"], headers["Upload-Offset"]) == ("?0", "8")
    assert "Upload-Length" not in headers
    assert headers["Cache-Control"] == "no-store"
    last = PART | complete(True, Upload_Offset="8")
    headers, document = await send(world, "PATCH", url, last, 200, data=CONTENT[8:])
    assert (headers["Upload-Complete"], document["status"]) == ("?1", "completed")
    headers, _ = await send(world, "HEAD", url, {}, 204)
    assert [headers[f"Upload-{name}"] for name in ("Complete", "Offset", "Length")] == ["?1", "10", "10"]


async def test_only_the_client_says_that_an_upload_is_complete(world: World) -> None:
    url = await create(world)
    await send(world, "PATCH", url, PART | complete(False, Upload_Offset="0"), 204, data=CONTENT)
    headers, _ = await send(world, "HEAD", url, {}, 204)
    assert (headers["Upload-Complete"], headers["Upload-Offset"]) == ("?0", "10")
    assert world.uploads.completed == []
    headers, _ = await send(world, "PATCH", url, PART | complete(True, Upload_Offset="10"), 200)
    assert headers["Upload-Complete"] == "?1"


async def test_content_of_unknown_length_ends_where_it_ends(world: World) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield CONTENT[:4]
        yield CONTENT[4:]

    _, document = await send(world, "POST", URL, VIDEO | complete(True), 200, data=slowly())
    assert (document["file_size"], document["status"]) == (10, "completed")


async def test_options_tell_the_limits_without_token(world: World) -> None:
    headers, _ = await send(world, "OPTIONS", URL, {}, 204, user="")
    assert headers["Accept-Patch"] == "application/partial-upload"
    assert headers["Upload-Limit"] == "max-size=1000000, max-age=3600"
    headers, _ = await send(world, "PUT", URL + ID, {}, 405)
    assert headers["Allow"] == "OPTIONS, HEAD, PATCH, DELETE"


async def test_a_wrong_offset_is_told_the_right_one(world: World) -> None:
    url = await create(world)
    await send(world, "PATCH", url, PART | complete(False, Upload_Offset="0"), 204, data=CONTENT[:3])
    wrong = PART | complete(False, Upload_Offset="5")
    headers, document = await send(world, "PATCH", url, wrong, 409, data=CONTENT[5:])
    assert headers["Upload-Offset"] == "3"
    assert document["type"] == f"{TYPES}mismatching-upload-offset"
    assert (document["expected-offset"], document["provided-offset"]) == (3, 5)


async def test_a_complete_upload_takes_nothing_more(world: World) -> None:
    headers, _ = await send(world, "POST", URL, VIDEO | complete(True), 200, data=CONTENT)
    url = headers["Location"]
    more = PART | complete(True, Upload_Offset="10")
    _, document = await send(world, "PATCH", url, more, 400, data=b"x")
    assert document["type"] == f"{TYPES}inconsistent-upload-length"
    _, document = await send(world, "PATCH", url, more, 400)
    assert document["type"] == f"{TYPES}completed-upload"


async def test_lengths_that_contradict_are_refused(world: World) -> None:
    inconsistent = f"{TYPES}inconsistent-upload-length"
    given = VIDEO | complete(True, Upload_Length="11")
    assert (await send(world, "POST", URL, given, 400, data=CONTENT))[1]["type"] == inconsistent
    assert world.uploads.uploads == {}
    url = await create(world)
    for headers, data in (
        (complete(False, Upload_Offset="0", Upload_Length="11"), b"abc"),
        (complete(True, Upload_Offset="0"), b"abc"),
        (complete(False, Upload_Offset="0"), CONTENT + b"more"),
    ):
        assert (await send(world, "PATCH", url, PART | headers, 400, data=data))[1]["type"] == inconsistent
    assert upload_of(world, url).upload_offset == 0  # and what was acknowledged would still be there


async def test_content_with_another_digest_does_not_count(world: World) -> None:
    url = await create(world)
    given = PART | complete(False, Upload_Offset="0", Content_Digest=digest(b"other"))
    _, document = await send(world, "PATCH", url, given, 400, data=CONTENT)
    assert [error["pointer"] for error in document["errors"]] == ["/Content-Digest"]
    assert upload_of(world, url).upload_offset == 0


async def test_an_error_of_the_file_is_told_apart_from_one_of_the_transfer(world: World) -> None:
    world.uploads.complete_error = InvalidArgument("it is text", reason="FILE_TYPE_MISMATCH")
    headers, document = await send(world, "POST", URL, VIDEO | complete(True), 400, data=CONTENT)
    assert (headers["Upload-Complete"], document["reason"]) == ("?1", "FILE_TYPE_MISMATCH")
    world.uploads.complete_error = Unavailable("away")
    headers, _ = await send(world, "POST", URL, VIDEO | complete(True), 503, data=CONTENT)
    assert "Upload-Complete" not in headers
    world.uploads.complete_error = None
    url = headers["Location"]
    headers, _ = await send(world, "HEAD", url, {}, 204)
    assert (headers["Upload-Complete"], headers["Upload-Offset"]) == ("?0", "10")
    await send(world, "PATCH", url, PART | complete(True, Upload_Offset="10"), 200)


async def test_an_upload_that_was_given_up_is_gone(world: World) -> None:
    url = await create(world)
    await send(world, "DELETE", url, {}, 204)
    await send(world, "HEAD", url, {}, 410)
    await send(world, "HEAD", url, {}, 404, user="mallory")
    await send(world, "HEAD", url, {}, 401, user="")


BAD: list[tuple[dict[str, str], list[str]]] = [
    ({}, ["/Upload-Complete"]),
    ({"Upload-Complete": "true"}, ["/Upload-Complete"]),
    ({"Upload-Complete": "?2"}, ["/Upload-Complete"]),
    ({"Upload-Complete": "?0, ?1"}, ["/Upload-Complete"]),
    ({"Upload-Complete": "?0", "Upload-Length": "0"}, ["/Upload-Length"]),
    ({"Upload-Complete": "?1"}, ["/Upload-Length"]),
    ({"Upload-Complete": "?0", "Content-Digest": "sha-256=nope"}, ["/Content-Digest"]),
    ({"Upload-Complete": "?0", "Repr-Digest": "sha-256=:AA==:"}, ["/Repr-Digest"]),
    ({"Upload-Complete": "?0", "Idempotency-Key": '"open'}, ["/Idempotency-Key"]),
]


@pytest.mark.parametrize(("headers", "wrong"), BAD)
async def test_a_creation_with_wrong_headers_makes_nothing(
    world: World, headers: dict[str, str], wrong: list[str]
) -> None:
    _, document = await send(world, "POST", URL, VIDEO | headers, 400)
    assert [error["pointer"] for error in document["errors"]] == wrong
    assert world.uploads.uploads == {}


async def test_a_patch_with_wrong_headers_stores_nothing(world: World) -> None:
    url = await create(world)
    await send(world, "PATCH", url, VIDEO | complete(False, Upload_Offset="0"), 415, data=b"abc")
    for offset in ("", "x", "-1", "1.5", "9" * 16):
        await send(world, "PATCH", url, PART | complete(False, Upload_Offset=offset), 400, data=b"abc")
    await send(world, "PATCH", url, PART | {"Upload-Offset": "0"}, 400, data=b"abc")
    await send(world, "PATCH", URL + "nope", PART | complete(False, Upload_Offset="0"), 404, data=b"abc")
    assert upload_of(world, url).upload_offset == 0
    # What is no number from 0 counts as not sent.
    given = VIDEO | complete(False, Upload_Length="-3")
    assert upload_of(world, (await send(world, "POST", URL, given, 201))[0]["Location"]).length_deferred


def raw_post(world: World, more: str, *, version: str = "1.1") -> bytes:
    lines = (
        f"POST {URL} HTTP/{version}\r\nHost: t\r\nContent-Type: video/mp4\r\nContent-Length: 10\r\n"
        f"Upload-Complete: ?1\r\nAuthorization: {world.auth()['Authorization']}\r\n{more}\r\n"
    )
    return lines.encode()


async def test_a_client_of_the_same_draft_learns_where_before_it_sends_anything(world: World) -> None:
    async with connection(world.port) as (reader, writer):
        writer.write(raw_post(world, "Upload-Draft-Interop-Version: 8\r\n"))
        interim = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        assert interim[0] == "HTTP/1.1 104 Upload Resumption Supported"
        headers = dict(line.split(": ", 1) for line in interim[1:] if line)
        assert headers["Upload-Draft-Interop-Version"] == "8"
        assert headers["Upload-Limit"].startswith("max-size=1000000")
        # The connection breaks; what came of the content is there to be gone on with.
        writer.write(CONTENT[:6])
        await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
    await asyncio.wait_for(world.uploads.call_ended.wait(), 10)
    state, _ = await send(world, "HEAD", headers["Location"], {}, 204)
    assert [state[f"Upload-{name}"] for name in ("Complete", "Offset", "Length")] == ["?0", "6", "10"]
    last = PART | complete(True, Upload_Offset="6")
    assert (await send(world, "PATCH", headers["Location"], last, 200, data=CONTENT[6:]))[1][
        "status"
    ] == "completed"


@pytest.mark.parametrize(
    ("more", "version", "statuses"),
    [
        ("", "1.1", ["200"]),
        ("Upload-Draft-Interop-Version: 7\r\n", "1.1", ["200"]),
        ("Upload-Draft-Interop-Version: 8\r\n", "1.0", ["200"]),
        ("Expect: 100-continue\r\n", "1.1", ["100", "200"]),
        ("Expect: 100-continue\r\nUpload-Draft-Interop-Version: 8\r\n", "1.1", ["104", "100", "200"]),
    ],
)
async def test_nobody_gets_interim_responses_that_were_not_asked_for(
    world: World, more: str, version: str, statuses: list[str]
) -> None:
    async with connection(world.port) as (reader, writer):
        writer.write(raw_post(world, more, version=version))
        answer = b""
        if "100" in statuses:  # the body is held back until it is asked for
            answer = await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), 10)
        writer.write(CONTENT)
        answer += await asyncio.wait_for(reader.readuntil(b"}"), 10)
    assert re.findall(r"^HTTP/1.[01] ([0-9]+) ", answer.decode(), flags=re.MULTILINE) == statuses


async def test_the_same_key_names_the_same_creation(world: World) -> None:
    await create(world, **{"Idempotency-Key": '"8e03"', "X-Network-Type": "wifi"})
    assert (world.uploads.initiated[0].request_id, world.uploads.initiated[0].network_type) == ("8e03", "wifi")
