"""Run by Alembic: applies migrations in the transaction that `quorate.server.migrating` has opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
