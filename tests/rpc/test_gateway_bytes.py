"""Bytes out: ranges, conditions and permissions of videos and files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from services.common.adapters.s3_objects import S3ObjectStore
from services.common.keys import KeyRing
from services.gateway import wiring
from services.gateway.config import GatewaySettings
from services.gateway.routes import RouteError
from tests.rpc.fake_uploads import NOW
from tests.rpc.gateway_world import World, connection, open_world
from tests.unit.test_gateway_routes import service
from twotruths.merge.v1.video_pb2 import VISIBILITY_PRIVATE, VISIBILITY_PUBLIC
from twotruths.upload.v1.upload_pb2 import File

CONTENT = bytes(range(256)) * 5000  # 1.28 MB
SIZE = len(CONTENT)
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
MODIFIED = "Mon, 21 Sep 2026 14:13:20 GMT"


@pytest.fixture(params=["sendfile", "remote", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where the objects are, as open_world wants to be told."""
    if request.param == "s3":
        return {"store": S3ObjectStore(request.getfixturevalue("s3_bucket"))}
    return {"remote": request.param == "remote"}


@pytest.fixture
async def world(place: dict[str, Any], keys: KeyRing, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path, **place) as world:
        yield world


RANGES = [
    ("bytes=0-1", 0, 2),
    ("bytes=0-", 0, SIZE),
    ("bytes=1000000-", 1_000_000, SIZE),
    ("bytes=-500", SIZE - 500, SIZE),
    (f"bytes=-{SIZE * 2}", 0, SIZE),
    (f"bytes={SIZE - 1}-{SIZE + 10**30}", SIZE - 1, SIZE),
    ("BYTES = 5-5", 5, 6),
    ("bytes=007-0009", 7, 10),
    ("bytes= 0-1 ,, 5-6,", 0, 7),
    (f"bytes=3-4,{SIZE}-", 3, 5),
]
IGNORED = [
    "bytes=5-2",
    "bytes=a-b",
    "bytes=-",
    "bytes=",
    "items=0-1",
    "0-1",
    "bytes=0-1,x",
    "bytes=0-,0-",
    "bytes=0x1-2",
    "bytes=--5",
]
UNSATISFIABLE = [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 1}", "bytes=-0", "bytes=" + "9" * 400 + "-"]


async def test_every_range_gives_exactly_its_bytes(world: World) -> None:
    url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
    for header, start, end in RANGES:
        async with world.call("GET", url, headers={"Range": header}) as response:
            assert response.status == 206, header
            assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
            assert await response.read() == CONTENT[start:end]
    for header in IGNORED:
        async with world.call("GET", url, headers={"Range": header}) as response:
            assert (response.status, await response.read()) == (200, CONTENT), header
    for header in UNSATISFIABLE:
        async with world.call("GET", url, headers={"Range": header}) as response:
            assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{SIZE}"), header
            assert (await response.json(content_type=None))["reason"] == "RANGE_NOT_SATISFIABLE"
    # Seeking asks the merge service once, not for each range.
    assert world.merges.asked_by == ["alice"]


async def test_head_says_what_get_would_without_a_body(world: World) -> None:
    url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
    async with world.call("HEAD", url, headers={"Range": "bytes=0-1"}) as head, world.call("GET", url) as get:
        assert head.status == get.status == 200
        for name in (
            "Content-Length",
            "Content-Type",
            "ETag",
            "Last-Modified",
            "Accept-Ranges",
            "Content-Disposition",
        ):
            assert head.headers[name] == get.headers[name]
        assert await head.read() == b""
        assert await get.read() == CONTENT
        assert (get.headers["ETag"], get.headers["Last-Modified"]) == (ETAG, MODIFIED)
        assert get.headers["Content-Type"] == "video/mp4"


