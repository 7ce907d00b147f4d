"""The contract at run time: the services of the three proto packages, and the comments of the protos.

Descriptors that come with generated code carry no comments; the build hook writes a descriptor set that does.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from importlib.resources import files

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

# Which service of the mesh serves the services of which package.
BACKENDS = {
    "twotruths.upload.v1": "upload",
    "twotruths.merge.v1": "merge",
    "twotruths.challenge.v1": "challenge",
}


def services() -> Iterator[tuple[str, ServiceDescriptor]]:
    """Every service of the contract with the name of the backend that serves it."""
    for package, backend in BACKENDS.items():
        for file in _files(package):
            for service in file.services_by_name.values():
                yield backend, service


def _files(package: str) -> Iterator[FileDescriptor]:
    path = importlib.import_module(package).__path__
    for module in sorted(m.name for m in pkgutil.iter_modules(path) if m.name.endswith("_pb2")):
        yield importlib.import_module(f"{package}.{module}").DESCRIPTOR


def comments() -> Mapping[str, str]:
    """The leading comment of each service, rpc, message, field, enum and enum value by full name (a value's
    is ``<enum>.<VALUE>``). Empty when the descriptor set was not generated."""
    found: dict[str, str] = {}
    source = files("twotruths").joinpath("descriptors.binpb")
    if not source.is_file():
        return found
    for file in FileDescriptorSet.FromString(source.read_bytes()).file:
        names = _names(file.package, file)
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            if name and location.leading_comments:
                found[name] = "\n".join(line.strip() for line in location.leading_comments.strip().splitlines())
    return found


def _names(package: str, file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Source paths (descriptor.proto, SourceCodeInfo) → full names."""
    names: dict[tuple[int, ...], str] = {}

    def message(path: tuple[int, ...], scope: str, proto: DescriptorProto) -> None:
        name = names[path] = f"{scope}.{proto.name}"
        for i, field in enumerate(proto.field):
            names[(*path, 2, i)] = f"{name}.{field.name}"
        for i, nested in enumerate(proto.nested_type):
            message((*path, 3, i), name, nested)
        for i, enum in enumerate(proto.enum_type):
            enumeration((*path, 4, i), name, enum)

    def enumeration(path: tuple[int, ...], scope: str, proto: EnumDescriptorProto) -> None:
        name = names[path] = f"{scope}.{proto.name}"
        for i, value in enumerate(proto.value):
            names[(*path, 2, i)] = f"{name}.{value.name}"

    for i, proto in enumerate(file.message_type):
        message((4, i), package, proto)
    for i, enum in enumerate(file.enum_type):
        enumeration((5, i), package, enum)
    for i, service in enumerate(file.service):
        names[(6, i)] = f"{package}.{service.name}"
        for j, method in enumerate(service.method):
            names[(6, i, 2, j)] = f"{package}.{service.name}.{method.name}"
    return names
