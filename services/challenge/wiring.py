"""Builds the challenge service. Overrides replace what a test wants to hold in its hand."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from services.challenge import controller, domain, rpc
from services.challenge.adapters.engine import open_database
from services.challenge.adapters.migrations import migrate
from services.challenge.adapters.sql import SqlChallengeStore, SqlGuessLedger
from services.challenge.adapters.video_client import VideoClient
from services.challenge.config import ChallengeSettings
from services.challenge.metering import MeteredChallenges, MeteredGuesses
from services.challenge.ports import Videos
from services.challenge.service import ChallengeService
from services.common.channel import open_channel
from services.common.clock import Clock, utc_now
from services.common.identity import ServiceTokens, TokenVerifier
from services.common.lifecycle import App
from services.common.metering import DatabaseMetrics
from services.common.metrics import new_registry
from services.common.server import GrpcServer
from services.common.tls import Tls


@asynccontextmanager
async def build(
    settings: ChallengeSettings,
    *,
    videos: Videos | None = None,
    clock: Clock = utc_now,
    new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    new_salt: Callable[[], str] = domain.new_salt,
) -> AsyncIterator[App]:
    """The built process; leaving the block closes the database and the channel."""
    if settings.migrates_on_start:
        await migrate(settings.database_url)
    metrics = DatabaseMetrics(registry := new_registry())
    async with AsyncExitStack() as stack:
        database = open_database(settings.database_url)
        stack.push_async_callback(database.close)
        if videos is None:
            tokens = ServiceTokens.from_settings(settings, service="challenge")
            tls = Tls.from_settings(settings)
            channel = open_channel(settings.merge_target, tls=tls, tokens=tokens, audience="merge")
            videos = VideoClient(await stack.enter_async_context(channel))
        service = ChallengeService(
            MeteredChallenges(SqlChallengeStore(database), metrics),
            MeteredGuesses(SqlGuessLedger(database), metrics),
            videos,
            clock=clock,
            new_id=new_id,
            new_salt=new_salt,
        )
        server = GrpcServer(
            settings,
            name="challenge",
            listen=settings.challenge_listen,
            verifier=TokenVerifier.from_settings(settings, service="challenge"),
            registry=registry,
        )
        rpc.add_to(server, service)
        loop = partial(controller.reconcile, service, every=settings.challenge_reconcile_seconds)
        yield App(server, background=[loop], metrics=registry)
