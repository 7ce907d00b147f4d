"""What happens around every rpc that a server answers: request id, authentication, deadline, validation, errors.

Servicers raise :class:`ServiceError` and never touch ``context.abort``; an exception of any other kind becomes
INTERNAL with a fixed text. Infrastructure services (``/grpc.…``: health, reflection) are left alone, save that
a server that stops ends the watches of its health.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Any, cast

import grpc
import protovalidate
from google.protobuf.message import Message
from grpc_status import rpc_status

from services.common import context, traced_rpc, tracing
from services.common.errors import (
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from services.common.identity import TokenVerifier
from services.common.status import INTERNAL_TEXT, to_status

REQUEST_ID = "x-request-id"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
_DEFAULT_DEADLINE_SECONDS = 30.0
_ON_THE_WAY_SECONDS = 0.05
_CLOCKS_DIFFER_SECONDS = 1.0  # the loop's from the one that tokens go by

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of one server. ``scopes``: full method name → scope a player's token must have;
    ``deserializers``: full method name → what makes messages of bytes instead of the generated code."""

    def __init__(
        self,
        name: str,
        verifier: TokenVerifier,
        scopes: Mapping[str, str],
        deserializers: Mapping[str, Callable[[bytes], Any]],
    ) -> None:
        self._domain = f"{name}.twotruths"
        self._verifier = verifier
        self._scopes = scopes
        self._deserializers = deserializers
        self._streams: set[asyncio.Timeout] = set()
        self._stopping = False

    def end_streams(self) -> None:
        """Ends the calls that stream answers, now and from here on: whoever watches goes to another server.

        They have no end of their own and would hold up a server that waits for its calls.
        """
        self._stopping = True
        for stream in self._streams:
            if not stream.expired():
                stream.reschedule(asyncio.get_running_loop().time())

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Answers the handler for a call, wrapped."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or (method.startswith("/grpc.") and method != _HEALTH_WATCH):
            return handler
        wrap = (
            self._wrap_health_watch
            if method == _HEALTH_WATCH
            else self._wrap_streamed
            if handler.response_streaming
            else self._wrap_single
        )
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        deserialize = self._deserializers.get(method, handler.request_deserializer)
        return make(wrap(method, getattr(handler, kind)), deserialize, handler.response_serializer)

    def _wrap_single(self, method: str, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, rpc: Context) -> Any:
            async with self._around(method, request, rpc):
                return await behaviour(request, rpc)

        return call

    def _wrap_streamed(
        self, method: str, behaviour: Callable[..., AsyncGenerator[Any, None]]
    ) -> Callable[..., Awaitable[Any]]:
        # Writes instead of yielding: an async generator could be closed in another context than it ran in.
        async def call(request: Any, rpc: Context) -> None:
            # aclosing: a generator that nobody reads is closed now, not when it is collected.
            around = self._around(method, request, rpc, endless=True)
            async with around, aclosing(behaviour(request, rpc)) as responses:
                async for response in responses:
                    await rpc.write(response)

        return call

    def _wrap_health_watch(
        self, _: str, behaviour: Callable[..., Awaitable[None]]
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, rpc: Context) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as scope:
                    with self._ended_by_stop(scope):
                        await behaviour(request, rpc)

        return call

    @contextmanager
    def _ended_by_stop(self, scope: asyncio.Timeout) -> Iterator[None]:
        self._streams.add(scope)
        if self._stopping:
            scope.reschedule(asyncio.get_running_loop().time())
        try:
            yield
        finally:
            self._streams.discard(scope)

    @asynccontextmanager
    async def _around(
        self, method: str, request: Any, rpc: Context, *, endless: bool = False
    ) -> AsyncIterator[None]:
        metadata = rpc.invocation_metadata() or ()
        request_id = _request_id(metadata)
        started = time.monotonic()
        remaining = cast("float | None", rpc.time_remaining())  # the stubs forget that there may be none
        single = isinstance(request, Message) and not endless
        if remaining is None and single:
            remaining = _DEFAULT_DEADLINE_SECONDS
        deadline = None if remaining is None else started + remaining
        call = context.CallContext(None, request_id, deadline)
        with context.serving(call), ExitStack() as steps:
            rpc.set_trailing_metadata(((REQUEST_ID, request_id),))
            step = tracing.NONE
            error: ServiceError | None = None
            caller: context.Principal | None = None
            try:
                async with asyncio.timeout(remaining) as scope:
                    caller = await self._authenticate(method, metadata)
                    # Only now: a stranger's trace is not continued.
                    step = steps.enter_context(traced_rpc.serving(method, metadata))
                    if endless:
                        _end_with_token(scope, caller)
                    bounded = self._ended_by_stop(scope) if endless else nullcontext()
                    with bounded, context.serving(context.CallContext(caller, request_id, deadline)):
                        if isinstance(request, Message):
                            validate(request)
                        yield
            except ServiceError as raised:
                error = raised
            except TimeoutError:
                error = self._out_of_time(method, deadline, caller, endless=endless)
            except NotImplementedError:  # what the generated base of a servicer raises
                error = Unimplemented(f"{method.rpartition('/')[2]} is not served yet")
            except asyncio.CancelledError:
                traced_rpc.answered(step, cancelled_code(rpc))
                raise
            except grpc.aio.AbortError:
                raise
            except Exception:
                log.exception("unhandled error", extra={"data": {"method": method}})
                error = Internal(INTERNAL_TEXT)
            self._log(method, error, started)
            traced_rpc.answered(step, error.code if error else "OK")
            if error is not None:
                status = rpc_status.to_status(to_status(error, domain=self._domain, request_id=request_id))
                # These replace the trailing metadata set above.
                trailing = (*status.trailing_metadata, (REQUEST_ID, request_id))
                await rpc.abort(status.code, status.details, trailing)

    def _out_of_time(
        self, method: str, deadline: float | None, caller: context.Principal | None, *, endless: bool
    ) -> ServiceError:
        if deadline is not None and time.monotonic() >= deadline:
            return DeadlineExceeded("not done in time; whether it took effect is unknown")
        if endless and caller is not None and time.time() >= caller.until - _CLOCKS_DIFFER_SECONDS:
            return Unauthenticated("the bearer token is not valid")
        if endless and self._stopping:
            return Unavailable("this server stops; watch again", retry_after=1)
        log.exception("unhandled timeout", extra={"data": {"method": method}})
        return Internal(INTERNAL_TEXT)

    async def _authenticate(self, method: str, metadata: Any) -> context.Principal:
        tokens = [value for key, value in metadata if key == "authorization"]
        if len(tokens) != 1 or not isinstance(tokens[0], str) or tokens[0][:7].lower() != "bearer ":
            raise Unauthenticated("a bearer token is required")
        caller = await self._verifier.verify(tokens[0][7:].strip())
        scope = self._scopes.get(method)
        if scope is not None and not caller.is_service and scope not in caller.scopes:
            raise PermissionDenied(
                f"the token lacks the scope {scope}", reason="SCOPE_MISSING", metadata={"scope": scope}
            )
        return caller

    def _log(self, method: str, error: ServiceError | None, started: float) -> None:
        level = logging.DEBUG if error is None else logging.ERROR if isinstance(error, Internal) else logging.INFO
        milliseconds = round((time.monotonic() - started) * 1000, 1)
        data = {"method": method, "code": error.code if error else "OK", "ms": milliseconds}
        if error is not None and error.reason:
            data["reason"] = error.reason
        log.log(level, "rpc", extra={"data": data})


