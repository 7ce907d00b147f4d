"""A service that nobody wrote gateway code for: its proto is compiled here, its annotations are its routes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, duration_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from services.common.keys import KeyRing
from services.gateway import wiring
from services.gateway.config import GatewaySettings
from tests.rpc.raw_http import Answer, exchange

PROTO = """
syntax = "proto3";
package twotruths_test.shapes.v1;

import "google/api/annotations.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";

enum Colour {
  COLOUR_UNSPECIFIED = 0;
  COLOUR_RED = 1;
  COLOUR_DARK_BLUE = 2;
}

message Shape {
  string name = 1;
  Colour colour = 2;
  int64 big = 3;
  uint64 huge = 4;
  repeated Colour colours = 5;
  repeated int64 numbers = 6;
  bytes raw = 7;
  map<string, int64> counts = 8;
  map<int32, Shape> parts = 9;
  oneof size {
    double radius = 10;
    int32 side = 11;
  }
  google.protobuf.Timestamp at = 12;
  google.protobuf.Duration lasts = 13;
  google.protobuf.StringValue note = 14;
  google.protobuf.Int64Value count = 15;
  google.protobuf.BoolValue sure = 16;
  optional int32 maybe = 17;
  Shape inner = 18;
  float ratio = 19;
  bool filled = 20;
  repeated google.protobuf.Timestamp times = 21;
  repeated Shape shapes = 22;
  sint32 small = 23;
}

service ShapeService {
  rpc GetShape(Shape) returns (Shape) {
    option (google.api.http) = {
      get: "/v1/{name=shelves/*/shapes/*}"
      additional_bindings { get: "/v1/{name=shelves/*}/first" }
      additional_bindings { get: "/v1/numbered/{inner.big}/{colour}/{filled}" }
    };
  }
  rpc FindShapes(Shape) returns (Shape) {
    option (google.api.http) = { get: "/v1/shapes" };
  }
  rpc MakeShape(Shape) returns (Shape) {
    option (google.api.http) = { post: "/v1/shapes" body: "*" };
  }
  rpc PaintShape(Shape) returns (Shape) {
    option (google.api.http) = { post: "/v1/{name=shelves/**}:paint" body: "*" };
  }
  rpc ReplaceInner(Shape) returns (Shape) {
    option (google.api.http) = { put: "/v1/{name=shelves/*}/inner" body: "inner" response_body: "inner" };
  }
  rpc ListParts(Shape) returns (Shape) {
    option (google.api.http) = { patch: "/v1/parts" body: "*" response_body: "parts" };
  }
  rpc DeleteShape(Shape) returns (Shape) {
    option (google.api.http) = { delete: "/v1/{name=**}" };
  }
  rpc ReportShape(Shape) returns (Shape) {
    option (google.api.http) = { custom { kind: "REPORT" path: "/v1/shapes" } };
  }
  rpc WatchShape(Shape) returns (stream Shape) {
    option (google.api.http) = { get: "/v1/shapes/{name}:watch" response_body: "big" };
  }
  rpc NotForPhones(Shape) returns (Shape);
}
"""
PACKAGE = "twotruths_test.shapes.v1"
IMPORTED = (duration_pb2, timestamp_pb2, wrappers_pb2)  # a pool knows what was imported


def compiled(proto: str, folder: Path, name: str) -> ServiceDescriptor:
    """The only service of a proto."""
    (folder / name).write_text(proto)
    google = Path(__file__).parents[2] / "protos"
    out = folder / f"{name}.binpb"
    paths = (f"-I{folder}", f"-I{google}", f"-I{files('grpc_tools') / '_proto'}")
    assert protoc.main(["protoc", *paths, f"--descriptor_set_out={out}", name]) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    (service,) = descriptor_pool.Default().FindFileByName(name).services_by_name.values()
    return service


class Shapes:
    """The service: answers every rpc with what it was asked, and keeps it."""

    def __init__(self, service: ServiceDescriptor) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.watch_ended = asyncio.Event()
        self._service = service

    def handlers(self) -> grpc.GenericRpcHandler:
        made = {method.name: self._handler(method) for method in self._service.methods}
        handlers: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(self._service.full_name, made)
        return handlers

    def _handler(self, method: Any) -> Any:
        async def answer(request: Any, _: Any) -> Any:
            self.asked.append((method.name, request))
            return request

        async def stream(request: Any, rpc: Any) -> AsyncIterator[Any]:
            try:
                for number in range(request.maybe):
                    yield type(request)(big=2**53 + number)
                if request.name == "broken":
                    await rpc.abort(grpc.StatusCode.NOT_FOUND, "it has gone")
            finally:
                self.watch_ended.set()

        kind = GetMessageClass(method.input_type)
        coding: dict[str, Any] = {
            "request_deserializer": kind.FromString,
            "response_serializer": kind.SerializeToString,
        }
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **coding)
        return grpc.unary_unary_rpc_method_handler(answer, **coding)


@dataclass
class House:
    """A gateway before the service."""

    port: int
    token: str
    shapes: Shapes
    kind: Any = field(repr=False)

    async def send(self, method: str, path: str, body: object = None, *fields: str) -> Answer:
        """One request; ``body`` as JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.token}", *fields]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        return await exchange(self.port, "\r\n".join([*lines, "", ""]).encode() + data)

    async def asked(self, method: str, path: str, body: object = None) -> tuple[str, Any]:
        """The rpc and the message that a request becomes."""
        before = len(self.shapes.asked)
        got = await self.send(method, path, body)
        assert (got.status, len(self.shapes.asked)) == (200, before + 1), got
        return self.shapes.asked[-1]


