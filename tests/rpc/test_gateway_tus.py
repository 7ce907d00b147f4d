"""tus 1.0.0, rule by rule, in front of a small fake of the upload service."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from services.common.errors import InvalidArgument, ResourceExhausted, Unavailable
from services.common.keys import KeyRing
from services.gateway import uplink
from tests.rpc.gateway_world import World, connection, open_world
from twotruths.upload.v1 import upload_pb2

URL = "/api/v1/tus/"
TUS = {"Tus-Resumable": "1.0.0"}
BODY = {"Content-Type": "application/offset+octet-stream"}
ID = "00000000-0000-4000-8000-000000000000"
CONTENT = b"abcdefghij"
NONE: Mapping[str, str] = {}


@pytest.fixture
async def world(keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path) as world:
        yield world


def pairs(**values: str) -> dict[str, str]:
    encoded = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    return {"Upload-Metadata": ",".join(encoded)}


def checksum(data: bytes, name: str = "sha1") -> dict[str, str]:
    return {"Upload-Checksum": f"{name} {base64.b64encode(hashlib.new(name, data).digest()).decode()}"}


async def send(
    world: World, method: str, path: str, headers: Mapping[str, str], status: int, **more: Any
) -> CIMultiDict[str]:
    """The headers of an answer with ``status``."""
    async with world.call(method, path, headers={**TUS, **headers}, **more) as response:
        text = await response.text()
        assert response.status == status, text
        assert response.headers["Tus-Resumable"] == "1.0.0"
        if text:
            assert json.loads(text)["status"] == status
        return CIMultiDict(response.headers)


async def create(world: World, headers: Mapping[str, str] = NONE, size: int = len(CONTENT)) -> str:
    given = {"Upload-Length": str(size), **pairs(filename="a.mp4", filetype="video/mp4"), **headers}
    return (await send(world, "POST", URL, given, 201))["Location"]


async def patch(
    world: World, url: str, offset: int, data: bytes, status: int = 204, headers: Mapping[str, str] = NONE
) -> CIMultiDict[str]:
    return await send(world, "PATCH", url, {**BODY, "Upload-Offset": str(offset), **headers}, status, data=data)


def upload_of(world: World, url: str) -> upload_pb2.Upload:
    return world.uploads.uploads[url.removeprefix(URL)][1]


async def test_a_file_goes_in_by_pieces_and_its_last_byte_completes_it(world: World) -> None:
    url = await create(world)
    assert (await patch(world, url, 0, CONTENT[:3]))["Upload-Offset"] == "3"
    assert world.uploads.completed == []
    state = await send(world, "HEAD", url, {}, 200)
    assert (state["Upload-Offset"], state["Upload-Length"]) == ("3", "10")
    assert state["Cache-Control"] == "no-store"
    assert parsedate_to_datetime(state["Upload-Expires"]).tzinfo
    assert (await patch(world, url, 3, CONTENT[3:]))["Upload-Offset"] == "10"
    upload = upload_of(world, url)
    assert upload.status == upload_pb2.UPLOAD_STATUS_COMPLETED
    assert upload.file_hash == hashlib.sha256(CONTENT).hexdigest()
    state = await send(world, "HEAD", url, {}, 200)
    assert state["Upload-Offset"] == state["Upload-Length"] == "10"
    assert "Upload-Expires" not in state


async def test_options_tell_what_is_served_without_token_and_version(world: World) -> None:
    async with world.call("OPTIONS", URL, user="", headers={"Tus-Resumable": "0.2.2"}) as response:
        assert response.status == 204
        assert response.headers["Tus-Version"] == response.headers["Tus-Resumable"] == "1.0.0"
        assert response.headers["Tus-Max-Size"] == "1000000"
        assert response.headers["Tus-Checksum-Algorithm"] == "sha1,sha256"
        assert set(response.headers["Tus-Extension"].split(",")) == {
            "creation",
            "creation-with-upload",
            "creation-defer-length",
            "expiration",
            "checksum",
            "termination",
            "concatenation",
        }


@pytest.mark.parametrize("version", ["", "0.2.2", "1.0.0, 1.0.0", "2"])
async def test_another_version_is_refused_before_anything_is_done(world: World, version: str) -> None:
    headers = {"Tus-Resumable": version, "Upload-Length": "10"}
    assert (await send(world, "POST", URL, headers, 412))["Tus-Version"] == "1.0.0"
    assert (await send(world, "HEAD", URL + ID, headers, 412))["Tus-Version"] == "1.0.0"
    assert world.uploads.uploads == {}


async def test_a_client_that_knows_only_post_overrides_its_method(world: World) -> None:
    url = await create(world)
    over = {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
    assert (await send(world, "POST", url, BODY | over, 204, data=b"abc"))["Upload-Offset"] == "3"
    assert (await send(world, "POST", url, {"X-HTTP-Method-Override": "head"}, 200))["Upload-Offset"] == "3"
    await send(world, "POST", url, {"X-HTTP-Method-Override": "DELETE"}, 204)
    assert upload_of(world, url).status == upload_pb2.UPLOAD_STATUS_CANCELLED
    assert "PATCH" in (await send(world, "PUT", url, {}, 405))["Allow"]
    await send(world, "POST", url, {"X-HTTP-Method-Override": "TRACE"}, 405)


async def test_an_upload_may_come_with_its_creation(world: World) -> None:
    given = {"Upload-Length": "10"} | pairs(filename="a.mp4") | BODY
    answer = await send(world, "POST", URL, given, 201, data=CONTENT[:4])
    assert answer["Upload-Offset"] == "4"
    answer = await send(world, "POST", URL, given | checksum(CONTENT), 201, data=CONTENT)
    assert answer["Upload-Offset"] == "10"
    assert upload_of(world, answer["Location"]).status == upload_pb2.UPLOAD_STATUS_COMPLETED
    before = len(world.uploads.uploads)
    await send(world, "POST", URL, given | {"Content-Type": "video/mp4"}, 415, data=CONTENT)
    assert len(world.uploads.uploads) == before
    # The upload is made all the same, and the client learns where.
    assert (await send(world, "POST", URL, given | checksum(b"other"), 460, data=CONTENT))["Location"]


async def test_the_length_may_come_later(world: World) -> None:
    url = (await send(world, "POST", URL, {"Upload-Defer-Length": "1"} | pairs(filename="a.mp4"), 201))["Location"]
    await patch(world, url, 0, CONTENT[:6])
    state = await send(world, "HEAD", url, {}, 200)
    assert (state["Upload-Defer-Length"], state["Upload-Offset"]) == ("1", "6")
    assert "Upload-Length" not in state
    await patch(world, url, 6, CONTENT[6:], headers={"Upload-Length": "10"})
    assert upload_of(world, url).status == upload_pb2.UPLOAD_STATUS_COMPLETED


@pytest.mark.parametrize("name", ["sha1", "sha256"])
async def test_bytes_with_another_checksum_do_not_count(world: World, name: str) -> None:
    url = await create(world)
    await patch(world, url, 0, CONTENT, 460, headers=checksum(b"other", name))
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Offset"] == "0"
    await patch(world, url, 0, CONTENT, headers=checksum(CONTENT, name))
    assert upload_of(world, url).status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_partial_uploads_become_one_file(world: World) -> None:
    partials = []
    for part in (CONTENT[:7], CONTENT[7:]):
        url = await create(world, {"Upload-Concat": "partial"}, len(part))
        await patch(world, url, 0, part)
        assert (await send(world, "HEAD", url, {}, 200))["Upload-Concat"] == "partial"
        partials.append(url)
    # Absolute or relative, as the specification has it.
    urls = f"http://127.0.0.1:{world.port}{partials[0]} {partials[1]}"
    final = {"Upload-Concat": f"final;{urls}"} | pairs(filename="whole.mp4", place="here")
    url = (await send(world, "POST", URL, final, 201))["Location"]
    state = await send(world, "HEAD", url, {}, 200)
    assert state["Upload-Concat"] == f"final;{' '.join(partials)}"
    assert state["Upload-Length"] == state["Upload-Offset"] == "10"
    assert (
        state["Upload-Metadata"]
        == pairs(filename="whole.mp4", filetype="video/mp4", place="here")["Upload-Metadata"]
    )
    chunks = world.uploads.chunks[url.removeprefix(URL)]
    assert b"".join(chunks[n] for n in sorted(chunks)) == CONTENT
    await patch(world, url, 10, b"x", 403)
    await send(world, "POST", URL, final | {"Upload-Length": "10"}, 400)
    other = await create(world)
    await send(world, "POST", URL, {"Upload-Concat": f"final;{other}"}, 409)


async def test_a_file_of_a_hundred_parts_remembers_them(world: World) -> None:
    partials = []
    for _ in range(100):
        partial = world.uploads.add("alice", "p", 1, 4, purpose=upload_pb2.UPLOAD_PURPOSE_PARTIAL)
        world.uploads._extend(partial, b"x")
        partial.status = upload_pb2.UPLOAD_STATUS_COMPLETED
        partials.append(URL + partial.session_id)
    url = (await send(world, "POST", URL, {"Upload-Concat": f"final;{' '.join(partials)}"}, 201))["Location"]
    assert all(len(value) <= 1024 for value in upload_of(world, url).metadata.values())
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Concat"] == f"final;{' '.join(partials)}"


async def test_metadata_is_kept_and_echoed(world: World) -> None:
    hostile = "../\x00\r\n\u202e" + "n" * 4000
    url = await create(world, pairs(filename=hostile, filetype="video/mp4", caption="ä,b", empty=""))
    upload = upload_of(world, url)
    assert (upload.filename, upload.mime_type) == (hostile, "video/mp4")
    assert dict(upload.metadata) == {"caption": "ä,b", "empty": ""}
    echoed = (await send(world, "HEAD", url, {}, 200))["Upload-Metadata"]
    expected = pairs(filename=hostile, filetype="video/mp4", caption="ä,b", empty="")["Upload-Metadata"]
    assert echoed == expected.replace("empty ", "empty")
    upload.metadata["long"] = "x" * 9000  # begun over another protocol
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Metadata"] == echoed
    assert (
        upload_of(world, await create(world, {"Upload-Metadata": "filename Yi53ZWJt"})).mime_type == "video/webm"
    )


BAD_CREATIONS: list[tuple[dict[str, str], int, list[str]]] = [
    ({}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "-1"}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "0"}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "1e3"}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "９"}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "9" * 400}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "9223372036854775808"}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "10", "Upload-Defer-Length": "1"}, 400, ["/Upload-Length"]),
    ({"Upload-Defer-Length": "2"}, 400, ["/Upload-Length"]),
    ({"Upload-Length": "10", "Upload-Metadata": "a b c"}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": "filename !!"}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": "filename /w=="}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": "a YQ==,a YQ=="}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": ",,"}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": "ä YQ=="}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": "filename é"}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Checksum": "sha1 é"}, 400, ["/Upload-Checksum"]),
    ({"Upload-Length": "10", "Upload-Metadata": "tus-concat-0 YQ=="}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": "filetype bm9uc2Vuc2U="}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Metadata": f"{'k' * 70} YQ=="}, 400, ["/Upload-Metadata"]),
    ({"Upload-Length": "10", "Upload-Checksum": "md5 AA=="}, 400, ["/Upload-Checksum"]),
    ({"Upload-Length": "10", "Upload-Checksum": "sha1"}, 400, ["/Upload-Checksum"]),
    ({"Upload-Length": "10", "Upload-Checksum": "sha1 AA=="}, 400, ["/Upload-Checksum"]),
    ({"Upload-Length": "10", "Upload-Concat": "both"}, 400, ["/Upload-Concat"]),
    ({"Upload-Concat": "final;"}, 400, ["/Upload-Concat"]),
    ({"Upload-Concat": "final;/api/v1/tus/nope"}, 400, ["/Upload-Concat"]),
    ({"Upload-Concat": f"final;{ID}"}, 400, ["/Upload-Concat"]),
    ({"Upload-Concat": f"final;{' '.join([URL + ID] * 101)}"}, 400, ["/Upload-Concat"]),
    ({"Upload-Concat": f"final;{URL}{ID}"}, 404, []),
    ({"Upload-Length": "10", "Idempotency-Key": "k" * 200}, 400, ["/Idempotency-Key"]),
]


@pytest.mark.parametrize(("headers", "status", "wrong"), BAD_CREATIONS)
async def test_a_creation_with_wrong_headers_makes_nothing(
    world: World, headers: dict[str, str], status: int, wrong: list[str]
) -> None:
    async with world.call("POST", URL, headers=TUS | headers) as response:
        document = json.loads(await response.text())
        assert (response.status, [error["pointer"] for error in document["errors"]]) == (status, wrong), document
    assert world.uploads.uploads == {}


async def test_a_patch_with_wrong_headers_stores_nothing(world: World) -> None:
    url = await create(world)
    await send(world, "PATCH", url, {"Upload-Offset": "0"}, 415, data=b"abc")
    await send(world, "PATCH", url, BODY, 400, data=b"abc")
    for offset in ("", "x", "-1", "+0", "0x0", "1.0", "9" * 30):
        await send(world, "PATCH", url, BODY | {"Upload-Offset": offset}, 400, data=b"abc")
    assert (await patch(world, url, 4, b"abc", 409))["Upload-Offset"] == "0"
    await patch(world, url, 0, CONTENT + b"more", 413)
    await patch(world, url, 0, b"abc", 409, headers={"Upload-Length": "11"})
    await patch(world, url, 0, b"abc", 400, headers={"Upload-Length": "ten"})
    await patch(world, url, 0, b"abc", 415, headers={"Content-Encoding": "gzip"})
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Offset"] == "0"
    for nowhere in ("nope", "..%2f", "%00", ID):
        await patch(world, URL + nowhere, 0, b"abc", 404)
        answer = await send(world, "HEAD", URL + nowhere, {}, 404)
        assert "Upload-Offset" not in answer


async def test_another_players_upload_is_not_there(world: World) -> None:
    url = await create(world)
    await send(world, "HEAD", url, {}, 404, user="mallory")
    await send(world, "PATCH", url, BODY | {"Upload-Offset": "0"}, 404, user="mallory", data=b"abc")
    await send(world, "DELETE", url, {}, 404, user="mallory")
    await send(world, "HEAD", url, {}, 401, user="")


async def test_what_is_given_up_or_refused_is_gone(world: World) -> None:
    url = await create(world)
    await send(world, "DELETE", url, {}, 204)
    await send(world, "HEAD", url, {}, 410)
    await patch(world, url, 0, b"abc", 410)


async def test_the_last_byte_answers_with_what_the_completion_says(world: World) -> None:
    world.uploads.complete_error = InvalidArgument("it is text", reason="FILE_TYPE_MISMATCH")
    url = await create(world)
    async with world.call("PATCH", url, headers=TUS | BODY | {"Upload-Offset": "0"}, data=CONTENT) as response:
        assert (response.status, (await response.json())["reason"]) == (400, "FILE_TYPE_MISMATCH")


async def test_a_completion_that_failed_for_now_is_made_up_for_by_head(world: World) -> None:
    world.uploads.complete_error = Unavailable("the scanner is away", reason="SCANNER_UNAVAILABLE", retry_after=7)
    url = await create(world)
    assert (await patch(world, url, 0, CONTENT, 503))["Retry-After"] == "7"
    answer = await send(world, "HEAD", url, {}, 503)
    assert "Upload-Offset" not in answer
    world.uploads.complete_error = None
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Offset"] == "10"
    assert upload_of(world, url).status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_what_came_before_a_broken_connection_stays(world: World) -> None:
    url = await create(world)
    async with connection(world.port) as (_, writer):
        writer.write(raw_patch(world, url, 0, 10) + CONTENT[:7])
        await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
    await asyncio.wait_for(world.uploads.call_ended.wait(), 10)
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Offset"] == "7"
    await patch(world, url, 7, CONTENT[7:])
    assert upload_of(world, url).status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_a_connection_that_only_seems_alive_does_not_hold_an_upload(world: World) -> None:
    url = await create(world)
    async with connection(world.port) as (reader, writer):
        writer.write(raw_patch(world, url, 0, 10) + CONTENT[:7])
        await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
        # The client has lost sight of that connection. What it asks now is answered with what came over it.
        state = await asyncio.wait_for(send(world, "HEAD", url, {}, 200), 10)
        offset = int(state["Upload-Offset"])
        assert offset in {0, 7}
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        await patch(world, url, offset, CONTENT[offset:])
    assert upload_of(world, url).status == upload_pb2.UPLOAD_STATUS_COMPLETED


async def test_who_comes_back_with_a_new_token_ends_the_old_append_and_nobody_else_does(world: World) -> None:
    upload = world.uploads.add("alice", "clip.mp4", len(CONTENT), 7, mime_type="video/mp4")
    url = URL + upload.session_id
    async with connection(world.port) as (reader, writer):
        writer.write(raw_patch(world, url, 0, len(CONTENT)) + CONTENT[:7])
        await asyncio.wait_for(world.uploads.data_came.wait(), 10)
        async with world.call("HEAD", url, "bob", headers=TUS) as response:
            assert response.status == 404
        assert not world.uploads.call_ended.is_set()
        renewed = {"Authorization": "Bearer " + world.keys.player_token("alice", ttl=999)}
        assert renewed != world.auth()
        async with world.call("HEAD", url, headers=TUS | renewed) as response:
            assert (response.status, response.headers["Upload-Offset"]) == (200, "7")
        assert world.uploads.call_ended.is_set()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_with_a_checksum_a_broken_body_leaves_nothing(world: World) -> None:
    url = await create(world)
    more = f"Upload-Checksum: {checksum(CONTENT)['Upload-Checksum']}\r\n"
    async with connection(world.port) as (_, writer):
        writer.write(raw_patch(world, url, 0, 10, more) + CONTENT[:7])
        await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
    await asyncio.wait_for(world.uploads.call_ended.wait(), 10)
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Offset"] == "0"


async def test_the_file_is_made_though_the_client_left_after_its_last_byte(world: World) -> None:
    world.uploads.may_complete.clear()
    url = await create(world)
    async with connection(world.port) as (_, writer):
        writer.write(raw_patch(world, url, 0, 10) + CONTENT)
        await asyncio.wait_for(completing(world), 10)
    world.uploads.may_complete.set()
    assert (await send(world, "HEAD", url, {}, 200))["Upload-Offset"] == "10"
    assert len(world.uploads.completed) == 1


async def test_a_client_that_is_silent_or_comes_too_early_may_try_again(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path, gateway_read_timeout_seconds=0.2) as world:
        url = await create(world)
        async with connection(world.port) as (reader, writer):
            writer.write(raw_patch(world, url, 0, 10) + CONTENT[:7])
            answer = (await asyncio.wait_for(reader.readuntil(b"}"), 10)).decode()
        assert answer.startswith("HTTP/1.1 503 ")  # tus-js-client gives up on 408
        assert "BODY_TIMEOUT" in answer
        assert (await send(world, "HEAD", url, {}, 200))["Upload-Offset"] == "7"
        world.uploads.append_error = ResourceExhausted("many", reason="TOO_MANY_STREAMS", retry_after=3)
        assert (await patch(world, url, 7, CONTENT[7:], 503))["Retry-After"] == "3"


async def completing(world: World) -> None:
    while not world.uploads.completed:
        await asyncio.sleep(0.01)


def raw_patch(world: World, url: str, offset: int, length: int, more: str = "") -> bytes:
    lines = (
        f"PATCH {url} HTTP/1.1\r\nHost: t\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
        f"Content-Type: {BODY['Content-Type']}\r\nContent-Length: {length}\r\n"
        f"Authorization: {world.auth()['Authorization']}\r\n{more}\r\n"
    )
    return lines.encode()


async def test_a_large_body_passes_in_pieces(world: World) -> None:
    content = bytes(range(256)) * 4000 + b"end"
    upload = world.uploads.add("alice", "a.mp4", len(content), 100_000, mime_type="video/mp4")
    await patch(world, URL + upload.session_id, 0, content)
    assert max(world.uploads.pieces) <= uplink.PIECE_BYTES
    assert upload_of(world, URL + upload.session_id).file_hash == hashlib.sha256(content).hexdigest()
