"""Routes from the annotations: one :class:`Binding` for each ``google.api.http`` binding of each rpc.

What cannot be served stops the start, so that a wrong annotation is found by whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.gateway import templates
from services.gateway.templates import Template
from twotruths.options.v1 import options_pb2


class RouteError(ValueError):
    """An annotation that cannot be served; the text names the rpc."""


@dataclass(frozen=True)
class Binding:
    """One HTTP route of one rpc. ``body`` is "", "*" or a field, ``response_body`` "" or a field."""

    backend: str
    method: MethodDescriptor
    verb: str
    template: Template
    body: str
    response_body: str
    ignore_unknown: bool
    request: type[Message]
    response: type[Message]

    @property
    def rpc(self) -> str:
        """The method's name on the wire."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


def bindings(services: Iterable[tuple[str, ServiceDescriptor]]) -> list[Binding]:
    """Every route of the (backend, service) pairs, the more specific first. Raises RouteError, TemplateError."""
    found = [b for backend, service in services for m in service.methods for b in _of_method(backend, m)]
    found.sort(key=lambda b: b.template.rank)
    taken: dict[tuple[str, str], Binding] = {}
    for binding in found:
        other = taken.setdefault((binding.verb, binding.template.shape), binding)
        if other is not binding:
            raise RouteError(
                f"{binding.verb} {binding.template.text} of {binding.method.full_name} "
                f"is taken by {other.method.full_name}"
            )
    return found


def _of_method(backend: str, method: MethodDescriptor) -> Iterator[Binding]:
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return
    rule = options.Extensions[annotations_pb2.http]
    if method.client_streaming:
        raise RouteError(f"{method.full_name}: a client-streaming rpc cannot have a route")
    ignore = options.Extensions[options_pb2.ignore_unknown_fields]
    yield _binding(backend, method, rule, ignore)
    for more in rule.additional_bindings:
        if more.additional_bindings:
            raise RouteError(f"{method.full_name}: additional_bindings cannot be nested")
        yield _binding(backend, method, more, ignore)


def _binding(backend: str, method: MethodDescriptor, rule: HttpRule, ignore: bool) -> Binding:
    pattern = rule.WhichOneof("pattern")
    if pattern is None:
        raise RouteError(f"{method.full_name}: a binding has no path")
    verb, text = (rule.custom.kind, rule.custom.path) if pattern == "custom" else (pattern, getattr(rule, pattern))
    template = templates.parse(text)
    for path in template.fields:
        _check_path_field(method, path, text)
    if rule.body and verb.upper() in {"GET", "HEAD"}:
        raise RouteError(f"{method.full_name}: {verb.upper()} has no body")
    if rule.body not in {"", "*"}:
        _message_field(method, method.input_type, rule.body, "body")
    if rule.response_body and rule.response_body not in method.output_type.fields_by_name:
        raise RouteError(
            f"{method.full_name}: response_body {rule.response_body!r} is no field of {method.output_type.name}"
        )
    return Binding(
        backend=backend,
        method=method,
        verb=verb.upper(),
        template=template,
        body=rule.body,
        response_body=rule.response_body,
        ignore_unknown=ignore,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
    )


def _message_field(method: MethodDescriptor, message: Descriptor, name: str, role: str) -> Descriptor:
    field = message.fields_by_name.get(name)
    if field is None:
        raise RouteError(f"{method.full_name}: {role} {name!r} is no field of {message.name}")
    if field.message_type is None or field.is_repeated:
        raise RouteError(f"{method.full_name}: {role} {name!r} must be a single message")
    return field.message_type


def _check_path_field(method: MethodDescriptor, path: str, text: str) -> None:
    *parents, leaf = path.split(".")
    message = method.input_type
    for parent in parents:
        message = _message_field(method, message, parent, f"{text}: the path field")
    field = message.fields_by_name.get(leaf)
    if field is None:
        raise RouteError(f"{method.full_name}: {text}: {path!r} is no field of {method.input_type.name}")
    if field.is_repeated or field.type == FieldDescriptor.TYPE_MESSAGE:
        raise RouteError(f"{method.full_name}: {text}: {path!r} must be a single number, text, truth or enum")