@pytest.fixture(scope="module")
async def house(keys: KeyRing, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("shapes")
    service = compiled(PROTO, folder, "shapes.proto")
    shapes, server = Shapes(service), grpc.aio.server()
    server.add_generic_rpc_handlers((shapes.handlers(),))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    targets: dict[str, Any] = dict.fromkeys(("upload_target", "merge_target", "challenge_target"), target)
    settings = GatewaySettings(
        **keys.settings(),
        **targets,
        gateway_listen="127.0.0.1:0",
        data_dir=folder,
    )
    async with wiring.build(settings, services=[("upload", service)]) as app:
        await app.server.start()
        kind = GetMessageClass(service.methods_by_name["GetShape"].input_type)
        yield House(app.server.port, keys.player_token("alice"), shapes, kind)
        await app.server.stop(1)
    await server.stop(0)


PATHS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "GET /v1/shelves/a/shapes/b": ("GetShape", {"name": "shelves/a/shapes/b"}),
    "GET /v1/shelves/%C3%A4%20b/shapes/b": ("GetShape", {"name": "shelves/ä b/shapes/b"}),
    "GET /v1/shelves/a/first": ("GetShape", {"name": "shelves/a"}),
    "DELETE /v1/any/number/of/them": ("DeleteShape", {"name": "any/number/of/them"}),
    "DELETE /v1/one": ("DeleteShape", {"name": "one"}),
    "REPORT /v1/shapes?big=1": ("ReportShape", {"big": 1}),
    "GET /v1/shapes": ("FindShapes", {}),
    "GET /v1/shapes?big=9223372036854775807&huge=18446744073709551615": (
        "FindShapes",
        {"big": 2**63 - 1, "huge": 2**64 - 1},
    ),
    "GET /v1/shapes?numbers=1&numbers=-2&colours=red&colours=COLOUR_DARK_BLUE&colours=0": (
        "FindShapes",
        {"numbers": [1, -2], "colours": [1, 2, 0]},
    ),
    "GET /v1/shapes?raw=_-8&maybe=0&small=-1&ratio=.5&filled=TRUE": (
        "FindShapes",
        {"raw": b"\xff\xef", "maybe": 0, "small": -1, "ratio": 0.5, "filled": True},
    ),
}


@pytest.mark.parametrize("request_line", PATHS)
async def test_paths_and_queries_become_the_message(house: House, request_line: str) -> None:
    rpc, fields = PATHS[request_line]
    assert await house.asked(*request_line.split(" ")) == (rpc, house.kind(**fields))


async def test_fields_of_fields_come_from_path_and_query(house: House) -> None:
    rpc, message = await house.asked("GET", "/v1/numbered/7/dark_blue/true?inner.inner.name=deep&inner.numbers=1")
    expected = house.kind(colour=2, filled=True)
    expected.inner.MergeFrom(house.kind(big=7, numbers=[1], inner=house.kind(name="deep")))
    assert (rpc, message) == ("GetShape", expected)


async def test_times_and_wrapped_values_come_as_parameters_too(house: House) -> None:
    query = "at=2026-01-02T03:04:05Z&lasts=1.5s&note=&count=-5&sure=false&times=1970-01-01T00:00:01Z&inner.count=0"
    _, message = await house.asked("GET", f"/v1/shapes?{query}&times=1970-01-01T00:00:02Z")
    assert (message.at.ToJsonString(), message.lasts.ToMilliseconds()) == ("2026-01-02T03:04:05Z", 1500)
    assert (message.HasField("note"), message.note.value, message.count.value) == (True, "", -5)
    assert (message.HasField("sure"), message.sure.value, message.inner.HasField("count")) == (True, False, True)
    assert [time.seconds for time in message.times] == [1, 2]


