"""What a run has spent of single examples' privacy, where its clients train by DP-SGD.

Every training of a run costs an example the same, which its terms say; so the account is how often the most frequent
client was drawn, which the store notes before an assignment leaves. Rounds of which nothing can have been released are
left out, as in the ledger.
"""

from __future__ import annotations

from quorate.plan import Training
from quorate.privacy import ExampleEpsilon, example_epsilon
from quorate.server.records import Run
from quorate.server.store import Store

__all__ = ["example_spend"]


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
