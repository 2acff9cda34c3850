"""The pipeline: the same on both sides, and the sum of what it encodes decodes to the mean."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quorate import pipeline
from quorate.errors import DataError
from quorate.parameters import Parameters
from quorate.plan import Terms
from quorate.privacy import (
    CentralDiscreteGaussianEvent,
    DistributedDiscreteGaussianEvent,
    LocalDiscreteGaussianEvent,
    TruncatedPoissonSampledEvent,
)
from quorate.privacy.secagg import SecAggSummation
from quorate.randomness import Randomness
from quorate.rounds import Broadcast, Instruction, Kind, PublicValues, Update, Updates
from quorate.summation import SumSession
from quorate.sums import DirectSummation
from tests.federations import CLIPPED, GAUSSIAN, IDEAL, SECAGG, plan

LENGTH = 5  # a linear model of 4 inputs and a bias
POPULATION = 40
LINEAR = {"name": "linear", "inputs": 4}
EXAMPLES = {"count": 3, "cohort": 8, "weighting": "examples"}
CAPPED = {**EXAMPLES, "example_cap": 50}
ROTATION = bytes(range(32))
SINGLE = 2.0**-21  # of the clip norm: what clipping in single precision costs


def terms(**sections) -> Terms:
    return plan(task=LINEAR, **sections).resolved(POPULATION).terms()


def build(made: Terms) -> pipeline.Pipeline:
    public = PublicValues(clip_norm=made.privacy.clip_norm, rotation_seed=ROTATION)
    return pipeline.build(made, made.bounds(POPULATION), public)


def update(vector, examples=1, **metrics) -> Update:
    return Update({"delta": np.asarray(vector, np.float32)}, examples, metrics)


def aggregate(encoding: pipeline.Pipeline, updates):
    """What the server makes of the updates' sum."""
    sink = encoding.sink()
    for i, one in enumerate(updates):
        encoded = encoding.encode(one, Randomness.from_seed(i))
        assert encoded.shape == (encoding.length,)
        assert encoded.dtype == encoding.dtype
        sink.add(encoded[None], [f"client-{i}"])
    return encoding.decode(sink.result(), Randomness.from_seed(99), {})[:2]


def clipped(vector, norm):
    vector = np.asarray(vector, np.float64)
    return vector * min(1.0, norm / max(np.linalg.norm(vector), 1e-300))


vectors = hnp.arrays(np.float32, LENGTH, elements=st.floats(-100, 100, width=32))
cohorts = st.lists(st.tuples(vectors, st.integers(1, 100)), min_size=1, max_size=8)
RING = [IDEAL, SECAGG]


# --- Both sides


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rounds": EXAMPLES},
        {"rounds": EXAMPLES, "privacy": CLIPPED},
        {"privacy": CLIPPED, "secure_aggregation": SECAGG},
        {"rounds": CAPPED, "privacy": CLIPPED, "secure_aggregation": SECAGG},
        {"privacy": GAUSSIAN, "secure_aggregation": SECAGG},
        {"privacy": GAUSSIAN, "secure_aggregation": IDEAL, "strategy": {"name": "scaffold"}},
        {"strategy": {"name": "median"}},
    ],
)
def test_a_member_builds_the_coordinator_s_pipeline_from_the_bytes_of_the_terms(sections):
    ours = terms(**sections)
    theirs = Terms.parse(ours.encoded())
    assert build(theirs) == build(ours)
    one = Update(
        {name: np.ones(LENGTH, np.float32) for name in build(ours).shape.vectors.names}, 3, {"loss": 1.0}
    )
    np.testing.assert_array_equal(
        build(theirs).encode(one, Randomness.from_seed(1)), build(ours).encode(one, Randomness.from_seed(1))
    )


def test_another_rotation_seed_is_another_pipeline():
    made = terms(privacy=GAUSSIAN, secure_aggregation=SECAGG)
    public = PublicValues(clip_norm=1.0, rotation_seed=bytes(32))
    assert pipeline.build(made, made.bounds(POPULATION), public) != build(made)


# --- Sums of vectors that are not there


