"""How long until a model is good, in simulated hours, with cohorts that are waited for, over-selected, or buffered."""

import statistics
import sys

from matplotlib.figure import Figure

import quorate as q
from quorate.simulations import datasets
from quorate.simulations.traces import Diurnal

TARGET = 0.85
WAYS = {  # about 40 members work at any time
    "synchronous": q.Rounds(count=800, cohort=40, sampling="fixed"),
    "over-selected": q.Rounds(count=800, cohort=31, sampling="fixed", over_selection=1.3),
    "buffered": q.Rounds(count=800, cohort=10, sampling="buffered", buffering=q.Buffering(concurrency=40)),
}
MEMBERS = datasets.digits().partition("dirichlet", clients=300, alpha=1.0, seed=0)
TRACES = Diurnal(hours=23, examples_per_s=0.1, bytes_per_s=1e5)  # the medians; speeds are log-normal, σ = 1


class Reached(q.callbacks.Callback):
    def __call__(self, report, parameters):
        if report.metrics.get("accuracy", 0) >= TARGET:
            raise q.callbacks.Enough(f"accuracy {TARGET}")


def rounds(way, seed):
    plan = q.Plan(task=q.Task(q.models.softmax(64, 10)), rounds=way, training=q.Training(learning_rate=0.1))
    fleet = q.Simulation(MEMBERS, traces=TRACES, present=250, seed=seed)
    return q.run(plan, fleet=fleet, watch=lambda report: None, callbacks=[Reached()]).committed


figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for colour, (name, way) in enumerate(WAYS.items()):
    runs = [rounds(way, seed) for seed in range(3)]
    hours = statistics.median(run[-1].metrics["simulated_hours"] for run in runs)
    for run in runs:
        told = [[r.metrics[name] for r in run] for name in ("simulated_hours", "accuracy")]
        axes.plot(*told, color=f"C{colour}", alpha=0.7)
    axes.lines[-1].set_label(f"{name}: {hours:.2f} h")
    print(f"{name}: accuracy {TARGET} after {hours:.2f} simulated hours, {len(runs[0])} rounds")
axes.axhline(TARGET, color="grey", linewidth=0.8)
axes.set(xscale="log", xlabel="simulated hours", ylabel="accuracy on the test set")
axes.legend(frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "simulated_hours.png", dpi=120)
