"""Connections to the database: SQLite (WAL) or PostgreSQL, by URL.

On SQLite a transaction that will write begins IMMEDIATE: it waits for its turn at the start, up to the busy
timeout, instead of failing half-way because its snapshot is old. Readers never wait for writers (WAL).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.errors import Unavailable

T = TypeVar("T")

BUSY_TIMEOUT_SECONDS = 10
_WRITES = "twotruths_writes"

# At DEBUG these print statements' parameters and rows: lies and salts among them.
_TELLTALES = {"aiosqlite": logging.INFO, "sqlalchemy.engine": logging.WARNING}


class Database:
    """An engine and its transactions.

    A transaction that began runs to its end even if the call that wanted it is cancelled: the drivers do not
    like to be interrupted, and whoever asks again finds it done.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._running: set[asyncio.Task[Any]] = set()

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What ``work`` answers, in a transaction that writes nothing. Raises Unavailable."""
        return await self._run(self._engine, work)

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What ``work`` answers, in a transaction that is committed unless it raises. Raises Unavailable;
        IntegrityError passes."""
        return await self._run(self._engine.execution_options(**{_WRITES: True}), work)

    async def _run(self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        task = asyncio.create_task(_transaction(engine, work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends the running transactions and closes the connections."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()


async def _transaction(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    with _failures():
        async with engine.begin() as connection:
            return await work(connection)


def open_database(url: str) -> Database:
    """A database whose connections open on demand; nothing is connected yet. SQLite's file is made.

    ``url``: ``sqlite+aiosqlite:///<file>`` or ``postgresql+asyncpg://…``. Raises sqlalchemy.exc.ArgumentError.
    """
    for name, level in _TELLTALES.items():
        logging.getLogger(name).setLevel(level)
    parsed = make_url(url)
    # hide_parameters: the text of an exception shows no values either.
    if parsed.get_backend_name() != "sqlite":
        return Database(create_async_engine(parsed, hide_parameters=True, pool_pre_ping=True))
    _make_file(parsed)
    engine = create_async_engine(parsed, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Database(engine)


def _make_file(url: URL) -> None:
    """Makes the file for this user alone (it holds the lies) before SQLite would for everyone; what SQLite
    puts beside it gets the same mode."""
    if not url.database or url.database.startswith((":", "file:")):
        return
    file = Path(url.database)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.touch(0o600)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions: _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    # Kept in the file. The switch does not wait for locks: if it is refused, someone else is switching now.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (PoolTimeout, OSError) as error:
        raise Unavailable("the database does not answer") from error
    except DBAPIError as error:
        if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
            raise Unavailable("the database does not answer") from error
        # PostgreSQL quotes the offending row in its message: keep the kind alone, for the log.
        raise RuntimeError(f"the database refused a statement: {type(error.orig).__name__}") from None
