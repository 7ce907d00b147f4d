"""Connections to SQLite (WAL).

A transaction that will write begins IMMEDIATE: it waits for its turn at the start, up to the busy timeout,
instead of failing half-way because its snapshot is old. Readers never wait for writers (WAL).
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

WRITES = "twotruths_writes"
"""The execution option that a transaction which writes must have."""
_BUSY_TIMEOUT_SECONDS = 10


def make_engine(url: str) -> AsyncEngine:
    """An engine for ``sqlite+aiosqlite:///<file>``; the file is made."""
    parsed = make_url(url)
    _make_file(parsed)
    # hide_parameters: the text of an exception shows no values.
    engine = create_async_engine(parsed, hide_parameters=True, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS})
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _make_file(url: URL) -> None:
    """Makes the file for this user alone (it holds the lies) before SQLite would for everyone; what SQLite
    puts beside it gets the same mode."""
    if not url.database or url.database.startswith((":", "file:")):
        return
    file = Path(url.database)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.touch(0o600)


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions: _begin does
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    # Kept in the file. The switch does not wait for locks: if it is refused, someone else is switching now.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
