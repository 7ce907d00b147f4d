"""Parameters of operations in the OpenAPI document: of path and query, and the headers that the gateway reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.gateway.routes import Binding
from services.gateway.rule_schemas import Schema
from services.gateway.scalars import ONE_TEXT
from services.gateway.schemas import Schemas

_MAX_DEPTH = 3
_HEADERS = {
    "request_id": ("Idempotency-Key", "Stands for request_id where the body has none.", 128),
    "network_type": ("X-Network-Type", "Stands for network_type where it is not given.", 32),
    "device_type": ("X-Device-Type", "Stands for device_type where it is not given.", 32),
}


def of_rpc(binding: Binding, schemas: Schemas) -> list[dict[str, Any]]:
    """All parameters of an annotated rpc."""
    return [*_path(binding, schemas), *_query(binding, schemas), *_headers(binding)]


def _path(binding: Binding, schemas: Schemas) -> Iterator[dict[str, Any]]:
    for name in binding.template.fields:
        schema = schemas.field(_field(binding.method.input_type, name), request=True)
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _field(descriptor: Descriptor, path: str) -> FieldDescriptor:
    found: Any = descriptor
    *parents, leaf = path.split(".")
    for parent in parents:
        found = found.fields_by_name[parent].message_type
    field: FieldDescriptor = found.fields_by_name[leaf]
    return field


def _query(binding: Binding, schemas: Schemas) -> Iterator[dict[str, Any]]:
    """Fields that neither path nor body give. Owners are named by services alone: phones are not told of it."""
    if binding.body == "*":
        return
    taken = {*binding.template.fields, binding.body, "owner"}
    required = schemas.required(binding.method.input_type)
    for name, field in _leaves(binding.method.input_type, "", 0):
        if name not in taken and name.partition(".")[0] != binding.body:
            schema = schemas.field(field, request=True)
            yield {"name": name, "in": "query", "required": name in required, "schema": schema}


def _leaves(descriptor: Descriptor, prefix: str, depth: int) -> Iterator[tuple[str, FieldDescriptor]]:
    """Fields that a query can give, by dotted name: ``a.b=1`` sets a field of a field."""
    for field in descriptor.fields:
        message = field.message_type
        if message is None or message.full_name in ONE_TEXT:
            yield prefix + field.name, field
        elif not field.is_repeated and depth < _MAX_DEPTH:
            yield from _leaves(message, f"{prefix}{field.name}.", depth + 1)


def _headers(binding: Binding) -> Iterator[dict[str, Any]]:
    for name, (header, text, longest) in _HEADERS.items():
        field = binding.method.input_type.fields_by_name.get(name)
        if field is not None and field.type == field.TYPE_STRING and not field.is_repeated:
            # A key may also be left out; a hint that makes no sense is not read.
            shortest = 1 if name == "request_id" else 0
            yield header_parameter(header, text, {"type": "string", "minLength": shortest, "maxLength": longest})
    if binding.method.server_streaming:
        yield header_parameter("Last-Event-ID", "The id of the last event: that state is not sent again.")


def header_parameter(name: str, text: str, schema: Schema | None = None) -> dict[str, Any]:
    """A request header that may be left out."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": schema or {"type": "string"},
    }