def cancelled_code(rpc: Context) -> str:
    """How a call ended that gRPC cancelled: its caller left, or the time that it had is over."""
    remaining = cast("float | None", rpc.time_remaining())
    # The caller's clock began before ours, and its word that the time is over comes before ours says so.
    return "CANCELLED" if remaining is None or remaining > _ON_THE_WAY_SECONDS else "DEADLINE_EXCEEDED"


def _end_with_token(scope: asyncio.Timeout, caller: context.Principal) -> None:
    """A player's stream lasts no longer than the token that it was asked for with. Services' tokens are
    short-lived; what they follow, they follow for long."""
    if not caller.is_service and caller.until < math.inf:
        now, before = asyncio.get_running_loop().time(), scope.when()
        end = now + caller.until - time.time()
        scope.reschedule(end if before is None else min(before, end))


def _request_id(metadata: Any) -> str:
    """The caller's request id if it is harmless, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


def validate(request: Message) -> None:
    """Checks a request against the rules in its proto. Raises InvalidArgument with every wrong field."""
    found = protovalidate.collect_violations(request)
    if not found:
        return
    violations = [FieldViolation(_path(v.proto.field), v.proto.message or "is required") for v in found]
    first = violations[0]
    raise InvalidArgument(f"{first.field}: {first.description}", violations=violations)


def _path(field: Any) -> str:
    """A field path as people write it: ``statements[1].media_file_id``."""
    parts = []
    for element in field.elements if field is not None else ():
        key = element.subscript
        subscript = "" if key is None else f"[{key.value}]"
        parts.append(f"{element.field_name}{subscript}")
    return ".".join(parts)
