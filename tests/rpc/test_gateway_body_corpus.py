"""Requests that can be read but mean nothing: paths, queries, JSON, forms, multipart, each with its exact refusal.

The cases that every field is refused by name, and digests that are wrong, are in test_gateway_refusals.py.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest

from services.common.keys import KeyRing
from tests.rpc.gateway_world import World, open_world
from tests.rpc.raw_http import Answer, assert_healthy, exchange

ID = "00000000-0000-4000-8000-000000000000"
INITIATE = "/api/v1/upload/initiate"
MERGE = "/api/v1/challenge-videos/upload-for-merge/initiate"
REPLACE = f"/api/v1/challenge-videos/merge-session/{ID}/clips/0/replace"
LEADERBOARD = "/api/v1/leaderboard?"
OPTIMIZED = f"/api/v1/media/optimized/{ID}?"
STREAM = f"/api/v1/media/stream/{ID}"
FORM = "application/x-www-form-urlencoded"
LIMITS: dict[str, Any] = {"gateway_max_body_bytes": 8192, "gateway_max_chunk_bytes": 65536}
# What a refusal is expected to name: the pointers of the wrong fields, or the reason when it is no field.
Wrong = list[str] | str


@pytest.fixture(scope="module")
async def world(keys: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with open_world(keys, tmp_path_factory.mktemp("corpus"), **LIMITS) as world:
        yield world


async def send(world: World, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
    """A GET, or a POST with ``body``; afterwards the gateway must be well."""
    head = f"Host: x\r\nAuthorization: {world.auth()['Authorization']}\r\n"
    if body is not None:
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    got = await exchange(
        world.port, f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b"")
    )
    await assert_healthy(world.port)
    return got


def assert_wrong(got: Answer, status: int, wrong: Wrong) -> None:
    if status < 400:
        assert got.status == status, got
        return
    document = got.problem
    assert got.status == status, document
    if isinstance(wrong, str):
        assert (document["reason"], document["errors"]) == (wrong, [])
    else:
        assert [error["pointer"] for error in document["errors"]] == wrong


SESSION = ["/session_id"]
PATHS: dict[str, tuple[int, Wrong]] = {
    **{
        f"/api/v1/upload/{id_}/status": (400, SESSION)
        for id_ in (
            "%",
            "%zz",
            "%ff",
            "%C0%AF",
            "%ED%A0%80",
            "%20",
            "%0d%0aX:1",
            f"{ID}%00",
            f"{ID}%20",
            "9" * 4000,
        )
    },
    f"/api/v1/upload/{{{ID}}}/status": (400, SESSION),
    "/api/v1/upload//status": (404, "ROUTE_NOT_FOUND"),
    "/api/v1/upload/a%2Fstatus": (405, "METHOD_NOT_ALLOWED"),  # the id "a/status", which may be deleted
    f"/api/v1/upload/{ID}/status%00": (404, "ROUTE_NOT_FOUND"),
    f"/api/v1/upload/{ID}/status": (404, "UPLOAD_NOT_FOUND"),
    "/api/v1/challenges/%F0%9F%98%80": (400, ["/challenge_id"]),
    "/api/v1/challenges/..%2F..%2Fetc%2Fpasswd": (400, ["/challenge_id"]),
    "/api/v1/challenges/%252e%252e": (400, ["/challenge_id"]),
    "/api/v1/files/..%2f..%2fetc%2fpasswd": (400, ["/file_id"]),
    "/api/v1/files/%00": (400, ["/file_id"]),
    "/api/v1/files/": (404, "ROUTE_NOT_FOUND"),
    "/api/v1/media/stream/%FF": (400, ["/video_file_id"]),
    f"{STREAM}/posters/-1.jpg": (404, "ROUTE_NOT_FOUND"),
    f"{STREAM}/posters/99999.jpg": (404, "ROUTE_NOT_FOUND"),
    f"{STREAM}?signature=x": (403, "SIGNATURE_INVALID"),
    f"{STREAM}?expires=NaN&signature=x&key_id=k": (403, "SIGNATURE_INVALID"),
    f"{STREAM}?expires={'9' * 3000}&signature=x&key_id=k": (403, "SIGNATURE_INVALID"),
    f"{STREAM}?expires=1&expires=2&signature=x&key_id=k": (403, "SIGNATURE_INVALID"),
    "/api/v1/tus/%00": (405, "METHOD_NOT_ALLOWED"),
    "/api/v1/rufh/%FF": (405, "METHOD_NOT_ALLOWED"),
    "/api/v1/challenge-videos/merge-session/%00/events": (400, ["/merge_session_id"]),
}
SIZE = ["/page_size"]
QUERIES: dict[str, tuple[int, Wrong]] = {
    # The leaderboard refuses what it does not know, and is itself not served (501).
    LEADERBOARD + "page_size=5": (501, "UNIMPLEMENTED"),
    LEADERBOARD + "page_size=%2B5": (501, "UNIMPLEMENTED"),
    LEADERBOARD + "&&": (501, "UNIMPLEMENTED"),
    **{
        f"{LEADERBOARD}page_size{value}": (400, SIZE)
        for value in (
            *(
                "",
                "=",
                "=x",
                "=1.5",
                "=1e2",
                "=+5",
                "=%205",
                "=0x5",
                "=5%00",
                "=true",
                "=NaN",
                "=Infinity",
                "=%D9%A3",
            ),
            *("=2147483648", "=-2147483649", "=" + "9" * 40, "=-1", "=100000", "=5;colour=red", "=5&page_size=5"),
        )
    },
    **{
        f"{LEADERBOARD}{name}=5": (400, [f"/{pointer}"])
        for name, pointer in {
            "PAGE_SIZE": "PAGE_SIZE",
            "pageSize": "pageSize",
            "page_size[]": "page_size[]",
            "page_size.x": "page_size/x",
            "colour": "colour",
            "a.b": "a/b",
            "a%2Fb~": "a~1b~0",
            "%00": "\0",
            "": "",
            "owner": "owner",
            "x" * 300: "x" * 300,
        }.items()
    },
    LEADERBOARD + "&".join(f"a{i}=1" for i in range(400)): (400, [f"/a{i}" for i in range(32)]),
    LEADERBOARD + "&" * 1500: (400, "MALFORMED_FORM"),
    LEADERBOARD + "%FF=1": (400, "MALFORMED_FORM"),
    LEADERBOARD + "page_size=%FF": (400, "MALFORMED_FORM"),
    # The phone app's routes leave out what they do not know, but not a wrong value of what they do.
    OPTIMIZED + "colour=red&video_file_id=x&video_file_id.x=1": (200, ""),
    OPTIMIZED + "prefer_signed=TRUE&device_type=tv": (200, ""),
    OPTIMIZED + "prefer_signed=1&device_type=": (200, ""),
    **{
        f"{OPTIMIZED}prefer_signed={value}": (400, ["/prefer_signed"])
        for value in ("yes", "", "2", "null", "true&prefer_signed=false")
    },
    **{f"{OPTIMIZED}device_type={value}": (400, ["/device_type"]) for value in ("fridge", "TV", "%00", "2")},
    f"{OPTIMIZED}prefer_signed=maybe&device_type=tv&device_type=tv": (400, ["/prefer_signed", "/device_type"]),
    f"/api/v1/upload/{ID}/events?x=1": (400, ["/x"]),
}


@pytest.mark.parametrize("path", PATHS | QUERIES, ids=lambda p: p[:60] + str(len(p)))
async def test_paths_and_queries(world: World, path: str) -> None:
    assert_wrong(await send(world, path), *(PATHS | QUERIES)[path])


def good(**changes: Any) -> bytes:
    return json.dumps({"filename": "a.mp4", "file_size": 10, "mime_type": "video/mp4"} | changes).encode()


def sized(size: bytes) -> bytes:
    return good(file_size=0).replace(b'"file_size": 0', b'"file_size": ' + size)


NO_JSON = "MALFORMED_JSON"
REQUIRED = ["/filename", "/mime_type"]
DOCUMENTS: Mapping[str, tuple[bytes, int, Wrong]] = {
    **{
        name: (body, 400, NO_JSON)
        for name, body in {
            "BOM": b"\xef\xbb\xbf" + good(),
            "UTF-16": good().decode().encode("utf-16"),
            "UTF-32": good().decode().encode("utf-32-le"),
            "surrogates in UTF-8": good(filename="a").replace(b'"a"', b'"\xed\xa0\x80"'),
            "overlong UTF-8": good(filename="a").replace(b'"a"', b'"\xc0\xaf"'),
            "a second value": good() + b"{}",
            "a word behind it": good() + b" x",
            "a NUL behind it": good() + b"\0",
            "white space alone": b" \r\n",
            "a comment": b"/**/" + good(),
            "single quotes": b"{'filename': 'a'}",
            "a comma too many": good()[:-1] + b",}",
            "cut short": good()[:-1],
            "a raw line break": good(filename="ab").replace(b"ab", b"a\nb"),
            "a wrong escape": good(filename="ab").replace(b"ab", b"\\x41"),
            "half an escape": good(filename="ab").replace(b"ab", b"\\u12"),
            "a key twice in a map": good(metadata={"a": "1", "b": "2"}).replace(b'"b"', b'"a"'),
            "a key twice by an escape": good(filenam_="b").replace(b'"filenam_"', b'"filenam\\u0065"'),
            "half a surrogate pair in a key": good(**{"\ud800": 1}),
            "half a surrogate pair in a map's key": good(metadata={"\udc00": "x"}),
            "lists without end": b"[" * 8000,
            "lists in lists": good(x=0).replace(b"0}", b"[" * 3500 + b"]" * 3500 + b"}"),
            "4001 digits": sized(b"9" * 4001),
        }.items()
    },
    **{
        f"size {size!r}": (sized(size), 400, NO_JSON)
        for size in (b"Infinity", b"-Infinity", b"01", b"+1", b".5", b"1.", b"0x10", b"1_0", b"1,0", "٣".encode())
    },
    **{
        f"size {size[:30]!r}": (sized(size), 400, ["/file_size"])
        for size in (
            *(
                b"1e400",
                b"-1e400",
                b"1e19",
                b"1e-1",
                b"9223372036854775808.0",
                b"-9223372036854775809",
                b"[1]",
                b"{}",
            ),
            *(
                b'" 1"',
                b'""',
                b'"Infinity"',
                b'"1e2"',
                b'"0x1"',
                b'"1.0"',
                '"٣"'.encode(),
                b'"%s"' % (b"9" * 3000),
            ),
            *(b"0." + b"1" * 3000, b"1e" + b"9" * 3000, b"false"),
        )
    },
    **{f"size {size!r}": (sized(size), 200, "") for size in (b"1e2", b"12.0", b'"12"')},
    **{f"no object: {body!r}": (body, 400, [""]) for body in (b"null", b'"x"', b"true", b"1", b"[{}]")},
    "a list for a text": (good(filename=["a"]), 400, ["/filename"]),
    "an object for a text": (good(filename={"a": 1}), 400, ["/filename"]),
    "nothing for a text": (good(filename=None), 400, ["/filename"]),
    "a text for a truth": (good(defer_length="true"), 400, ["/defer_length"]),
    "a number for a truth": (good(defer_length=1), 400, ["/defer_length"]),
    "a text for a map": (good(metadata="x"), 400, ["/metadata"]),
    "a list in a map": (good(metadata={"a": ["b"], "c": None}), 400, ["/metadata/a", "/metadata/c"]),
    "half a surrogate pair in a map": (good(metadata={"a": "\ud800"}), 400, ["/metadata/a"]),
    "other names": (b'{"fileName":"a.mp4","fileSize":1,"mimeType":"video/mp4"}', 400, REQUIRED),
    "objects in objects that nobody reads": (b'{"a":' * 600 + b"1" + b"}" * 600, 400, REQUIRED),
    "names that are special elsewhere": (good(__proto__={}, constructor=1, DESCRIPTOR=2), 200, ""),
    "white space around": (b" \r\n\t" + good() + b"\r\n", 200, ""),
    "too long": (good() + b" " * 8192, 413, "BODY_TOO_LARGE"),
}
STRICT: Mapping[str, tuple[bytes, Wrong]] = {
    "unknown": (b'{"colour":1}', ["/colour"]),
    "unknown and deep": (b'{"filename":{"x":1}}', ["/filename"]),
    "300 unknown": (json.dumps({f"k{i}": 1 for i in range(300)}).encode(), [f"/k{i}" for i in range(32)]),
    "NaN": (b'{"duration_seconds":NaN}', NO_JSON),
    "a number over all numbers": (b'{"duration_seconds":1e400}', ["/duration_seconds"]),
    "no number": (b'{"duration_seconds":"1,5"}', ["/duration_seconds"]),
    "half a surrogate pair": (b'{"\\ud800":1}', NO_JSON),
}


@pytest.mark.parametrize("case", DOCUMENTS)
async def test_json(world: World, case: str) -> None:
    body, status, wrong = DOCUMENTS[case]
    before = len(world.uploads.initiated)
    assert_wrong(await send(world, INITIATE, body), status, wrong)
    if isinstance(wrong, str):  # what is wrong with a value the service may have to say
        assert len(world.uploads.initiated) - before == (status == 200)


@pytest.mark.parametrize("case", STRICT)
async def test_json_of_a_route_that_refuses_what_it_does_not_know(world: World, case: str) -> None:
    body, wrong = STRICT[case]
    assert_wrong(await send(world, REPLACE, body), 400, wrong)


def merge(**changes: str | None) -> bytes:
    """The phone app's form, with changes; None leaves a field out."""
    fields: dict[str, str | None] = {
        "video_count": "2",
        "video_filenames": '["a.mp4","b.mp4"]',
        "video_file_sizes": "[1,2]",
        "video_durations": "[15000,2]",
        "video_mime_types": '["video/mp4","video/mp4"]',
        "challenge_title": "t",
    }
    return urlencode({name: text for name, text in (fields | changes).items() if text is not None}).encode()


