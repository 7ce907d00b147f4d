"""GET /openapi.json: OpenAPI 3.1 of all routes, from the same bindings that are served."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from services.common.scopes import scope_of
from services.gateway import parameters, statuses
from services.gateway.handwritten import SCHEMAS
from services.gateway.protocols import PATHS
from services.gateway.routes import Binding
from services.gateway.samples import Samples
from services.gateway.schemas import Schemas
from twotruths.upload.v1.upload_pb2 import Upload

Paths = Mapping[str, Mapping[str, Any]]
NONE: Paths = MappingProxyType({})
_SIGNED = "The signature of a streaming_url, which comes with expires and key_id; no token is needed then."
_EVENTS = 'retry: 2000\n\nid: 9f86d081\ndata: {"session_id":"…"}\n\nid: 9f86d081.end\nevent: end\ndata: {}\n'
_OVER = "The stream is over, and Last-Event-ID says that the client knows."
_TAGS = {
    "Media": "Bytes out: videos, what lies beside them, and uploaded files, by ranges.",
    "tus": "Uploads by tus 1.0 (https://tus.io/protocols/resumable-upload).",
    "Resumable Uploads for HTTP": "Uploads by draft-ietf-httpbis-resumable-upload, interop version 8.",
    "Health": "How the mesh is doing.",
}
_VERBS = frozenset({"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"})
_KINDS = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")


def document(bindings: Sequence[Binding], comments: Mapping[str, str], more: Paths = NONE) -> dict[str, Any]:
    """The OpenAPI document. ``more``: operations that not every gateway has."""
    schemas = Schemas(comments)
    schemas.reference(Upload.DESCRIPTOR)  # which routes written by hand answer, whatever the bindings are
    paths: dict[str, dict[str, Any]] = {}
    for binding in bindings:
        if binding.verb not in _VERBS:
            continue  # OpenAPI has no place for others
        operations = paths.setdefault(binding.template.display, {})
        operation = operations[binding.verb.lower()] = _operation(binding, schemas, comments)
        if binding.verb == "GET" and not binding.method.server_streaming:
            operations["head"] = _head(operation)
    for path, written in (*PATHS.items(), *more.items()):
        paths.setdefault(path, {}).update({verb: _with_problems(op) for verb, op in written.items()})
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "twotruths",
            "version": "1",
            "summary": "Three clips in, one video out, and a guess",
            "description": files("services.gateway").joinpath("introduction.md").read_text(encoding="utf-8"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": _tags(bindings, comments, paths),
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(({**schemas.components, **SCHEMAS}).items())),
            "headers": dict(statuses.HEADERS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "signed": {"type": "apiKey", "in": "query", "name": "signature", "description": _SIGNED},
            },
        },
    }
    _add_examples(found)
    return found


def _add_examples(document: Mapping[str, Any]) -> None:
    """Gives every answer in JSON that is no problem an example."""
    samples = Samples(document)
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                media = response.get("content", {}).get(_KINDS[0], {})
                if "schema" in media:
                    media["example"] = samples.value(media["schema"])


def _tags(
    bindings: Sequence[Binding], comments: Mapping[str, str], paths: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str]]:
    """The services that have routes, with their comments, then the tags of what is written by hand."""
    services = {b.method.containing_service.name: b.method.containing_service.full_name for b in bindings}
    texts = {name: comments.get(services[name], "") for name in sorted(services)} | _TAGS
    used = {operation["tags"][0] for operations in paths.values() for operation in operations.values()}
    names = [*(name for name in texts if name in used), *sorted(used - texts.keys())]
    return [{"name": name, "description": texts.get(name, "")} for name in names]


def _operation(binding: Binding, schemas: Schemas, comments: Mapping[str, str]) -> dict[str, Any]:
    comment = comments.get(binding.method.full_name, "")
    summary, _, rest = comment.partition("\n\n")
    slug = re.sub(r"[^A-Za-z0-9]+", "_", binding.template.display).strip("_")
    operation: dict[str, Any] = {
        "operationId": f"{binding.method.name}_{binding.verb.lower()}_{slug}",
        "tags": [binding.method.containing_service.name],
        "summary": summary.replace("\n", " "),
        "description": rest,
        "parameters": parameters.of_rpc(binding, schemas),
        "responses": {
            "200": _answer(binding, schemas),
            **statuses.of_rpc(comment, body=bool(binding.body), stream=binding.method.server_streaming),
        },
    }
    if scope := scope_of(binding.method):
        operation["security"] = [{"bearer": [scope]}]
    if binding.method.server_streaming:
        operation["responses"]["204"] = {"description": _OVER, "headers": statuses.headers("X-Request-Id")}
    if binding.body:
        operation["requestBody"] = _body(binding, schemas)
    return operation


def _head(operation: Mapping[str, Any]) -> dict[str, Any]:
    """The same without a body (RFC 9110 section 9.3.2)."""
    responses = {
        status: {name: part for name, part in response.items() if name != "content"}
        for status, response in operation["responses"].items()
    }
    name = operation["operationId"].replace("_get_", "_head_", 1)
    return {**operation, "operationId": name, "responses": responses}


def _body(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    descriptor: Any = binding.method.input_type
    if binding.body != "*":
        descriptor = descriptor.fields_by_name[binding.body].message_type
    without = frozenset(binding.template.fields) if binding.body == "*" else frozenset[str]()
    schema = schemas.message(descriptor, request=True, without=without)
    if not binding.ignore_unknown:
        schema["additionalProperties"] = False
    name = descriptor.name.removesuffix("Request") + "Body"
    schemas.components[name] = schema
    reference = {"$ref": f"#/components/schemas/{name}"}
    # In a form an object, or a list of objects, is one JSON text.
    properties = schema["properties"]
    texts = [field.name for field in descriptor.fields if field.message_type and field.name in properties]
    encoding = {"encoding": {text: {"contentType": "application/json"} for text in texts}} if texts else {}
    media = {kind: {"schema": reference} | (encoding if kind != _KINDS[0] else {}) for kind in _KINDS}
    return {"required": bool(schema.get("required")), "content": media}


def _answer(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    descriptor: Any = binding.method.output_type
    if binding.response_body:
        schema = schemas.field(descriptor.fields_by_name[binding.response_body], request=False)
        schema = next(iter(schema.get("anyOf", [schema])))
    else:
        schema = schemas.reference(descriptor)
    if binding.method.server_streaming:
        return {
            "headers": statuses.headers(*statuses.OF_ANSWERS),
            "description": "Each change as the data of an event, then an event named end.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "example": _EVENTS},
                "application/x-ndjson": {"schema": {"type": "object", "properties": {"result": schema}}},
            },
        }
    return {
        "description": "Done.",
        "headers": statuses.headers(*statuses.OF_ANSWERS),
        "content": {"application/json": {"schema": schema}},
    }


def _with_problems(operation: Mapping[str, Any]) -> dict[str, Any]:
    """A hand-written operation has its problems as ``x-problems``, status → meaning."""
    result = dict(operation)
    result["responses"] = dict(result["responses"]) | statuses.of_handwritten(result.pop("x-problems", {}))
    return result
