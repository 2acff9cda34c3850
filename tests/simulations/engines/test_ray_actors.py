"""The *ray* engine, on real clusters of this machine: the same results, and no round lost when somebody dies."""

import os
import signal

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.errors import DataError
from quorate.simulations.source import Simulation
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, SOFTMAX_DIGITS, plan, wine

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
CLIENTS = 12


@pytest.fixture(scope="module")
def two_nodes():
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(made, engine, watch=lambda report: None, data=None, source=None):
    source = source or Simulation(data or wine(CLIENTS), seed=7, engine=engine)
    return assembly.run(made, fleet=source, watch=watch)


class Watched(Simulation):
    def open(self, plan, directory):
        self.__dict__["live"] = super().open(plan, directory)
        return self.live


@pytest.mark.parametrize(
    "sections",
    [
        {"rounds": {"count": 3, "cohort": 8, "weighting": "examples"}},
        {"privacy": GAUSSIAN, "secure_aggregation": IDEAL},
        {"privacy": CLIPPED, "secure_aggregation": SECAGG},
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "median"}},
        {
            "privacy": GAUSSIAN,
            "secure_aggregation": IDEAL,
            "evaluation": {
                "metrics": {"accuracy": [0, 1]},
                "slices": {"label": [0]},
                "noise_multiplier": 1.0,
            },
        },
    ],
)
def test_a_cluster_learns_the_same_model_as_this_process(two_nodes, sections):
    made = plan(**sections)
    here, there = run(made, "vectorised"), run(made, "ray")
    np.testing.assert_allclose(there.model.vector, here.model.vector, atol=2e-6)
    assert [(r.survivors, r.lost) for r in there.history] == [(r.survivors, r.lost) for r in here.history]
    assert there.metrics == pytest.approx(here.metrics, abs=2e-5)


def test_actors_killed_between_rounds_lose_no_client(two_nodes):
    source = Watched(wine(CLIENTS), seed=7, engine="ray")
    pids = []

    def kill(report):
        found = source.live.engine.pids
        pids.extend(found)
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    killed = run(plan(), "ray", watch=kill, source=source)
    assert len(set(pids)) == len(pids) > 2
    assert [(r.survivors, r.lost) for r in killed.history] == [
        (r.survivors, r.lost) for r in run(plan(), "vectorised").history
    ]
    np.testing.assert_allclose(killed.model.vector, run(plan(), "vectorised").model.vector, atol=2e-6)


def test_a_client_that_kills_its_worker_is_lost_and_nobody_else_is(two_nodes):
    from tests.simulations.engines.test_engines import Deadly

    made = q.Plan(
        task=q.Task(Deadly()),
        rounds=q.Rounds(count=1, cohort=CLIENTS, sampling="fixed"),
        secure_aggregation=q.IdealSum(min_survivors=8),
        privacy=q.privacy.NoPrivacy(clip_norm=8.0),
    )
    finished = run(made, "ray")
    assert [(r.status, r.survivors) for r in finished.history] == [("committed", CLIENTS - 1)]
    np.testing.assert_allclose(finished.model["w"], 1, atol=1e-4)


def test_what_an_actor_refuses_is_refused_here(two_nodes):
    with pytest.raises(DataError, match="takes 64 features, got 13"):
        run(plan(task=SOFTMAX_DIGITS), "ray")


def test_partial_sums_are_added_in_a_tree(two_nodes):
    source = Simulation(wine(CLIENTS), seed=7, engine="ray", workers=2)
    fleet = source.open(plan().model_copy(update={"fleet": source.section()}).resolved(CLIENTS), None)
    parts = [np.full(3, 2**31 + i, np.uint32) for i in range(20)]
    total = fleet.engine._tree([ray.put(part) for part in parts])
    np.testing.assert_array_equal(total, np.sum(parts, axis=0, dtype=np.uint32))
    fleet.close()


def test_without_a_cluster_one_is_started_here_and_ended_with_the_run():
    ray.shutdown()
    run(plan(), "ray", source=Simulation(wine(CLIENTS), seed=7, engine="ray", workers=2))
    assert not ray.is_initialized()
