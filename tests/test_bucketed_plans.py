"""Plans whose cohorts are divided into random buckets, each with a sum of its own."""

import dataclasses
import re

import numpy as np
import pytest

from quorate import assembly, pipeline
from quorate.clients.participation import check_terms
from quorate.errors import PlanError, PolicyRefused
from quorate.privacy import DistributedDiscreteGaussianEvent, forecast
from quorate.randomness import Randomness
from quorate.rounds import Aggregate, Assignment, Broadcast, CohortBounds, Instruction, Kind, PublicValues
from quorate.server import checkpoints
from quorate.simulations.source import Simulation
from tests.federations import CLIPPED, GAUSSIAN, plan, wine

CLIENTS = 30
EVERYBODY = {"count": 8, "cohort": CLIENTS, "sampling": "fixed"}
BUCKETS = {"protocol": "secagg+", "corrupt": 0.0, "buckets": 5, "min_survivors": 4}
IDEAL_BUCKETS = {**BUCKETS, "protocol": "ideal"}
CLIP = {"mechanism": "none", "clip_norm": 2.0}


def made(strategy="median", privacy=CLIP, summing=BUCKETS, rounds=EVERYBODY, **sections):
    return plan(
        strategy={"name": strategy},
        privacy=privacy,
        secure_aggregation=summing,
        rounds=rounds,
        training={"learning_rate": 0.5, "epochs": 2},
        **sections,
    )


class Poisoned:
    """A simulation in which some members send the same random ring elements every round, and not their updates."""

    def __init__(self, inner, members):
        self.inner, self.members = inner, members

    size = property(lambda self: self.inner.size)

    def section(self):
        return self.inner.section()

    def open(self, resolved, directory):
        fleet, poisoned = self.inner.open(resolved, directory), self.members

        class Fleet:
            def __getattr__(self, name):
                return getattr(fleet, name)

            def collect(self, assignment, summation, sink, close):
                first = iter(range(len(assignment.members)))

                class Summing:
                    def __getattr__(self, name):
                        return getattr(summation, name)

                    def client(self, encoded, randomness):
                        if next(first) < poisoned:
                            encoded = Randomness.from_seed(0).words(len(encoded), encoded.dtype)
                        return summation.client(encoded, randomness)

                return fleet.collect(assignment, Summing(), sink, close)

        return Fleet()


def run(of, poisoned=0, seed=4, **options):
    simulation = Simulation(wine(CLIENTS), seed=seed, **options)
    source = Poisoned(simulation, poisoned) if poisoned else simulation
    return assembly.run(of, fleet=source, watch=lambda report: None)


# --- Training


def test_the_median_across_buckets_of_secure_sums_trains():
    finished = run(made())
    assert all(past.status == "committed" for past in finished.history)
    assert finished.metrics["accuracy"] > 0.85


def test_the_median_across_buckets_withstands_a_poisoned_client_and_the_mean_does_not():
    robust, fragile = run(made(), poisoned=1), run(made("fedavg"), poisoned=1)
    assert robust.metrics["accuracy"] > 0.85
    assert fragile.metrics["loss"] > 10 * robust.metrics["loss"]


def test_poison_in_most_buckets_is_too_much_for_the_median():
    assert run(made(), poisoned=25).metrics["loss"] > 10 * run(made()).metrics["loss"]


def test_masks_change_nothing_across_buckets():
    masked, ideal = run(made()), run(made(summing=IDEAL_BUCKETS))
    assert checkpoints.encode(masked.state) == checkpoints.encode(ideal.state)


