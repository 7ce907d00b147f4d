"""JSON schemas (OpenAPI 3.1 dialect) of proto messages, as :mod:`decode` reads and :mod:`encode` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.descriptor import FieldDescriptor as F

from services.gateway import enums, rule_schemas
from services.gateway.rule_schemas import Schema
from services.gateway.scalars import WRAPPERS

_INTEGERS = {
    F.TYPE_INT32: "int32",
    F.TYPE_SINT32: "int32",
    F.TYPE_SFIXED32: "int32",
    F.TYPE_UINT32: "uint32",
    F.TYPE_FIXED32: "uint32",
    F.TYPE_INT64: "int64",
    F.TYPE_SINT64: "int64",
    F.TYPE_SFIXED64: "int64",
    F.TYPE_UINT64: "uint64",
    F.TYPE_FIXED64: "uint64",
}
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"},
}
_EXAMPLE = "Example: "  # before JSON; one element of a list will do
_JSON = json.JSONDecoder()


class Schemas:
    """Collects the schemas of messages and enums, by name, as ``components/schemas``."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self.components: dict[str, Schema] = {}
        self._comments = comments

    def reference(self, descriptor: Descriptor, *, request: bool = False) -> Schema:
        """A reference to a message's schema. In a request every field may be left out save required ones; in
        an answer every field is there."""
        if descriptor.full_name in WRAPPERS:
            return self._single(descriptor.fields_by_name["value"], request=request)
        if descriptor.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[descriptor.full_name])
        name = descriptor.name + ("" if not request or descriptor.name.endswith("Request") else "Input")
        if name not in self.components:
            self.components[name] = {}  # first, for messages that hold themselves
            self.components[name] = self.message(descriptor, request=request)
        return {"$ref": f"#/components/schemas/{name}"}

    def required(self, descriptor: Descriptor) -> frozenset[str]:
        """The fields of a request that cannot be left out."""
        return rule_schemas.required(descriptor)

    def message(self, descriptor: Descriptor, *, request: bool, without: frozenset[str] = frozenset()) -> Schema:
        """The schema of an object. ``without``: fields that the path gives."""
        fields = [field for field in descriptor.fields if field.name not in without]
        needed = self.required(descriptor) if request else frozenset(f.name for f in fields)
        required = [f.name for f in fields if f.name in needed]
        schema: Schema = {
            "type": "object",
            "properties": {field.name: self.field(field, request=request) for field in fields},
        }
        if required:
            schema["required"] = required
        if comment := self._comments.get(descriptor.full_name):
            schema["description"] = comment
        return schema

    def field(self, field: F, *, request: bool) -> Schema:
        """The schema of a field's value, with its comment and the bounds that the proto sets."""
        rules = rule_schemas.rules_of(field)
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            value = self._single(message.fields_by_name["value"], request=request)
            values = value | rule_schemas.of_value(rules.map.values)
            schema: Schema = {"type": "object", "additionalProperties": values} | rule_schemas.of_map(rules)
        elif field.is_repeated:
            items = self._single(field, request=request) | rule_schemas.of_value(rules.repeated.items)
            schema = {"type": "array", "items": items} | rule_schemas.of_list(rules)
        else:
            schema = self._single(field, request=request) | rule_schemas.of_value(rules)
            if not request and (field.has_presence or field.enum_type is not None):
                schema = _or_null(schema)
        if comment := self._comments.get(field.full_name):
            schema["description"] = comment
            schema |= _example(comment, many=schema.get("type") == "array")
        return schema

    def _single(self, field: F, *, request: bool) -> Schema:
        if field.message_type is not None:
            return self.reference(field.message_type, request=request)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        if field.type in _INTEGERS:
            return {"type": "integer", "format": _INTEGERS[field.type]}
        return {
            F.TYPE_BOOL: {"type": "boolean"},
            F.TYPE_STRING: {"type": "string"},
            F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
        }.get(field.type, {"type": "number", "format": "double"}).copy()

    def _enum(self, enum: EnumDescriptor) -> Schema:
        names = enums.short_names(enum)
        if enum.name not in self.components:
            lines = [self._comments.get(enum.full_name, "")]
            lines += [
                f"- `{names[v.number]}`: {self._comments.get(f'{enum.full_name}.{v.name}', '')}"
                for v in enum.values
                if v.number in names
            ]
            self.components[enum.name] = {
                "type": "string",
                "enum": list(names.values()),
                "description": "\n".join(lines).strip(),
            }
        return {"$ref": f"#/components/schemas/{enum.name}"}


def _example(comment: str, *, many: bool) -> Schema:
    """The example that a comment gives as JSON; others are for people."""
    example = comment.partition(_EXAMPLE)[2]
    try:
        found, _ = _JSON.raw_decode(example)
    except ValueError:
        return {}
    return {"examples": [[found] if many and not isinstance(found, list) else found]}


def _or_null(schema: Schema) -> Schema:
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema | {"type": [schema["type"], "null"]}