class Ones:
    """Rows that are what an array says, and that are never made."""

    def __init__(self, array):
        self._array, self.shape = array, array.shape

    def norms(self):
        return np.linalg.norm(self._array.astype(np.float64), axis=1)

    def weighed(self, weights):
        return (weights @ self._array.astype(np.float64)).astype(np.float32)

    def one(self, client, out=None):
        raise AssertionError("a sum makes no single vector")


class Unmade(dict):
    """Vectors that nobody may ask for."""

    def __getitem__(self, name):
        raise AssertionError(f"a sum needs no {name}")


@pytest.mark.parametrize("discount", [1.0, 0.25])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rounds": EXAMPLES},
        {"rounds": CAPPED},
        {"privacy": CLIPPED},
        {"rounds": CAPPED, "privacy": CLIPPED},
    ],
)
@given(cohort=cohorts)
def test_a_sum_of_rows_is_that_of_the_encoded_vectors(sections, discount, cohort):
    encoding, examples = build(terms(**sections)), np.array([n for _, n in cohort])
    array, metrics = np.stack([vector for vector, _ in cohort]), {"loss": np.arange(len(cohort), dtype=float)}
    encoded = encoding.encode_many(
        Updates({"delta": array}, examples, metrics), [Randomness.from_seed(0)] * 8, discount
    )
    held = Updates({"delta": array}, examples, metrics)
    unmade = Updates(Unmade(delta=array), examples, metrics, {"delta": Ones(array)})
    total, same = encoding.combined(unmade, discount), encoding.combined(held, discount)
    if total is None:  # a vector of zeros has no norm to be divided by
        assert "privacy" in sections
        assert not array.any(axis=1).all()
        assert same is None
        return
    np.testing.assert_allclose(same, total, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(total, encoded.sum(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-3)
    if sections == {"privacy": CLIPPED} and len(cohort) == 1:
        assert np.linalg.norm(total[:LENGTH]) <= CLIPPED["clip_norm"]


@pytest.mark.parametrize(
    "sections",
    [
        {"privacy": CLIPPED, "secure_aggregation": SECAGG},
        {"privacy": GAUSSIAN, "secure_aggregation": IDEAL},
    ],
)
def test_in_a_ring_every_vector_is_made(sections):
    encoding, array = build(terms(**sections)), np.ones((2, LENGTH), np.float32)
    updates = Updates({"delta": array}, np.ones(2), {}, {"delta": Ones(array)})
    assert encoding.combined(updates) is None


@pytest.mark.parametrize("sections", [{}, {"rounds": CAPPED}, {"privacy": CLIPPED}])
@given(vector=vectors, examples=st.integers(1, 100))
def test_a_sum_of_one_is_its_encoded_vector_to_the_bit(sections, vector, examples):
    encoding, one = build(terms(**sections)), Updates.of(update(vector, examples))
    total = encoding.combined(one)
    assert (total is None) == ("privacy" in sections and not vector.any())
    if total is not None:
        encoded = encoding.encode_many(one, [Randomness.from_seed(0)])[0]
        np.testing.assert_array_equal(total[:LENGTH], encoded[:LENGTH])
        np.testing.assert_allclose(total, encoded, rtol=1e-6)


def test_rows_that_do_not_fit_are_refused():
    array = np.ones((1, LENGTH + 1), np.float32)
    updates = Updates(Unmade(delta=array), np.ones(1), {}, {"delta": Ones(array)})
    with pytest.raises(DataError, match=rf"'delta' of shape \({LENGTH},\), got shape \({LENGTH + 1},\)"):
        build(terms()).combined(updates)


# --- decode(sum(encode)) is the mean


@given(cohorts)
def test_a_plain_sum_decodes_to_the_mean(cohort):
    means, _ = aggregate(build(terms()), [update(vector, n) for vector, n in cohort])
    expected = np.mean([vector.astype(np.float64) for vector, _ in cohort], axis=0)
    np.testing.assert_allclose(means["delta"], expected, rtol=1e-12, atol=1e-12)


@given(cohorts)
def test_a_plain_sum_of_clipped_updates_decodes_to_their_mean(cohort):
    means, _ = aggregate(build(terms(privacy=CLIPPED)), [update(vector, n) for vector, n in cohort])
    expected = np.mean([clipped(vector, 10.0) for vector, _ in cohort], axis=0)
    np.testing.assert_allclose(means["delta"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rounds", [EXAMPLES, CAPPED])
@pytest.mark.parametrize("privacy", [{"mechanism": "none"}, CLIPPED])
@given(cohort=cohorts)
def test_a_plain_sum_weighted_by_examples_decodes_to_the_weighted_mean_of_clipped_updates(
    rounds, privacy, cohort
):
    means, _ = aggregate(
        build(terms(rounds=rounds, privacy=privacy)), [update(vector, n) for vector, n in cohort]
    )
    norm, cap = privacy.get("clip_norm", np.inf), rounds.get("example_cap", np.inf)
    weights = [min(n, cap) for _, n in cohort]
    expected = np.average([clipped(vector, norm) for vector, _ in cohort], axis=0, weights=weights)
    np.testing.assert_allclose(means["delta"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("summing", RING)
@given(cohort=cohorts)
def test_a_ring_sum_decodes_to_the_mean_within_one_step_and_single_precision(summing, cohort):
    made = terms(privacy=CLIPPED, secure_aggregation=summing)
    encoding = build(made)
    means, _ = aggregate(encoding, [update(vector, n) for vector, n in cohort])
    step = 10.0 / ((2**31 - 1) // encoding.shape.bounds.largest - 1)
    expected = np.mean([clipped(vector, 10.0) for vector, _ in cohort], axis=0)
    assert np.abs(means["delta"] - expected).max() <= step * 1.001 + 10.0 * SINGLE


@given(cohort=cohorts)
def test_a_ring_sum_weighted_by_examples_decodes_to_the_weighted_mean_within_the_steps(cohort):
    made = terms(rounds=CAPPED, privacy=CLIPPED, secure_aggregation=SECAGG)
    encoding = build(made)
    means, _ = aggregate(encoding, [update(vector, n) for vector, n in cohort])
    weights = np.array([min(n, 50) / 50 for _, n in cohort])
    expected = np.average([clipped(vector, 10.0) for vector, _ in cohort], axis=0, weights=weights)
    steps = (2**31 - 1) // encoding.shape.bounds.largest - 1
    error = len(cohort) * (10.0 + np.abs(expected).max()) / steps / weights.sum()
    assert np.abs(means["delta"] - expected).max() <= error * 1.01 + 2 * 10.0 * SINGLE


def test_the_ring_does_not_wrap_when_the_largest_cohort_sends_the_longest_updates():
    made = terms(privacy=CLIPPED, secure_aggregation=SECAGG)
    encoding = build(made)
    longest = update([1e6, 0, 0, 0, 0])
    means, _ = aggregate(encoding, [longest] * encoding.shape.bounds.largest)
    np.testing.assert_allclose(means["delta"], [10.0, 0, 0, 0, 0], atol=1e-5)


def test_an_update_that_is_not_finite_counts_as_zero_in_a_ring():
    encoding = build(terms(privacy=CLIPPED, secure_aggregation=SECAGG))
    means, _ = aggregate(encoding, [update([np.nan, 1, 1, 1, 1]), update([2, 2, 2, 2, 2])])
    np.testing.assert_allclose(means["delta"], np.ones(LENGTH), atol=1e-5)


def test_a_private_sum_is_divided_by_the_expected_cohort_whoever_survived():
    gaussian = {**GAUSSIAN, "noise_multiplier": 1e-3}
    encoding = build(terms(privacy=gaussian, secure_aggregation=SECAGG))
    assert encoding.denominator == 8.0
    six = [update([0.5, 0, 0, 0, 0])] * 6
    means, _ = aggregate(encoding, six)
    np.testing.assert_allclose(means["delta"], [6 * 0.5 / 8, 0, 0, 0, 0], atol=0.01)


def test_a_private_sum_below_the_quorum_is_not_decoded():
    encoding = build(terms(privacy=GAUSSIAN, secure_aggregation=SECAGG))
    with pytest.raises(ValueError, match="survivors"):
        aggregate(encoding, [update(np.zeros(LENGTH))] * 5)


# --- Several vectors


@given(st.lists(st.tuples(vectors, vectors), min_size=1, max_size=6))
def test_each_vector_of_an_update_has_its_own_mean_and_bound(cohort):
    made = terms(
        strategy={"name": "scaffold", "control_bound": 3.0}, privacy=CLIPPED, secure_aggregation=SECAGG
    )
    updates = [Update({"delta": delta, "control": control}, 1) for delta, control in cohort]
    means, _ = aggregate(build(made), updates)
    assert set(means) == {"delta", "control"}
    for name, norm, place in (("delta", 10.0, 0), ("control", 30.0, 1)):
        expected = np.mean([clipped(pair[place], norm) for pair in cohort], axis=0)
        np.testing.assert_allclose(means[name], expected, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"delta": np.zeros(LENGTH, np.float32)},
        {"delta": np.zeros(LENGTH, np.float32), "control": np.zeros(LENGTH - 1, np.float32)},
        {"delta": np.zeros(LENGTH, np.float32), "control": np.zeros((LENGTH, 1), np.float32)},
    ],
)
def test_an_update_without_the_strategy_s_vectors_is_refused(wrong):
    with pytest.raises(DataError, match=r"an update needs a vector 'control' of shape \(5,\), got"):
        build(terms(strategy={"name": "scaffold"})).encode(Update(wrong, 1), Randomness.from_seed(0))


# --- Metrics


@pytest.mark.parametrize(
    ("sections", "atol"),
    [
        ({}, 1e-6),
        ({"privacy": CLIPPED, "secure_aggregation": SECAGG}, 1e-4),
        ({"rounds": {**CAPPED, "example_cap": 4}, "privacy": CLIPPED, "secure_aggregation": SECAGG}, 1e-3),
        ({"rounds": EXAMPLES}, 1e-6),
    ],
)
def test_metrics_ride_in_the_sum_and_are_weighted_as_the_updates(sections, atol):
    two = [update(np.ones(LENGTH), 1, loss=1.0), update(np.ones(LENGTH), 3, loss=2.0)]
    _, metrics = aggregate(build(terms(**sections)), two)
    expected = 1.75 if "rounds" in sections else 1.5
    assert metrics["loss"] == pytest.approx(expected, abs=atol)


def test_no_metric_leaves_a_client_of_a_private_plan():
    encoding = build(terms(privacy=GAUSSIAN, secure_aggregation=SECAGG))
    assert encoding.metrics == ()
    assert encoding.length == 8  # the delta, padded to a power of two for its rotation, and nothing else
    quiet, loud = update(np.ones(LENGTH)), update(np.ones(LENGTH), 77, loss=1e6)
    np.testing.assert_array_equal(
        encoding.encode(quiet, Randomness.from_seed(0)), encoding.encode(loud, Randomness.from_seed(0))
    )


# --- Aggregators that see single updates


@given(cohorts)
def test_the_median_is_that_of_the_single_updates(cohort):
    means, _ = aggregate(build(terms(strategy={"name": "median"})), [update(v, n) for v, n in cohort])
    expected = np.median([v.astype(np.float64) for v, _ in cohort], axis=0)
    np.testing.assert_allclose(means["delta"], expected, rtol=1e-6)


@given(cohorts)
def test_weights_are_taken_off_before_the_median(cohort):
    made = terms(strategy={"name": "median"}, rounds=EXAMPLES)
    means, _ = aggregate(build(made), [update(v, n) for v, n in cohort])
    np.testing.assert_allclose(
        means["delta"], np.median([v for v, _ in cohort], axis=0), rtol=1e-5, atol=1e-5
    )


def test_a_client_without_examples_does_not_touch_the_median():
    made = terms(strategy={"name": "median"}, rounds=EXAMPLES)
    three = [update(np.full(LENGTH, 9.0), 0), update(np.ones(LENGTH), 2), update(np.ones(LENGTH), 5)]
    means, _ = aggregate(build(made), three)
    np.testing.assert_allclose(means["delta"], np.ones(LENGTH))


def test_a_round_without_any_example_moves_nothing():
    for strategy in ("median", "fedavg"):
        made = terms(strategy={"name": strategy}, rounds=EXAMPLES)
        means, _ = aggregate(build(made), [update(np.ones(LENGTH), 0)] * 2)
        np.testing.assert_array_equal(means["delta"], np.zeros(LENGTH))


# --- The ring


@pytest.mark.parametrize("asked", [16, 32, None])
def test_the_terms_say_the_ring(asked):
    summing = SECAGG if asked is None else {**SECAGG, "ring_bits": asked}
    made = terms(privacy=GAUSSIAN, secure_aggregation=summing)
    bits = asked or 16  # in which so few members fit with steps as fine as are of use
    assert made.secure_aggregation.ring_bits == bits
    assert build(made).dtype == np.dtype(f"uint{bits}")
    assert terms(privacy=CLIPPED, secure_aggregation=SECAGG).secure_aggregation.ring_bits == 32
    assert terms().secure_aggregation.ring_bits is None


@given(cohort=st.lists(st.tuples(vectors, st.integers(1, 100)), min_size=1, max_size=8))
def test_weights_and_metrics_keep_their_precision_in_a_narrow_ring(cohort):
    made = terms(rounds=CAPPED, privacy=CLIPPED, secure_aggregation={**SECAGG, "ring_bits": 16})
    encoding = build(made)
    means, metrics = aggregate(encoding, [update(v, n, loss=n / 7, accuracy=0.5) for v, n in cohort])
    weights = np.array([min(n, 50) / 50 for _, n in cohort])
    expected = np.average([clipped(v, 10.0) for v, _ in cohort], axis=0, weights=weights)
    step = 10.0 / ((2**15 - 1) // encoding.shape.bounds.largest - 1)
    assert np.abs(means["delta"] - expected).max() <= len(cohort) * step / weights.sum() * 1.01 + 1e-4
    if metrics:
        assert metrics["loss"] == pytest.approx(
            np.average([n / 7 for _, n in cohort], weights=weights), abs=1e-3
        )


def test_central_and_local_noise_are_summed_plainly_where_nothing_is_hidden():
    for mechanism, kind in (
        ("central-gaussian", CentralDiscreteGaussianEvent),
        ("local-discrete-gaussian", LocalDiscreteGaussianEvent),
    ):
        made = terms(privacy={**GAUSSIAN, "mechanism": mechanism, "noise_multiplier": 0.01})
        encoding = build(made)
        assert encoding.dtype.kind == "u"
        means, _ = aggregate(encoding, [update([0.5, 0, 0, 0, 0])] * 8)
        np.testing.assert_allclose(means["delta"], [0.5, 0, 0, 0, 0], atol=0.1)
        event = made.event(made.bounds(POPULATION), POPULATION)
        assert isinstance(event, TruncatedPoissonSampledEvent)
        assert isinstance(event.event, kind)


# --- What is charged


def test_amplification_is_claimed_for_poisson_sampling_only():
    for sampling, kind in (
        ("poisson", TruncatedPoissonSampledEvent),
        ("fixed", DistributedDiscreteGaussianEvent),
    ):
        rounds = {"count": 3, "cohort": 8, "sampling": sampling}
        made = terms(rounds=rounds, privacy=GAUSSIAN, secure_aggregation=SECAGG)
        event = made.event(made.bounds(POPULATION), POPULATION)
        assert type(event) is kind


def test_the_event_names_the_sampler_that_is_run():
    made = terms(privacy=GAUSSIAN, secure_aggregation={**SECAGG, "dropout": 0.3})
    event = made.event(made.bounds(POPULATION), POPULATION)
    assert isinstance(event, TruncatedPoissonSampledEvent)
    assert (event.population, event.probability) == (POPULATION, 8 / POPULATION)
    assert (event.cap, event.dropout) == (made.rounds.largest_cohort, 0.3)


def test_a_plan_without_privacy_has_no_event():
    made = terms()
    assert made.event(made.bounds(POPULATION), POPULATION) is None


# --- The binding


def broadcast(**changes) -> Broadcast:
    parts = {
        "parameters": Parameters.of({"weight": np.arange(4.0), "bias": np.zeros(1)}),
        "instruction": Instruction(
            "sgd", {"learning_rate": 0.1, "epochs": 1}, {"control": np.ones(5, np.float32)}
        ),
        "public": PublicValues(1.0, ROTATION),
    }
    return Broadcast(**{**parts, **changes})


def instruction(**changes) -> Broadcast:
    return broadcast(instruction=dataclasses.replace(broadcast().instruction, **changes))


WHOLE = {"terms_hash": bytes(32), "run": "run", "round": 1, "kind": Kind.FIT, "broadcast": broadcast()}
OTHERS = [
    {"terms_hash": bytes(31) + b"\x01"},
    {"run": "ruN"},
    {"round": 2},
    {"kind": Kind.EVALUATE},
    {"broadcast": broadcast(public=PublicValues(2.0, ROTATION))},
    {"broadcast": broadcast(public=PublicValues(None, ROTATION))},
    {"broadcast": broadcast(public=PublicValues(1.0, bytes(32)))},
    {"broadcast": broadcast(parameters=Parameters.of({"weight": np.arange(4.0), "b": np.zeros(1)}))},
    {"broadcast": broadcast(parameters=Parameters.of({"weight": np.zeros((2, 2)), "bias": np.zeros(1)}))},
    {"broadcast": instruction(rule="proximal")},
    {"broadcast": instruction(settings={"learning_rate": 0.1})},
    {"broadcast": instruction(settings={"learning_rate": 0.1, "epochs": 2})},
    {"broadcast": instruction(settings={"learning_rate": 0.1, "batches": 1})},
    {"broadcast": instruction(extras={})},
    {"broadcast": instruction(extras={"other": np.ones(5, np.float32)})},
    {"broadcast": instruction(extras={"control": np.ones(6, np.float32)})},
]


@pytest.mark.parametrize("other", OTHERS)
def test_the_binding_changes_with_each_thing_that_members_are_told(other):
    assert pipeline.binding(**{**WHOLE, **other}) != pipeline.binding(**WHOLE)


def test_all_these_bindings_differ():
    assert len({pipeline.binding(**{**WHOLE, **other}) for other in OTHERS}) == len(OTHERS)


@given(st.integers(0, 5 * 32 - 1), st.booleans())
def test_the_binding_changes_with_any_bit_of_the_vectors(bit, in_extras):
    def flipped(vector):
        raw = bytearray(vector.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        return np.frombuffer(bytes(raw), np.float32)

    start = broadcast()
    if in_extras:
        changed = instruction(extras={"control": flipped(start.instruction.extras["control"])})
    else:
        layout = start.parameters.layout
        changed = broadcast(parameters=Parameters(layout, flipped(start.parameters.vector)))
    assert pipeline.binding(**{**WHOLE, "broadcast": changed}) != pipeline.binding(**WHOLE)


def test_the_binding_is_the_same_for_the_same():
    assert pipeline.binding(**{**WHOLE, "broadcast": broadcast()}) == pipeline.binding(**WHOLE)


# --- The way to sum


class Unwritten:
    def revealing(self):
        raise AssertionError


@pytest.mark.parametrize(
    ("sections", "kind"),
    [
        ({}, DirectSummation),
        ({"privacy": CLIPPED, "secure_aggregation": IDEAL}, DirectSummation),
        ({"privacy": CLIPPED, "secure_aggregation": SECAGG}, SecAggSummation),
    ],
)
def test_the_terms_say_how_to_sum(sections, kind):
    made = terms(**sections)
    encoding = build(made)
    session = SumSession(bytes(32), encoding.length, encoding.dtype, encoding.shape.bounds)
    assert type(pipeline.summation(made, session, Unwritten())) is kind
