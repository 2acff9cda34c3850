"""Which engine: the one that the plan names, or (`auto`) the one that suits the model, the cohort and the machine."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from quorate.clients.adapters.numpy_models import DenseModel
from quorate.errors import PlanError
from quorate.plan import Plan
from quorate.processors import cores
from quorate.randomness import generator
from quorate.rounds import Instruction
from quorate.simulations.datasets import FederatedDataset
from quorate.simulations.engines.contract import Engine
from quorate.simulations.engines.processes import Processes, can_fork
from quorate.simulations.engines.ray_actors import RayActors
from quorate.simulations.engines.sequential import one_by_one
from quorate.simulations.engines.site import InThisProcess, Site
from quorate.simulations.engines.vectorised import InThreads, can_vectorise, in_blocks, threads_for
from quorate.strategies.local_rules import Sgd
from quorate.task import Model

__all__ = ["ENGINES", "choose", "make_engine"]

log = logging.getLogger(__name__)

ENGINES = ("auto", "sequential", "vectorised", "processes", "ray")

_WORTH_PROCESSES = 1e8
"""Multiplications a round: about 10 ms of one core, where the workers' messages (about 1 ms) no longer matter."""

_WORTH_THREADS = 5e7
"""Multiplications a round: about 1 ms of one core."""


def make_engine(
    name: str, workers: int | None, address: str | None, data: FederatedDataset, plan: Plan
) -> Engine:
    """The engine, started.

    Args:
        name: one of `ENGINES`.
        workers: of `processes` and `ray`; None: one a core.
        address: of `ray`'s cluster; None: one on this machine.
        data: the clients'.
        plan: resolved.

    Raises:
        PlanError: the model can't be vectorised, or processes can't be forked here.
        MissingExtra: `processes` without threadpoolctl, `ray` without Ray.
    """
    model, available = plan.task.resolve().model, cores()
    if name == "auto":
        name, why = choose(model, data, plan, workers or available)
        log.info("fleet.engine: auto picks %r: %s", name, why)
    by_example = plan.training.dp_sgd is not None
    if name == "vectorised" and by_example:
        raise PlanError(
            "fleet.engine: 'vectorised' trains many clients at once, and with training.dp_sgd the gradient of every "
            "example is clipped by itself; accepted: 'sequential', 'processes', 'ray'"
        )
    if name == "vectorised" and not can_vectorise(model):
        raise PlanError(
            f"fleet.engine: 'vectorised' needs a model that trains many clients at once, and {model.name!r} does not; "
            "accepted: 'sequential', 'processes'"
        )
    if name == "processes" and not getattr(model, "survives_fork", True):
        raise PlanError(
            f"fleet.engine: 'processes' forks this process, which {model.name!r} does not survive (its framework has "
            "threads of its own); accepted: 'vectorised', 'sequential', 'ray'"
        )
    together = name != "sequential" and can_vectorise(model) and not by_example
    if name == "ray":
        return RayActors(data, plan, together, workers, address)
    site = Site(data, plan, in_blocks if together else one_by_one, together)
    if name == "processes":
        return Processes(site, workers or available)
    if together and available > 1 and _work(model, data, plan) >= _WORTH_THREADS:
        if importlib.util.find_spec("threadpoolctl"):
            return InThreads(site, available)
        log.info("fleet.engine: %r has one thread, since threadpoolctl is not installed", name)
    return InThisProcess(site)


def choose(model: Model, data: FederatedDataset, plan: Plan, workers: int) -> tuple[str, str]:
    """The name of the engine that suits, and why.

    A model of one's own is trained in this process, since what it holds may not survive a fork (a framework's
    threads, a device's memory): `processes` has to be asked for.

    Args:
        model: of the task.
        data: the clients'.
        plan: resolved.
        workers: how many processes there would be.
    """
    if plan.training.dp_sgd is not None:
        return (
            "sequential",
            "with training.dp_sgd clients are trained one at a time; 'processes' may be faster",
        )
    if not can_vectorise(model):
        return "sequential", f"{model.name!r} trains one client at a time; 'processes' may be faster"
    if not isinstance(model, DenseModel):
        try:
            _try_together(model, data, plan)
        except PlanError:
            return "sequential", f"an operation of {model.name!r} can't be batched over clients"
        return "vectorised", f"{model.name!r} trains many clients at once"
    work = _work(model, data, plan)
    shown = f"about {work:.0e} multiplications a round"
    if work < _WORTH_PROCESSES:
        return "vectorised", f"{shown} are not worth workers"
    if workers < 2:
        return "vectorised", f"{shown}, and one core"
    if not can_fork():
        return "vectorised", f"{shown}, and workers can't be forked on this system"
    return "processes", f"{shown}, for {workers} workers"


def _work(model: Model, data: FederatedDataset, plan: Plan) -> float:
    """Multiplications a round: forward, and two products backward."""
    return 3.0 * model.layout.size * data.mean_examples * plan.rounds.cohort * plan.training.epochs


def _try_together(model: Any, data: FederatedDataset, plan: Plan) -> None:
    """Has the first client take its steps; a framework says only then what it can't batch."""
    settings = {
        "learning_rate": plan.training.learning_rate,
        "epochs": 1,
        "batch_size": plan.training.batch_size,
    }
    parameters = model.initial(generator(0, "trial"))
    told = Instruction(Sgd.name, settings, seed=0)
    with threads_for(model, 1) as trial:
        trial.submit(model.fit_many, parameters, [data.clients[0]], [told], [{}]).result()