async def test_a_verb_is_no_part_of_the_name_and_the_path_beats_the_body(house: House) -> None:
    body = {"name": "another", "colour": "red"}
    rpc, message = await house.asked("POST", "/v1/shelves/a/b/c:paint", body)
    assert (rpc, message) == ("PaintShape", house.kind(name="shelves/a/b/c", colour=1))


EVERYTHING: dict[str, Any] = {
    "name": "ä\u0000😀",
    "colour": "dark_blue",
    "big": 2**53 + 1,
    "huge": 2**64 - 1,
    "colours": ["red", None],
    "numbers": [-(2**63), 2**63 - 1],
    "raw": base64.b64encode(bytes(range(256))).decode(),
    "counts": {"": 0, "a/b": 2**53 + 1},
    "parts": {"-1": {"side": 0}, "7": {"radius": 1.5}},
    "radius": None,
    "side": 3,
    "at": "2026-01-02T03:04:05.000000006Z",
    "lasts": "-1.500s",
    "note": "",
    "count": 2**53 + 1,
    "sure": False,
    "maybe": 0,
    "inner": {"inner": {"name": "deep"}},
    "ratio": 0.5,
    "filled": True,
    "times": ["1970-01-01T00:00:01Z"],
    "shapes": [{"small": -3}, {}],
    "small": -(2**31),
}


def full(value: dict[str, Any]) -> dict[str, Any]:
    """A shape as the gateway writes it: every field present."""
    empty: dict[str, Any] = dict.fromkeys(EVERYTHING) | {
        "name": "",
        "big": 0,
        "huge": 0,
        "raw": "",
        "ratio": 0.0,
        "filled": False,
    }
    empty |= {"colours": [], "numbers": [], "counts": {}, "parts": {}, "times": [], "shapes": [], "small": 0}
    filled: dict[str, Any] = empty | value
    filled["parts"] = {key: full(part) for key, part in filled["parts"].items()}
    filled["shapes"] = [full(shape) for shape in filled["shapes"]]
    filled["inner"] = filled["inner"] and full(filled["inner"])
    return filled


async def test_every_kind_of_field_comes_back_as_it_was_sent(house: House) -> None:
    sent = EVERYTHING | {"colours": ["red", "COLOUR_UNSPECIFIED"]}
    got = await house.send("POST", "/v1/shapes", sent)
    assert got.status == 200, got
    assert json.loads(got.body) == full(EVERYTHING)
    assert b'"big":9007199254740993' in got.body
    assert b'"count":9007199254740993' in got.body
    assert json.loads((await house.send("POST", "/v1/shapes", {})).body) == full({})


async def test_a_body_may_be_one_field_and_so_may_the_answer(house: House) -> None:
    got = await house.send("PUT", "/v1/shelves/a/inner?big=1", {"name": "new", "numbers": [1]})
    assert (got.status, json.loads(got.body)) == (200, full({"name": "new", "numbers": [1]}))
    expected = house.kind(name="shelves/a", big=1, inner=house.kind(name="new", numbers=[1]))
    assert house.shapes.asked[-1] == ("ReplaceInner", expected)
    got = await house.send("PATCH", "/v1/parts", {"parts": {"1": {"name": "x"}}})
    assert json.loads(got.body) == {"1": full({"name": "x"})}


WRONG: Mapping[str, tuple[Any, list[str]]] = {
    "POST /v1/shapes": (
        {
            "big": "x",
            "huge": -1,
            "colour": "green",
            "colours": ["red", "?"],
            "numbers": [1, None],
            "raw": "*",
            "counts": {"a": "x"},
            "parts": {"x": {}, "1": {"side": "y"}},
            "at": "yesterday",
            "lasts": 5,
            "note": 5,
            "count": "x",
            "sure": "true",
            "inner": {"inner": {"nope": 1}},
            "times": ["x"],
            "shapes": [{"small": 2**31}],
        },
        [
            "/big",
            "/huge",
            "/colour",
            "/colours/1",
            "/numbers/1",
            "/raw",
            "/counts/a",
            "/parts/x",
            "/parts/1/side",
            "/at",
            "/lasts",
            "/note",
            "/count",
            "/sure",
            "/inner/inner/nope",
            "/times/0",
            "/shapes/0/small",
        ],
    ),
    "POST /v1/shapes?big=1": ({}, ["/big"]),
    "PUT /v1/shelves/a/inner?inner.name=x&inner=1": ({"nope": 1}, ["/inner/name", "/inner", "/nope"]),
    "GET /v1/numbered/x/green/maybe": (None, ["/inner/big", "/colour", "/filled"]),
    "GET /v1/shapes?parts.1=x&counts=1&shapes=x&inner=x&at=now&times=x&count=x&nope=1": (
        None,
        ["/parts/1", "/counts", "/shapes", "/inner", "/at", "/times/0", "/count", "/nope"],
    ),
    "POST /v1/shapes?": ({"radius": 1, "side": 2}, ["/side"]),
    "GET /v1/shapes?radius=1&side=2": (None, ["/side"]),
}


