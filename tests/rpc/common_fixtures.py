"""A real server of MergeService whose rpcs are what a test says, and a real channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
from prometheus_client import CollectorRegistry

from services.common.channel import open_channel
from services.common.errors import ServiceError, Unimplemented
from services.common.identity import ServiceTokens, TokenVerifier
from services.common.keys import KeyRing
from services.common.server import GrpcServer
from services.common.settings import CommonSettings
from services.common.status import remote_errors
from services.common.tls import Tls
from twotruths.merge.v1 import merge_service_pb2 as pb
from twotruths.merge.v1 import merge_service_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["MergeService"].full_name
SESSION = "6f1c6a52-2f5b-4c3e-9d35-0f2d6a1b7c11"
GET = pb.GetMergeRequest(merge_session_id=SESSION)
WATCH = pb.WatchMergeRequest(merge_session_id=SESSION)
INITIATE = pb.InitiateMergeRequest(
    video_count=3, video_filenames=["a", "b", "c"], video_file_sizes=[1, 2, 3], challenge_title="Three things"
)

Handler = Callable[[Any, Any], Any]


class Desk:
    """Serves the rpcs that it is given; the others are unimplemented."""

    def __init__(self, rpcs: Mapping[str, Handler]) -> None:
        self._rpcs = rpcs

    def __getattr__(self, name: str) -> Handler:
        async def unimplemented(request: Any, rpc: Any) -> NoReturn:
            raise Unimplemented(name)

        return self._rpcs.get(name, unimplemented)


def make_server(
    keys: KeyRing,
    listen: str = "127.0.0.1:0",
    *,
    settings: Mapping[str, Any] | None = None,
    registry: CollectorRegistry | None = None,
    **rpcs: Handler,
) -> GrpcServer:
    """The server, not started; ``settings`` are those besides the keys'."""
    common = CommonSettings(**keys.settings(), **(settings or {}))
    verifier = TokenVerifier.from_settings(common, service="merge")
    server = GrpcServer(common, name="merge", listen=listen, verifier=verifier, registry=registry)
    server.add(SERVICE, merge_service_pb2_grpc.add_MergeServiceServicer_to_server, Desk(rpcs))
    return server


@asynccontextmanager
async def served(keys: KeyRing, **options: Any) -> AsyncIterator[GrpcServer]:
    """The server, serving within the block."""
    server = make_server(keys, **options)
    await server.start()
    await server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop(0)


class Caller:
    """Calls as the player alice, unless told otherwise."""

    def __init__(self, channel: grpc.aio.Channel, keys: KeyRing) -> None:
        self.channel = channel
        self.keys = keys
        self.stub: Any = merge_service_pb2_grpc.MergeServiceStub(channel)

    def bearer(self, token: str = "") -> tuple[str, str]:
        return ("authorization", f"Bearer {token or self.keys.player_token('alice')}")

    def start(self, request: Any = GET, *, metadata: Any = None, timeout: float | None = 10) -> Any:
        """The call for a request, as grpc knows it."""
        method = type(request).__name__.removesuffix("Request")
        return getattr(self.stub, method)(
            request, metadata=[self.bearer()] if metadata is None else metadata, timeout=timeout
        )

    async def call(self, request: Any = GET, **options: Any) -> Any:
        """The answer. Raises the ServiceError that a refusal stands for."""
        with remote_errors():
            return await self.start(request, **options)

    async def refusal(self, request: Any = GET, **options: Any) -> ServiceError:
        """Why a call was refused."""
        try:
            await self.call(request, **options)
        except ServiceError as error:
            return error
        raise AssertionError("it was answered")


@asynccontextmanager
async def calling(
    keys: KeyRing, target: object, *, tls: Tls | None = None, tokens: ServiceTokens | None = None
) -> AsyncIterator[Caller]:
    """A caller through the mesh's own channel. ``target``: a port, or a whole target."""
    target = f"ipv4:127.0.0.1:{target}" if isinstance(target, int) else str(target)
    async with open_channel(target, tls=tls, tokens=tokens, audience="merge") as channel:
        yield Caller(channel, keys)


@asynccontextmanager
async def desk(keys: KeyRing, **options: Any) -> AsyncIterator[Caller]:
    """A server and a caller of it."""
    async with served(keys, **options) as server, calling(keys, server.port) as caller:
        yield caller
