"""The challenge service and a PostgreSQL that is away, killed, silent, old, or not what was asked for."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.challenge import wiring
from services.challenge.config import ChallengeSettings
from services.common.errors import ServiceError, Unavailable
from services.common.keys import KeyRing
from services.common.status import from_rpc_error
from tests.postgres import PASSWORD, PostgresServer
from tests.processes import HOST, ServiceProcess
from tests.rpc.challenge_fixtures import open_house
from twotruths.challenge.v1 import challenge_service_pb2 as pb
from twotruths.challenge.v1 import challenge_service_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SECRETS = (PASSWORD, "geheim")
IMPATIENT = {"challenge_database_connect_seconds": 1, "challenge_database_check_seconds": 0.1}


class Client:
    """A player, and a balancer that watches."""

    def __init__(self, process: ServiceProcess, keys: KeyRing) -> None:
        self._channel = grpc.aio.insecure_channel(f"{HOST}:{process.port}")
        self._stub = challenge_service_pb2_grpc.ChallengeServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._metadata = [("authorization", f"Bearer {keys.player_token('bob')}")]

    async def feed(self) -> int:
        """How many challenges there are. Raises the ServiceError that a refusal stands for."""
        try:
            request = pb.ListChallengesRequest()
            answer = await self._stub.ListChallenges(request, metadata=self._metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return len(answer.challenges)

    async def becomes(self, status: int) -> None:
        """Waits until health checks hear this."""
        watch = self._health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        async for heard in watch:
            if heard.status == status:
                break
        watch.cancel()

    async def alive(self) -> bool:
        request = health_pb2.HealthCheckRequest(service="alive")
        return bool((await self._health.Check(request, timeout=20)).status == SERVING)

    async def close(self) -> None:
        await self._channel.close()


def migrating(url: str) -> Awaitable[Process]:
    """``mesh migrate``, begun."""
    environment = {"TWOTRUTHS_CHALLENGE_DATABASE_URL": url, "PYTHONPATH": ":".join(sys.path)}
    command = (sys.executable, "-m", "mesh", "migrate")
    return asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)


@asynccontextmanager
async def challenge(folder: Path, keys: KeyRing, settings: Mapping[str, object]) -> AsyncIterator[ServiceProcess]:
    """The process, begun."""
    process = ServiceProcess("challenge", keys.settings() | IMPATIENT | dict(settings), folder)
    await process.start()
    try:
        yield process
    finally:
        await process.kill()


async def mesh_migrate(url: str) -> tuple[int | None, str]:
    """The exit status of ``mesh migrate``, and what it printed."""
    process = await migrating(url)
    out, err = await process.communicate()
    return process.returncode, out.decode() + err.decode()


async def test_a_migration_that_is_told_to_stop_has_failed() -> None:
    process = await migrating(f"postgresql://twotruths@{HOST}:9/game")
    assert process.stderr is not None
    assert b"waiting at most 30 s" in await process.stderr.readline()
    process.terminate()
    _, err = await process.communicate()
    assert b"challenge stopped: told to stop before it was done" in err
    assert process.returncode == 1


async def test_a_service_waits_for_its_database_and_outlives_its_absence(
    tmp_path: Path, keys: KeyRing, own_postgres_server: PostgresServer
) -> None:
    server, url = own_postgres_server, await own_postgres_server.empty_database()
    server.kill()
    settings = {"challenge_database_url": url, "challenge_database_wait_seconds": 60}
    async with challenge(tmp_path, keys, settings) as process:
        while (
            "waiting at most 60 s: the database does not answer: connection failed" not in process.log.read_text()
        ):
            await asyncio.sleep(0.02)
        await server.start()
        status, printed = await mesh_migrate(url)
        assert status == 0, printed
        assert "applied 0001, 0002" in printed
        await process.listening()
        client = Client(process, keys)
        await client.becomes(SERVING)
        assert await client.feed() == 0

        server.kill()
        with pytest.raises(Unavailable) as refused:
            await client.feed()
        assert (refused.value.message, refused.value.retry_after) == ("the database does not answer", 1.0)
        await client.becomes(NOT_SERVING)
        assert await client.alive()
        await server.start()
        await client.becomes(SERVING)
        assert await client.feed() == 0

        server.freeze(frozen=True)
        await client.becomes(NOT_SERVING)
        server.freeze(frozen=False)
        await client.becomes(SERVING)
        assert await client.feed() == 0

        await client.close()
        assert await process.stop() == 0
    told = process.log.read_text()
    assert "the database answers again" in told
    assert "Traceback" not in told
    assert not [secret for secret in SECRETS if secret in told + printed]


async def test_guesses_that_a_kill_interrupts_count_once(
    tmp_path: Path, keys: KeyRing, own_postgres_server: PostgresServer
) -> None:
    server, url = own_postgres_server, await own_postgres_server.migrated_database()
    async with open_house(url, keys) as house:
        id_ = await house.published("alice", lie=1)
        counted, enough = 0, asyncio.Event()

        async def guess(player: str) -> int:
            nonlocal counted
            while True:
                try:
                    score = int((await house.guess(player, id_, 1)).total_score)
                except Unavailable:
                    await asyncio.sleep(0.01)
                    continue
                counted += 1
                if counted == 20:
                    enough.set()
                return score

        players = [asyncio.create_task(guess(f"player {number}")) for number in range(60)]
        await enough.wait()
        server.kill()
        await server.start()
        assert await asyncio.gather(*players) == [10] * 60
        stats = await house.call("GetStats", pb.GetStatsRequest(challenge_id=id_), "alice")
        assert (stats.total_guesses, list(stats.guesses_per_statement)) == (60, [0, 60, 0])


async def test_a_start_that_cannot_be_says_why_in_one_line_and_no_secret(
    tmp_path: Path, keys: KeyRing, postgres_server: PostgresServer
) -> None:
    url = postgres_server.url(password="geheim!")
    settings = {"challenge_database_url": url, "challenge_database_wait_seconds": 0}
    async with challenge(tmp_path, keys, settings) as process:
        with pytest.raises(RuntimeError, match="challenge ended"):
            await process.listening()
    told = process.log.read_text()
    assert len(told.splitlines()) == 1, told
    assert "challenge stopped: the database does not answer: connection failed: connection to server at" in told
    assert 'password authentication failed for user "twotruths"' in told
    assert "geheim" not in told


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (f"postgresql://twotruths:geheim@{HOST}:9/game", "connection failed"),
        ("{server}?sslmode=require", "server does not support SSL, but SSL was required"),
        ("{empty}", "the schema of the database is at nothing, this version needs 0002: run `mesh migrate`"),
        (f"postgresql://twotruths:{PASSWORD}@{HOST}/game", "is not a URL that libpq reads"),
        (f"postgresql://twotruths:a@geheim@{HOST}/game", "is not a URL that libpq reads"),
        (f"postgresql://twotruths:geheim@{HOST}/game?ssl=geheim", "is not a URL that libpq reads"),
        (f"mysql://twotruths:geheim@{HOST}/game", "must begin with postgresql:// or sqlite:///"),
    ],
)
async def test_a_database_that_cannot_be_used_is_said_to_be_so(
    url: str, line: str, keys: KeyRing, postgres_server: PostgresServer
) -> None:
    empty = await postgres_server.empty_database() if url == "{empty}" else ""
    url = url.replace("{server}", postgres_server.url()).replace("{empty}", empty)
    settings = ChallengeSettings(
        challenge_database_url=SecretStr(url), challenge_database_wait_seconds=0, **keys.settings()
    )
    assert "geheim" not in repr(settings)
    with pytest.raises((ServiceError, ValueError)) as refused:
        async with wiring.build(settings):
            pass
    assert line in str(refused.value)
    assert not [secret for secret in SECRETS if secret in str(refused.value)]
