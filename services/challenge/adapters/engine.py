"""Transactions on the database, SQLite or PostgreSQL, by URL: how long they run and what their failures mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.challenge.adapters import sqlite
from services.challenge.adapters.limits import DEFAULT_LIMITS, Limits
from services.common.errors import Unavailable

T = TypeVar("T")

RETRY_SECONDS = 1.0
"""What a caller is told to wait while the database is away."""
_CLOSE_SECONDS = 10.0

# At DEBUG these print statements' parameters and rows: lies and salts among them.
_TELLTALES = {
    "aiosqlite": logging.INFO,
    "sqlalchemy.engine": logging.WARNING,
    "sqlalchemy.pool": logging.ERROR,  # a broken connection is told once, by the watch over the database
    "psycopg": logging.ERROR,
}


class Database:
    """An engine and its transactions.

    A transaction that began runs to its end even if the call that wanted it is cancelled: the drivers do not
    like to be interrupted, and whoever asks again finds it done.
    """

    def __init__(self, engine: AsyncEngine, asking: AsyncEngine | None = None) -> None:
        """``asking``: for :meth:`ask`, so that a full pool is not taken for a server that is away."""
        self._engine = engine
        self._asking = asking or engine
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def is_shared(self) -> bool:
        """Whether other processes on other machines may use it: a server's, not a file."""
        return self._engine.dialect.name != "sqlite"

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What ``work`` answers, in a transaction that writes nothing. Raises Unavailable."""
        return await self._run(self._engine, work)

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What ``work`` answers, in a transaction that is committed unless it raises. Raises Unavailable (then
        it may be committed all the same); IntegrityError passes."""
        return await self._run(self._engine.execution_options(**{sqlite.WRITES: True}), work)

    async def ask(self) -> None:
        """Returns when it answers. Raises Unavailable that says why, for the operator."""
        try:
            await self._run(self._asking, lambda connection: connection.execute(select(1)))
        except Unavailable as error:
            raise Unavailable(f"{error.message}: {cause(error)}") from error

    async def _run(self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        task = asyncio.create_task(_transaction(engine, work))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have given up: nobody else asks for it

    async def close(self) -> None:
        """Ends the running transactions, those at once that a silent server holds up, and closes the
        connections."""
        if self._running:
            _, stuck = await asyncio.wait(self._running, timeout=_CLOSE_SECONDS)
            for task in stuck:
                task.cancel()
        for engine in {self._engine, self._asking}:
            await engine.dispose()


async def _transaction(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    with _failures():
        async with engine.begin() as connection:
            return await work(connection)


def open_database(url: str, limits: Limits = DEFAULT_LIMITS) -> Database:
    """A database whose connections open on demand; nothing is connected yet. SQLite's file is made.

    ``url``: ``postgresql://…`` (:mod:`services.challenge.adapters.postgres`) or ``sqlite:///<file>``; a driver
    in the scheme (``postgresql+psycopg``) is ignored. ``limits`` are for PostgreSQL. Raises ValueError, whose
    text quotes nothing of the URL.
    """
    for name, level in _TELLTALES.items():
        logging.getLogger(name).setLevel(level)
    scheme, separator, rest = url.partition("://")
    kind = scheme.partition("+")[0]
    if separator and kind == "sqlite":
        return Database(sqlite.make_engine(f"sqlite+aiosqlite://{rest}"))
    if separator and kind in {"postgresql", "postgres"}:
        from services.challenge.adapters import postgres  # which SQLite does not need

        url = f"postgresql://{rest}"
        return Database(
            postgres.make_engine(url, limits), postgres.make_engine(url, replace(limits, connections=1))
        )
    raise ValueError("TWOTRUTHS_CHALLENGE_DATABASE_URL must begin with postgresql:// or sqlite:///")


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (PoolTimeout, OSError) as error:
        raise _away() from error
    except DBAPIError as error:
        if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
            raise _away() from error
        # PostgreSQL quotes the offending row in its message: keep the kind alone, for the log.
        raise RuntimeError(f"the database refused a statement: {type(error.orig).__name__}") from None


def _away() -> Unavailable:
    return Unavailable("the database does not answer", retry_after=RETRY_SECONDS)


def cause(error: Unavailable) -> str:
    """Why, for the operator: the first line of what the driver said. It names hosts and users, never passwords."""
    source: BaseException | None = error.__cause__
    if isinstance(source, DBAPIError) and source.orig is not None:
        source = source.orig
    first, *_ = str(source or "").strip().splitlines() or [""]
    return first or type(source).__name__
