"""JSON, forms and queries → messages → JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway import encode
from services.gateway.decode import Decoder
from services.gateway.jsontext import parse_json
from services.gateway.problems import Problem
from twotruths.challenge.v1.challenge_service_pb2 import CreateChallengeRequest, SubmitGuessRequest
from twotruths.merge.v1.merge_pb2 import MERGE_STATUS_COMPLETED, MergeSession
from twotruths.merge.v1.merge_service_pb2 import InitiateMergeRequest
from twotruths.merge.v1.video_service_pb2 import GetPlaybackRequest
from twotruths.upload.v1.upload_pb2 import UPLOAD_STATUS_IN_PROGRESS, Upload
from twotruths.upload.v1.upload_service_pb2 import InitiateUploadRequest

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
STAMP = st.builds(Timestamp, seconds=st.integers(-62135596800, 253402300799), nanos=st.integers(0, 999_999_999))
UPLOADS = st.builds(
    Upload,
    session_id=TEXT,
    video_index=st.none() | INT32,
    file_size=INT64,
    uploaded_chunks=st.lists(INT32, max_size=5),
    progress_percent=st.floats(allow_nan=False) | st.just(float("nan")),
    status=st.integers(0, 6) | st.just(99),
    created_at=st.none() | STAMP,
    ready_for_merge=st.booleans(),
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
)


def decoded(message: Any, value: Any, *, ignore: bool = False) -> Any:
    decoder = Decoder(ignore_unknown=ignore)
    decoder.json(message, value)
    decoder.check()
    return message


def from_pairs(message: Any, *pairs: tuple[str, str], form: bool = True, ignore: bool = False) -> Any:
    decoder = Decoder(ignore_unknown=ignore)
    decoder.pairs(message, pairs, form=form)
    decoder.check()
    return message


def refusal(call: Callable[[], Any]) -> Problem | None:
    """The problem that ``call`` raises, if it does."""
    try:
        call()
    except Problem as problem:
        return problem
    return None


@given(UPLOADS)
@settings(max_examples=150, deadline=None)
def test_what_is_encoded_decodes_to_the_same_message(upload: Upload) -> None:
    value = parse_json(encode.dumps(encode.to_json(upload)))
    assert set(value) == {field.name for field in Upload.DESCRIPTOR.fields}
    # Compared as bytes: NaN is not equal to itself.
    again = decoded(Upload(), value)
    assert again.SerializeToString(deterministic=True) == upload.SerializeToString(deterministic=True)


NAMES = sorted({f.name for m in (CreateChallengeRequest, Upload) for f in m.DESCRIPTOR.fields} | {"x/y~", ""})
JSON = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_json_is_taken_or_refused_with_pointers(value: Any, ignore: bool) -> None:
    for message in (CreateChallengeRequest(), Upload(), MergeSession()):
        problem = refusal(lambda m=message: decoded(m, value, ignore=ignore))  # type: ignore[misc]  # its default
        assert problem is None or (problem.status == 400 and problem.errors)
        encode.dumps(encode.to_json(message))


@given(
    st.lists(
        st.tuples(st.sampled_from([*NAMES, "merged_video_metadata.total_duration", "a.b"]), st.text(max_size=9))
    )
)
@settings(max_examples=150, deadline=None)
def test_any_pairs_are_taken_or_refused_with_pointers(pairs: list[tuple[str, str]]) -> None:
    problem = refusal(lambda: from_pairs(CreateChallengeRequest(), *pairs))
    assert problem is None or (problem.status == 400 and problem.errors)


def test_the_shape_is_that_of_the_phone_app() -> None:
    value = encode.to_json(
        Upload(file_size=2**60, status=UPLOAD_STATUS_IN_PROGRESS, created_at=Timestamp(seconds=1))
    )
    assert value["file_size"] == 2**60
    assert value["status"] == "in_progress"
    assert value["created_at"] == "1970-01-01T00:00:01Z"
    assert (value["video_index"], value["completed_at"], value["purpose"]) == (None, None, None)
    assert (value["uploaded_chunks"], value["metadata"], value["error_type"]) == ([], {}, "")


@pytest.mark.parametrize("name", ["completed", "MERGE_STATUS_COMPLETED", 4])
def test_enums_go_by_their_short_their_full_name_or_their_number(name: Any) -> None:
    assert decoded(MergeSession(), {"overall_status": name}).overall_status == MERGE_STATUS_COMPLETED


@pytest.mark.parametrize("name", ["COMPLETED", "done", "", True, 1.5, "4"])
def test_other_enum_values_are_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(Problem, match="overall_status"):
        decoded(MergeSession(), {"overall_status": name})


def test_a_form_gives_lists_as_json_or_as_repeated_keys() -> None:
    for pairs in (
        [("video_filenames", '["a","[1].mp4"]'), ("video_file_sizes", "[1, 2]")],
        [
            ("video_filenames", "a"),
            ("video_filenames", "[1].mp4"),
            ("video_file_sizes", "1"),
            ("video_file_sizes", "2"),
        ],
    ):
        request = from_pairs(InitiateMergeRequest(), *pairs, ("canvas", '{"width":640}'), ("quality", "high"))
        assert list(request.video_filenames) == ["a", "[1].mp4"]
        assert list(request.video_file_sizes) == [1, 2]
        assert (request.canvas.width, request.quality) == (640, 3)
    assert list(from_pairs(InitiateMergeRequest(), ("video_filenames", "[1].mp4")).video_filenames) == ["[1].mp4"]


def test_a_query_nests_and_repeats() -> None:
    request = from_pairs(
        InitiateMergeRequest(), ("canvas.width", "7"), ("video_filenames", "[]"), ("video_count", "+3"), form=False
    )
    assert (request.canvas.width, list(request.video_filenames), request.video_count) == (7, ["[]"], 3)
    assert from_pairs(GetPlaybackRequest(), ("prefer_signed", "False")).HasField("prefer_signed")
    with pytest.raises(Problem, match="cannot be given as one parameter"):
        from_pairs(InitiateMergeRequest(), ("canvas", "{}"), form=False)


def test_zero_is_present_and_null_is_not() -> None:
    assert decoded(SubmitGuessRequest(), {"statement_index": 0}).HasField("statement_index")
    assert not decoded(SubmitGuessRequest(), {"statement_index": None}).HasField("statement_index")


def test_every_wrong_field_is_named_in_the_callers_words() -> None:
    value = {"statements": [{}, {"duration_seconds": "x", "y": 1}], "lie_statement_index": [], "a/b": 1}
    with pytest.raises(Problem) as raised:
        decoded(CreateChallengeRequest(), value)
    assert {e.pointer for e in raised.value.errors} == {
        "/statements/1/duration_seconds",
        "/statements/1/y",
        "/lie_statement_index",
        "/a~1b",
    }
    with pytest.raises(Problem) as raised:
        decoded(CreateChallengeRequest(), value, ignore=True)
    assert len(raised.value.errors) == 2


@pytest.mark.parametrize("text", ["1", '"1"', "1.0", "1e0"])
def test_whole_numbers_come_in_any_json_form(text: str) -> None:
    assert decoded(Upload(), parse_json(b'{"file_size":%s}' % text.encode())).file_size == 1


@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_a_problem(data: bytes) -> None:
    problem = refusal(lambda: json.dumps(parse_json(data)))
    assert problem is None or (problem.status, problem.reason) == (400, "MALFORMED_JSON")


def test_a_number_of_thousands_of_digits_is_refused_in_our_words() -> None:
    problem = refusal(lambda: parse_json(b'{"file_size":%s}' % (b"9" * 5000)))
    assert problem is not None
    assert problem.detail == "the body is not JSON: a number has more than 4000 digits"


def test_what_would_take_long_to_look_at_is_refused_before() -> None:
    for body in (b"[" + b"{}," * 20_000 + b"{}]", b"[" * 30_000, b'{"a":"%s"}' % (b"," * 20_000)):
        problem = refusal(lambda body=body: parse_json(body))  # type: ignore[misc]
        assert problem is not None
        assert (problem.status, problem.reason) == (413, "BODY_TOO_LARGE")
    twice = json.dumps({f"k{i}": 1 for i in range(19_000)})[:-1] + ', "k18999": 2}'
    problem = refusal(lambda: parse_json(twice.encode()))
    assert problem is not None
    assert problem.detail == "the body is not JSON: the key 'k18999' comes twice"


def test_a_list_or_map_longer_than_its_field_takes_is_not_looked_at() -> None:
    for message, value, pointer in (
        (CreateChallengeRequest(), {"statements": [{}] * 4000}, "/statements"),
        (CreateChallengeRequest(), {"statements": ["x"] * 4000}, "/statements"),
        (InitiateUploadRequest(), {"metadata": {f"k{i}": 1 for i in range(4000)}}, "/metadata"),
    ):
        with pytest.raises(Problem) as raised:
            decoded(message, value)
        assert [(e.pointer, e.detail[:17]) for e in raised.value.errors] == [(pointer, "must have at most")]


def test_at_most_32_wrong_fields_are_looked_for() -> None:
    looked: list[str] = []

    class Counting(dict[str, int]):
        def items(self) -> Any:
            for name, value in super().items():
                looked.append(name)
                yield name, value

    with pytest.raises(Problem) as raised:
        decoded(CreateChallengeRequest(), Counting({f"k{i}": 1 for i in range(300)}))
    assert (len(raised.value.errors), len(looked)) == (32, 32)