CONDITIONS = [
    ({"If-None-Match": ETAG}, 304),
    ({"If-None-Match": f'W/{ETAG}, "x"'}, 304),
    ({"If-None-Match": "*"}, 304),
    ({"If-None-Match": '"x"', "If-Modified-Since": MODIFIED}, 200),
    ({"If-Modified-Since": MODIFIED}, 304),
    ({"If-Modified-Since": "Mon, 21 Sep 2026 14:13:19 GMT"}, 200),
    ({"If-Modified-Since": "yesterday"}, 200),
    ({"If-Match": '"x"'}, 412),
    ({"If-Match": f"W/{ETAG}"}, 412),
    ({"If-Match": f'"x", {ETAG}'}, 200),
    ({"If-Match": f' , "x",,{ETAG}'}, 200),
    (CIMultiDict([("If-Match", '"x"'), ("If-Match", ETAG)]), 200),
    (CIMultiDict([("If-None-Match", '"x"'), ("If-None-Match", ETAG)]), 304),
    (CIMultiDict([("Range", "bytes=0-1"), ("Range", "bytes=2-3")]), 200),
    ({"If-Unmodified-Since": "Mon, 21 Sep 2026 14:13:19 GMT"}, 412),
    ({"If-Range": ETAG, "Range": "bytes=0-1"}, 206),
    ({"If-Range": f"W/{ETAG}", "Range": "bytes=0-1"}, 200),
    ({"If-Range": '"x"', "Range": "bytes=0-1"}, 200),
    ({"If-Range": MODIFIED, "Range": "bytes=0-1"}, 206),
    ({"If-Range": "Mon, 21 Sep 2026 14:13:21 GMT", "Range": "bytes=0-1"}, 200),
    ({"If-Range": '"x"', "Range": f"bytes={SIZE}-"}, 200),
]


async def test_conditions_are_evaluated_as_rfc_9110_says(world: World) -> None:
    url = f"/api/v1/media/stream/{await world.add_video(CONTENT)}"
    for headers, status in CONDITIONS:
        async with world.call("GET", url, headers=headers) as response:
            assert response.status == status, headers
            body = await response.read()
            if status == 304:
                assert (body, response.headers["ETag"]) == (b"", ETAG)


async def test_a_video_is_for_its_owner_until_it_is_public(world: World) -> None:
    private, public = await world.add_video(b"abc"), await world.add_video(b"abcd", public=True)
    for video, user, status in (
        (private, "alice", 200),
        (private, "bob", 404),
        (public, "bob", 200),
        (public, "", 401),
    ):
        async with world.call("GET", f"/api/v1/media/stream/{video}", user=user) as response:
            assert response.status == status
    # What alice may see is not remembered for bob.
    async with world.call("GET", f"/api/v1/media/stream/{private}", user="bob") as response:
        assert response.status == 404


async def test_a_signed_url_is_the_permission_for_one_video_until_it_expires(world: World) -> None:
    video, other = await world.add_video(b"abc"), await world.add_video(b"x")
    signed = world.signer.sign(video, now=NOW.seconds, ttl=60)
    good, late = signed.query(), world.signer.sign(video, now=NOW.seconds - 100, ttl=60).query()
    for method in ("GET", "HEAD"):
        async with world.call(method, f"/api/v1/media/stream/{video}?{good}", user="") as response:
            assert response.status == 200
    assert world.merges.asked_by == ["service:gateway"]
    refused = [
        (other, good, "SIGNATURE_INVALID"),
        (video, late, "SIGNATURE_EXPIRED"),
        (video, good.replace("expires=1", "expires=2"), "SIGNATURE_INVALID"),
        (video, "signature=", "SIGNATURE_INVALID"),
        (video, "signature=%FF&expires=%F0&key_id=%00", "SIGNATURE_INVALID"),
    ]
    for id_, query, reason in refused:
        async with world.call("GET", f"/api/v1/media/stream/{id_}?{query}", user="bob") as response:
            assert response.status == 403
            assert (await response.json(content_type=None))["reason"] == reason


async def test_a_signed_url_of_a_public_video_ends_when_it_is_withdrawn_and_its_owners_does_not(
    keys: KeyRing, tmp_path: Path
) -> None:
    async with open_world(keys, tmp_path, gateway_access_cache_seconds=0) as world:
        video = await world.add_video(b"abc", public=True)
        own, public = (
            world.signer.sign(video, now=NOW.seconds, ttl=60, public=public).query() for public in (False, True)
        )
        for visibility, status in ((VISIBILITY_PUBLIC, 200), (VISIBILITY_PRIVATE, 403), (VISIBILITY_PUBLIC, 200)):
            world.merges.videos[video][1].visibility = visibility
            for query, expected in ((own, 200), (public, status), (public.replace("public=1", "public="), 403)):
                async with world.call("GET", f"/api/v1/media/stream/{video}?{query}", user="") as response:
                    assert response.status == expected
                    if (query, expected) == (public, 403):
                        assert (await response.json(content_type=None))["reason"] == "VIDEO_WITHDRAWN"


