"""An authority's tokens, parties and log.

What is there already stays: the tables are older than their migrations.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "authority_1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables that are missing."""
    op.create_table(
        "tokens",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("expires", sa.String, nullable=False),
        sa.Column("used", sa.String),
        sa.Column("party", sa.String),
        if_not_exists=True,
    )
    op.create_table(
        "parties",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("place", sa.Integer, nullable=False, unique=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("hosts", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("enrolled", sa.String, nullable=False),
        sa.Column("expires", sa.String, nullable=False),
        sa.Column("revoked", sa.Text),
        if_not_exists=True,
    )
    op.create_table(
        "log",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
