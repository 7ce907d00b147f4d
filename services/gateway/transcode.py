"""One route of one rpc: HTTP request → message → call → message → HTTP response. Knows no rpc by name."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from aiohttp import web
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from services.common.channel import server_stream
from services.common.status import from_rpc_error
from services.gateway import bodies, callers, encode, problems, quota_fields, sse
from services.gateway.config import GatewaySettings
from services.gateway.decode import Decoder
from services.gateway.drain import Drain
from services.gateway.routes import Binding

_PAUSES = (0.1, 0.3, 1.0)  # seconds between attempts at a stream while its service is away


class Transcoder:
    """The handler of a :class:`Binding`."""

    def __init__(
        self, binding: Binding, channel: grpc.aio.Channel, settings: GatewaySettings, drain: Drain
    ) -> None:
        self._binding = binding
        self._settings = settings
        self._drain = drain
        self._bound = frozenset(binding.template.fields)
        self._rpc = (
            server_stream(channel, binding.method) if binding.method.server_streaming else self._unary(channel)
        )

    def _unary(self, channel: grpc.aio.Channel) -> Any:
        return channel.unary_unary(
            self._binding.rpc,
            request_serializer=self._binding.request.SerializeToString,
            response_deserializer=self._binding.response.FromString,
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers a request. Raises Problem."""
        metadata = callers.metadata(request, max_token=self._settings.gateway_max_token_bytes)
        message = await self._decode(request)
        callers.fill(request, message)
        if self._binding.method.server_streaming:
            return await sse.stream(
                request,
                lambda: self._rpc(message, metadata=metadata),
                self._render,
                drain=self._drain,
                heartbeat=self._settings.gateway_heartbeat_seconds,
                pauses=_PAUSES if self._is_safe else (),
            )
        call = self._rpc(message, metadata=metadata, timeout=self._settings.gateway_call_timeout_seconds)
        try:
            response = await self._finish(call)
        except grpc.aio.AioRpcError as error:
            raise problems.from_error(from_rpc_error(error), body_field=self._body_field) from error
        return web.Response(
            body=encode.dumps(self._render(response)),
            content_type=bodies.JSON,
            headers=dict(quota_fields.of_answer(await call.trailing_metadata() or ())),
        )

    @property
    def _is_safe(self) -> bool:
        return self._binding.method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN

    @property
    def _body_field(self) -> str:
        return self._binding.body.removeprefix("*")

    def _is_body(self, name: str) -> bool:
        return bool(self._body_field) and name.partition(".")[0] == self._body_field

    def _render(self, response: Message) -> Any:
        return encode.to_json(response, self._binding.response_body)

    async def _decode(self, request: web.Request) -> Message:
        binding = self._binding
        message = binding.request()
        decoder = Decoder(ignore_unknown=binding.ignore_unknown)
        pairs = bodies.query_pairs(request)
        if binding.body == "*":  # then no field is left for the query
            decoder.refuse(name for name, _ in pairs)
        else:
            # Nor for a field within the one that is the body.
            decoder.refuse(name for name, _ in pairs if self._is_body(name))
            left = [(name, text) for name, text in pairs if not self._is_body(name)]
            decoder.pairs(message, left, form=False, skip=self._bound)
        if binding.body:
            inner = message if binding.body == "*" else getattr(message, binding.body)
            skip = self._bound if binding.body == "*" else frozenset[str]()
            source = bodies.pieces(
                request,
                limit=self._settings.gateway_max_body_bytes,
                silence=self._settings.gateway_read_timeout_seconds,
                within=self._settings.gateway_body_timeout_seconds,
            )
            await bodies.decode_body(request, inner, decoder, source=source, skip=skip)
        fields = binding.template.fields
        decoder.path(message, ((field, request.match_info[f"p{i}"]) for i, field in enumerate(fields)))
        decoder.check()
        return message

    async def _finish(self, call: Any) -> Message:
        """The call's answer. A change that a phone asked for goes on when the phone is gone: it cannot know
        whether the change was made, and asks again."""
        answer = asyncio.ensure_future(_await(call))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if self._binding.verb == "GET":
                call.cancel()
            answer.add_done_callback(_forget)
            raise


async def _await(call: Any) -> Message:
    response: Message = await call
    return response


def _forget(answer: asyncio.Future[Message]) -> None:
    """Nobody is left to be told of a failure."""
    if not answer.cancelled():
        answer.exception()
