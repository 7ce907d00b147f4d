"""Connections to PostgreSQL with psycopg 3 (docs/decisions/020).

The URL goes to libpq as it is (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING), so
its TLS options, several hosts, target_session_attrs, a password file mean what they mean to psql, and the
engine's own URL, which SQLAlchemy may print, holds nothing of it.

Nothing outlives a transaction on the server, so PgBouncer may pool transactions: no prepared statements, and the
timeouts are set by ``SET LOCAL`` in each transaction. Isolation is READ COMMITTED, whatever the server's default:
the stores' statements are right under it (unique keys, updates that name the state they expect), and nothing has
to be repeated because of another.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import conninfo
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.challenge.adapters.limits import Limits

# A connection is replaced after so long: after a failover, or behind a balancer, load comes back even.
_RECYCLE_SECONDS = 1800
_READ_ONLY = "25006"  # https://www.postgresql.org/docs/current/errcodes-appendix.html
# How a server that vanished without a word is noticed, within about 20 s (libpq's parameters).
_KEEPALIVE = {
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


def make_engine(url: str, limits: Limits) -> AsyncEngine:
    """An engine for a ``postgresql://`` URL; nothing is connected yet. Raises ValueError without the URL's text:
    a password may be in any part of one that cannot be read."""
    parameters = _parameters(url, limits)

    async def connect() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(**parameters, prepare_threshold=None)

    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=connect,
        hide_parameters=True,  # the text of an exception shows no values
        isolation_level="READ COMMITTED",
        pool_size=limits.connections,
        max_overflow=0,
        pool_timeout=limits.connect_seconds,
        pool_pre_ping=True,  # a server that was started again costs no caller an error
        pool_recycle=_RECYCLE_SECONDS,
        use_native_hstore=False,
    )
    milliseconds = round(limits.statement_seconds * 1000)
    bounds = (
        f"SET LOCAL statement_timeout = {milliseconds}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
    )

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(bounds)

    event.listen(engine.sync_engine, "begin", begin)
    event.listen(engine.sync_engine, "handle_error", _leave_if_demoted)
    return engine


def _leave_if_demoted(context: ExceptionContext) -> None:
    """A server that takes no writes any more is as good as gone: new connections find the one that took over."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _parameters(url: str, limits: Limits) -> dict[str, Any]:
    """The URL's parameters, and ours where it has none."""
    try:
        given = conninfo.conninfo_to_dict(url)
        if "@" in str(given.get("host", "")):  # the end of a password: an error about the host would quote it
            raise psycopg.ProgrammingError
    except psycopg.ProgrammingError:
        raise ValueError(
            "TWOTRUTHS_CHALLENGE_DATABASE_URL is not a URL that libpq reads "
            "(percent-encode what is special in the password; options are libpq's, as in ?sslmode=verify-full)"
        ) from None
    ours = {
        "connect_timeout": str(max(2, round(limits.connect_seconds))),
        "application_name": "twotruths-challenge",
    }
    return {**_KEEPALIVE, **ours, **given}
