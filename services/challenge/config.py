"""Settings of the challenge service."""

from __future__ import annotations

from pydantic import Field, SecretStr

from services.common.settings import CommonSettings


class ChallengeSettings(CommonSettings):
    """Where challenges are kept and served."""

    challenge_listen: str = Field(default="127.0.0.1:50053", description="where the challenge service listens")
    challenge_database_url: SecretStr = Field(
        default=SecretStr(""),
        description="`postgresql://user:password@host/database?sslmode=verify-full` (all that libpq reads) or "
        "`sqlite:///file`; empty: a file in the data directory",
    )
    challenge_database_connections: int = Field(
        default=10, ge=1, description="most connections of a process to PostgreSQL"
    )
    challenge_database_connect_seconds: float = Field(
        default=5.0, gt=0, description="how long a connection to PostgreSQL may take, or the wait for a free one"
    )
    challenge_database_statement_seconds: float = Field(
        default=10.0, gt=0, description="how long a statement on PostgreSQL may take, with its wait for locks"
    )
    challenge_database_wait_seconds: float = Field(
        default=30.0, ge=0, description="how long a start waits for PostgreSQL and for its schema, then it fails"
    )
    challenge_database_check_seconds: float = Field(
        default=2.0, gt=0, description="how often it is looked whether PostgreSQL answers, for health checks"
    )
    challenge_migrate_on_start: bool | None = Field(
        default=None, description="whether the schema is brought up to date at start; empty: on SQLite only"
    )
    challenge_reconcile_seconds: float = Field(
        default=30.0, gt=0, description="how often publishings that were left half done are completed"
    )

    @property
    def database_url(self) -> str:
        """The database that is used. Not for logs: it may hold a password."""
        given = self.challenge_database_url.get_secret_value()
        return given or f"sqlite:///{self.data_dir.absolute() / 'challenge.db'}"
