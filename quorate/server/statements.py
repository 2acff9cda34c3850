"""The statements that every round executes, made once: putting one together takes longer than to execute it.

Parameters that begin with `of_` say which rows are meant; others are columns, and their values are the new ones.
"""

from __future__ import annotations

from quorate.rounds import Outcome
from quorate.server.schema import CHECKPOINTS, LEDGER, PARTICIPATIONS, ROUNDS, WRITER, sa

__all__ = [
    "ADD_CHECKPOINT",
    "ADD_ENTRY",
    "ADD_PARTICIPATION",
    "ADD_ROUND",
    "CHANGE_ROUND",
    "DROP_CHECKPOINT",
    "ENDED",
    "LAST_ENTRY",
    "LAST_ROUND",
    "PUT_ALL_IN_SUM",
    "PUT_IN_SUM",
    "TERM",
]

_RUN: sa.BindParameter[str] = sa.bindparam("of_run")
_NUMBER: sa.BindParameter[int] = sa.bindparam("of_round")

TERM = sa.select(WRITER.c.term).with_for_update()

LAST_ROUND = sa.select(sa.func.max(ROUNDS.c.number)).where(ROUNDS.c.run == _RUN)
ADD_ROUND = ROUNDS.insert()
CHANGE_ROUND = ROUNDS.update().where(
    ROUNDS.c.run == _RUN, ROUNDS.c.number == _NUMBER, ROUNDS.c.status == "open"
)
"""Changes no row if the round is not open."""

ADD_PARTICIPATION = PARTICIPATIONS.insert()
PUT_ALL_IN_SUM = (
    PARTICIPATIONS.update()
    .where(PARTICIPATIONS.c.run == _RUN, PARTICIPATIONS.c.round == _NUMBER)
    .values(in_sum=True)
)
PUT_IN_SUM = PUT_ALL_IN_SUM.where(PARTICIPATIONS.c.member.in_(sa.bindparam("of_members", expanding=True)))
ENDED = (
    sa.select(PARTICIPATIONS.c.member, PARTICIPATIONS.c.in_sum, ROUNDS.c.status == Outcome.COMMITTED.value)
    .join_from(PARTICIPATIONS, ROUNDS)
    .where(PARTICIPATIONS.c.run == _RUN, PARTICIPATIONS.c.round == _NUMBER, ROUNDS.c.status != "open")
)
"""Of each member of a round that has ended: its name, whether it was put in the sum, whether the round is committed."""

DROP_CHECKPOINT = CHECKPOINTS.delete().where(CHECKPOINTS.c.run == _RUN)
ADD_CHECKPOINT = CHECKPOINTS.insert()

LAST_ENTRY = sa.select(sa.func.max(LEDGER.c.sequence)).where(LEDGER.c.run == _RUN)
ADD_ENTRY = LEDGER.insert()
