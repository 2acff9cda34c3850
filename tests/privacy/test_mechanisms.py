"""The mechanisms: sections of the plan, the codecs they make, and the noise that ends in a sum."""

import math
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from quorate.codecs import Chain, Discretise, Rotate, rounded_norm_bound
from quorate.errors import PlanError
from quorate.privacy import (
    CentralGaussian,
    DistributedGaussian,
    DistributedSkellam,
    LocalGaussian,
    Mechanism,
    NoPrivacy,
    Spend,
    TruncatedPoissonSampledEvent,
    calibrate,
    forecast,
    forecast_server,
)
from quorate.privacy.gaussian_rounds import gaussian_epsilon
from quorate.privacy.mechanisms import NoiseShare, RoundedNoise
from quorate.privacy.mechanisms.none import numbers
from quorate.privacy.mechanisms.rounded_noise import NARROW_RING_TOLERANCE
from quorate.privacy.mechanisms.wrapping import wrap_probability
from quorate.privacy.noise import NoiseLaw, add_noise
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, SumShape, Vector, VectorSpec

BOUNDS = CohortBounds(largest=140, min_survivors=70, honest=67, denominator=100.0)
DELTA = Vector("delta", 650)
ALONE = VectorSpec((DELTA,))
PUBLIC = PublicValues(0.5, bytes(range(32)))
GAUSSIAN = DistributedGaussian(clip_norm=0.5, noise_multiplier=1.5)
SKELLAM = DistributedSkellam(clip_norm=0.5, noise_multiplier=1.5)
CENTRAL = CentralGaussian(clip_norm=0.5, noise_multiplier=1.5)
LOCAL = LocalGaussian(clip_norm=0.5, noise_multiplier=1.5)
NOISY = [GAUSSIAN, SKELLAM, CENTRAL]


def shape(vectors: VectorSpec = ALONE, bounds: CohortBounds = BOUNDS, bits: int | None = 32) -> SumShape:
    return SumShape(vectors, bounds, bits)


def ring_sum(
    mechanism: Mechanism, values: np.ndarray, vectors: VectorSpec = ALONE, seed: int = 1
) -> np.ndarray:
    codec = mechanism.codec(vectors.vectors[0], shape(vectors), PUBLIC)
    return codec.encode(values, Randomness.from_seed(seed)).sum(axis=0, dtype=np.uint32)


# --- Sections of a plan


def test_a_section_is_told_apart_by_its_mechanism() -> None:
    section = pydantic.TypeAdapter(
        Annotated[NoPrivacy | DistributedGaussian, pydantic.Field(discriminator="mechanism")]
    )
    read = section.validate_python(
        {"mechanism": "distributed-discrete-gaussian", "clip_norm": 0.5, "noise_multiplier": 2}
    )
    assert read == DistributedGaussian(clip_norm=0.5, noise_multiplier=2.0)
    assert section.validate_python({"mechanism": "none"}) == NoPrivacy()
    assert section.validate_json(section.dump_json(read)) == read


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_norm": 0.5},
        {"clip_norm": 0.5, "noise_multiplier": 1.0, "epsilon": 3.0},
        {"clip_norm": -0.5, "noise_multiplier": 1.0},
        {"clip_norm": math.inf, "noise_multiplier": 1.0},
        {"clip_norm": 0.5, "noise_multiplier": 0.0},
        {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1.0},
        {"clip_norm": 0.5, "epsilon": 3.0, "budget": 2.0},
        {"clip_norm": 0.5, "noise_multiplier": 1.0, "sigma": 3},
        {"noise_multiplier": 1.0},
    ],
)
def test_a_wrong_section_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="DistributedGaussian: "):
        DistributedGaussian(**wrong)


def test_a_section_can_not_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        GAUSSIAN.noise_multiplier = 3.0  # type: ignore[misc]


def test_a_target_epsilon_is_the_budget_as_well() -> None:
    assert DistributedGaussian(clip_norm=1, epsilon=3.0).limit == 3.0
    assert DistributedGaussian(clip_norm=1, epsilon=3.0, budget=4.0).limit == 4.0
    assert DistributedGaussian(clip_norm=1, noise_multiplier=1.0).limit is None


def test_only_mechanisms_with_noise_are_private() -> None:
    mechanisms: list[Mechanism] = [GAUSSIAN, SKELLAM, LOCAL, CENTRAL, NoPrivacy(clip_norm=1.0)]
    assert [m.private for m in mechanisms] == [True] * 4 + [False]
    assert [m.event(shape()) is None for m in mechanisms] == [False] * 4 + [True]


