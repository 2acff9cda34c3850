"""How a simulated round grows: with the cohort, the population, and the parameters.

    python -m benchmarks.growth [--quick] [--json FILE] [--plot FILE]

Clients are generated when they are drawn: 20 examples of 64 features, 10 classes. One local epoch of SGD in batches of
20; store and ledger in memory, no evaluation; the engine is the one that `auto` picks.

- cohort: 10 to 10,000 of a population of 100,000, softmax regression. Linear: a member costs no more in a large cohort
  than in one of 100.
- population: 10^3 to 10^7, cohort 100, softmax regression. Flat.
- parameters: an MLP with 10^4 to 10^7, cohort 10. A parameter costs no more in a large model than in one of 10^5.

Of the rounds of a case the quickest counts, and cases take their rounds in turn, so that a noisy machine troubles all
of them alike. The first round of each, which starts things, is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import quorate as q
from benchmarks._rows import Row
from benchmarks.simulation import Case, machine, show, turns
from quorate.simulations.datasets import population

FEATURES, CLASSES, EXAMPLES = 64, 10, 20
COHORTS = (10, 100, 1000, 10_000)
POPULATIONS = (10**3, 10**4, 10**5, 10**6, 10**7)
HIDDEN = {10**4: 70, 10**5: 281, 10**6: 963, 10**7: 3125}
SLACK = 1.25
"""How much more a member, a population or a parameter may cost than at the smaller size: noise included."""


def case(model: Any, clients: int, cohort: int, rounds: int) -> Case:
    plan = q.Plan(
        task=q.Task(model),
        rounds=q.Rounds(count=rounds + 1, cohort=cohort, sampling="fixed"),
        training=q.Training(learning_rate=0.1, epochs=1, batch_size=20),
    )
    return Case(population(clients, EXAMPLES, FEATURES, CLASSES), plan)


def quickest(cases: dict[int, Case], rounds: int) -> dict[int, float]:
    """Seconds a round at each size."""
    times = turns(rounds, {str(size): one.round for size, one in cases.items()})
    return {size: min(times[str(size)]) for size in cases}


def against_cohort(rounds: int) -> dict[int, float]:
    model = q.models.softmax(FEATURES, CLASSES)
    return quickest({size: case(model, 10**5, size, rounds) for size in COHORTS}, rounds)


def against_population(rounds: int) -> dict[int, float]:
    model = q.models.softmax(FEATURES, CLASSES)
    return quickest({size: case(model, size, 100, rounds) for size in POPULATIONS}, rounds)


def against_parameters(rounds: int) -> dict[int, float]:
    models = {size: q.models.mlp(FEATURES, (width, width), CLASSES) for size, width in HIDDEN.items()}
    found = quickest({size: case(model, 10**3, 10, rounds) for size, model in models.items()}, rounds)
    return {models[size].layout.size: seconds for size, seconds in found.items()}


def rows(name: str, found: dict[int, float], of: str, small: int, large: int, *, each: bool) -> list[Row]:
    """The seconds, and what the larger size costs over the smaller: for each of what there is, or as a whole."""
    sizes = list(found)
    cost = {size: seconds / size if each else seconds for size, seconds in found.items()}
    over = cost[sizes[large]] / cost[sizes[small]]
    metric = f"{of} at {sizes[large]:,} over at {sizes[small]:,}"
    return [
        *(Row(name, f"a round at {size:,}", "s", seconds) for size, seconds in found.items()),
        Row(name, metric, "ratio", over, f"≤ {SLACK}", over <= SLACK, "s", cost[sizes[small]]),
    ]


def plot(figures: Sequence[tuple[str, dict[int, float]]], file: str) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(figures), figsize=(10, 3.2), layout="constrained")
    for axes, (label, found) in zip(panels, figures, strict=True):
        axes.loglog(list(found), list(found.values()), "o-")
        axes.set_xlabel(label)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 1e-2), max(high, 1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("seconds a round")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 60 s")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--plot", metavar="FILE", help="draw them there")
    options = parser.parse_args()
    rounds = 2 if options.quick else 5
    cohort, people, parameters = (
        measure(rounds) for measure in (against_cohort, against_population, against_parameters)
    )
    found = [
        *rows("cohort", cohort, "a member", 1, -1, each=True),
        *rows("population", people, "a round", 0, -1, each=False),
        *rows("parameters", parameters, "a parameter", 1, -1, each=True),
    ]
    for row in found:
        show(row)
    if options.plot:
        figures = [
            ("members of a cohort (100,000 clients)", cohort),
            ("clients (cohort 100)", people),
            ("parameters (cohort 10)", parameters),
        ]
        plot(figures, options.plot)
    if options.json:
        content = {"benchmark": "growth", "machine": machine(), "rows": [asdict(row) for row in found]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