def test_a_linear_aggregator_adds_the_buckets():
    divided = run(made("fedavg", summing=IDEAL_BUCKETS))
    whole = run(made("fedavg", summing={"protocol": "ideal", "corrupt": 0.0}))
    vectors = [finished.state.parameters.vector for finished in (divided, whole)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


@pytest.mark.parametrize("summing", [BUCKETS, IDEAL_BUCKETS])
def test_a_bucket_that_is_not_quorate_is_left_out(summing):
    wanted = {**summing, "min_survivors": 6, "min_buckets": 1}  # everybody of a bucket
    finished = run(made(summing=wanted), drop_before_masking=0.05)
    survivors = [past.survivors for past in finished.history if past.status == "committed"]
    assert len(set(survivors)) > 1
    assert {count % 6 for count in survivors} == {0}


def test_a_round_without_enough_buckets_is_aborted():
    wanted = {**BUCKETS, "min_survivors": 6, "min_buckets": 5}
    finished = run(made(summing=wanted, rounds={**EVERYBODY, "count": 1}), drop_before_masking=0.05)
    reasons = [past.reason for past in finished.history if past.status == "aborted"]
    assert reasons
    for reason in reasons:
        assert re.search(r"[1-4] members were left after 'mask \(buckets\)', 5 are needed", reason)


# --- Bounds, noise and ε


def test_bounds_are_those_of_a_bucket():
    fixed = made().resolved(CLIENTS)
    assert fixed.bounds(CLIENTS) == CohortBounds(largest=6, min_survivors=4, honest=4, denominator=6.0)
    assert fixed.rounds.largest_cohort == CLIENTS
    drawn = made(rounds={"count": 1, "cohort": 20}, summing={**BUCKETS, "min_survivors": None})
    assert drawn.resolved(CLIENTS).bounds(CLIENTS) == CohortBounds(6, 3, 3, 4.0)


def test_all_corrupt_members_that_chance_puts_into_a_bucket_are_counted():
    assert made(summing={**BUCKETS, "corrupt": 0.07}).bounds(CLIENTS).honest == 4 - 2
    with pytest.raises(
        PlanError, match=r"chance may put 6 corrupt members of a cohort of up to 30 into one of 5"
    ):
        made(summing={**BUCKETS, "corrupt": 0.2}).bounds(CLIENTS)


def test_thresholds_hold_against_the_corrupt_members_of_a_bucket():
    summing = made(summing={**BUCKETS, "corrupt": 0.07, "min_survivors": 5}).secure_aggregation
    bounds = CohortBounds(largest=6, min_survivors=5, honest=3, denominator=6.0)
    assert summing.parameters(bounds).neighbourhood(6, 5).threshold == 3  # two corrupt ones open nothing


def test_a_round_releases_the_noise_of_a_bucket_and_no_sampling_is_claimed():
    private = made("fedavg", GAUSSIAN, rounds={"count": 4, "cohort": 20}).resolved(CLIENTS)
    bounds = private.bounds(CLIENTS)
    event = private.terms().event(bounds, CLIENTS)
    assert isinstance(event, DistributedDiscreteGaussianEvent)
    assert (event.shares, event.quorum, event.largest) == (4, 4, 6)
    (vector,) = event.vectors
    # The multiplier's noise is in the shares of the fewest honest survivors of one bucket.
    noise = 4 * float(vector.share_variance)
    assert noise == pytest.approx((GAUSSIAN["noise_multiplier"] * vector.norm_bound) ** 2, rel=1e-3)
    finished = run(made("fedavg", GAUSSIAN, rounds={"count": 4, "cohort": CLIENTS, "sampling": "fixed"}))
    assert finished.epsilon.released == pytest.approx(
        forecast(event, 4, finished.plan.privacy.delta), rel=1e-6
    )


def test_a_target_is_kept_without_amplification():
    target = {"mechanism": "distributed-discrete-gaussian", "clip_norm": 1.0, "epsilon": 8.0}
    private = made("fedavg", target, rounds={"count": 4, "cohort": 20}).resolved(CLIENTS)
    event = private.terms().event(private.bounds(CLIENTS), CLIENTS)
    assert forecast(event, 4, private.privacy.delta) == pytest.approx(8.0, rel=1e-3)


@pytest.mark.parametrize(
    ("strategy", "expected"), [("fedavg", (3 + 9) / 20), ("median", (3 / 4 + 9 / 4) / 2)]
)
def test_private_means_are_divided_by_what_was_expected_whoever_survived(strategy, expected):
    """Two of five buckets of four came to a sum: over three members and over four."""
    private = made(
        strategy,
        {**GAUSSIAN, "clip_norm": 100.0, "noise_multiplier": 1e-3},
        {**BUCKETS, "min_survivors": 3},
        {"count": 1, "cohort": 20},
    ).resolved(CLIENTS)
    encoding = pipeline.build(
        private.terms(), private.bounds(CLIENTS), PublicValues(private.privacy.clip_norm, bytes(32))
    )
    segment = encoding.segments[0]
    length = segment.vector.length
    sums = []
    for total in (3.0, 9.0):
        vector = np.full((1, length), total)
        sums.append(segment.codec.encode(vector, Randomness.from_seed(1))[0])
    aggregate = Aggregate(np.array(sums), (3, 4), tuple("abcdefg"))
    means, _, _ = encoding.decode(aggregate, Randomness.from_seed(2), {})
    assert means[segment.vector.name].mean() == pytest.approx(expected, abs=0.1)


def test_a_member_declines_bounds_that_are_not_a_bucket_s():
    resolved = made().resolved(CLIENTS)
    terms = resolved.terms()
    task, strategy = terms.task.resolve(), terms.strategy.resolve()
    instruction = Instruction(rule=strategy.local.name, settings={})
    broadcast = Broadcast(task.layout.zeros(), instruction, PublicValues(2.0, bytes(32)))
    right = Assignment(
        "run", 1, Kind.FIT, 0, terms.encoded(), bytes(32), broadcast, terms.bounds(CLIENTS), ()
    )
    check_terms(terms, right)
    whole = CohortBounds(largest=30, min_survivors=21, honest=21, denominator=30.0)
    with pytest.raises(PolicyRefused, match="not those of the terms"):
        check_terms(terms, dataclasses.replace(right, bounds=whole))


# --- What is refused, and what is not


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"summing": {**BUCKETS, "buckets": 2}}, "accepted: secure_aggregation.buckets of at least 3"),
        (
            {"summing": {**BUCKETS, "min_buckets": 6}},
            r"found 6; accepted: 1 to secure_aggregation.buckets \(5\)",
        ),
        ({"summing": {**BUCKETS, "min_survivors": 7}}, r"accepted: 1 to rounds.cohort \(30\) / 5 buckets"),
        ({"summing": {**BUCKETS, "buckets": 11, "min_survivors": 2}}, "at least 3 for each sum"),
        ({"summing": {**BUCKETS, "threat_model": "malicious", "complete": True}}, "together in one bucket"),
        ({"rounds": {**EVERYBODY, "cohort": 20, "over_selection": 1.5}}, "drawn before anybody reports"),
        (
            {"strategy": "fedavg", "privacy": CLIPPED, "summing": {"protocol": "none", "buckets": 2}},
            "buckets",
        ),
    ],
)
def test_what_buckets_can_not_do_is_refused(sections, said):
    with pytest.raises(PlanError, match=said):
        made(**sections)


def test_a_cohort_beyond_one_session_is_accepted_in_buckets():
    large = {"count": 1, "cohort": 100_000, "sampling": "fixed"}
    few = {"protocol": "secagg+", "corrupt": 0.01}
    with pytest.raises(PlanError, match=r"at least 2 secure_aggregation.buckets here"):
        made("fedavg", rounds=large, summing=few)
    bounds = made("fedavg", rounds=large, summing={**few, "buckets": 4}).bounds(200_000)
    assert (bounds.largest, bounds.min_survivors) == (25_000, 17_500)
    assert 17_500 - 1_000 < bounds.honest < 17_500 - 250