# --- The encoding of the distributed discrete Gaussian


bounds_of_cohorts = st.builds(
    lambda largest, survive, honest: CohortBounds(
        largest,
        max(1, round(survive * largest)),
        max(1, math.ceil(honest * max(1, round(survive * largest)))),
        float(largest),
    ),
    st.integers(1, 20_000),
    st.floats(0.3, 1),
    st.floats(0.5, 1),
)


@settings(deadline=None)
@given(st.integers(1, 1 << 21), bounds_of_cohorts, st.floats(0.3, 30), st.integers(1, 3), st.floats(0.1, 10))
def test_the_encoding_keeps_its_promises(
    length: int, bounds: CohortBounds, multiplier: float, count: int, bound: float
) -> None:
    vectors = VectorSpec(tuple(Vector(f"v{i}", length, bound) for i in range(count)))
    mechanism = DistributedGaussian(clip_norm=0.5, noise_multiplier=multiplier)
    encoding = mechanism.encoding(vectors.vectors[0], shape(vectors, bounds))
    assert encoding.wrap_probability_bound <= 2.0**-40 / count
    assert encoding.padded_length >= length
    assert encoding.norm_bound == rounded_norm_bound(encoding.steps, encoding.padded_length)
    # The joint noise multiplier of all vectors is the plan's: Σ Δ²/(honest σ²) = 1/z².
    ratio = count * encoding.norm_bound**2 / (bounds.honest * float(encoding.local_variance))
    assert ratio == pytest.approx(1 / multiplier**2, rel=1e-5)
    assert ratio <= 1 / multiplier**2 * (1 + 1e-12)


def test_steps_are_no_smaller_than_is_useful() -> None:
    for length in (1, 650, 1 << 20):
        vector = Vector("delta", length)
        encoding = GAUSSIAN.encoding(vector, shape(VectorSpec((vector,))))
        assert encoding.l2_inflation == pytest.approx(1.0001, abs=1e-9)


