"""Rounds have a kind: until now all of them were of training."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column("rounds", sa.Column("kind", sa.String, nullable=False, server_default="fit"))
