"""Bytes that are hardly a request, over a bare connection: each has one exact answer, none is a 500 or a hang.

What a head or body is refused with when it can be read: test_gateway_refusals.py and test_gateway_body_corpus.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, connection, open_world
from tests.rpc.raw_http import HEALTH, answer, assert_healthy, ended, exchange

PATH = b"/api/v1/health"
BODY = b'{"filename":"a.mp4","file_size":4,"mime_type":"video/mp4"}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
WHOLE = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LIMITS: dict[str, Any] = {"gateway_head_seconds": 1.0, "gateway_max_body_bytes": 4096}
# A request line and its fields may be answered 400 by a parser that knows no more than that it cannot go on.
MALFORMED = "MALFORMED_REQUEST"
Case = tuple[bytes, int, str]


@pytest.fixture(scope="module")
async def world(keys: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path_factory.mktemp("corpus"), **LIMITS) as world:
        yield world


def line(target: bytes = PATH, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return b"%s %s %s\r\nHost: x\r\n\r\n" % (method, target, version)


def host(*values: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET %s %s\r\n%s\r\n" % (PATH, version, b"".join(b"Host: %s\r\n" % value for value in values))


def field(text: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (PATH, text)


METHODS: Mapping[str, Case] = {
    **{repr(m): (line(method=m), 400, MALFORMED) for m in (b"get", b"BREW", b"GE\0T", b"G@T", b"G\xc9T", b"")},
    "1 KB": (line(method=b"G" * 1000), 400, MALFORMED),
    "TRACE": (line(method=b"TRACE"), 405, "METHOD_NOT_ALLOWED"),
    "CONNECT to a path": (line(method=b"CONNECT"), 501, "METHOD_NOT_SUPPORTED"),
    "CONNECT to an authority": (line(b"x:80", b"CONNECT"), 501, "METHOD_NOT_SUPPORTED"),
    "a tab for a space": (line().replace(b" ", b"\t", 2), 400, MALFORMED),
    "a space first": (b" " + line(), 400, MALFORMED),
    "a word too many": (line(version=b"HTTP/1.1 x"), 400, MALFORMED),
    "empty lines first": (b"\r\n\r\n" + line(), 200, ""),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400, MALFORMED),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, MALFORMED),
    "HTTP/0.9 with an empty line": (b"GET /api/v1/health\r\n\r\n", 505, "VERSION_NOT_SUPPORTED"),
    "HTTP/0.9": (b"GET /api/v1/health\r\n", 408, "HEAD_TIMEOUT"),
    "NULs": (bytes(10) + b"\r\n\r\n", 400, MALFORMED),
    "garbage": (b"\xff" * 200 + b"\r\n\r\n", 400, MALFORMED),
    "h2c": (field(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"), 200, ""),
    "a web socket": (field(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"), 200, ""),
}
VERSIONS: Mapping[str, Case] = {
    "HTTP/1.0": (line(version=b"HTTP/1.0"), 200, ""),
    "HTTP/2.0": (line(version=b"HTTP/2.0"), 505, "VERSION_NOT_SUPPORTED"),
    "HTTP/0.9": (line(version=b"HTTP/0.9"), 505, "VERSION_NOT_SUPPORTED"),
    **{
        repr(v): (line(version=v), 400, MALFORMED)
        for v in (
            b"HTTP/1",
            b"HTTP/1.10",
            b"HTTP/9.9",
            b"http/1.1",
            b"HTTP/ 1.1",
            b"HTTPS/1.1",
            b"HTTP/-1.1",
            b"ICY/1",
        )
    },
}
NOWHERE = "ROUTE_NOT_FOUND"
TARGETS: Mapping[bytes, tuple[int, str]] = {
    b"http://x/api/v1/health": (200, ""),
    b"http://elsewhere.example/api/v1/health": (200, ""),  # RFC 9112 section 3.2.2: it must be taken
    b"ftp://x/y": (404, NOWHERE),
    b"http://x:99999999/api/v1/health": (400, MALFORMED),
    b"http://[::1/": (400, MALFORMED),
    b"x:80": (400, MALFORMED),
    b"*": (400, MALFORMED),
    b"": (400, MALFORMED),
    b"api/v1/health": (400, MALFORMED),
    b"/api/v1/health?": (200, ""),
    b"/api/v1/health#x": (400, MALFORMED),
    b"/api/v1/health?a#x": (400, MALFORMED),
    # Nothing is made of a path but what it says: no slashes dropped, no dots followed.
    b"//api/v1/health": (404, NOWHERE),
    b"//elsewhere.example/api/v1/health": (404, NOWHERE),
    b"/api//v1/health": (404, NOWHERE),
    b"/api/v1/health/": (404, NOWHERE),
    b"/api%2Fv1%2Fhealth": (404, NOWHERE),
    b"/api/./v1/health": (404, NOWHERE),
    b"/api/v1/x/../health": (404, NOWHERE),
    b"/api/v1/x/%2e%2e/health": (404, NOWHERE),
    b"/api/v1/x/%252e%252e/health": (404, NOWHERE),
    b"/../../etc/passwd": (404, NOWHERE),
    b"/api\\v1\\health": (404, NOWHERE),
    b"/API/v1/health": (404, NOWHERE),
    b"/api/v1/health;a=b": (404, NOWHERE),
    b"/api/v1/health%00": (404, NOWHERE),
    b"/%0d%0aX:y": (404, NOWHERE),
    b"/%FF": (404, NOWHERE),
    b"/%ed%a0%80": (404, NOWHERE),
    b"/%c0%af": (404, NOWHERE),
    b"/%zz": (404, NOWHERE),
    b"/a%2": (404, NOWHERE),
    b"/%": (404, NOWHERE),
    b"/:80": (404, NOWHERE),
    b"/[x]": (404, NOWHERE),
    b"/a\0b": (400, MALFORMED),
    b"/a\x01b": (400, MALFORMED),
    b"/a\x7fb": (400, MALFORMED),
    b"/a\tb": (400, MALFORMED),
    b"/\xc3\xa9": (400, MALFORMED),
    b"/api/v1/health?\xe9": (400, MALFORMED),
    b"/" + b"x" * 5000: (414, "URI_TOO_LONG"),
    b"/" + b"x" * 10_000: (414, "URI_TOO_LONG"),
    b"/" + b"%41" * 1500: (414, "URI_TOO_LONG"),
    b"/api/v1/health?" + b"a=b&" * 1100: (414, "URI_TOO_LONG"),
}
HOSTS: Mapping[str, Case] = {
    "none": (host(), 400, MALFORMED),
    "none in HTTP/1.0": (host(version=b"HTTP/1.0"), 200, ""),
    "two": (host(b"a", b"b"), 400, MALFORMED),
    "the same twice": (host(b"a", b"a"), 400, MALFORMED),
    **{repr(good): (host(good), 200, "") for good in (b"", b"x:", b"x:80", b"a_b.example", b"[::1]:80", b"%41")},
    **{
        repr(bad): (host(bad), 400, MALFORMED)
        for bad in (
            b"a b",
            b"a/b",
            b"u@a",
            b"a?b",
            b"x#y",
            b"[::1",
            b"x:y",
            b"\xff",
            b"a\0",
            b"<a>",
            b"a\\b",
            b"%4",
        )
    },
}
FIELDS: Mapping[bytes, tuple[int, str]] = {
    **dict.fromkeys(
        [
            b"X: a\r\n b",
            b"X: a\r\n\tb",
            b" X: a",
            b"X: a\nY: b",
            b"X: a\rY: b",
            b"X: a\r",
            b"X: a\0b",
            b"X: a\x01b",
            b"X: a\x7fb",
            b"X",
            b": a",
            b"X : a",
            b"X\t: a",
            b"X Y: a",
            b"X@: a",
            b"X\0: a",
            b"\xc3\x89: a",
        ],
        (400, MALFORMED),
    ),
    b"X:": (200, ""),
    b"X:\t a \t": (200, ""),
    b"X: \xe9": (200, ""),
    b"X: \xc3\xa9": (200, ""),
    b"\r\n".join(b"X%d: a" % i for i in range(127)): (200, ""),
    b"\r\n".join(b"X%d: a" % i for i in range(128)): (431, "HEADERS_TOO_LARGE"),
    b"X: " + b"a" * 16_000: (200, ""),
    b"X: " + b"a" * 17_000: (431, "HEADERS_TOO_LARGE"),
    b"X" * 17_000 + b": a": (431, "HEADERS_TOO_LARGE"),
    b"\r\n".join([b"X: " + b"a" * 15_000] * 4): (200, ""),
    b"\r\n".join([b"X: " + b"a" * 15_000] * 5): (431, "HEADERS_TOO_LARGE"),
}
FRAMES: Mapping[str, tuple[bytes, bytes, int, str]] = {
    "length": (LENGTH, BODY, 200, ""),
    "length with zeros": (b"Content-Length: 000%d\r\n" % len(BODY), BODY, 200, ""),
    "length and chunked": (LENGTH + CHUNKED, WHOLE, 400, MALFORMED),
    "chunked and length": (CHUNKED + LENGTH, WHOLE, 400, MALFORMED),
    "length twice": (LENGTH * 2, BODY, 400, MALFORMED),
    "two lengths": (LENGTH + b"Content-Length: 1\r\n", BODY, 400, MALFORMED),
    **{
        f"length {value!r}": (b"Content-Length: %s\r\n" % value, BODY, 400, MALFORMED)
        for value in (b"58, 58", b"+58", b"-1", b"0x3a", b"", b"5 8", b"58.0", b"5_8", b"\xd9\xa5", b"9" * 40)
    },
    "length 2^64": (b"Content-Length: 18446744073709551616\r\n", BODY, 400, MALFORMED),
    "length 2^63": (b"Content-Length: 9223372036854775808\r\n", BODY, 413, "BODY_TOO_LARGE"),
    "chunked": (CHUNKED, WHOLE, 200, ""),
    "chunked, loudly": (b"transfer-encoding: CHUNKED\r\n", WHOLE, 200, ""),
    "chunk with an extension": (CHUNKED, WHOLE.replace(b"\r\n", b";a=b\r\n", 1), 200, ""),
    "trailers": (CHUNKED, WHOLE[:-2] + b"X: y\r\n\r\n", 200, ""),
    "a length in the trailers": (CHUNKED, WHOLE[:-2] + b"Content-Length: 1\r\n\r\n", 400, MALFORMED),
    "a trailer with a NUL": (CHUNKED, WHOLE[:-2] + b"X: \0\r\n\r\n", 400, MALFORMED),
    "1000 trailers": (CHUNKED, WHOLE[:-2] + b"X: y\r\n" * 1000 + b"\r\n", 431, "HEADERS_TOO_LARGE"),
    "gzip, then chunked": (b"Transfer-Encoding: gzip, chunked\r\n", WHOLE, 501, "UNKNOWN_TRANSFER_CODING"),
    **{
        f"coding {value!r}": (b"Transfer-Encoding: %s\r\n" % value, WHOLE, 400, MALFORMED)
        for value in (
            b"gzip",
            b"identity",
            b"chunked, identity",
            b"chunked, chunked",
            b"xchunked",
            b"\x0bchunked",
            b"",
        )
    },
    "chunked twice": (CHUNKED * 2, WHOLE, 400, MALFORMED),
    **{
        f"chunk size {size!r}": (CHUNKED, size + b"\r\n" + BODY + b"\r\n0\r\n\r\n", 400, MALFORMED)
        for size in (b"zz", b"-1", b"+3a", b"0x3a", b" 3a", b"", b"f" * 20, b"10", b"3a\0")
    },
    "chunks with bare LF": (CHUNKED, WHOLE.replace(b"\r\n", b"\n"), 400, MALFORMED),
    "a chunk without its end": (CHUNKED, WHOLE.replace(b"\r\n0", b"XX0"), 400, MALFORMED),
    "chunks of one byte without end": (CHUNKED, b"1\r\n \r\n" * 6_000, 413, "BODY_TOO_LARGE"),
}


async def check(world: World, data: bytes, status: int, reason: str) -> None:
    got = await exchange(world.port, data)
    assert got.status == status, got
    if reason:
        assert got.problem["reason"] == reason
        assert got.headers["x-content-type-options"] == "nosniff"
    await assert_healthy(world.port)


@pytest.mark.parametrize("case", METHODS)
async def test_what_a_request_may_begin_with(world: World, case: str) -> None:
    await check(world, *METHODS[case])


@pytest.mark.parametrize("case", VERSIONS)
async def test_versions(world: World, case: str) -> None:
    await check(world, *VERSIONS[case])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: repr(t[:40]) + str(len(t)))
async def test_targets(world: World, target: bytes) -> None:
    await check(world, line(target), *TARGETS[target])


@pytest.mark.parametrize("case", HOSTS)
async def test_hosts(world: World, case: str) -> None:
    await check(world, *HOSTS[case])


@pytest.mark.parametrize("text", FIELDS, ids=lambda t: repr(t[:20]) + str(len(t)))
async def test_fields(world: World, text: bytes) -> None:
    await check(world, field(text), *FIELDS[text])


@pytest.mark.parametrize("case", FRAMES)
async def test_the_end_of_a_body_is_never_guessed(world: World, case: str) -> None:
    fields, body, status, reason = FRAMES[case]
    before = len(world.uploads.initiated)
    token = world.auth()["Authorization"].encode()
    head = b"POST /api/v1/upload/initiate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    await check(world, b"%sAuthorization: %s\r\n%s\r\n%s" % (head, token, fields, body), status, reason)
    assert len(world.uploads.initiated) - before == (status == 200)


@pytest.mark.parametrize("case", ["length and chunked", "length twice", "chunk size b'zz'", "chunked twice"])
async def test_nothing_behind_an_ambiguous_request_is_a_request(world: World, case: str) -> None:
    fields, body, _, _ = FRAMES[case]
    async with connection(world.port) as (reader, writer):
        writer.write(b"POST /api/v1/upload/initiate HTTP/1.1\r\nHost: x\r\n%s\r\n%s%s" % (fields, body, HEALTH))
        assert (await answer(reader)).status == 400
        assert await ended(reader) == b""


async def test_chunked_is_not_for_http_1_0(world: World) -> None:
    data = b"POST /api/v1/upload/initiate HTTP/1.0\r\nHost: x\r\n%s\r\n%s" % (CHUNKED, WHOLE)
    async with connection(world.port) as (reader, writer):
        writer.write(data)
        got = await answer(reader)
        assert (got.status, got.problem["reason"], got.headers["connection"]) == (400, MALFORMED, "close")


async def test_options_of_the_server_as_a_whole(world: World) -> None:
    got = await exchange(world.port, line(b"*", b"OPTIONS"))
    assert (got.status, got.body) == (204, b"")


@pytest.mark.parametrize("more", [b"zz\r\n", b"3\r\nabcX", b"-1\r\n", b"5\r\nabc\r\n0\r\n\r\n"])
async def test_a_chunk_that_breaks_behind_the_head_is_never_stored(world: World, more: bytes) -> None:
    upload = world.uploads.add("alice", "a.mp4", 4, 4)
    world.uploads.call_begun.clear()
    head = f"POST /api/v1/upload/{upload.session_id}/chunk/0 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += f"Content-Type: video/mp4\r\nAuthorization: {world.auth()['Authorization']}\r\n\r\n4\r\nabcd\r\n"
    async with connection(world.port) as (reader, writer):
        writer.write(head.encode())
        await asyncio.wait_for(world.uploads.call_begun.wait(), 10)
        writer.write(more)
        got = await answer(reader)
        assert (got.status, got.problem["reason"]) == (400, "BODY_CUT_SHORT")
    assert world.uploads.chunks[upload.session_id] == {}
    await assert_healthy(world.port)


async def test_requests_in_a_row_are_answered_in_their_order(world: World) -> None:
    async with connection(world.port) as (reader, writer):
        writer.write((line(b"/1") + HEALTH) * 40)
        for _ in range(40):
            assert (await answer(reader)).problem["instance"] == "/1"
            assert (await answer(reader)).status == 200