NAMES, SIZES = "video_filenames", "video_file_sizes"
FORMS: Mapping[str, tuple[bytes, int, Wrong]] = {
    "good": (merge(), 200, ""),
    "a list as repeated fields": (
        merge(video_file_sizes=None) + b"&video_file_sizes=1&video_file_sizes=2",
        200,
        "",
    ),
    "numbers as texts": (merge(video_file_sizes='["1","2"]'), 200, ""),
    "enum by name": (merge(quality="high"), 200, ""),
    "enum by full name": (merge(quality="QUALITY_HIGH"), 200, ""),
    "field twice": (merge() + b"&video_count=2", 400, ["/video_count"]),
    # Names that are no list are one name: a file may be called "[1].mp4".
    **{
        f"{NAMES} {text[:20]!r}": (merge(video_filenames=text), 400, [f"/{NAMES}"])
        for text in (
            *(
                '["a.mp4"]',
                '["a","b","c"]',
                '["a.mp4"',
                "a.mp4,b.mp4",
                '["a","b"] x',
                '{"0":"a"}',
                "[" * 1000,
                "[]",
            ),
            *('[{"a":1,"a":2},"b"]', "['a','b']"),
        )
    },
    f"no {NAMES}": (merge(video_filenames=None), 400, [f"/{NAMES}"]),
    f"empty {NAMES}": (merge(video_filenames=""), 400, [f"/{NAMES}/0"]),
    "lists in a list": (merge(video_filenames='[["a"],["b"]]'), 400, [f"/{NAMES}/0", f"/{NAMES}/1"]),
    "numbers for names": (merge(video_filenames="[1,null]"), 400, [f"/{NAMES}/0", f"/{NAMES}/1"]),
    **{
        f"{SIZES} {text!r}": (merge(video_file_sizes=text), 400, [f"/{SIZES}/0"])
        for text in ("1,2", "[1.5,2]", "[-1,2]", "[null,2]", '["x",2]', "[1e99,2]", "[NaN,2]", "[true,2]")
    },
    **{
        f"durations {text!r}": (merge(video_durations=text), 400, ["/video_durations/0"])
        for text in ("[NaN,2]", "[-1,2]", "[1e999,2]", '["x",2]', '["Infinity",2]', "[null,2]", "1,2")
    },
    **{
        f"count {text!r}": (merge(video_count=text), 400, ["/video_count"])
        for text in ("", "0", "-1", "2.0", "inf", "NaN", "0x2", "2147483648", "2 ", "two")
    },
    "no count": (merge(video_count=None), 400, ["/video_count"]),
    "quality best": (merge(quality="best"), 400, ["/quality"]),
    "quality 99": (merge(quality="99"), 400, ["/quality"]),
    "canvas x": (merge(canvas="x"), 400, ["/canvas"]),
    "canvas cut": (merge(canvas='{"width":'), 400, ["/canvas"]),
    "canvas of no numbers": (merge(canvas='{"width":"x","height":[]}'), 400, ["/canvas/width", "/canvas/height"]),
    "a type that is none": (merge(video_mime_types='["text/html","video/mp4"]'), 400, ["/video_mime_types/0"]),
    "a title of 1000": (merge(challenge_title="x" * 1000), 400, ["/challenge_title"]),
    "a wrong escape": (b"video_count=%zz", 400, ["/video_count"]),
    "no value": (b"video_count", 400, ["/video_count"]),
    "no names": (b"=&&=1", 400, ["/video_count", f"/{NAMES}", f"/{SIZES}"]),
    "not UTF-8": (b"video_count=%FF", 400, "MALFORMED_FORM"),
    "all bytes": (bytes(range(256)), 400, "MALFORMED_FORM"),
    "1500 fields": (b"&" * 1500, 400, "MALFORMED_FORM"),
    "too long": (merge(challenge_title="x" * 9000), 413, "BODY_TOO_LARGE"),
}


