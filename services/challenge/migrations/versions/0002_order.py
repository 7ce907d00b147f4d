"""Keys compare by byte on every database: PostgreSQL's locale must neither decide their order nor, when the
system's rules of order change, spoil their indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEYS: dict[str, dict[str, int | None]] = {
    "challenges": {"id": 36, "status": 16, "video_id": 36, "live_video_id": 36},
    "answers": {"challenge_id": 36},
    "guesses": {"challenge_id": 36, "player": None},
    "tallies": {"challenge_id": 36},
    "scores": {"player": None},
}


def upgrade() -> None:
    _alter("C")


def downgrade() -> None:
    _alter(None)


def _alter(collation: str | None) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite compares by byte
    for table, columns in _KEYS.items():
        for name, length in columns.items():
            op.alter_column(table, name, type_=sa.String(length, collation))
