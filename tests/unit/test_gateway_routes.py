"""Path templates and the routes made from annotations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.descriptor import ServiceDescriptor

from services.gateway import contract, routes, templates

FIELD = descriptor_pb2.FieldDescriptorProto


def match(template: str, path: str) -> dict[str, str] | None:
    """The path fields that aiohttp's router finds for ``path``."""
    parsed = templates.parse(template)
    app = web.Application()

    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get(parsed.path, handler)
    app.freeze()
    info = asyncio.run(app.router.resolve(make_mocked_request("GET", path)))
    if info.http_exception is not None:
        return None
    return {field: info[f"p{i}"] for i, field in enumerate(parsed.fields)}


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("/v1/a", "/v1/a", {}),
        ("/v1/{a}", "/v1/x", {"a": "x"}),
        ("/v1/{a}", "/v1/x/y", None),
        ("/v1/{a}", "/v1/", None),
        ("/v1/{a}", "/v1/x%2Fy", {"a": "x/y"}),
        ("/v1/{a}:cancel", "/v1/x:cancel", {"a": "x"}),
        ("/v1/{a}:cancel", "/v1/x", None),
        ("/v1/{a.b}/c/{d}", "/v1/1/c/2", {"a.b": "1", "d": "2"}),
        ("/v1/{name=shelves/*}", "/v1/shelves/7", {"name": "shelves/7"}),
        ("/v1/{name=shelves/*}", "/v1/books/7", None),
        ("/v1/{path=**}", "/v1/a/b/c", {"path": "a/b/c"}),
        ("/v1/{path=**}:verb", "/v1/a/b:verb", {"path": "a/b"}),
        ("/v1/*/b", "/v1/anything/b", {}),
    ],
)
def test_a_template_matches_what_the_grammar_says(
    template: str, path: str, expected: dict[str, str] | None
) -> None:
    assert match(template, path) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("", "nothing"),
        ("v1", "should begin"),
        ("/", "a name should be"),
        ("/v1/{a", "missing"),
        ("/v1/{}", "a name should be"),
        ("/v1/{a}/{a}", "bound twice"),
        ("/v1/{a={b}}", "cannot hold another"),
        ("/v1/{a=**}/b", "last segment"),
        ("/v1/**/b", "last segment"),
        ("/v1/{1a}", "no field path|not a field path"),
        ("/v1/a b", "not allowed"),
        ("/v1/a:", "a name should be"),
        ("/v1/a:b/c", "should begin"),
        ("/v1/{a}x", "should begin"),
    ],
)
def test_a_template_that_cannot_be_served_says_why(template: str, why: str) -> None:
    with pytest.raises(templates.TemplateError, match=why):
        templates.parse(template)


def service(**methods: dict[str, Any]) -> Iterator[tuple[str, ServiceDescriptor]]:
    """A service made on the spot; each method is an HttpRule as a dict, ``stream`` marks client streaming."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.dependency.append("google/api/annotations.proto")
    message = file.message_type.add(name="M")
    message.field.add(name="id", number=1, type=FIELD.TYPE_STRING, label=FIELD.LABEL_OPTIONAL)
    message.field.add(name="ids", number=2, type=FIELD.TYPE_STRING, label=FIELD.LABEL_REPEATED)
    message.field.add(name="m", number=3, type=FIELD.TYPE_MESSAGE, type_name=".t.M", label=FIELD.LABEL_OPTIONAL)
    made = file.service.add(name="S")
    for name, rule in methods.items():
        method = made.method.add(name=name, input_type=".t.M", output_type=".t.M")
        method.client_streaming = bool(rule.pop("stream", False))
        json_format.ParseDict(rule, method.options.Extensions[annotations_pb2.http])
    pool = descriptor_pool.DescriptorPool()
    for dependency in (
        "google/protobuf/descriptor.proto",
        "google/api/http.proto",
        "google/api/annotations.proto",
    ):
        pool.AddSerializedFile(descriptor_pool.Default().FindFileByName(dependency).serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    yield "upload", pool.FindServiceByName("t.S")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"get": "/v1/{nope}"}, "'nope' is no field of M"),
        ({"get": "/v1/{ids}"}, "must be a single"),
        ({"get": "/v1/{m}"}, "must be a single"),
        ({"get": "/v1/{id.x}"}, "must be a single message"),
        ({"get": "/v1", "body": "*"}, "GET has no body"),
        ({"post": "/v1", "body": "nope"}, "'nope' is no field"),
        ({"post": "/v1", "body": "id"}, "must be a single message"),
        ({"get": "/v1", "response_body": "nope"}, "'nope' is no field"),
        ({"get": "/v1", "stream": True}, "client-streaming"),
        ({"body": "*"}, "no path"),
        (
            {"get": "/v1", "additional_bindings": [{"get": "/v2", "additional_bindings": [{"get": "/v3"}]}]},
            "nested",
        ),
        ({"get": "/v1/{id", "body": ""}, "missing"),
    ],
)
def test_an_annotation_that_cannot_be_served_stops_the_start(rule: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        routes.bindings(service(Bad=rule))


def test_two_rpcs_cannot_have_one_route() -> None:
    with pytest.raises(routes.RouteError, match="is taken by"):
        routes.bindings(service(A={"get": "/v1/{id}"}, B={"get": "/v1/{m.id}"}))


def test_the_more_specific_route_comes_first() -> None:
    rules = {"All": "/v1/{id=**}", "One": "/v1/{id}", "Verb": "/v1/{id}:cancel", "Me": "/v1/me"}
    found = routes.bindings(service(**{name: {"get": path} for name, path in rules.items()}))
    assert [b.method.name for b in found] == ["Verb", "Me", "One", "All"]


def test_every_annotation_of_the_contract_is_a_route_with_a_comment() -> None:
    found, comments = routes.bindings(contract.services()), contract.comments()
    assert len(found) >= 30
    for binding in found:
        assert comments[binding.method.full_name]
        assert binding.template.display.startswith("/api/v1/")