@pytest.mark.parametrize("case", FORMS)
async def test_the_phone_apps_form(world: World, case: str) -> None:
    body, status, wrong = FORMS[case]
    before = len(world.merges.merges)
    assert_wrong(await send(world, MERGE, body, FORM), status, wrong)
    assert len(world.merges.merges) - before == (status == 200)


def part(disposition: str = 'name="file"; filename="c"', content: bytes = b"abcd", *fields: bytes) -> bytes:
    more = b"".join(field + b"\r\n" for field in fields)
    return (
        f"--b\r\nContent-Disposition: form-data; {disposition}\r\n".encode() + more + b"\r\n" + content + b"\r\n"
    )


END = b"--b--\r\n"
KIND = "multipart/form-data; boundary=b"
HASH = 'name="chunk_hash"'
NO_FORM = "MALFORMED_FORM"
PARTS: Mapping[str, tuple[str, bytes, int, Wrong]] = {
    **{
        f"type {kind[:50]!r}": (kind, part() + END, 400, NO_FORM)
        for kind in (
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=" + "b" * 71,
            'multipart/form-data; boundary="b',
            "multipart/form-data; boundary=c",
            "multipart/form-data; boundary=c; boundary=b",
            "multipart/form-data; boundary=b, text/plain",
            "multipart/form-data; boundary=b\tc",
            "multipart/form-data;;;",
        )
    },
    **{
        name: (KIND, body, 400, NO_FORM)
        for name, body in {
            "empty": b"",
            "no end": part(),
            "half an end": part() + b"--b-",
            "an end without its line": part() + b"--b",
            "bare LF": (part() + END).replace(b"\r\n", b"\n"),
            "a long preamble": b"x" * 5000 + b"\r\n" + part() + END,
            "text behind a boundary": b"--bx\r\n" + part()[5:] + END,
            "no head": b"--b\r\n\r\nabcd\r\n" + END,
            "an attachment": part().replace(b"form-data", b"attachment") + END,
            "no name": part('filename="c"') + END,
            "name twice": part('name="x"; name="file"') + END,
            "an open quote": part('name="file') + END,
            "base64": part('name="file"', b"YWJjZA==", b"Content-Transfer-Encoding: base64") + END,
            "a head of 9 KB": part('name="file"', b"abcd", b"X: " + b"x" * 9000) + END,
            "2000 head lines": part('name="file"', b"abcd", *[b"X: y"] * 2000) + END,
            "a head without a colon": part('name="file"', b"abcd", b"nonsense") + END,
            "a head that is not UTF-8": part('name="file"', b"abcd", b"X: \xff") + END,
            "a hash of 5 KB": part() + part(HASH, b"0" * 5000) + END,
            "an unknown field of 5 KB": part('name="x"', b"y" * 5000) + part() + END,
        }.items()
    },
    "nothing but an end": (KIND, END, 400, ["/file"]),
    "no file": (KIND, part('name="x"') + END, 400, ["/file"]),
    "a nameless file": (KIND, part('name=""') + END, 400, ["/file"]),
    "an empty file": (KIND, part('name="file"', b"") + END, 400, ["/file"]),
    "a multipart for a file": (KIND, part('name="file"', b"--c\r\n\r\nabcd\r\n--c--") + END, 400, ["/file"]),
    "two files": (KIND, part() + part() + END, 400, ["/file"]),
    "a short hash": (KIND, part() + part(HASH, b"00") + END, 400, ["/chunk_hash"]),
    "a hash of other characters": (KIND, part() + part(HASH, b"\xff" * 64) + END, 400, ["/chunk_hash"]),
    "too long": (KIND, part('name="file"', b"x" * 70_000) + END, 413, "BODY_TOO_LARGE"),
}


