"""Whose turn it is to write: see `quorate.server.state_database`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table, empty: the first who writes has the first term."""
    op.create_table(
        "writer",
        sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("term", sa.Integer, nullable=False),
    )
