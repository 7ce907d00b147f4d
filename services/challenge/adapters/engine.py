"""Connections to the database: SQLite (WAL) or PostgreSQL, by URL.

On SQLite a transaction that will write begins IMMEDIATE: it waits for its turn at the start, up to the busy
timeout, instead of failing half-way because its snapshot is old. Readers never wait for writers (WAL).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.errors import Unavailable

BUSY_TIMEOUT_SECONDS = 10
_WRITES = "twotruths_writes"

# At DEBUG these print statements' parameters and rows: lies and salts among them.
_TELLTALES = {"aiosqlite": logging.INFO, "sqlalchemy.engine": logging.WARNING}


@dataclass(frozen=True, slots=True)
class Database:
    """An engine and its transactions, whose failures are Unavailable or carry no values."""

    engine: AsyncEngine

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes nothing. Raises Unavailable."""
        with _failures():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed at the end of the block. Raises Unavailable; IntegrityError passes."""
        with _failures():
            async with self.engine.execution_options(**{_WRITES: True}).begin() as connection:
                yield connection

    async def close(self) -> None:
        await self.engine.dispose()


def open_database(url: str) -> Database:
    """A database whose connections open on demand; nothing is connected yet. SQLite's directory is made.

    ``url``: ``sqlite+aiosqlite:///<file>`` or ``postgresql+asyncpg://…``. Raises sqlalchemy.exc.ArgumentError.
    """
    for name, level in _TELLTALES.items():
        logging.getLogger(name).setLevel(level)
    parsed = make_url(url)
    # hide_parameters: the text of an exception shows no values either.
    if parsed.get_backend_name() != "sqlite":
        return Database(create_async_engine(parsed, hide_parameters=True, pool_pre_ping=True))
    _make_directory(parsed)
    engine = create_async_engine(parsed, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Database(engine)


def _make_directory(url: URL) -> None:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions: _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
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
