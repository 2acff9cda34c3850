"""W1 on Quorate: whole rounds of the coordinator, with store and ledger in memory."""

from __future__ import annotations

import sys
from typing import Any

import quorate as q
from benchmarks._w1 import BATCH, CLASSES, COHORT, FEATURES, HIDDEN, RATE, SEED, Orders
from benchmarks.simulation import workload

ROUNDS = 1000  # more than anybody waits for


def main(name: str) -> None:
    orders = Orders()
    model = (
        q.models.mlp(FEATURES, (HIDDEN, HIDDEN), CLASSES)
        if name == "2NN"
        else q.models.softmax(FEATURES, CLASSES)
    )
    plan = q.Plan(
        task=q.Task(model),
        rounds=q.Rounds(count=ROUNDS, cohort=COHORT, sampling="fixed"),
        training=q.Training(learning_rate=RATE, epochs=1, batch_size=BATCH),
    )
    held = dict[str, Any]()

    class Told(q.callbacks.Callback):
        def __call__(self, report: Any, parameters: Any) -> None:
            held["parameters"] = parameters
            orders.done()
            if not orders.next():
                raise q.callbacks.Enough

    orders.next()
    q.run(plan, fleet=q.Simulation(workload(), seed=SEED), watch=lambda report: None, callbacks=[Told()])
    orders.end(
        [(held["parameters"][one.weight], held["parameters"][one.bias]) for one in model.program_spec()]
    )


if __name__ == "__main__":
    main(sys.argv[1])
