"""Builds the challenge service. Overrides replace what a test wants to hold in its hand."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from services.challenge import controller, domain, rpc
from services.challenge.adapters import migrations
from services.challenge.adapters.engine import Database, open_database
from services.challenge.adapters.limits import Limits
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

log = logging.getLogger(__name__)


@asynccontextmanager
async def opened(settings: ChallengeSettings) -> AsyncIterator[Database]:
    """The database that the settings name, for the block. Raises ValueError."""
    limits = Limits(
        settings.challenge_database_connections,
        settings.challenge_database_connect_seconds,
        settings.challenge_database_statement_seconds,
    )
    database = open_database(settings.database_url, limits)
    try:
        yield database
    finally:
        await database.close()


async def migrate(settings: ChallengeSettings) -> None:
    """Brings the schema up to date and logs what was done. Raises ValueError, Unavailable."""
    async with opened(settings) as database:
        await migrations.ready(database, migrates=True, within=_patience(settings, database))
        log.info("the schema is at %s", (await migrations.read(database)).revision)


def _patience(settings: ChallengeSettings, database: Database) -> float:
    return settings.challenge_database_wait_seconds if database.is_shared else 0.0


@asynccontextmanager
async def build(
    settings: ChallengeSettings,
    *,
    videos: Videos | None = None,
    clock: Clock = utc_now,
    new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    new_salt: Callable[[], str] = domain.new_salt,
) -> AsyncIterator[App]:
    """The built process; leaving the block closes the database and the channel. Raises ValueError, Unavailable,
    FailedPrecondition (the schema is old)."""
    metrics = DatabaseMetrics(registry := new_registry())
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(opened(settings))
        migrates = settings.challenge_migrate_on_start
        # Replicas share a PostgreSQL: there it is a step of its own.
        migrates = not database.is_shared if migrates is None else migrates
        await migrations.ready(database, migrates=migrates, within=_patience(settings, database))
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
        loops = [loop]
        if database.is_shared:
            every = settings.challenge_database_check_seconds
            patience = settings.challenge_database_connect_seconds + every
            loops.append(partial(controller.watch, database.ask, server.set_able, every=every, patience=patience))
        yield App(server, background=loops, metrics=registry)
