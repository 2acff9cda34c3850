"""What a run has spent of single examples' privacy, where its clients train by DP-SGD, and the budget that it has.

Every training of a run costs an example the same, which its terms say; so the account is how often the most frequent
client was drawn, which the store notes before an assignment leaves. Rounds of which nothing can have been released are
left out, as in the ledger.

The noise is the clients' own, and the ε holds against the coordinator; that no client is asked too often is what the
coordinator is trusted with here, as in the ledger. A device that doesn't trust it has a budget of its own
(`quorate.clients.agent.judgement`).
"""

from __future__ import annotations

from collections.abc import Iterable

from quorate.errors import BudgetExhausted
from quorate.plan import Plan, Training
from quorate.privacy import ExampleEpsilon, example_epsilon
from quorate.rounds import Member
from quorate.server.records import Run
from quorate.server.store import Store

__all__ = ["ExampleBudget", "example_spend"]


def example_spend(
    store: Store, run: Run, training: Training, until: int | None = None
) -> ExampleEpsilon | None:
    """The ε for one example of the client that was drawn most often; None where no example is protected.

    Args:
        store: knows who was drawn.
        run: which run.
        training: of its terms.
        until: the last round that counts; None: all.

    Raises:
        MissingExtra: SciPy is not installed, and clients sample their examples.
    """
    event = training.example_event
    if training.dp_sgd is None or event is None:
        return None
    last = max((past.number for past in store.rounds(run.id)), default=0) if until is None else until
    count, delta = store.most_participations(run.id, last), training.dp_sgd.delta
    return ExampleEpsilon(example_epsilon(event, count, delta), delta, count, simulated=run.simulated)


class ExampleBudget:
    """Refuses the round after which an example of one of its members could have cost more than the plan's budget.

    Args:
        store: knows who was drawn.
        run: which run.
        plan: resolved, with a budget for single examples.
    """

    def __init__(self, store: Store, run: Run, plan: Plan):
        training, event = plan.training.dp_sgd, plan.training.example_event
        assert training is not None
        assert event is not None
        assert training.limit is not None
        self._store, self._run, self._event = store, run, event
        self._limit, self._delta = training.limit, training.delta
        planned = plan.rounds.participations
        self._kept = planned if self._epsilon(planned) <= self._limit else 0

    def check(self, number: int, cohort: Iterable[Member]) -> None:
        """To be called before anything of the round leaves.

        Args:
            number: of the round; those before it are counted.
            cohort: who was drawn for it.

        Raises:
            BudgetExhausted: the budget of one of them would be passed.
        """
        if number <= self._kept:  # nobody was drawn oftener than there were rounds
            return
        often = self._store.drawn_often(self._run.id, max(1, self._kept))
        most = max((often.get(member, 0) for member in cohort), default=0) + 1
        if most <= self._kept:
            return
        if (after := self._epsilon(most)) > self._limit:
            raise BudgetExhausted(
                f"round {number} would bring the ε for one example of a member that was drawn {most - 1} times to "
                f"{after:.4g}, above the budget of {self._limit:g} (δ = {self._delta:.3g}); spent so far: "
                f"{self._epsilon(most - 1):.4g}"
            )
        self._kept = most

    def _epsilon(self, participations: int) -> float:
        return example_epsilon(self._event, participations, self._delta)
