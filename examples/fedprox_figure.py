"""The shape of figure 1 (top) of FedProx (Li et al. 2020): the more clients differ, the worse FedAvg does."""

import sys

from matplotlib.figure import Figure

import quorate as q
from quorate.simulations import datasets

SETTINGS = {
    "synthetic IID": {"iid": True},
    "synthetic(0, 0)": {"alpha": 0.0, "beta": 0.0},
    "synthetic(0.5, 0.5)": {"alpha": 0.5, "beta": 0.5},
    "synthetic(1, 1)": {"alpha": 1.0, "beta": 1.0},
}
STRATEGIES = {"FedAvg": q.strategies.fedavg(), "FedProx, μ = 1": q.strategies.fedprox(mu=1.0)}


def loss(strategy, **options):
    plan = q.Plan(
        task=q.Task(q.models.softmax(60, 10)),
        rounds=q.Rounds(count=100, cohort=10, sampling="fixed", weighting="examples"),
        training=q.Training(learning_rate=0.01, epochs=20, batch_size=10),
        strategy=strategy,
    )
    clients = q.Simulation(datasets.fedprox(clients=30, seed=0, **options), seed=0)
    return [r.metrics["loss"] for r in q.run(plan, fleet=clients, watch=lambda report: None).committed]


figure = Figure(figsize=(13, 3), layout="constrained")
for axes, (title, options) in zip(figure.subplots(1, 4, sharey=True), SETTINGS.items(), strict=True):
    for name, strategy in STRATEGIES.items():
        axes.plot(loss(strategy, **options), label=name)
    axes.set(title=title, xlabel="rounds", ylim=(0, 2.5))
figure.axes[0].set_ylabel("loss on the test set")
figure.axes[0].legend(frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "fedprox.png", dpi=120)
