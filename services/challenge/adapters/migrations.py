"""Brings a database to the newest schema with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from services.challenge.adapters.engine import open_database

SCRIPTS = Path(__file__).parent.parent / "migrations"

# Any number that nothing else on the database locks with.
_LOCK = 0x7477_6F74


async def migrate(url: str) -> None:
    """Upgrades the database at ``url`` to the newest schema, all or nothing; does nothing when it is there.

    Several processes may do it at once: they take turns. Raises Unavailable.
    """
    database = open_database(url)
    try:
        await database.write(lambda connection: connection.run_sync(_upgrade))
    finally:
        await database.close()


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite's writers take turns anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
