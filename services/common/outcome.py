"""How a client-streaming call ended, as the server said it.

A server may refuse a stream before its end. grpc.aio then replaces the server's status by INTERNAL whenever it
notices a failed write after the status (https://github.com/grpc/grpc/issues/36066, open), so the status is read
at the moment it arrives; and when it notices the failed write first, the status still comes and replaces that. To
be removed when that is fixed in the grpcio we use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

from services.common.errors import ServiceError
from services.common.status import from_rpc_error, is_failed_write

T = TypeVar("T")
_PATIENCE_SECONDS = 1.0


class Outcome:
    """Watches a call from its start."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._told: ServiceError | None = None
        call.add_done_callback(self._ended)

    async def error(self, raised: grpc.aio.AioRpcError) -> ServiceError:
        """The error that the server sent, or else the one that was ``raised``. A failed write may be noticed
        before the status it comes from: that one is waited for a moment. None comes when the connection broke."""
        if not is_failed_write(raised.code(), raised.debug_error_string()):
            return from_rpc_error(raised)
        if self._told is None:
            with contextlib.suppress(TimeoutError):
                try:
                    async with asyncio.timeout(_PATIENCE_SECONDS):
                        await self._call
                except grpc.aio.AioRpcError as late:
                    raised = late
        return self._told or from_rpc_error(raised)

    def _ended(self, call: Any) -> None:
        code, debug = _at_once(call.code()), _at_once(call.debug_error_string())
        if code is grpc.StatusCode.OK or is_failed_write(code, debug):
            return
        initial, trailing = _at_once(call.initial_metadata()), _at_once(call.trailing_metadata())
        details = _at_once(call.details())
        self._told = from_rpc_error(grpc.aio.AioRpcError(code, initial, trailing, details))


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for: the call has ended."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("the call has not ended")
