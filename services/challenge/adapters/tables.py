"""The tables. Migrations (``services/challenge/migrations``) make them; a test holds the two equal.

The answer of a challenge is a table of its own, so that reading a challenge cannot bring the lie along.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)
from sqlalchemy.types import TypeDecorator, TypeEngine


class UtcDateTime(TypeDecorator[datetime]):
    """Aware times in UTC to the microsecond, on databases that keep the zone and on SQLite, which does not.

    SQLite keeps text of fixed width, so order by it is order in time.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _key(length: int | None = None) -> TypeEngine[str]:
    """Text that is compared by byte, whatever the locale: as SQLite does."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

challenges = Table(
    "challenges",
    metadata,
    Column("id", _key(36), primary_key=True),
    Column("creator", String, nullable=False),
    Column("title", String, nullable=False),
    Column("status", _key(16), nullable=False),
    Column("video_id", _key(36), nullable=False),
    # video_id while the challenge is live, NULL afterwards: unique, and NULLs never collide.
    Column("live_video_id", _key(36), unique=True),
    Column("total_duration", Double, nullable=False),
    Column("segments", JSON, nullable=False),
    Column("compression_applied", Boolean, nullable=False),
    Column("commitment", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    Index(None, "status", "published_at", "id"),
)

answers = Table(
    "answers",
    metadata,
    Column("challenge_id", _key(36), ForeignKey(challenges.c.id), primary_key=True),
    Column("lie_statement_index", Integer, nullable=False),
    Column("salt", String(64), nullable=False),
)

guesses = Table(
    "guesses",
    metadata,
    Column("challenge_id", _key(36), ForeignKey(challenges.c.id), primary_key=True),
    Column("player", _key(), primary_key=True),
    Column("statement_index", Integer, nullable=False),
    Column("correct", Boolean, nullable=False),
    Column("points", Integer, nullable=False),
    Column("score_after", BigInteger, nullable=False),
    Column("guessed_at", UtcDateTime, nullable=False),
)

tallies = Table(
    "tallies",
    metadata,
    Column("challenge_id", _key(36), ForeignKey(challenges.c.id), primary_key=True),
    Column("statement_index", Integer, primary_key=True, autoincrement=False),
    Column("guesses", BigInteger, nullable=False),
)

scores = Table(
    "scores",
    metadata,
    Column("player", _key(), primary_key=True),
    Column("score", BigInteger, nullable=False),
)
