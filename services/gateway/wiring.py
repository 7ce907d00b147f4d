"""Builds the gateway: channels to the services, the object store, the routes, the HTTP server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from google.protobuf.descriptor import ServiceDescriptor

from services.common.adapters.stores import open_objects
from services.common.channel import open_channel
from services.common.clock import Clock, utc_now
from services.common.identity import ServiceTokens, TokenVerifier
from services.common.lifecycle import App
from services.common.metering import StoreMetrics
from services.common.metrics import new_registry
from services.common.objects import ObjectStore
from services.common.playback import PlaybackSigner
from services.common.tls import Tls
from services.gateway import app, contract, routes
from services.gateway.buckets import Ticks
from services.gateway.config import GatewaySettings
from services.gateway.drain import Drain
from services.gateway.edge import Edge
from services.gateway.member import Member
from services.gateway.metering import RouteMetrics
from services.gateway.server import HttpServer


@asynccontextmanager
async def build(
    settings: GatewaySettings,
    *,
    services: Iterable[tuple[str, ServiceDescriptor]] | None = None,
    store: ObjectStore | None = None,
    signer: PlaybackSigner | None = None,
    clock: Clock = utc_now,
    member: Member | None = None,
    ticks: Ticks = time.monotonic_ns,
) -> AsyncIterator[App]:
    """The gateway, not yet started; ``member``: this process as one of several. Raises ValueError when an
    annotation cannot be served."""
    bindings = routes.bindings(contract.services() if services is None else services)
    tokens = ServiceTokens.from_settings(settings, service="gateway")
    targets = {
        "upload": settings.upload_target,
        "merge": settings.merge_target,
        "challenge": settings.challenge_target,
    }
    tls, drain = Tls.from_settings(settings), Drain()
    registry, metrics = new_registry(), RouteMetrics()
    registry.register(metrics)
    edge = Edge(settings, drain, metrics)
    async with AsyncExitStack() as stack:
        channels, streams = {}, {}
        for name, target in targets.items():
            # Players' calls carry their own token; the gateway's goes with its own questions alone.
            channel = open_channel(target, tls=tls, tokens=tokens, audience=name)
            channels[name] = await stack.enter_async_context(channel)
            streams[name] = await stack.enter_async_context(open_channel(target, tls=tls, retries=False))
        if store is None:
            store = await stack.enter_async_context(open_objects(settings, StoreMetrics(registry)))
        application = app.create(
            bindings,
            channels,
            streams=streams,
            store=store,
            signer=signer or PlaybackSigner.from_file(settings.playback_keys_file),
            settings=settings,
            edge=edge,
            drain=drain,
            metrics=metrics,
            clock=clock,
            verifier=TokenVerifier.from_settings(settings, service="gateway"),
            ticks=ticks,
        )
        yield App(HttpServer(application, settings, edge, drain, metrics, member), metrics=registry)
