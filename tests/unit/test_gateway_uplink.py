"""Calls that break while the gateway passes a body on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import grpc
import pytest

from services.gateway.problems import Problem
from services.gateway.uplink import Uplink
from twotruths.upload.v1.upload_service_pb2 import UploadChunksResponse


class BrokenCall:
    """A call whose connection goes away while its end is sent: grpc.aio says so by an error of its own kind, and
    the call's status comes after that."""

    def add_done_callback(self, told: Callable[[Any], None]) -> None:
        """It is not told: a broken connection brings no status of the service."""

    async def done_writing(self) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from ()
        none = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, none, none, "Socket closed")


async def test_a_connection_that_breaks_as_the_body_ends_is_worth_another_try() -> None:
    with pytest.raises(Problem) as refused:
        await Uplink[UploadChunksResponse](BrokenCall(), 2).answer()
    assert refused.value.status == 503