@pytest.mark.parametrize("request_line", WRONG)
async def test_wrong_values_are_named_wherever_they_are(house: House, request_line: str) -> None:
    body, wrong = WRONG[request_line]
    before = len(house.shapes.asked)
    got = await house.send(*request_line.split(" "), body)
    assert got.status == 400, got
    assert [error["pointer"] for error in got.problem["errors"]] == wrong
    assert len(house.shapes.asked) == before


async def test_what_has_no_annotation_has_no_route_and_a_verb_its_own(house: House) -> None:
    assert (await house.send("POST", f"/{PACKAGE}.ShapeService/NotForPhones", {})).status == 404
    assert (await house.send("GET", "/v1/shelves/a/b/c:paint")).status == 405
    assert (await house.send("POST", "/v1/shelves/a:other", {})).status == 405


async def test_a_stream_is_events_or_lines(house: House) -> None:
    async def events(path: str, *fields: str) -> str:
        house.shapes.watch_ended.clear()
        got = await house.send("GET", path, None, "Connection: close", *fields)
        assert got.status == 200
        await asyncio.wait_for(house.shapes.watch_ended.wait(), 10)
        return (got.headers["content-type"] + "\n" + got.body.decode()).replace("\r", "")

    lines = "Accept: application/x-ndjson"
    numbers = [2**53, 2**53 + 1]
    text = await events("/v1/shapes/a:watch?maybe=2")
    assert text.startswith("text/event-stream\nretry: ")
    assert [line for line in text.splitlines() if line.startswith(("data", "event"))] == [
        *(f"data: {number}" for number in numbers),
        "event: end",
        "data: {}",
    ]
    text = await events("/v1/shapes/a:watch?maybe=2", lines)
    assert text == "application/x-ndjson\n" + "".join(f'{{"result":{number}}}\n' for number in numbers)
    text = await events("/v1/shapes/broken:watch?maybe=1", lines)
    assert json.loads(text.splitlines()[-1])["error"]["status"] == 404
    got = await house.send("GET", "/v1/shapes/broken:watch?maybe=0")
    assert (got.status, got.problem["reason"]) == (404, "NOT_FOUND")


async def test_it_is_documented_like_any_other(house: House) -> None:
    paths = json.loads((await house.send("GET", "/openapi.json")).body)["paths"]
    assert set(paths["/v1/shapes"]) == {"get", "head", "post"}, "OpenAPI knows no other verbs than its own"
    names = {parameter["name"] for parameter in paths["/v1/shapes"]["get"]["parameters"]}
    assert {"big", "inner.name", "note", "at"} <= names


@pytest.mark.parametrize(
    ("number", "rule", "why"),
    [
        (1, 'get: "/v1/{text=**}/more"', r"Ask|\*\* must be the last segment"),
        (2, 'get: "/v1/{nothing}"', r"S1\.Ask: .*'nothing' is no field of M"),
        (3, 'get: "/v1/{text" ', "path template '/v1/{text'"),
        (4, 'post: "/v1" body: "text"', r"Ask: body 'text' must be a single message"),
        (5, 'get: "/api/v1/health"', r"Ask: GET /api/v1/health is written by hand"),
    ],
)
async def test_a_template_that_cannot_be_served_stops_the_start(
    keys: KeyRing, tmp_path: Path, number: int, rule: str, why: str
) -> None:
    proto = f"""
        syntax = "proto3";
        package twotruths_test.wrong{number}.v1;
        import "google/api/annotations.proto";
        message M {{ string text = 1; }}
        service S1 {{ rpc Ask(M) returns (M) {{ option (google.api.http) = {{ {rule} }}; }} }}
    """
    service = compiled(proto, tmp_path, f"wrong{number}.proto")
    settings = GatewaySettings(**keys.settings(), data_dir=tmp_path)
    with pytest.raises(ValueError, match=why):
        async with wiring.build(settings, services=[("upload", service)]):
            pass