@pytest.mark.parametrize(("length", "members"), [(1, 10), (650, 100), (1 << 16, 100), (1 << 20, 10_000)])
@pytest.mark.parametrize("mechanism", NOISY)
def test_a_narrow_ring_makes_steps_as_fine_as_fit(mechanism: RoundedNoise, length: int, members: int) -> None:
    """Just below 2^-40, or what is of use."""
    bounds = CohortBounds(members * 7 // 5, members * 7 // 10, max(1, members * 6 // 10), float(members))
    vector = Vector("delta", length)
    narrow, wide = (
        mechanism.encoding(vector, shape(VectorSpec((vector,)), bounds, bits)) for bits in (16, 32)
    )
    assert narrow.wrap_probability_bound <= 2.0**-40
    assert wide.l2_inflation == pytest.approx(1.0001, abs=1e-4)
    assert narrow.l2_inflation >= wide.l2_inflation
    if narrow.steps < wide.steps:
        _, most = mechanism.noise_shares(bounds)
        finer = rounded_norm_bound(1.01 * narrow.steps, narrow.padded_length)
        chance = wrap_probability(
            bits=16,
            clients=bounds.largest,
            steps=1.01 * narrow.steps,
            norm_bound=finer,
            length=narrow.padded_length,
            law=mechanism.law,
            variance=most * float(narrow.local_variance) * (finer / narrow.norm_bound) ** 2,
        )
        assert chance > 2.0**-40


@pytest.mark.parametrize("mechanism", NOISY)
def test_the_narrow_ring_is_taken_where_it_costs_little(mechanism: RoundedNoise) -> None:
    short, long = (VectorSpec((Vector("delta", length),)) for length in (650, 1 << 24))
    assert mechanism.ring_bits(short, BOUNDS) == 16
    assert mechanism.ring_bits(long, BOUNDS) == 32
    crowd = CohortBounds(20_000, 15_000, 15_000, 20_000.0)
    assert mechanism.ring_bits(short, crowd) == 32
    for bits in (16, 32):  # the same noise within the tolerance, and the same ε
        event = mechanism.event(shape(bits=bits))
        (vector,), shares = event.vectors, max(1, event.shares)
        ratio = vector.norm_bound**2 / (shares * float(vector.share_variance))
        assert ratio == pytest.approx(1 / 1.5**2, rel=1e-4)
    deviations = [
        math.sqrt(one.local_variance) / one.steps
        for one in (mechanism.encoding(DELTA, shape(bits=bits)) for bits in (16, 32))
    ]
    assert deviations[0] <= deviations[1] * (1 + NARROW_RING_TOLERANCE)


@pytest.mark.parametrize("law", list(NoiseLaw))
@pytest.mark.parametrize("length", [1, 64, 4096])
def test_sums_wrap_no_oftener_than_is_bounded(law: NoiseLaw, length: int) -> None:
    """At a bound of a few per cent, where it can be seen; the worst signal is one vector that all clients send."""
    clients, bits, variance, seen, rounds = 20, 16, Fraction(2 * 10**7), 0, 200
    steps = 600.0 if length == 1 else 600.0 * min(8.0, math.sqrt(length) / 4)
    bound = wrap_probability(
        bits=bits,
        clients=clients,
        steps=steps,
        norm_bound=rounded_norm_bound(steps, length),
        length=length,
        law=law,
        variance=float(variance),
    )
    assert bound < 1
    values = np.zeros((1, length))
    values[0, :] = steps / math.sqrt(length)
    for number in range(rounds):
        randomness = Randomness.from_seed(number)
        signal = Rotate(randomness.bytes(32)).encode(values, randomness)[0] * clients
        total = np.rint(signal).astype(np.int64)
        add_noise(law, variance, total, randomness)
        seen += bool((np.abs(total) >= 2 ** (bits - 1)).any())
    assert seen / rounds <= bound + 5 * math.sqrt(bound / rounds)


def test_the_bound_for_skellam_noise_is_no_gaussians() -> None:
    """Its tails are heavier than a Gaussian's far out, and the same near the middle."""

    def chance(law: NoiseLaw, headroom: int, variance: float) -> float:
        signal = 2.0**15 - 1 - headroom
        return wrap_probability(
            bits=16, clients=1, steps=signal, norm_bound=signal, length=1, law=law, variance=variance
        )

    gaussian, skellam = (chance(law, 10_000, 1e6) for law in NoiseLaw)
    assert skellam == pytest.approx(gaussian, rel=0.01)
    gaussian, skellam = (chance(law, 2000, 5e3) for law in NoiseLaw)
    assert skellam > 50 * gaussian
    exact = 2 * float(special.ive(np.arange(2000, 4000), 5e3).sum())
    assert exact <= skellam <= 1e3 * exact


def test_a_sum_in_the_narrow_ring_decodes_like_one_in_the_wide_ring() -> None:
    values = np.random.default_rng(0).normal(size=(100, 650)) * 0.01
    truth = values.sum(axis=0)
    deviations = []
    for bits in (16, 32):
        codec = GAUSSIAN.codec(DELTA, shape(bits=bits), PUBLIC)
        encoded = codec.encode(values, Randomness.from_seed(bits))
        assert encoded.dtype == np.dtype(f"uint{bits}")
        total = encoded.sum(axis=0, dtype=encoded.dtype)
        topped = GAUSSIAN.top_up(total, DELTA, shape(bits=bits), 100, Randomness.from_seed(9))
        assert topped.dtype == encoded.dtype
        deviations.append((codec.decode(topped, 650) - truth).std())
    expected = 1.5 * 0.5 * math.sqrt(140 / 67)
    np.testing.assert_allclose(deviations, expected, rtol=0.1)


def test_a_cohort_that_no_ring_can_hold_is_refused() -> None:
    crowd = CohortBounds(2**31, 2**30, 2**30, 2.0**31)
    with pytest.raises(PlanError, match="does not fit"):
        GAUSSIAN.encoding(DELTA, shape(bounds=crowd))


def test_noise_that_was_not_calibrated_yet_can_not_be_made() -> None:
    with pytest.raises(PlanError, match="calibrated"):
        DistributedGaussian(clip_norm=0.5, epsilon=3.0).event(shape())


# --- Codecs


def test_the_chain_clips_rounds_conditionally_and_adds_a_share() -> None:
    codec = GAUSSIAN.codec(DELTA, shape(ALONE), PUBLIC)
    encoding = GAUSSIAN.encoding(DELTA, shape())
    assert isinstance(codec, Chain)
    discretise, share = codec.codecs[2:4]
    assert discretise == Discretise(encoding.steps / 0.5, encoding.norm_bound)
    assert share == NoiseShare(NoiseLaw.DISCRETE_GAUSSIAN, encoding.local_variance)
    assert codec.length(650) == encoding.padded_length == 1024
    assert codec.encode(np.ones((3, 650)), Randomness.from_seed(0)).dtype == np.uint32


def test_both_sides_make_the_same_codec_and_vectors_are_rotated_differently() -> None:
    spec = VectorSpec((DELTA, Vector("control", 650)))
    first, again, control = (GAUSSIAN.codec(v, shape(spec), PUBLIC) for v in (DELTA, *spec.vectors))
    assert first == again
    assert first != control


def test_integer_noise_is_for_sums_in_a_ring_only() -> None:
    with pytest.raises(PlanError, match="integers"):
        GAUSSIAN.codec(DELTA, shape(bits=None), PUBLIC)


def test_a_clip_norm_that_is_not_the_plans_is_refused() -> None:
    with pytest.raises(PlanError, match="clip_norm"):
        GAUSSIAN.codec(DELTA, shape(ALONE), PublicValues(5.0, bytes(32)))


@pytest.mark.parametrize("count", [1, 2])
def test_the_sum_is_unbiased_and_has_the_stated_noise(count: int) -> None:
    spec = VectorSpec((DELTA, Vector("control", 650))[:count])
    values = np.random.default_rng(0).normal(size=(70, 650)) * 0.01
    truth = values.sum(axis=0)  # every norm is about 0.25, below the clip norm
    encoding = GAUSSIAN.encoding(DELTA, shape(spec))
    codec = GAUSSIAN.codec(DELTA, shape(spec), PUBLIC)
    errors = np.array(
        [codec.decode(ring_sum(GAUSSIAN, values, spec, seed), 650) - truth for seed in range(8)]
    ).ravel()
    deviation = math.sqrt(70 * (encoding.local_variance + Fraction(1, 4))) / (encoding.steps / 0.5)
    assert deviation == pytest.approx(1.5 * 0.5 * math.sqrt(count * 70 / 67), rel=0.001)
    assert abs(errors.mean()) < 5 * deviation / math.sqrt(errors.size)
    assert errors.std() == pytest.approx(deviation, rel=0.05)


def test_the_top_up_makes_the_noise_that_of_the_largest_cohort() -> None:
    encoding = GAUSSIAN.encoding(DELTA, shape())
    codec = GAUSSIAN.codec(DELTA, shape(ALONE), PUBLIC)
    full = 140 * float(encoding.local_variance)
    for survivors in (70, 100, 140):
        total = ring_sum(GAUSSIAN, np.zeros((survivors, 650)))
        before = total.copy()
        topped = GAUSSIAN.top_up(total, DELTA, shape(), survivors, Randomness.from_seed(9))
        assert topped.dtype == np.uint32
        assert np.array_equal(total, before)
        released = topped.view(np.int32).astype(float)
        assert released.var() == pytest.approx(full, rel=5 * math.sqrt(2 / 1024))
        assert codec.decode(topped, 650).shape == (650,)


@pytest.mark.parametrize("survivors", [69, 141])
def test_a_number_of_survivors_that_can_not_be_is_refused(survivors: int) -> None:
    with pytest.raises(ValueError, match="survivors"):
        GAUSSIAN.top_up(np.zeros(1024, np.uint32), DELTA, shape(), survivors, Randomness.from_seed(0))


def test_the_event_says_what_the_encoding_does() -> None:
    spec = VectorSpec((DELTA, Vector("control", 100, 2.0)))
    event = GAUSSIAN.event(shape(spec))
    for vector, noisy in zip(spec.vectors, event.vectors, strict=True):
        encoding = GAUSSIAN.encoding(vector, shape(spec))
        assert (noisy.name, noisy.dimension) == (vector.name, encoding.padded_length)
        assert (noisy.norm_bound, noisy.share_variance) == (encoding.norm_bound, encoding.local_variance)
    assert (event.shares, event.released_shares, event.quorum, event.largest) == (67, 132, 70, 140)


# --- Central noise


def test_clients_of_central_noise_add_none() -> None:
    """Two sums of the same update differ by rounding alone."""
    values = np.full((1, 650), 0.01)
    codec = CENTRAL.codec(DELTA, shape(ALONE), PUBLIC)
    first, second = (codec.encode(values, Randomness.from_seed(seed))[0].view(np.int32) for seed in (1, 2))
    assert np.abs(first.astype(np.int64) - second).max() <= 1


@pytest.mark.parametrize("survivors", [70, 140])
def test_the_server_adds_the_same_noise_whoever_took_part(survivors: int) -> None:
    encoding = CENTRAL.encoding(DELTA, shape())
    total = np.arange(1024, dtype=np.uint32)
    noisy = CENTRAL.top_up(total, DELTA, shape(), survivors, Randomness.from_seed(3))
    noise = (noisy - total).view(np.int32).astype(float)
    assert noise.var() == pytest.approx(float(encoding.local_variance), rel=5 * math.sqrt(2 / 1024))
    assert math.sqrt(encoding.local_variance) / (encoding.steps / 0.5) == pytest.approx(1.5 * 0.5, rel=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 1 << 21), bounds_of_cohorts, st.floats(0.3, 30), st.integers(1, 3))
