"""The schema, by Alembic: what a database has, and bringing it to what this version needs.

A version may meet a schema that is newer than it knows: in a roll-out the migration runs first and the old
replicas go on for a while. So a migration must leave what the version before it uses, and one that cannot goes
out in two steps.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from services.challenge.adapters.engine import Database, cause
from services.common.errors import FailedPrecondition, ServiceError, Unavailable

SCRIPTS = Path(__file__).parent.parent / "migrations"
_PAUSE_SECONDS = 0.25

# Any number that nothing else on the database locks with.
_LOCK = 0x7477_6F74

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Schema:
    """The revision that a database is at ("" before the first), and those that it lacks, in order."""

    revision: str
    missing: tuple[str, ...]

    @property
    def is_newer(self) -> bool:
        """Whether a newer version made it."""
        return self.revision != "" and self.revision not in _revisions()


async def ready(database: Database, *, migrates: bool, within: float) -> None:
    """Returns when the database answers and has its schema; brings it to that if ``migrates``.

    Until then it waits ``within`` seconds, so that it may be started after us. Raises Unavailable,
    FailedPrecondition: one line for the operator.
    """
    clock = asyncio.get_running_loop().time
    deadline, told = clock() + within, ""
    while True:
        try:
            await _check(database, migrates)
        except ServiceError as error:
            left = deadline - clock()
            if left <= 0:
                raise
            if error.message != told:
                log.warning("waiting at most %.0f s: %s", within, error.message)
            told = error.message
        else:
            return
        await asyncio.sleep(min(_PAUSE_SECONDS, left))


async def _check(database: Database, migrates: bool) -> None:
    try:
        schema = await read(database)
        if schema.missing and migrates:
            await migrate(database)
            return
    except Unavailable as error:
        raise Unavailable(f"the database does not answer: {cause(error)}") from error
    if schema.is_newer:
        log.warning("the schema of the database is newer (%s) than this version", schema.revision)
    if schema.missing:
        at = schema.revision or "nothing"
        raise FailedPrecondition(
            f"the schema of the database is at {at}, this version needs {schema.missing[-1]}: run `mesh migrate`"
        )


async def read(database: Database) -> Schema:
    """What the database has. Raises Unavailable."""
    return await database.read(lambda connection: connection.run_sync(_read))


async def migrate(database: Database) -> None:
    """Upgrades the schema to the newest, all or nothing, and logs what it did; does nothing when it is there, or
    newer.

    Several processes may do it at once: they take turns. Raises Unavailable.
    """
    await database.write(lambda connection: connection.run_sync(_upgrade))


async def downgrade(database: Database, revision: str) -> None:
    """Takes the schema back to a revision ("base": to nothing) with the data that it cannot hold. Raises
    Unavailable."""
    await database.write(lambda connection: connection.run_sync(partial(_downgrade, revision=revision)))


def _read(connection: Connection) -> Schema:
    revision = MigrationContext.configure(connection).get_current_revision() or ""
    known = _revisions()
    if revision and revision not in known:
        return Schema(revision, ())
    return Schema(revision, known[known.index(revision) + 1 :] if revision else known)


def _upgrade(connection: Connection) -> None:
    _take_turns(connection)
    schema = _read(connection)
    if schema.missing:
        command.upgrade(_config(connection), "head")
        log.info("the schema was at %s: applied %s", schema.revision or "nothing", ", ".join(schema.missing))


def _downgrade(connection: Connection, revision: str) -> None:
    _take_turns(connection)
    command.downgrade(_config(connection), revision)


def _take_turns(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite's writers take turns anyway
        # A large table takes its time, and so does whoever migrates before us.
        connection.exec_driver_sql(
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
        )
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _revisions() -> tuple[str, ...]:
    """All that this version knows, the oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    return tuple(script.revision for script in reversed(list(scripts.walk_revisions())))
