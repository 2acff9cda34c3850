"""Attacks on the real encoding: what they gain is within the accounted ε, and a planted fault shows.

The strongest adversary of the threat model: the server, which knows all updates but for one bit, whether a member sent
the longest update it may send or nothing. From how often it guesses right follows a lower bound on ε: with both error
rates bounded at 95 % confidence (Clopper and Pearson), ε ≥ log((1 - δ - FNR) / FPR), at the best of its thresholds
(Kairouz, Oh, Viswanath 2015); the threshold is chosen on one half of the trials and judged on the other.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from quorate.codecs import Chain, Clip, Discretise, Rotate, Wrap
from quorate.privacy import DistributedGaussian
from quorate.privacy.accounting import server_epsilon
from quorate.privacy.mechanisms import NoiseShare
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds, PublicValues, SumShape, Vector, VectorSpec

DELTA, LENGTH, MEMBERS, TRIALS = 1e-3, 16, 6, 10_000
BOUNDS = CohortBounds(largest=8, min_survivors=MEMBERS, honest=MEMBERS, denominator=6.0)
VECTOR = Vector("delta", LENGTH)
SHAPE = SumShape(VectorSpec((VECTOR,)), BOUNDS, 32)
MECHANISM = DistributedGaussian(clip_norm=1.0, noise_multiplier=1.0)
CLAIM = server_epsilon({MECHANISM.event(SHAPE): 1}, DELTA)


def right() -> Chain:
    codec = MECHANISM.codec(VECTOR, SHAPE, PublicValues(1.0, bytes(32)))
    assert isinstance(codec, Chain)
    return codec


def halved() -> Chain:
    """The noise's deviation is half of what it should be."""
    variance = MECHANISM.encoding(VECTOR, SHAPE).local_variance
    return Chain(
        tuple(NoiseShare(c.law, variance / 4) if isinstance(c, NoiseShare) else c for c in right().codecs)
    )


def unclipped() -> Chain:
    """Neither clipping nor the bound on rounded vectors."""
    kept = [codec for codec in right().codecs if not isinstance(codec, Clip)]
    return Chain(tuple(Discretise(c.scale) if isinstance(c, Discretise) else c for c in kept))


def seen(codec: Chain, update: float, members: int, seed: int) -> np.ndarray:
    """What the server sees of the member's coordinate, once the others' updates are taken away; shape (TRIALS,)."""
    updates = np.random.default_rng(seed).normal(size=(members, LENGTH)) * 0.1
    updates[0] = 0.0
    updates[0, 3] = update
    encoded = codec.encode(np.tile(updates, (TRIALS, 1)), Randomness.from_seed(seed))
    totals = encoded.reshape(TRIALS, members, -1).sum(axis=1, dtype=np.uint32)
    known = updates[1:].sum(axis=0)
    return np.array([(codec.decode(total, LENGTH) - known)[3] for total in totals])


def lower_bound(with_it: np.ndarray, without: np.ndarray) -> float:
    """The ε that the two samples prove, at 95 % confidence."""
    half = TRIALS // 2

    def proven(threshold: float, first: np.ndarray, second: np.ndarray) -> float:
        missed, alarms = int((first <= threshold).sum()), int((second > threshold).sum())
        upper = [float(stats.beta.ppf(0.975, k + 1, half - k)) if k < half else 1.0 for k in (missed, alarms)]
        return math.log(max((1 - DELTA - upper[0]) / upper[1], 1e-9))

    thresholds = np.quantile(np.concatenate([with_it, without]), np.linspace(0.02, 0.98, 97))
    best = max(thresholds, key=lambda t: proven(t, with_it[:half], without[:half]))
    return proven(float(best), with_it[half:], without[half:])


def test_guessing_whether_a_member_sent_something_gains_no_more_than_is_claimed() -> None:
    codec = right()
    gained = lower_bound(seen(codec, 1e6, MEMBERS, 1), seen(codec, 0.0, MEMBERS, 1 << 20))
    assert 0.4 * CLAIM < gained <= CLAIM


@pytest.mark.parametrize("faulty", [halved, unclipped])
def test_a_planted_fault_is_found(faulty: object) -> None:
    assert callable(faulty)
    codec = faulty()
    update = 1.0 if faulty is halved else 4.0
    with_it, without = seen(codec, update, MEMBERS, 1), seen(codec, 0.0, MEMBERS, 1 << 20)
    assert lower_bound(with_it, without) > CLAIM


@pytest.mark.slow
def test_differencing_two_overlapping_rounds_gains_no_more_than_one_participation_costs() -> None:
    """One round with the member and one without, the same others: the difference holds the noise of both."""
    codec = right()
    fewer = [seen(codec, 0.0, MEMBERS, seed) for seed in (3, 4)]
    with_it = seen(codec, 1e6, MEMBERS, 1) - fewer[0]
    without = seen(codec, 0.0, MEMBERS, 2) - fewer[1]
    gained = lower_bound(with_it, without)
    assert 0 < gained <= CLAIM
    assert gained < lower_bound(seen(codec, 1e6, MEMBERS, 1), seen(codec, 0.0, MEMBERS, 2))


def test_the_noise_that_the_attack_meets_is_the_claimed_one() -> None:
    deviation = seen(right(), 0.0, MEMBERS, 9).std()
    assert deviation == pytest.approx(1.0, rel=5 / math.sqrt(2 * TRIALS) + 0.01)
    assert isinstance(MECHANISM.encoding(VECTOR, SHAPE).local_variance, Fraction)
    assert [type(codec) for codec in right().codecs] == [Clip, Rotate, Discretise, NoiseShare, Wrap]
