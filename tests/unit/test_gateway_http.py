"""The gateway's pieces of HTTP: ranges, problems, multipart, digests, names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from google.rpc import code_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.common.errors import BY_CODE, FieldViolation, InvalidArgument
from services.gateway import conditions, edge, problems, ranges, sse, structured
from services.gateway.media import disposition
from services.gateway.multipart import MultipartError, MultipartReader, boundary_of
from services.gateway.problems import Problem


def test_every_grpc_code_has_a_status() -> None:
    assert set(problems.STATUS_BY_CODE) == set(code_pb2.Code.keys()) - {"OK"}
    for code, error in BY_CODE.items():
        problem = problems.from_error(error("text"))
        assert problem.status == (503 if code == "CANCELLED" else problems.STATUS_BY_CODE[code])
        assert problem.response(instance="/x", request_id="r").status == problem.status


@pytest.mark.parametrize(
    ("path", "body_field", "expected"),
    [
        ("statements[1].media_file_id", "", "/statements/1/media_file_id"),
        ("metadata[a/b]", "", "/metadata/a~1b"),
        ("body.inner[0]", "body", "/inner/0"),
        ("", "", ""),
    ],
)
def test_a_proto_path_becomes_a_pointer_in_the_callers_names(path: str, body_field: str, expected: str) -> None:
    error = InvalidArgument("x", violations=[FieldViolation(path, "is wrong")])
    assert problems.from_error(error, body_field=body_field).errors[0].pointer == expected


@given(st.integers(0, 10**6), st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_range_lies_within_the_file(size: int, first: int, last: int) -> None:
    for header in (f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"):
        try:
            found = ranges.parse(header, size)
        except ranges.Unsatisfiable:
            continue
        for one in found or ():
            assert 0 <= one.start < one.end <= size
            assert one.length == one.end - one.start


SETS = [
    ("0-9,1000-1009", [(0, 10), (1000, 1010)]),
    (" 0-9 ,,\t1000-1009 , ", [(0, 10), (1000, 1010)]),
    ("1000-1009,0-9", [(1000, 1010), (0, 10)]),
    ("-10,0-9", [(9990, 10000), (0, 10)]),
    ("0-9,10-19", [(0, 20)]),
    ("0-9,265-300", [(0, 301)]),
    ("0-9,266-300", [(0, 10), (266, 301)]),
    ("5000-5009,0-9,5005-5100", [(5000, 5101), (0, 10)]),
    ("0-3000,100-110,3100-3200", [(0, 3201)]),
    ("0-9,20000-", [(0, 10)]),
    ("0-9,5-2", None),
    ("0-9,x", None),
    ("0-9,1-1-1", None),
    ("20000-,5-2", None),
    (",".join(f"{600 * n}-{600 * n}" for n in range(16)), [(600 * n, 600 * n + 1) for n in range(16)]),
    (",".join(f"{n}-{n}" for n in range(17)), None),
    ("0-,0-", None),
    ("0-4999,5000-,0-0", None),
    (",,", None),
]


@pytest.mark.parametrize(("specs", "expected"), SETS)
def test_several_ranges_keep_their_order_and_coalesce(specs: str, expected: list[tuple[int, int]] | None) -> None:
    found = ranges.parse(f"bytes={specs}", 10_000)
    assert (None if found is None else [(one.start, one.end) for one in found]) == expected


def test_ranges_of_which_none_can_be_satisfied_are_refused_and_the_end_of_an_empty_file_is_the_whole() -> None:
    for specs, size in (("10000-,-0", 10_000), ("0-", 0), ("0-,-0", 0)):
        with pytest.raises(ranges.Unsatisfiable):
            ranges.parse(f"bytes={specs}", size)
    assert ranges.parse("bytes=-1", 0) is None
    assert ranges.parse("bytes=5-,-1", 0) is None


@given(st.text(max_size=30))
def test_any_range_and_condition_header_is_answered(text: str) -> None:
    with contextlib.suppress(ranges.Unsatisfiable):
        ranges.parse(f"bytes={text}", 10)
    names = ("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
    headers = CIMultiDict(dict.fromkeys(names, text))
    assert conditions.evaluate(headers, "tag", datetime(2026, 1, 1, tzinfo=UTC)) in {None, 304, 412}
    conditions.range_holds(text, "tag", datetime(2026, 1, 1, tzinfo=UTC))


async def read_form(body: bytes, boundary: bytes, sizes: list[int]) -> list[tuple[str, str | None, bytes]]:
    async def source() -> AsyncIterator[bytes]:
        at = 0
        for size in sizes:
            yield body[at : at + size]
            at += size
        yield body[at:]

    reader, found = MultipartReader(source(), boundary), []
    while (part := await reader.next_part()) is not None:
        found.append((part.name, part.filename, b"".join([piece async for piece in reader.pieces()])))
    return found


CONTENT = st.binary(max_size=80) | st.sampled_from([b"\r\n", b"--b", b"\r\n--", b"\r\n--a", b"\r\n-\r\n--x", b""])


@given(st.lists(CONTENT, max_size=3), st.lists(st.integers(0, 30), max_size=20))
@settings(deadline=None, max_examples=150)
async def test_a_form_is_read_however_its_bytes_arrive(contents: list[bytes], sizes: list[int]) -> None:
    boundary = b"boundary"
    body = b"".join(
        b'--boundary\r\nContent-Disposition: form-data; name="n%d"; filename="f"\r\n\r\n%s\r\n' % (i, content)
        for i, content in enumerate(contents)
    )
    body += b"--boundary--\r\n"
    expected = [(f"n{i}", "f", content) for i, content in enumerate(contents)]
    assert await read_form(body, boundary, sizes) == expected
    for cut in range(len(body) - 4):
        with pytest.raises(MultipartError):
            await read_form(body[:cut], boundary, [])


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Disposition: form-data",
        b'Content-Disposition: attachment; name="a"',
        b"Content-Type: text/plain",
        b"no colon",
        b"X: " + b"x" * 9000,
        b'Content-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: base64',
        b'Content-Disposition: form-data; name="a',
        b"Content-Disposition: form-data; name=\xff",
    ],
)
async def test_a_part_without_a_proper_head_is_refused(head: bytes) -> None:
    with pytest.raises(MultipartError):
        await read_form(b"--b\r\n" + head + b"\r\n\r\nx\r\n--b--\r\n", b"b", [])


async def test_a_part_head_may_be_written_in_other_ways() -> None:
    head = b'content-disposition:form-data ;FILENAME="a\\"; name=x" ; name=field;\r\nContent-Type: x/y'
    body = b"preamble\r\n--b \t\r\n" + head + b"\r\n\r\nx\r\n--b--epilogue"
    assert await read_form(body, b"b", []) == [("field", 'a"; name=x', b"x")]
    assert boundary_of('multipart/form-data; charset=utf-8; boundary="a b"') == b"a b"
    for wrong in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'x; boundary="' + "a" * 71 + '"',
        "x; =;",
    ):
        with pytest.raises(MultipartError):
            boundary_of(wrong)


def test_a_file_name_cannot_break_its_header() -> None:
    value = disposition("inline", 'a"b\r\nX: y/\\é\ud800')
    assert value.isascii()
    assert "\r" not in value
    assert value.startswith('inline; filename="a_b__X: y____"; filename*=UTF-8')
    assert disposition("inline", "a.mp4") == 'inline; filename="a.mp4"'


HOSTILE_NAMES = {
    "../../etc/passwd": "../../etc/passwd",
    "NUL": "a\x00b.mp4",
    "CRLF": "a.mp4\r\nSet-Cookie: x=1",
    "right to left": "clip\u202egpj.exe",
    "4 KB of ASCII": "n" * 4092 + ".mp4",
    "4 KB of others": "😀" * 1024,
    "quotes": 'a";filename="b',
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_a_hostile_file_name_is_one_harmless_header_that_clients_take(name: str) -> None:
    value = disposition("attachment", name)
    assert value.isascii()
    assert value.isprintable()
    assert len(value) < 8000
    # Read by the rules of RFC 6266 it is what was given, save what would be a path or a control.
    safe = re.sub(r"[\x00-\x1f/\\]", "_", name)
    read = structured.filename(value)
    assert read == safe or (len(name.encode()) > 4000 and safe.startswith(read) and len(read) > 400)
    assert "/" not in value.partition("filename*")[0].partition(";")[2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", ""),
        ("inline", ""),
        ("inline; filename=a.mp4", "a.mp4"),
        ("inline;filename = a.mp4 ; x=y", "a.mp4"),
        (r'inline; filename="a \"b\" \\.mp4"', 'a "b" \\.mp4'),
        ("inline; filename=\"a\"; filename*=utf-8'en'%e2%82%ac.mp4", "€.mp4"),
        ("inline; filename=\"a\"; filename*=utf-8''%ff", "a"),
        ("inline; filename*=latin-9''%ff", ""),
        ('inline; filename="open', ""),
        ("inline; filename=\udcff", "?"),
    ],
)
def test_the_name_in_a_content_disposition_is_read(text: str, name: str) -> None:
    assert structured.filename(text) == name


def test_structured_fields_that_are_none_count_as_not_sent() -> None:
    for text in (None, "", "-1", "1.0", "a", "1, 2", "1 2", "9" * 16, '"1"', "１"):
        assert structured.integer(text) is None
    assert [structured.integer(text) for text in ("0", " 007 ", "12;a=b")] == [0, 7, 12]
    for text in (None, "", "?2", "true", "1", "?0, ?1", "? 1"):
        assert structured.boolean(text) is None
    assert [structured.boolean(text) for text in ("?0", "?1 ", "?1; a")] == [False, True, True]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", sse.EVENTS),
        ("*/*", sse.EVENTS),
        ("text/event-stream", sse.EVENTS),
        ("application/x-ndjson", sse.LINES),
        ("application/x-ndjson;q=0.5, text/event-stream", sse.EVENTS),
        ("image/png, */*;q=0.1", sse.EVENTS),
        ("application/*", sse.LINES),
        ("application/x-ndjson, text/event-stream; Q=0.1", sse.LINES),
        ("text/event-stream;q=0.0, */*", sse.LINES),
        ("text/*;q=0.2, application/x-ndjson;charset=utf-8;q=0.3", sse.LINES),
    ],
)
def test_a_stream_comes_as_the_client_asks(accept: str, kind: str) -> None:
    assert sse.negotiate(accept) == kind


@pytest.mark.parametrize(
    "accept", ["image/png", "text/event-stream;q=0", "text/event-stream; q = 0.000", "video/*"]
)
def test_a_stream_that_the_client_does_not_take_is_406(accept: str) -> None:
    with pytest.raises(Problem, match="406"):
        sse.negotiate(accept)


def test_what_a_service_gave_up_may_be_tried_again() -> None:
    problem = problems.from_error(BY_CODE["CANCELLED"]("the server stops"))
    assert (problem.status, problem.headers["Retry-After"]) == (503, "2")


def test_a_missing_scope_is_named_in_the_challenge() -> None:
    error = BY_CODE["PERMISSION_DENIED"]("no", reason="SCOPE_MISSING", metadata={"scope": "media:read"})
    challenge = problems.from_error(error).headers["WWW-Authenticate"]
    assert challenge == 'Bearer realm="twotruths", error="insufficient_scope", scope="media:read"'


DATES = ["Fri, 31 Dec 9999 23:59:59 -0001", "Thu, 01 Jan 1970 00:00:00 -9999"]


@pytest.mark.parametrize("date", DATES)
def test_a_date_beyond_the_calendar_counts_as_none(date: str) -> None:
    made = datetime(2026, 1, 1, tzinfo=UTC)
    for name in ("If-Modified-Since", "If-Unmodified-Since"):
        assert conditions.evaluate(CIMultiDict({name: date}), "tag", made) is None
    assert not conditions.range_holds(date, "tag", made)


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/a", "/a"),
        ("/a%20b?x=%C3%A4&flag", "/a%20b?x=%C3%A4&flag"),
        ("/a?x=1&Signature=s&y=", "/a?x=1&Signature=***&y="),
        ("/v/1%3Fsignature=s", "/v/1?signature=***"),
        ("/v/1?expires=1;signature=s", "/v/1?expires=1;signature=***"),
        ("/v/1?a=1%26signature%3Ds", "/v/1?a=1&signature=***"),
        ("/v/1?a=1%2526sig%256eature%253Ds", "/v/1?a=1&signature=***"),
        ("/v?authorization=Bearer%20s&jwt=s&x-amz-credential=s&access_token=s&policy=s", None),
        ("/v?a=%0Atoken=s", "/v?a=%0Atoken=***"),
    ],
)
def test_secrets_in_a_path_are_redacted(path: str, logged: str | None) -> None:
    hidden = edge.redacted(path)
    assert hidden == logged or logged is None
    assert not re.search(r"=[^=]*s(&|$)", hidden)
