"""The client's side of a call: one long-lived channel per target.

Calls are spread over the target's addresses (round_robin), pass on the request id, the trace and the remaining
deadline minus a margin, and are tried again on UNAVAILABLE when the proto marks the rpc as idempotent
(``option idempotency_level``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.common import context, traced_rpc, tracing
from services.common.identity import ServiceTokens
from services.common.interceptor import REQUEST_ID
from services.common.server import KEEPALIVE
from services.common.tls import Tls
from twotruths.challenge.v1 import challenge_service_pb2
from twotruths.merge.v1 import merge_service_pb2, video_service_pb2
from twotruths.upload.v1 import upload_service_pb2

_MARGIN_SECONDS = 0.2
_CONTRACT = (upload_service_pb2, merge_service_pb2, video_service_pb2, challenge_service_pb2)


def open_channel(
    target: str,
    *,
    tls: Tls | None = None,
    tokens: ServiceTokens | None = None,
    audience: str = "",
    retries: bool = True,
) -> grpc.aio.Channel:
    """A channel to ``target`` ("dns:///merge:50052"), in plaintext unless there is ``tls``. Of several addresses
    ("ipv4:10.0.0.1:50052,10.0.0.2:50052") every server has the name of the first: its certificate has to say so.

    With ``tokens``, a call that carries no authorization of its own gets a service token for ``audience``. Without
    ``retries`` none is tried again, and a stream takes 7 KiB less for as long as it lasts. Raises OSError for TLS
    files that cannot be used.
    """
    options = [
        *KEEPALIVE,
        ("grpc.service_config", _service_config()),
        ("grpc.enable_retries", int(retries)),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # when a connection that gets no answer is given up, not 20 s
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    addresses = target.partition(":")[2].split(",")
    if len(addresses) > 1:  # by itself gRPC takes the whole list for a name
        options.append(("grpc.default_authority", addresses[0]))
    interceptors = _interceptors(tokens, audience)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    credentials = tls.channel_credentials()
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)


def server_stream(channel: grpc.aio.Channel, method: MethodDescriptor) -> Callable[..., Any]:
    """Starts calls of a server-streaming rpc with a message and ``metadata``. If they were intercepted, grpc.aio
    would lead their messages through a generator, a task and a future, kept for as long as a call lasts."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    start: Any = channel.unary_stream(
        name,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )

    def call(message: Message, metadata: Iterable[tuple[str, str]] = (), timeout: float | None = None) -> Any:
        added, bounded = _from_context(list(metadata), timeout)
        step = traced_rpc.calling(name, added)
        return traced_rpc.ends_with(start(message, metadata=added, timeout=bounded), step)

    return call


def client_stream(channel: grpc.aio.Channel, method: MethodDescriptor) -> Callable[..., Any]:
    """Starts calls of a client-streaming rpc, with ``metadata`` and ``timeout``; they take messages, also in wire
    form. grpc.aio would lead each message of a call that is intercepted through a queue and two tasks."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    start = channel.stream_unary(
        name,
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )

    def call(metadata: Iterable[tuple[str, str]], timeout: float) -> Any:
        added, bounded = _from_context(list(metadata), timeout)
        step = traced_rpc.calling(name, added)
        return traced_rpc.ends_with(start(metadata=added, timeout=bounded), step)

    return call


def idempotent_methods() -> Iterator[MethodDescriptor]:
    """The unary rpcs of the contract that may be sent twice."""
    for module in _CONTRACT:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                safe = method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
                if safe and not method.client_streaming and not method.server_streaming:
                    yield method


def _service_config() -> str:
    """See https://github.com/grpc/grpc/blob/master/doc/service_config.md."""
    names = [{"service": m.containing_service.full_name, "method": m.name} for m in idempotent_methods()]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps(
        {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": names, "retryPolicy": retry}]}
    )


def _interceptors(tokens: ServiceTokens | None, audience: str) -> list[grpc.aio.ClientInterceptor]:
    def prepare(details: grpc.aio.ClientCallDetails) -> tuple[grpc.aio.ClientCallDetails, tracing.Span]:
        metadata, timeout = _from_context(list(details.metadata or ()), details.timeout)
        method = details.method
        step = traced_rpc.calling(method if isinstance(method, str) else method.decode(), metadata)
        keys = {key for key, _ in metadata}
        if tokens is not None and "authorization" not in keys:
            metadata.append(("authorization", f"Bearer {tokens.token(audience)}"))
        prepared = grpc.aio.ClientCallDetails(
            method=method,
            timeout=timeout,
            metadata=grpc.aio.Metadata(*metadata),
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )
        return prepared, step

    return [_UnaryUnary(prepare)]


def _from_context(
    metadata: list[tuple[str, Any]], timeout: float | None
) -> tuple[list[tuple[str, Any]], float | None]:
    """Metadata and timeout of a call that serves the current one."""
    call = context.current()
    if call is None:
        return metadata, timeout
    if all(key != REQUEST_ID for key, _ in metadata):
        metadata.append((REQUEST_ID, call.request_id))
    if call.deadline is not None:
        left = call.deadline - time.monotonic() - _MARGIN_SECONDS
        if left <= 0:
            left = -1.0  # refused at once; a call whose deadline is just now may still be sent
        timeout = left if timeout is None else min(timeout, left)
    return metadata, timeout


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    """Changes the details of a call before it starts. Calls that stream are not intercepted."""

    def __init__(
        self,
        prepare: Callable[[grpc.aio.ClientCallDetails], tuple[grpc.aio.ClientCallDetails, tracing.Span]],
    ) -> None:
        self._prepare = prepare

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        details, step = self._prepare(client_call_details)
        return traced_rpc.ends_with(await continuation(details, request), step)
