"""Run by Alembic: applies migrations in the transaction that `quorate.server.migrating` has opened."""

from alembic import context

from quorate.server.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