async def test_a_download_goes_on_under_a_renewed_url(world: World) -> None:
    video = await world.add_video(CONTENT)
    old, new = (world.signer.sign(video, now=NOW.seconds, ttl=ttl).query() for ttl in (60, 3600))
    async with world.call("GET", f"/api/v1/media/stream/{video}?{old}", user="") as response:
        etag = response.headers["ETag"]
        begun = await response.content.readexactly(1000)
        response.close()
    asked = {"Range": "bytes=1000-", "If-Range": etag}
    async with world.call("GET", f"/api/v1/media/stream/{video}?{new}", user="", headers=asked) as response:
        assert (response.status, response.headers["ETag"]) == (206, etag)
        assert begun + await response.read() == CONTENT


PLAYLIST = """#EXTM3U
#EXT-X-VERSION:7
#EXT-X-TARGETDURATION:2
#EXT-X-PLAYLIST-TYPE:VOD
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-MAP:URI="hls.mp4{query}",BYTERANGE="100@0"
#EXTINF:2.000000,
#EXT-X-BYTERANGE:200@100
hls.mp4{query}
#EXTINF:1.500000,
#EXT-X-BYTERANGE:400@300
hls.mp4{query}
#EXTINF:0.500000,
#EXT-X-BYTERANGE:300@700
hls.mp4{query}
#EXT-X-ENDLIST
"""
TIMES = """WEBVTT

00:00:00.000 --> 00:00:02.000
storyboard.jpg{query}#xywh=0,0,160,90

00:00:02.000 --> 00:00:03.500
storyboard.jpg{query}#xywh=160,0,160,90

00:00:03.500 --> 00:00:04.000
storyboard.jpg{query}#xywh=0,90,160,90
"""
BESIDE = [
    ("posters/0.jpg", "image/jpeg"),
    ("posters/2.jpg", "image/jpeg"),
    ("storyboard.jpg", "image/jpeg"),
    ("storyboard.vtt", "text/vtt"),
    ("hls.m3u8", "application/vnd.apple.mpegurl"),
    ("hls.mp4", "video/mp4"),
]


async def test_what_lies_beside_a_video_is_for_whom_the_video_is(world: World) -> None:
    video, other = await world.add_video(b"abc"), await world.add_video(b"abc")
    await world.add_sidecars(video, CONTENT[:1000])
    query = "?" + world.signer.sign(video, now=NOW.seconds, ttl=60).query()
    late = "?" + world.signer.sign(video, now=NOW.seconds - 100, ttl=60).query()
    for name, kind in BESIDE:
        for user, id_, permission, status in (
            ("alice", video, "", 200),
            ("", video, query, 200),
            ("bob", video, "", 404),
            ("", video, "", 401),
            ("", video, late, 403),
            ("", other, query, 403),
            ("alice", other, "", 404),
        ):
            url = f"/api/v1/media/stream/{id_}/{name}{permission}"
            async with world.call("GET", url, user=user) as response:
                assert response.status == status, url
                body = await response.read()
                if status != 200:
                    continue
                assert response.content_type == kind
                assert response.headers["ETag"] == f'"{hashlib.sha256(body).hexdigest()}"'
                assert response.headers["Content-Disposition"].startswith("inline")
            again = {"If-None-Match": response.headers["ETag"]}
            async with world.call("GET", url, user=user, headers=again) as unchanged:
                assert (unchanged.status, await unchanged.read()) == (304, b"")
            async with world.call("HEAD", url, user=user) as head:
                assert head.headers["Content-Length"] == str(len(body))
    for missing in ("posters/3.jpg", "posters/-1.jpg", "posters/x.jpg", "hls.ts"):
        async with world.call("GET", f"/api/v1/media/stream/{video}/{missing}") as response:
            assert response.status == 404
    async with world.call("GET", f"/api/v1/media/stream/{other}/hls.m3u8") as response:
        assert (await response.json(content_type=None))["reason"] == "SIDECAR_NOT_FOUND"