def test_the_central_encoding_keeps_its_promises(
    length: int, bounds: CohortBounds, multiplier: float, count: int
) -> None:
    vectors = VectorSpec(tuple(Vector(f"v{i}", length) for i in range(count)))
    mechanism = CentralGaussian(clip_norm=0.5, noise_multiplier=multiplier)
    encoding = mechanism.encoding(vectors.vectors[0], shape(vectors, bounds))
    assert encoding.wrap_probability_bound <= 2.0**-40 / count
    assert count * encoding.norm_bound**2 / float(encoding.local_variance) == pytest.approx(
        1 / multiplier**2, rel=1e-5
    )


def test_central_noise_is_accounted_as_one_gaussian_and_claims_nothing_against_the_server() -> None:
    event = CENTRAL.event(shape())
    spend = Spend()
    spend.add(event, ["ann"])
    spent = spend.epsilons(1e-5, simulated=False)
    assert spent.released == pytest.approx(gaussian_epsilon(1 / 1.5, 1e-5), abs=1e-4)
    assert spent.server == math.inf
    sampled = TruncatedPoissonSampledEvent(300, 1 / 3, 140, event)
    found = calibrate(
        CentralGaussian(clip_norm=0.5, epsilon=3.0),
        shape(),
        rounds=30,
        delta=1e-3,
        population=300,
        probability=1 / 3,
    )
    assert isinstance(found, CentralGaussian)
    assert forecast(sampled, 30, 1e-3) < forecast(event, 30, 1e-3)


