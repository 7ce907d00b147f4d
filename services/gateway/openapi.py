"""GET /openapi.json: OpenAPI 3.1 of all routes, from the same bindings that are served."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from google.protobuf.descriptor import FieldDescriptor

from services.gateway import contract, encode, problems
from services.gateway.handwritten import SCHEMAS
from services.gateway.protocols import PATHS
from services.gateway.routes import Binding
from services.gateway.schemas import Schema, Schemas

_CODE_LINE = re.compile(r"\b([A-Z]{3}[A-Z_]+): ([^.]*)")
_ALWAYS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL")
_PROBLEM: Schema = {
    "description": "RFC 9457",
    "content": {problems.CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


class OpenApiRoutes:
    """Serves the document, made once."""

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self._body = encode.dumps(document(bindings, contract.comments()))

    async def get(self, _request: web.Request) -> web.Response:
        """The document."""
        return web.Response(body=self._body, content_type="application/json")


def document(bindings: Sequence[Binding], comments: Mapping[str, str]) -> dict[str, Any]:
    """The OpenAPI document."""
    schemas = Schemas(comments)
    paths: dict[str, dict[str, Any]] = {}
    for binding in bindings:
        operations = paths.setdefault(binding.template.display, {})
        operations[binding.verb.lower()] = _operation(binding, schemas, comments)
    for path, written in PATHS.items():
        paths.setdefault(path, {}).update({verb: _with_problems(op) for verb, op in written.items()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "twotruths",
            "version": "1",
            "summary": "Three clips in, one video out, and a guess",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(({**schemas.components, **SCHEMAS}).items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(binding: Binding, schemas: Schemas, comments: Mapping[str, str]) -> dict[str, Any]:
    comment = comments.get(binding.method.full_name, "")
    summary, _, rest = comment.partition("\n\n")
    slug = re.sub(r"[^A-Za-z0-9]+", "_", binding.template.display).strip("_")
    operation: dict[str, Any] = {
        "operationId": f"{binding.method.name}_{binding.verb.lower()}_{slug}",
        "tags": [binding.method.containing_service.name],
        "summary": summary.replace("\n", " "),
        "description": rest,
        "parameters": [*_path_parameters(binding, schemas), *_query_parameters(binding, schemas)],
        "responses": {"200": _answer(binding, schemas), **_problems(comment)},
    }
    if binding.body:
        operation["requestBody"] = _body(binding, schemas)
    return operation


def _path_parameters(binding: Binding, schemas: Schemas) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": schemas.field(_field(binding, name), request=True),
        }
        for name in binding.template.fields
    ]


def _field(binding: Binding, path: str) -> FieldDescriptor:
    descriptor: Any = binding.method.input_type
    *parents, leaf = path.split(".")
    for parent in parents:
        descriptor = descriptor.fields_by_name[parent].message_type
    field: FieldDescriptor = descriptor.fields_by_name[leaf]
    return field


def _query_parameters(binding: Binding, schemas: Schemas) -> list[dict[str, Any]]:
    """Fields that neither path nor body give. Owners are named by services alone: phones are not told of it."""
    if binding.body == "*":
        return []
    taken = {*binding.template.fields, binding.body, "owner"}
    return [
        {"name": field.name, "in": "query", "required": False, "schema": schemas.field(field, request=True)}
        for field in binding.method.input_type.fields
        if field.name not in taken and field.message_type is None
    ]


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
    kinds = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")
    return {"required": bool(schema.get("required")), "content": {kind: {"schema": reference} for kind in kinds}}


def _answer(binding: Binding, schemas: Schemas) -> dict[str, Any]:
    descriptor: Any = binding.method.output_type
    if binding.response_body:
        schema = schemas.field(descriptor.fields_by_name[binding.response_body], request=False)
        schema = next(iter(schema.get("anyOf", [schema])))
    else:
        schema = schemas.reference(descriptor)
    if binding.method.server_streaming:
        return {
            "description": "Each change as the data of an event, then an event named end.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "object", "properties": {"result": schema}}},
            },
        }
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def _problems(comment: str) -> dict[str, Any]:
    """The statuses of the error codes that the rpc's comment lists, and of those that every rpc may answer."""
    texts: dict[str, list[str]] = {}
    for code, text in [*_CODE_LINE.findall(comment), *((code, "") for code in _ALWAYS), ("INVALID_ARGUMENT", "")]:
        status = problems.STATUS_BY_CODE.get(code)
        if status is not None:
            texts.setdefault(str(status), []).append(" ".join(f"{code} {text}".split()))
    return {
        status: _PROBLEM | {"description": "; ".join(dict.fromkeys(lines))}
        for status, lines in sorted(texts.items())
    }


def _with_problems(operation: Mapping[str, Any]) -> dict[str, Any]:
    """A hand-written operation lists the statuses of its problems as ``x-problems``."""
    result = dict(operation)
    statuses = result.pop("x-problems", ())
    described = {str(s): _PROBLEM | {"description": problems.title(s)} for s in statuses}
    result["responses"] = dict(result["responses"]) | described
    return result