async def test_a_playlist_carries_on_the_permission_it_was_asked_for_with_and_its_ranges_are_served(
    world: World,
) -> None:
    video = await world.add_video(b"abc")
    await world.add_sidecars(video, CONTENT[:1000])
    base = f"/api/v1/media/stream/{video}"
    query = "?" + world.signer.sign(video, now=NOW.seconds, ttl=60).query()
    for permission in ("", query):
        user = "" if permission else "alice"
        for name, text in (("hls.m3u8", PLAYLIST), ("storyboard.vtt", TIMES)):
            more = f"{permission}&x=%22%0A%23" if permission else "?x=%22"  # what else is asked for goes nowhere
            async with world.call("GET", f"{base}/{name}{more}", user=user) as response:
                assert await response.text() == text.replace("{query}", permission)
        for start, end in ((0, 100), (100, 300), (300, 700), (700, 1000)):
            asked = {"Range": f"bytes={start}-{end - 1}"}
            async with world.call("GET", f"{base}/hls.mp4{permission}", user=user, headers=asked) as response:
                assert (response.status, await response.read()) == (206, CONTENT[start:end])


async def test_download_asks_for_an_attachment_and_an_answer_is_for_one_player_alone(world: World) -> None:
    video = await world.add_video(b"abc", public=True)
    for query, kind in (("", "inline"), ("?download=0", "inline"), ("?download=1", "attachment")):
        for headers, status in (({}, 200), ({"Range": "bytes=1-"}, 206), ({"If-None-Match": "*"}, 304)):
            url = f"/api/v1/media/stream/{video}{query}"
            async with world.call("GET", url, headers=headers) as response:
                assert response.status == status
                assert response.headers["Content-Disposition"] == f'{kind}; filename="{video}.mp4"'
                assert response.headers["Cache-Control"] == "private, max-age=60"
                assert response.headers["Vary"] == "Authorization"
    async with world.call("GET", f"/api/v1/media/stream/{video}", user="") as response:
        assert (response.status, response.headers["Cache-Control"]) == (401, "no-store")


async def test_an_uploaded_file_comes_back_with_its_name(world: World) -> None:
    id_, source = str(uuid.uuid4()), world.folder / "f"
    source.write_bytes(b"hello")
    await world.store.put_file(f"files/{id_}", source)
    name = 'ä"\r\nSet-Cookie: x/../%.html'
    file = File(
        file_id=id_,
        filename=name,
        mime_type="text/html",
        size=5,
        sha256="ab",
        object_key=f"files/{id_}",
        completed_at=NOW,
    )
    world.uploads.files[id_] = ("alice", file)
    async with world.call("GET", f"/api/v1/files/{id_}") as response:
        assert await response.read() == b"hello"
        assert "sandbox" in response.headers["Content-Security-Policy"]
        disposition = response.headers["Content-Disposition"]
    # What could run in a browser is saved, not shown.
    assert disposition.startswith('attachment; filename="')
    assert "filename*=UTF-8''%C3%A4%22__Set-Cookie%3A%20x_.._%25.html" in disposition
    async with world.call("GET", f"/api/v1/files/{id_}", user="bob") as response:
        assert response.status == 404


async def test_an_object_that_is_gone_is_not_found(world: World) -> None:
    video = await world.add_video(b"abc")
    await world.store.delete(f"videos/{video}/v.mp4")
    async with world.call("GET", f"/api/v1/media/stream/{video}") as response:
        assert response.status == 404


async def test_an_object_that_is_not_as_long_as_its_record_is_not_sent(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path) as world:
        video = await world.add_video(b"abcdef")
        path = world.store.local_path(f"videos/{video}/v.mp4")
        assert path is not None
        path.write_bytes(b"abc")
        async with world.call("GET", f"/api/v1/media/stream/{video}", headers={"Range": "bytes=0-1"}) as response:
            assert response.status == 500
            assert (await response.json(content_type=None))["reason"] == "INTERNAL"


