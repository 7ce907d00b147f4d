"""What the rules of protovalidate mean in a JSON schema."""

from __future__ import annotations

from functools import cache
from typing import Any

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

Schema = dict[str, Any]
_NUMBERS = {"gte": "minimum", "gt": "exclusiveMinimum", "lte": "maximum", "lt": "exclusiveMaximum"}
_LENGTHS = {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern"}
_LISTS = {"min_items": "minItems", "max_items": "maxItems"}
_MAPS = {"min_pairs": "minProperties", "max_pairs": "maxProperties"}


@cache
def required(descriptor: Descriptor) -> frozenset[str]:
    """The fields that cannot be left out: an empty message breaks their rules, whichever these are."""
    paths = [v.proto.field for v in protovalidate.collect_violations(GetMessageClass(descriptor)())]
    return frozenset(path.elements[0].field_name for path in paths if path is not None and path.elements)


def of_value(rules: Any) -> Schema:
    """The keywords for one value: a text, number or enum."""
    kind = rules.WhichOneof("type")
    if kind is None:
        return {}
    typed = getattr(rules, kind)
    if kind == "string":
        return _string(typed)
    if kind in {"repeated", "map", "enum", "any", "duration", "timestamp"}:
        return {}
    return _those(typed, _NUMBERS) | _choice(typed)


def of_list(rules: Any) -> Schema:
    """The keywords for a list beside those of its items."""
    return _those(rules.repeated, _LISTS) | ({"uniqueItems": True} if rules.repeated.unique else {})


def of_map(rules: Any) -> Schema:
    """The keywords for an object that is a map, beside those of its values."""
    names = of_value(rules.map.keys)
    return _those(rules.map, _MAPS) | ({"propertyNames": names} if names else {})


def rules_of(field: FieldDescriptor) -> Any:
    """The field's rules."""
    return field.GetOptions().Extensions[validate_pb2.field]


def _string(rules: Any) -> Schema:
    found = _those(rules, _LENGTHS) | _choice(rules)
    if rules.HasField("len"):
        found |= {"minLength": rules.len, "maxLength": rules.len}
    if rules.HasField("max_bytes"):  # so many characters at most: each has one byte or more
        found["maxLength"] = min(rules.max_bytes, found.get("maxLength", rules.max_bytes))
    if rules.WhichOneof("well_known") == "uuid":
        found["format"] = "uuid"
    return found


def _choice(rules: Any) -> Schema:
    found: Schema = {"const": rules.const} if "const" in _names(rules) and rules.HasField("const") else {}
    if "in" in _names(rules) and getattr(rules, "in"):
        found["enum"] = list(getattr(rules, "in"))
    return found


def _those(rules: Any, keywords: dict[str, str]) -> Schema:
    return {
        keyword: getattr(rules, rule)
        for rule, keyword in keywords.items()
        if rule in _names(rules) and rules.HasField(rule)
    }


def _names(rules: Any) -> Any:
    return rules.DESCRIPTOR.fields_by_name
