"""HTTP → message: JSON trees, and the name-value pairs of forms, queries and paths.

Every wrong field is collected with a JSON pointer in the caller's names, so that one answer names them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.gateway.jsontext import parse_json
from services.gateway.problems import FieldError, Problem, escape, invalid
from services.gateway.rule_schemas import rules_of
from services.gateway.scalars import ONE_TEXT, WRAPPERS, Wrong, scalar

_MAX_ERRORS = 32
_MAX_DEPTH = 32
_WELL_KNOWN = "google.protobuf."


class Decoder:
    """Fills a message and collects what is wrong; :meth:`check` raises it, and what is one too many does."""

    def __init__(self, *, ignore_unknown: bool) -> None:
        self._ignore_unknown = ignore_unknown
        self._errors: list[FieldError] = []

    def check(self) -> None:
        """Raises Problem 400 if anything was wrong."""
        if self._errors:
            raise invalid(self._errors)

    def json(
        self, message: Message, value: Any, *, at: str = "", skip: Iterable[str] = (), depth: int = 0
    ) -> None:
        """A JSON object. Fields in ``skip`` are not read (the path gives them)."""
        if message.DESCRIPTOR.full_name.startswith(_WELL_KNOWN):
            self._well_known(message, value, at)
            return
        if not isinstance(value, dict):
            self._wrong(at, "must be an object")
            return
        if depth > _MAX_DEPTH:
            self._wrong(at, "is nested too deeply")
            return
        for name, item in value.items():
            where = f"{at}/{escape(name)}"
            field: Any = message.DESCRIPTOR.fields_by_name.get(name)
            if field is None:
                self._unknown(where)
            elif item is not None and name not in skip and self._is_free(message, field, where):
                self._json_field(message, field, item, where, depth)

    def _json_field(self, message: Message, field: FieldDescriptor, item: object, at: str, depth: int) -> None:
        if _is_map(field):
            self._json_map(getattr(message, field.name), field, item, at, depth)
        elif field.is_repeated:
            if not isinstance(item, list):
                self._wrong(at, "must be a list")
                return
            if not self._fits(len(item), rules_of(field).repeated.max_items, at):
                return
            for i, element in enumerate(item):
                if field.message_type is not None:
                    self.json(getattr(message, field.name).add(), element, at=f"{at}/{i}", depth=depth + 1)
                else:
                    self._add(message, field, element, f"{at}/{i}")
        elif field.message_type is not None:
            child = getattr(message, field.name)
            child.SetInParent()
            self.json(child, item, at=at, depth=depth + 1)
        else:
            self._set(message, field, item, at)

    def _fits(self, count: int, most: int, at: str) -> bool:
        """Whether a list or map has as many members as its field takes, ``most`` if that is above 0: before they
        are looked at, not after."""
        if not most or count <= most:
            return True
        self._wrong(at, f"must have at most {most} items")
        return False

    def _is_free(self, message: Message, field: FieldDescriptor, at: str) -> bool:
        """False, and that is wrong, when another field of the same oneof is set."""
        oneof = field.containing_oneof
        taken = None if oneof is None else message.WhichOneof(oneof.name)
        if taken in {None, field.name}:
            return True
        self._wrong(at, f"cannot be given beside {taken}")
        return False

    def _json_map(self, entries: Any, field: FieldDescriptor, item: object, at: str, depth: int) -> None:
        if not isinstance(item, dict):
            self._wrong(at, "must be an object")
            return
        if not self._fits(len(item), rules_of(field).map.max_pairs, at):
            return
        assert field.message_type is not None
        key_field, value_field = (field.message_type.fields_by_name[n] for n in ("key", "value"))
        for name, element in item.items():
            where = f"{at}/{escape(name)}"
            try:
                key = scalar(key_field, name, text=True)
                if value_field.message_type is not None:
                    self.json(entries[key], element, at=where, depth=depth + 1)
                else:
                    entries[key] = scalar(value_field, element)
            except Wrong as wrong:
                self._wrong(where, str(wrong))

    def _well_known(self, message: Message, value: Any, at: str, *, text: bool = False) -> None:
        """Timestamps, durations and their like have their own form in proto3 JSON; a wrapper that of its value."""
        if message.DESCRIPTOR.full_name in WRAPPERS:
            field: Any = message.DESCRIPTOR.fields_by_name["value"]
            self._set(message, field, value, at, text=text)
            return
        try:
            json_format.ParseDict(value, message)
        except (json_format.ParseError, ValueError, TypeError, OverflowError, AttributeError, RecursionError):
            expected = {"Timestamp": "a time as in RFC 3339", "Duration": 'seconds as in "1.5s"'}
            self._wrong(at, f"must be {expected.get(message.DESCRIPTOR.name, message.DESCRIPTOR.name)}")

    def pairs(
        self, message: Message, pairs: Iterable[tuple[str, str]], *, form: bool, skip: Iterable[str] = ()
    ) -> None:
        """Pairs of a query or form: ``a.b=1`` sets a field of a field, a repeated name adds to a list.

        In a ``form`` a list, map or message may also be one JSON text, as the phone app sends them.
        """
        grouped: dict[str, list[str]] = {}
        for name, text in pairs:
            grouped.setdefault(name, []).append(text)
        for name, texts in grouped.items():
            if name not in skip:
                self._pair(message, name, texts, form=form)

    def refuse(self, names: Iterable[str]) -> None:
        """Parameters that no field is left for."""
        for name in names:
            self._unknown(_pointer(name))

    def path(self, message: Message, values: Iterable[tuple[str, str]]) -> None:
        """The fields that the path gives: they replace what body and query said."""
        for name, text in values:
            self._pair(message, name, [text], form=False, replace=True)

    def _pair(self, message: Message, name: str, texts: list[str], *, form: bool, replace: bool = False) -> None:
        at = _pointer(name)
        descriptor: Any = message.DESCRIPTOR  # the stubs know two kinds of descriptor
        target = _descend(descriptor, name)
        if target is None:
            self._unknown(at)
            return
        parents, field = target
        structured = field.message_type is not None or field.is_repeated
        tree = self._json_text(texts, field) if form and structured else None
        for parent in parents:
            message = getattr(message, parent.name)
            message.SetInParent()
        if not (replace or self._is_free(message, field, at)):
            return
        if tree is not None:
            self._json_field(message, field, tree, at, 0)
        elif field.message_type is not None and not _is_one_text(field):
            self._wrong(at, "must be JSON" if form else "cannot be given as one parameter")
        elif field.is_repeated:
            for i, text in enumerate(texts):
                if field.message_type is not None:
                    self._well_known(getattr(message, field.name).add(), text, f"{at}/{i}", text=True)
                else:
                    self._add(message, field, text, f"{at}/{i}", text=True)
        elif len(texts) > 1:
            self._wrong(at, "is given more than once")
        elif field.message_type is not None:
            child = getattr(message, field.name)
            child.SetInParent()
            self._well_known(child, texts[0], at, text=True)
        else:
            self._set(message, field, texts[0], at, text=True)

    def _json_text(self, texts: list[str], field: FieldDescriptor) -> Any:
        """The one text as JSON if it is a list or object, as ``field`` wants; else None."""
        if len(texts) != 1 or not texts[0].lstrip().startswith(("[", "{")):
            return None
        try:
            return parse_json(texts[0].encode(errors="replace"))
        except Problem:
            return None  # a file may be called "[1].mp4": taken as it stands, or refused as no number

    def _set(
        self, message: Message, field: FieldDescriptor, value: object, at: str, *, text: bool = False
    ) -> None:
        try:
            setattr(message, field.name, scalar(field, value, text=text))
        except Wrong as wrong:
            self._wrong(at, str(wrong))

    def _add(
        self, message: Message, field: FieldDescriptor, value: object, at: str, *, text: bool = False
    ) -> None:
        try:
            getattr(message, field.name).append(scalar(field, value, text=text))
        except Wrong as wrong:
            self._wrong(at, str(wrong))

    def _unknown(self, at: str) -> None:
        if not self._ignore_unknown:
            self._wrong(at, "is not a field of this request")

    def _wrong(self, at: str, detail: str) -> None:
        self._errors.append(FieldError(at, detail))
        if len(self._errors) == _MAX_ERRORS:
            self.check()


def _pointer(name: str) -> str:
    """A dotted name as a JSON pointer."""
    return "".join(f"/{escape(part)}" for part in name.split("."))


def _descend(descriptor: Descriptor, name: str) -> tuple[list[FieldDescriptor], FieldDescriptor] | None:
    """The messages on the way to the field of this dotted name, and the field; None if there is none."""
    *parents, leaf = name.split(".")
    way: list[FieldDescriptor] = []
    for parent in parents[:_MAX_DEPTH]:
        field = descriptor.fields_by_name.get(parent)
        if field is None or field.message_type is None or field.is_repeated or _is_one_text(field):
            return None
        way.append(field)
        descriptor = field.message_type
    found = descriptor.fields_by_name.get(leaf)
    return None if found is None or len(parents) > _MAX_DEPTH else (way, found)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_one_text(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name in ONE_TEXT
