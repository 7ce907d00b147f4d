"""Run by Alembic: applies the migrations on the connection that ``adapters.migrations`` hands in."""

from __future__ import annotations

from alembic import context

from services.challenge.adapters.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
