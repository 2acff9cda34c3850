"""Audits of real runs: a mechanism that is right passes, planted faults are found."""

import numpy as np
import pytest

import quorate as q
from quorate import assembly
from quorate.codecs import Clip, Discretise
from quorate.errors import PlanError
from quorate.privacy import mechanisms
from quorate.privacy.mechanisms import central_gaussian, rounded_noise
from quorate.rounds import Instruction
from quorate.simulations import datasets
from quorate.simulations.auditing.canaries import with_canaries
from quorate.simulations.auditing.inversion import draw_leaks, leaks
from quorate.simulations.auditing.membership import memberships
from quorate.simulations.source import Simulation

CANARIES, DELTA = 1000, 1e-5


def images(clients=60):
    return datasets.images(examples=400, side=28).partition("iid", clients=clients)


def plan(mechanism="central-gaussian", clients=60, **privacy):
    numbers = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": DELTA} | privacy
    return q.Plan(
        task={"name": "softmax", "inputs": 784, "classes": 10},
        rounds={"count": 1, "cohort": clients, "sampling": "fixed"},
        privacy={"mechanism": mechanism, **numbers},
        secure_aggregation={"protocol": "ideal"},
    )


def quiet(report):
    """Nobody looks."""


def audited(made, seed=3):
    planted = with_canaries(made, Simulation(images()), CANARIES, seed)
    finished = assembly.run(planted.plan, fleet=planted.fleet, watch=quiet)
    return finished.epsilon, planted.found(finished.model, DELTA)


@pytest.mark.parametrize("mechanism", ["central-gaussian", "distributed-discrete-gaussian"])
def test_a_mechanism_that_is_right_passes_and_the_bound_is_not_far_from_its_claim(mechanism):
    claimed, found = audited(plan(mechanism))
    assert sum(found.canaries) == CANARIES
    assert found.one_run < found.gaussian < claimed.released
    assert found.gaussian > 0.6 * claimed.released


def test_halved_noise_is_found(monkeypatch):
    right = central_gaussian.add_noise
    monkeypatch.setattr(
        central_gaussian, "add_noise", lambda law, variance, *more: right(law, variance / 4, *more)
    )
    claimed, found = audited(plan())
    assert claimed.released == pytest.approx(4.3772, abs=1e-3)
    assert found.gaussian > claimed.released


def test_a_clip_that_does_nothing_is_found(monkeypatch):
    monkeypatch.setattr(Clip, "encode", lambda self, values, randomness: np.array(values))
    monkeypatch.setattr(rounded_noise, "Discretise", lambda scale, norm_bound: Discretise(scale))
    claimed, found = audited(plan())
    assert found.gaussian > 3 * claimed.released
    assert found.one_run > 0


def test_without_a_clip_norm_there_is_nothing_to_audit():
    made = plan().model_copy(update={"privacy": mechanisms.NoPrivacy()})
    with pytest.raises(PlanError, match="there is no claim to audit"):
        with_canaries(made, Simulation(images()), 20)


def test_an_overfitted_model_gives_its_members_away_and_shadow_models_tell_them_better():
    digits = datasets.digits()
    x, y = digits.train.x[:150], digits.train.y[:150]
    few = datasets.FederatedDataset(
        "few digits", datasets.ClientData(datasets.Examples(x, y), [np.arange(150)]), digits.test
    )
    model = q.models.mlp(64, [64], 10)
    training = {"learning_rate": 0.3, "epochs": 30, "batch_size": 10}
    start = model.initial(np.random.default_rng(0))
    update, _ = model.client(few.clients[0]).fit(start, Instruction("sgd", training, seed=1), {})
    learned = model.layout.unflatten(start.vector + update.vectors["delta"])
    plain, better = memberships(model, learned, few, training, shadows=8)
    assert plain.auc > 0.55
    assert better.auc > plain.auc
    assert (plain.name, better.name) == ("loss threshold", "likelihood ratio, shadow models")


def test_a_model_that_was_not_trained_gives_nobody_away():
    data = datasets.digits().partition("iid", clients=40)
    model = q.models.softmax(64, 10)
    (found,) = memberships(model, model.layout.zeros(), data, {})
    assert (found.auc, found.advantage) == (0.5, 0.0)


def test_one_update_gives_a_picture_away_the_sum_and_the_noise_do_not(tmp_path):
    data = datasets.digits().partition("iid", clients=300)
    made = q.Plan(
        task={"name": "softmax", "inputs": 64, "classes": 10},
        rounds={"count": 1, "cohort": 100},
        training={"epochs": 1, "batch_size": 1, "learning_rate": 0.01},
        privacy={"mechanism": "distributed-discrete-gaussian", "clip_norm": 0.5, "noise_multiplier": 2.0},
        secure_aggregation={"protocol": "secagg+"},
    ).resolved(300)
    one, everybody, noisy = leaks(made, Simulation(data))
    assert one.cosine > 0.9
    assert everybody.cosine < one.cosine
    assert noisy.cosine < everybody.cosine
    draw_leaks([one, everybody, noisy], tmp_path / "leaks.png")
    assert (tmp_path / "leaks.png").read_bytes().startswith(b"\x89PNG")
