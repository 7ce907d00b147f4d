"""Settings of the challenge service."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import CommonSettings


class ChallengeSettings(CommonSettings):
    """Where challenges are kept and served."""

    challenge_listen: str = Field(default="127.0.0.1:50053", description="where the challenge service listens")
    challenge_database_url: str = Field(
        default="",
        description="sqlite+aiosqlite:///<file> or postgresql+asyncpg://…; empty: a file in the data directory",
        repr=False,
    )
    challenge_migrate_on_start: bool | None = Field(
        default=None, description="whether the schema is brought up to date at start; empty: on SQLite only"
    )
    challenge_reconcile_seconds: float = Field(
        default=30.0, gt=0, description="how often publishings that were left half done are completed"
    )

    @property
    def database_url(self) -> str:
        """The database that is used."""
        return self.challenge_database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'challenge.db'}"

    @property
    def migrates_on_start(self) -> bool:
        """Whether the schema is brought up to date at start. Replicas share a PostgreSQL: there it is a step of
        its own."""
        if self.challenge_migrate_on_start is None:
            return self.database_url.startswith("sqlite")
        return self.challenge_migrate_on_start
