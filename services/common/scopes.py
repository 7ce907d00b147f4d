"""Scopes (RFC 6749 section 3.3): what a player's token must permit for each rpc, as the contract says by the
option ``twotruths.options.v1.scope``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from twotruths.options.v1 import options_pb2


def scope_of(method: MethodDescriptor) -> str:
    """The scope that an rpc wants, "" for none. Example: "media:upload"."""
    scope: str = method.GetOptions().Extensions[options_pb2.scope]
    return scope


def of_service(full_name: str) -> Mapping[str, str]:
    """Full method name ("/twotruths.upload.v1.UploadService/GetUpload") → scope, of the rpcs of a service that
    want one. Raises KeyError for a service whose generated code was not imported."""
    service: Any = descriptor_pool.Default().FindServiceByName(full_name)
    found = {f"/{full_name}/{method.name}": scope_of(method) for method in service.methods}
    return {name: scope for name, scope in found.items() if scope}
