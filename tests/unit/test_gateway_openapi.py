"""The OpenAPI document: valid, and as strict as the gateway and the services are."""

from __future__ import annotations

import re
from typing import Any

import protovalidate
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.gateway import contract, openapi, problems, routes
from services.gateway.samples import Samples
from twotruths.challenge.v1.challenge_pb2 import ChallengeErrorReason
from twotruths.merge.v1.merge_pb2 import MergeErrorReason
from twotruths.upload.v1.upload_pb2 import UploadErrorReason

BINDINGS = routes.bindings(contract.services())


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document(BINDINGS, contract.comments())


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_what_an_empty_body_is_refused_for_is_required(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["InitiateUploadBody"]["required"] == ["filename", "mime_type"]
    for binding in (b for b in BINDINGS if b.body == "*"):
        paths = [v.proto.field for v in protovalidate.collect_violations(binding.request())]
        refused = {path.elements[0].field_name for path in paths if path is not None and path.elements}
        name = binding.method.input_type.name.removesuffix("Request") + "Body"
        assert set(schemas[name].get("required", [])) == refused - set(binding.template.fields), name


def test_bounds_of_maps_and_bytes_are_told(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["InitiateUploadBody"]["properties"]
    assert fields["filename"] | {"description": ""} == {
        "type": "string",
        "description": "",
        "minLength": 1,
        "maxLength": 4096,
        "examples": ["clip.mp4"],
    }
    assert fields["metadata"]["propertyNames"] == {"minLength": 1, "maxLength": 64}
    assert fields["metadata"]["additionalProperties"]["maxLength"] == 1024
    assert fields["mime_type"]["examples"] == ["video/mp4"]


def test_an_example_may_be_any_json(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    sizes = schemas["InitiateMergeBody"]["properties"]["video_file_sizes"]
    assert sizes["examples"] == [[8100000, 5000000, 7000000]]
    metadata = schemas["CreateChallengeBody"]["properties"]["merged_video_metadata"]["examples"][0]
    assert [segment["statement_index"] for segment in metadata["segments"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("post", "/api/v1/upload/{session_id}/complete", {"408", "413", "414", "415", "417", "422", "429", "431"}),
        ("post", "/api/v1/upload/initiate", {"400", "401", "409", "413", "429"}),
        ("get", "/api/v1/upload/{session_id}/events", {"404", "406", "414"}),
        ("head", "/api/v1/upload/{session_id}/status", {"200", "401", "404"}),
        ("get", "/api/v1/media/stream/{video_file_id}", {"206", "304", "412", "414", "416", "429", "431"}),
    ],
)
def test_an_operation_names_what_codes_reasons_and_its_shape_may_answer(
    document: dict[str, Any], method: str, path: str, statuses: set[str]
) -> None:
    operation = document["paths"][path][method]
    assert statuses <= set(operation["responses"])
    assert "Retry-After" in operation["responses"]["503"]["headers"]


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("post", "/api/v1/challenges/{challenge_id}/guess", 409, "ALREADY_GUESSED"),
        ("post", "/api/v1/challenges", 404, "VIDEO_NOT_USABLE"),
        ("post", "/api/v1/upload/initiate", 413, "FILE_TOO_LARGE"),
        ("post", "/api/v1/upload/{session_id}/complete", 422, "FILE_INFECTED"),
        ("post", "/api/v1/upload/{session_id}/chunk/{chunk_number}", 409, "CHUNK_CONFLICT"),
        ("get", "/api/v1/media/stream/{video_file_id}", 403, "SIGNATURE_EXPIRED"),
        ("patch", "/api/v1/tus/{session_id}", 412, "TUS_VERSION_UNSUPPORTED"),
        ("get", "/api/v1/upload/limits", 503, "UNAVAILABLE"),
    ],
)
def test_a_refusal_is_shown_as_a_phone_gets_it(
    document: dict[str, Any], method: str, path: str, status: int, reason: str
) -> None:
    meaning = document["paths"][path][method]["responses"][str(status)]["description"]
    shown = Samples(document).problem(status, meaning, path)
    assert shown["reason"] == reason
    assert shown["detail"] != problems.title(status)
    assert not {word for word in problems.STATUS_BY_CODE if f"{word} " in meaning} - {reason}


def test_comments_name_only_reasons_that_the_contract_has() -> None:
    enums = (UploadErrorReason, MergeErrorReason, ChallengeErrorReason)
    known = {value.name.partition("_ERROR_REASON_")[2] for enum in enums for value in enum.DESCRIPTOR.values}
    for method in (binding.method for binding in BINDINGS):
        words = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", contract.comments()[method.full_name]))
        assert words <= known | problems.STATUS_BY_CODE.keys(), method.full_name


def test_a_request_beyond_a_quota_may_also_be_beyond_the_limit_of_all_requests(document: dict[str, Any]) -> None:
    told = document["paths"]["/api/v1/upload/initiate"]["post"]["responses"]["429"]["description"]
    assert {"RATE_LIMITED", "QUOTA_OPEN_UPLOADS", "TOO_MANY_REQUESTS"} <= set(re.findall(r"[A-Z_]{4,}", told))


def test_headers_and_permissions_of_bytes_are_told(document: dict[str, Any]) -> None:
    operation = document["paths"]["/api/v1/media/stream/{video_file_id}"]["get"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert {"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since"} <= names
    assert {"ETag", "Content-Range"} <= set(operation["responses"]["206"]["headers"])
    assert operation["security"] == [{"bearer": ["media:read"]}, {"signed": []}]
    assert {"206", "302", "416"} <= operation["responses"].keys()
    head = document["paths"]["/api/v1/media/stream/{video_file_id}"]["head"]
    assert not {"206", "302", "416"} & head["responses"].keys()


def test_every_operation_that_wants_a_token_says_which_scope(document: dict[str, Any]) -> None:
    operations = {op["operationId"]: op for ops in document["paths"].values() for op in ops.values()}
    scopes = {name: [way.get("bearer") for way in op.get("security", [])] for name, op in operations.items()}
    anyone = {name for name, op in operations.items() if {} in op.get("security", [])}
    without = {name for name in operations if not any(scopes[name])} - anyone
    assert {name.partition("_")[0] for name in without} == {"GetProcessingHealth"}  # any player's token
    assert scopes["UploadChunk_upload_path"] == [["media:upload"]]
    assert scopes["TusPatch"] == [["media:upload"]]
    assert scopes["SubmitGuess_post_api_v1_challenges_challenge_id_guess"] == [["challenge:write"]]


def test_every_json_answer_has_an_example(document: dict[str, Any]) -> None:
    media = [
        (op["operationId"], response["content"]["application/json"])
        for ops in document["paths"].values()
        for op in ops.values()
        for response in op["responses"].values()
        if "application/json" in response.get("content", {})
    ]
    assert len(media) > 30
    for name, each in media:
        schema = {**each["schema"], "components": document["components"]}
        assert "example" in each, name
        Draft202012Validator(schema).validate(each["example"])


def test_requests_may_be_sent_again_and_streams_resumed_by_header(document: dict[str, Any]) -> None:
    def headers(method: str, path: str) -> set[str]:
        return {p["name"] for p in document["paths"][path][method]["parameters"] if p["in"] == "header"}

    assert "Idempotency-Key" in headers("post", "/api/v1/upload/initiate")
    assert "Last-Event-ID" in headers("get", "/api/v1/upload/{session_id}/events")


def test_objects_in_forms_are_json(document: dict[str, Any]) -> None:
    content = document["paths"]["/api/v1/challenges"]["post"]["requestBody"]["content"]
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        assert content[kind]["encoding"]["statements"] == {"contentType": "application/json"}
    assert "encoding" not in content["application/json"]