@pytest.mark.parametrize("case", PARTS)
async def test_multipart_chunks(world: World, case: str) -> None:
    kind, body, status, wrong = PARTS[case]
    upload = world.uploads.add("alice", "a.mp4", 10, 4)
    assert_wrong(await send(world, f"/api/v1/upload/{upload.session_id}/chunk/0", body, kind), status, wrong)
    assert world.uploads.chunks[upload.session_id] == {}


async def test_multipart_that_is_odd_but_whole_is_taken(world: World) -> None:
    for body in (
        part('name="file"') + END,
        part('name="file"; filename="../../etc/passwd\\"\\\\"') + END + b"epilogue" * 500,
        part('name="x"', b"") * 60 + part() + END,
        b"preamble\r\n" + part() + part('name="ü"', b"\xff") + END,
    ):
        upload = world.uploads.add("alice", "a.mp4", 10, 4)
        got = await send(world, f"/api/v1/upload/{upload.session_id}/chunk/0", body, KIND)
        assert got.status == 200, got
        assert world.uploads.chunks[upload.session_id] == {0: b"abcd"}


async def test_multipart_forms(world: World) -> None:
    assert_wrong(await send(world, INITIATE, part() + END, KIND), 400, REQUIRED)
    assert_wrong(await send(world, INITIATE, part('name="filename"', b"\xff") + END, KIND), 400, NO_FORM)
    assert_wrong(await send(world, INITIATE, part('name="file_size"', b"1") * 2 + END, KIND), 400, ["/file_size"])