def test_with_the_same_noise_in_what_is_released_central_and_distributed_cost_the_same() -> None:
    """Sums of shares are dominated by one Gaussian of their variance; γ and the cohort's size are all that differs."""
    bounds = CohortBounds(largest=70, min_survivors=70, honest=70, denominator=70.0)
    central, distributed = (m.event(shape(bounds=bounds)) for m in (CENTRAL, GAUSSIAN))
    shares = distributed.released_shares
    scaled = GAUSSIAN.model_copy(update={"noise_multiplier": 1.5 * math.sqrt(70 / shares)}).event(
        shape(bounds=bounds)
    )
    assert forecast(scaled, 10, 1e-5) == pytest.approx(forecast(central, 10, 1e-5), rel=1e-5)


# --- Skellam noise


def test_the_sum_of_skellam_shares_has_the_stated_noise() -> None:
    encoding = SKELLAM.encoding(DELTA, shape(bits=16))
    for survivors in (70, 140):
        total = SKELLAM.codec(DELTA, shape(bits=16), PUBLIC).encode(
            np.zeros((survivors, 650)), Randomness.from_seed(survivors)
        )
        topped = SKELLAM.top_up(
            total.sum(axis=0, dtype=np.uint16), DELTA, shape(bits=16), survivors, Randomness.from_seed(1)
        )
        released = topped.view(np.int16).astype(float)
        full = 140 * float(encoding.local_variance)
        assert released.var() == pytest.approx(full, rel=5 * math.sqrt(2 / 1024))


# --- Local noise


def test_local_noise_protects_a_client_by_itself() -> None:
    """One client's vector has the multiplier's noise, and is accounted as one discrete Gaussian."""
    encoding = LOCAL.encoding(DELTA, shape())
    assert math.sqrt(encoding.local_variance) / encoding.norm_bound == pytest.approx(1.5, rel=1e-6)
    event = LOCAL.event(shape())
    assert (event.shares, event.released_shares, event.largest) == (1, 132, 140)
    assert forecast_server(event, 1, 1e-5) == pytest.approx(gaussian_epsilon(1 / 1.5, 1e-5), abs=1e-4)
    assert forecast(event, 1, 1e-5) < forecast_server(event, 1, 1e-5) / 5


