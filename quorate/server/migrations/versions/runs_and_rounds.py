"""Runs, rounds, who took part in them, checkpoints, ledgers, hosted plans and published versions.

What is there already stays: the tables are older than their migrations.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables that are missing."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("terms_hash", sa.String, nullable=False, unique=True),
        sa.Column("terms", sa.LargeBinary, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "rounds",
        sa.Column("run", sa.String, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("base_version", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("revealing", sa.Boolean, nullable=False),
        sa.Column("opened", sa.String, nullable=False),
        sa.Column("closed", sa.String),
        sa.Column("cohort", sa.Integer),
        sa.Column("survivors", sa.Integer),
        sa.Column("lost", sa.Text),
        sa.Column("metrics", sa.Text),
        sa.Column("epsilons", sa.Text),
        sa.Column("reason", sa.Text),
        if_not_exists=True,
    )
    op.create_table(
        "participations",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("member", sa.String, primary_key=True),
        sa.Column("in_sum", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["run", "round"], ["rounds.run", "rounds.number"]),
        if_not_exists=True,
    )
    op.create_table(
        "checkpoints",
        sa.Column("run", sa.String, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "ledger",
        sa.Column("run", sa.String, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "hosted",
        sa.Column("run", sa.String, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("wanted", sa.String, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "versions",
        sa.Column("run", sa.String, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("registry", sa.String, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        if_not_exists=True,
    )
