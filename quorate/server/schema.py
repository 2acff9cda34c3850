"""The tables of the coordinator's database. What a row means is said where it is read, in `quorate.server.store`."""

from __future__ import annotations

from quorate.errors import MissingExtra

try:
    import sqlalchemy as sa
except ImportError as error:
    raise MissingExtra("server", "running a coordinator") from error

__all__ = [
    "AUTHORITY",
    "CHECKPOINTS",
    "COUNTED",
    "HOSTED",
    "LEDGER",
    "LOG",
    "METADATA",
    "PARTICIPATIONS",
    "PARTIES",
    "POPULATIONS",
    "ROUNDS",
    "RUNS",
    "TOKENS",
    "VERSIONS",
    "WRITER",
    "sa",
]

METADATA = sa.MetaData()

RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("terms_hash", sa.String, nullable=False, unique=True),
    sa.Column("terms", sa.LargeBinary, nullable=False),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("created", sa.String, nullable=False),
)
ROUNDS = sa.Table(
    "rounds",
    METADATA,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False, server_default="fit"),  # fit, evaluate
    sa.Column("base_version", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),  # open, committed, aborted
    sa.Column("revealing", sa.Boolean, nullable=False),
    sa.Column("opened", sa.String, nullable=False),
    sa.Column("closed", sa.String),
    sa.Column("cohort", sa.Integer),
    sa.Column("survivors", sa.Integer),
    sa.Column("lost", sa.Text),
    sa.Column("metrics", sa.Text),
    sa.Column("epsilons", sa.Text),
    sa.Column("reason", sa.Text),
)
PARTICIPATIONS = sa.Table(
    "participations",
    METADATA,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("member", sa.String, primary_key=True),
    sa.Column("in_sum", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(["run", "round"], ["rounds.run", "rounds.number"]),
)
CHECKPOINTS = sa.Table(
    "checkpoints",
    METADATA,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
)
LEDGER = sa.Table(
    "ledger",
    METADATA,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("entry", sa.LargeBinary, nullable=False),
)
HOSTED = sa.Table(
    "hosted",
    METADATA,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("wanted", sa.String, nullable=False),  # running, paused, stopped
)
VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("registry", sa.String, primary_key=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
)

POPULATIONS = sa.Table(
    "populations",
    METADATA,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("epsilon", sa.Double, nullable=False),
    sa.Column("delta", sa.Double, nullable=False),
)
COUNTED = sa.Table(  # towards which population's budget a run counts
    "counted",
    METADATA,
    sa.Column("run", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("population", sa.ForeignKey("populations.name"), nullable=False),
)

WRITER = sa.Table(
    "writer",
    METADATA,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),  # there is one row, 0
    sa.Column("term", sa.Integer, nullable=False),  # counts who has been the one that writes
)

# The authority's tables are in a database of its own: it may be somebody else's than the coordinator's.
AUTHORITY = sa.MetaData()

TOKENS = sa.Table(
    "tokens",
    AUTHORITY,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("expires", sa.String, nullable=False),
    sa.Column("used", sa.String),
    sa.Column("party", sa.String),
)
PARTIES = sa.Table(
    "parties",
    AUTHORITY,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("place", sa.Integer, nullable=False, unique=True),  # of its enrolment in the log
    sa.Column("role", sa.String, nullable=False),
    sa.Column("hosts", sa.Text, nullable=False),  # separated by spaces
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("enrolled", sa.String, nullable=False),
    sa.Column("expires", sa.String, nullable=False),
    sa.Column("revoked", sa.Text),
)
LOG = sa.Table(
    "log",
    AUTHORITY,
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
