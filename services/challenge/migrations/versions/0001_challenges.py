"""Challenges, their answers, guesses, tallies and scores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "challenges",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("creator", sa.String, nullable=False),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("video_id", sa.String(36), nullable=False),
        sa.Column("live_video_id", sa.String(36)),
        sa.Column("total_duration", sa.Double, nullable=False),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("compression_applied", sa.Boolean, nullable=False),
        sa.Column("commitment", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_challenges"),
        sa.UniqueConstraint("live_video_id", name="uq_challenges_live_video_id"),
    )
    op.create_index("ix_challenges_status_published_at_id", "challenges", ["status", "published_at", "id"])
    op.create_table(
        "answers",
        sa.Column("challenge_id", sa.String(36), nullable=False),
        sa.Column("lie_statement_index", sa.Integer, nullable=False),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("challenge_id", name="pk_answers"),
        sa.ForeignKeyConstraint(["challenge_id"], ["challenges.id"], name="fk_answers_challenges"),
    )
    op.create_table(
        "guesses",
        sa.Column("challenge_id", sa.String(36), nullable=False),
        sa.Column("player", sa.String, nullable=False),
        sa.Column("statement_index", sa.Integer, nullable=False),
        sa.Column("correct", sa.Boolean, nullable=False),
        sa.Column("points", sa.Integer, nullable=False),
        sa.Column("score_after", sa.BigInteger, nullable=False),
        sa.Column("guessed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("challenge_id", "player", name="pk_guesses"),
        sa.ForeignKeyConstraint(["challenge_id"], ["challenges.id"], name="fk_guesses_challenges"),
    )
    op.create_table(
        "tallies",
        sa.Column("challenge_id", sa.String(36), nullable=False),
        sa.Column("statement_index", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("guesses", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("challenge_id", "statement_index", name="pk_tallies"),
        sa.ForeignKeyConstraint(["challenge_id"], ["challenges.id"], name="fk_tallies_challenges"),
    )
    op.create_table(
        "scores",
        sa.Column("player", sa.String, nullable=False),
        sa.Column("score", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("player", name="pk_scores"),
    )


def downgrade() -> None:
    for table in ("scores", "tallies", "guesses", "answers", "challenges"):
        op.drop_table(table)
