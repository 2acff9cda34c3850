"""Budgets of populations, and which runs count towards them: see `quorate.server.store`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables, empty: no run of before counts towards a population's budget."""
    op.create_table(
        "populations",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("epsilon", sa.Double, nullable=False),
        sa.Column("delta", sa.Double, nullable=False),
    )
    op.create_table(
        "counted",
        sa.Column("run", sa.String, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("population", sa.String, sa.ForeignKey("populations.name"), nullable=False),
    )
