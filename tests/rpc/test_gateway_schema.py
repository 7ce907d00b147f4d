"""The gateway keeps what its OpenAPI document promises, whatever is sent: schemathesis makes the requests.

For each operation it tries the rules of the schemas from both sides of their bounds, and a few requests at random:
the same ones in every run. A well-formed id is replaced by that of a thing that is there: 404s alone show little.
What its checks want and this API does not keep is told below, with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, cast

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_schema_validator import OAS31Validator
from schemathesis import Case, GenerationMode, Response
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks

from services.common.keys import KeyRing
from tests.rpc import documented
from tests.rpc.gateway_world import World, open_world
from twotruths.upload.v1 import upload_pb2

_MOST = 60
_AT_RANDOM = 4
_SECONDS = 10
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FORM, _EVENTS = "application/x-www-form-urlencoded", "text/event-stream"

_REFUSED = [str(status) for status in (*range(400, 407), 409, 410, 412, 413, 414, 415, 416, 422, 460)]
_CHECKS = {
    # 501 says that an rpc is not served yet, where the document says so too: else it is an undocumented status.
    "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "501"]},
    # tus wants 412 for another Tus-Resumable, and 460 for a wrong checksum. No 5xx: bad input is not our fault.
    "negative_data_rejection": {"expected-statuses": [*_REFUSED, "501"]},
    "missing_required_header": {"expected-statuses": ["400", "401", "412", "415"]},
    # Conditions of state: what an upload has, which bytes there are, what the client has seen of a file.
    "positive_data_acceptance": {
        "expected-statuses": ["2xx", "3xx", *["401", "403", "404", "409", "410", "412", "416", "460", "501"]]
    },
}
_BEYOND_SCHEMAS = {
    "/page_token": "is one that the server gave",
    "/canvas": "has rules between its fields, in CEL",
    "/video_filenames": "has as many elements as video_count says",
    "/video_file_sizes": "has as many elements as video_count says",
    "/video_durations": "has as many elements as video_count says",
    "/video_mime_types": "has as many elements as video_count says",
    "/video_index": "names a clip of the session",
    "/file_size": "is 0 with defer_length alone; the largest is a setting",
    "/chunk_size": "fits the size of the file",
    "/is_merged_video": "is always true",
    "/Upload-Length": "is given if Upload-Defer-Length is not; is that of the content",
    "/Upload-Defer-Length": "is given if Upload-Length is not",
    "/Upload-Metadata": "holds base64 of UTF-8",
    "/Upload-Checksum": "is that of the body",
    "/Content-Digest": "is that of the content",
    "/X-Chunk-SHA256": "is that of the body",
    "/file_hash": "is that of the file",
    "/chunk_hash": "is that of the chunk",
    "/file": "has as many bytes as the chunk",
}
"""Fields that may be wrong although the schema is kept: what a service knows or what two fields say together."""

_BEYOND_FIELDS = frozenset({"CHUNK_OUT_OF_RANGE", "LENGTH_EXCEEDED", "LENGTH_MISMATCH"})
"""Reasons of the same kind that name no field."""
_RANDOM: Any = settings(
    max_examples=_AT_RANDOM,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

SCHEMA = schemathesis.openapi.from_dict(
    dict(documented.document()), config=SchemathesisConfig.from_dict({"checks": _CHECKS})
)
_FOUND: Any = SCHEMA.get_all_operations()
OPERATIONS = {found.ok().label: found.ok() for found in _FOUND}


@schemathesis.serializer("application/offset+octet-stream", "application/partial-upload")
def _bytes(_: Any, value: Any) -> bytes:
    return str(value).encode()


@pytest.fixture(scope="module")
async def world(keys: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    key = str(keys.directory / "players.pem")
    guests: dict[str, Any] = {"gateway_guest_key_file": key, "gateway_guests_per_minute_address": 1e6}
    async with open_world(keys, tmp_path_factory.mktemp("gateway"), **guests) as world:
        yield world


async def things(world: World, path: str) -> dict[str, str]:
    """The ids of things that are there, by the names that the path gives them."""
    upload = world.uploads.add("alice", "a.mp4", 8, 4)
    if path.endswith(("/complete", "/events")):  # the stream ends with the upload
        world.uploads._extend(upload, bytes(8))
        upload.status = upload_pb2.UPLOAD_STATUS_COMPLETED
    video = await world.add_video(b"0123456789" * 20)
    await world.add_sidecars(video, b"0123456789" * 70)
    file = upload_pb2.File(file_id=video, object_key=f"videos/{video}/v.mp4", size=200)
    world.uploads.files[video] = ("alice", file)
    return {
        "session_id": upload.session_id,
        "merge_session_id": world.merges.add("alice", [("a", 1), ("b", 1)]).merge_session_id,
        "challenge_id": world.challenges.add().challenge_id,
        "video_file_id": video,
        "file_id": video,
    }


@pytest.mark.parametrize("label", OPERATIONS)
async def test_an_operation_answers_as_documented(world: World, label: str) -> None:
    operation = OPERATIONS[label]
    asker = Asker(world, await things(world, operation.path))
    await asyncio.to_thread(asker.ask_all, operation)


def test_an_answer_that_no_operation_has_is_found() -> None:
    status = "/api/v1/upload/3f2b8c1e-6d47-4a59-9c0e-7b1d2e5f8a34/status"
    problem = {"content-type": documented.PROBLEM}
    assert documented.fault("GET", status, 404, problem, b"{}") == ""
    assert "418" in documented.fault("GET", status, 418, problem, b"{}")
    assert "text/html" in documented.fault("GET", status, 404, {"Content-Type": "text/html"}, b"<p>")
    assert documented.fault("PUT", status, 405, problem, b"{}") == ""
    assert documented.fault("GET", "/nowhere", 404, problem, b"{}") == ""


class Asker:
    """Sends cases from a thread of its own, and checks the answers. ``ids``: of things that are there."""

    def __init__(self, world: World, ids: Mapping[str, str]) -> None:
        self._url = f"http://127.0.0.1:{world.port}"
        self._headers = world.auth()
        self._ids = ids
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between

    def ask_all(self, operation: Any) -> None:
        """Raises what schemathesis says of the first answer that is not as documented."""
        with self._session:
            for case in _cases(operation):
                self._ask(case)
            for mode in GenerationMode:
                test = _RANDOM(given(case=operation.as_strategy(generation_mode=mode))(self._ask))
                with contextlib.suppress(Unsatisfiable):  # without parameters and body nothing can be wrong
                    test()

    def _ask(self, case: Case[Any]) -> None:
        if _is_taken_apart(case):
            return
        for name, value in case.path_parameters.items():
            if name in self._ids and _UUID.fullmatch(str(value)):
                case.path_parameters[name] = self._ids[name]
        if str(case.headers.get("Upload-Draft-Interop-Version", "")).strip() == "8":
            del case.headers[
                "Upload-Draft-Interop-Version"
            ]  # requests takes the 104 that it asks for as the answer
        response = case.call(self._url, self._session, self._headers, timeout=_SECONDS)
        case.validate_response(
            response,
            excluded_checks=[getattr(checks, name) for name in _left_out(case, response)],
            headers=self._headers,
            transport_kwargs={"session": self._session, "headers": self._headers},
        )


def _cases(operation: Any) -> Iterable[Case[Any]]:
    """As many as may be: the first of each kind before the second of any."""
    generation = SCHEMA.config.generation_for(operation=operation)
    kinds: Counter[object] = Counter()
    ranked: list[tuple[int, Case[Any]]] = []
    for case in SCHEMA.iter_coverage_cases(
        operation, generation_modes=list(GenerationMode), generation_config=generation
    ):
        data: Any = case.meta.phase.data if case.meta else None
        kind = (data.scenario, data.parameter_location, data.parameter)
        kinds[kind] += 1
        ranked.append((kinds[kind], case))
    return [case for _, case in sorted(ranked, key=itemgetter(0))[:_MOST]]


def _content(case: Case[Any]) -> Mapping[str, Any]:
    """What the document says of the case's body."""
    content = case.operation.definition.raw.get("requestBody", {}).get("content", {})
    return cast(Mapping[str, Any], content.get(case.media_type, {}))