def test_local_noise_is_not_found_from_a_target_for_what_is_released() -> None:
    with pytest.raises(PlanError, match=r"epsilon: found 4.*accepted: noise_multiplier"):
        LocalGaussian(clip_norm=0.5, epsilon=4.0)


def test_local_noise_is_that_of_as_many_distributed_shares() -> None:
    """The sum of n clients' own noise is √n times a distributed mechanism's with the same multiplier."""
    local, distributed = (m.encoding(DELTA, shape()) for m in (LOCAL, GAUSSIAN))
    assert local.local_variance == pytest.approx(67 * float(distributed.local_variance), rel=1e-3)


# --- No privacy


def test_without_a_mechanism_values_travel_as_float32() -> None:
    codec = NoPrivacy().codec(DELTA, shape(bits=None), PublicValues(None, bytes(32)))
    values = np.random.default_rng(0).normal(size=(3, 650)) * 100
    encoded = codec.encode(values, Randomness.from_seed(0))
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(
        codec.decode(encoded.sum(axis=0), 650), values.sum(axis=0), rtol=1e-4, atol=1e-4
    )


def test_a_clip_norm_clips_without_a_ring_too() -> None:
    codec = NoPrivacy(clip_norm=1.0).codec(Vector("delta", 2, 2.0), shape(bits=None), PUBLIC)
    np.testing.assert_allclose(codec.encode(np.array([[30.0, 40.0]]), Randomness.from_seed(0)), [[1.2, 1.6]])


def test_a_ring_needs_a_clip_norm() -> None:
    with pytest.raises(PlanError, match="clip_norm"):
        NoPrivacy().codec(DELTA, shape(ALONE), PUBLIC)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("bits", "error"), [(16, 1.0), (32, 1e-4)])
def test_without_noise_no_sum_of_the_largest_cohort_wraps(sign: int, bits: int, error: float) -> None:
    """All members put their whole norm into one coordinate."""
    mechanism, vector = NoPrivacy(clip_norm=3.0), Vector("delta", 4)
    codec = mechanism.codec(vector, shape(VectorSpec((vector,)), bits=bits), PUBLIC)
    values = np.zeros((140, 4))
    values[:, 2] = sign * 1e9
    encoded = codec.encode(values, Randomness.from_seed(0))
    total = encoded.sum(axis=0, dtype=encoded.dtype)
    np.testing.assert_allclose(codec.decode(total, 4), [0, 0, sign * 420.0, 0], atol=error)


def test_a_ring_without_noise_is_wide_unless_the_plan_says_otherwise() -> None:
    assert NoPrivacy(clip_norm=1.0).ring_bits(ALONE, BOUNDS) == 32


@pytest.mark.parametrize("bits", [16, 32])
def test_numbers_beside_the_vectors_are_as_precise_in_any_ring(bits: int) -> None:
    codec = numbers(1024.0, shape(bits=bits))
    values = np.random.default_rng(0).uniform(-500, 500, size=(140, 3))
    encoded = codec.encode(values, Randomness.from_seed(0))
    total = encoded.sum(axis=0, dtype=encoded.dtype)
    np.testing.assert_allclose(codec.decode(total, 3), values.sum(axis=0), atol=140 * 1024 / 15_000_000)


def test_nothing_is_added_where_no_privacy_is_claimed() -> None:
    total = np.arange(4, dtype=np.uint32)
    assert NoPrivacy().release(total, DELTA, shape(), 5, Randomness.from_seed(0), {}) == (total, {})


@pytest.mark.parametrize("bits", [16, 32])
def test_a_few_coordinates_in_a_narrow_ring_are_calibrated(bits: int) -> None:
    """Steps are coarse there, and little noise does not cover them: the search must not begin with it."""
    bounds = CohortBounds(largest=300, min_survivors=150, honest=143, denominator=300.0)
    few = shape(VectorSpec((Vector("delta", 10),)), bounds, bits)
    target = DistributedGaussian(clip_norm=1.0, epsilon=1.0)
    found = calibrate(target, few, rounds=1, delta=2e-3, population=300, probability=None)
    assert 0.99 < forecast(found.event(few), 1, 2e-3) <= 1.0