async def test_an_object_that_ends_early_breaks_the_connection_and_shows_nobody_anothers_bytes(
    keys: KeyRing, tmp_path: Path
) -> None:
    async with open_world(keys, tmp_path, remote=True) as world:
        video = await world.add_video(CONTENT)
        path = world.store.local_path(f"videos/{video}/v.mp4")
        assert path is not None
        path.write_bytes(CONTENT[:1000])
        async with connection(world.port) as (reader, writer):
            head = f"GET /api/v1/media/stream/{video} HTTP/1.1\r\nHost: x\r\n"
            head += f"Authorization: {world.auth()['Authorization']}\r\n\r\n"
            writer.write(head.encode() + b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.endswith(CONTENT[:1000]), "after what there is, the connection ends"
        path.write_bytes(b"")
        async with world.call("GET", f"/api/v1/media/stream/{video}") as response:
            assert response.status == 500


async def test_an_empty_file_is_served_and_has_no_ranges(world: World) -> None:
    video = await world.add_video(b"")
    async with world.call("GET", f"/api/v1/media/stream/{video}") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, "0")
    for header, status in (("bytes=-1", 200), ("bytes=0-", 416)):
        async with world.call("GET", f"/api/v1/media/stream/{video}", headers={"Range": header}) as response:
            assert (response.status, response.headers.get("Content-Range", "bytes */0")) == (status, "bytes */0")


async def test_a_client_that_leaves_ends_the_read_at_once_and_is_no_error(
    keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(keys, tmp_path, remote=True) as world:
        video = await world.add_video(CONTENT * 16)
        for _ in range(5):  # whichever notices first: the write or the server
            world.remote.read_ended.clear()
            async with world.call("GET", f"/api/v1/media/stream/{video}") as response:
                await response.content.readexactly(10)
                response.close()
            await asyncio.wait_for(world.remote.read_ended.wait(), 10)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("remote", [False, True])
async def test_a_client_that_takes_nothing_is_cut_off_and_is_no_error(
    remote: bool, keys: KeyRing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(keys, tmp_path, remote=remote, gateway_write_timeout_seconds=0.3) as world:
        video = await world.add_video(CONTENT * 16)
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1024)
        token = world.auth()["Authorization"]
        head = f"GET /api/v1/media/stream/{video} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n"
        writer.write(head.encode())
        assert b"200" in await reader.readline()
        await asyncio.wait_for(world.gateway.server.stop(60), 20)  # waits for what is being answered
        writer.transport.abort()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_drain_lets_a_running_download_finish(keys: KeyRing, tmp_path: Path) -> None:
    async with open_world(keys, tmp_path) as world:
        content = CONTENT * 16  # more than socket buffers hold
        video = await world.add_video(content)
        async with world.call("GET", f"/api/v1/media/stream/{video}") as response:
            begun = await response.content.readexactly(10)
            stopping = asyncio.create_task(world.gateway.server.stop(10))
            assert begun + await response.content.read() == content
            await stopping
        upload = world.uploads.add("alice", "a", 4, 4)
        with pytest.raises(aiohttp.ClientConnectorError):
            await world.call("GET", f"/api/v1/upload/{upload.session_id}/status")


async def test_the_openapi_document_lists_every_route(world: World) -> None:
    async with world.call("GET", "/openapi.json", user="") as response:
        document = await response.json()
    assert document["openapi"] == "3.1.0"
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
    guess = document["paths"]["/api/v1/challenges/{challenge_id}/guess"]["post"]
    assert guess["summary"].startswith("Guesses which statement is the lie")
    assert {"400", "401", "404", "409"} <= set(guess["responses"])
    assert {"get", "head"} <= set(document["paths"]["/api/v1/media/stream/{video_file_id}"])
    for url, tag in (("/api/v1/tus/", "tus"), ("/api/v1/rufh/", "Resumable Uploads for HTTP")):
        assert set(document["paths"][url]) == {"post", "options"}
        one = document["paths"][url + "{session_id}"]
        assert set(one) == {"head", "patch", "delete"}
        assert one["patch"]["tags"] == [tag]
    operations = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(operations) == len(set(operations))


async def test_an_annotation_behind_a_route_written_by_hand_stops_the_start(keys: KeyRing, tmp_path: Path) -> None:
    settings = GatewaySettings(**keys.settings(), data_dir=tmp_path)
    services = service(Clash={"get": "/api/v1/files/{id}"})
    with pytest.raises(RouteError, match="written by hand"):
        async with wiring.build(settings, services=services):
            pass