def _is_taken_apart(case: Case[Any]) -> bool:
    """A form whose objects schemathesis does not send as JSON, though their ``encoding`` says so. In multipart it
    does."""
    return case.media_type == _FORM and "encoding" in _content(case)


def _left_out(case: Case[Any], response: Response) -> Iterator[str]:
    """The checks that this answer need not pass."""
    kind = response.headers.get("content-type", [""])[0]
    told = response.json() if kind == documented.PROBLEM and response.content else {}
    wrong = {error["pointer"] for error in told.get("errors", ())}
    is_known = told.get("reason") in _BEYOND_FIELDS or (wrong and wrong <= _BEYOND_SCHEMAS.keys())
    if is_known or case.method == "HEAD":  # an answer without a body does not say what is wrong
        yield "positive_data_acceptance"
    if _is_meant_well(case):
        yield "negative_data_rejection"
    if kind.startswith(_EVENTS):  # schemathesis looks at each event as an object; OpenAPI 3.1 knows a text alone
        yield "response_schema_conformance"


def _is_meant_well(case: Case[Any]) -> bool:
    """Whether the gateway is right to take what breaks a schema."""
    length = str(case.headers.get("Upload-Length", "0"))
    if case.path.startswith("/api/v1/rufh/") and not re.fullmatch("[0-9]{1,15}", length):
        return True  # a structured field that cannot be read counts as not sent (RFC 9651 section 4.2)
    if case.query.keys() - {parameter.name for parameter in case.operation.query}:
        return True  # the routes of the phone app, and those of bytes, pass over what they do not know
    schema = _content(case).get("schema")
    if schema is None or not isinstance(case.body, dict):
        return False
    whole = {**schema, "components": documented.document()["components"]}
    body = _read(case.body)
    if case.media_type != "application/json":
        name = schema.get("$ref", "").rpartition("/")[2]
        described = documented.document()["components"]["schemas"].get(name, schema)
        body = _read_form(body, described["properties"])
    return bool(OAS31Validator(whole).is_valid(body))


def _read(value: Any) -> Any:
    """What the JSON mapping of protobuf makes of it: null is as if it were left out."""
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, dict):
        return {name: _read(item) for name, item in value.items() if item is not None}
    return value


def _read_form(body: Mapping[str, Any], properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """In a form 0 and 1 are truth values too."""
    truths = {name for name, schema in properties.items() if schema.get("type") == "boolean"}
    return {name: bool(item) if name in truths and item in (0, 1) else item for name, item in body.items()}
