"""Events are written as canonical JSON, and read back as the same events or not at all."""

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import DataError
from quorate.privacy import (
    CentralDiscreteGaussianEvent,
    CentralDiscreteLaplaceEvent,
    DistributedDiscreteGaussianEvent,
    DistributedSkellamEvent,
    Event,
    LaplaceVector,
    LocalDiscreteGaussianEvent,
    NoisyVector,
    TruncatedPoissonSampledEvent,
)
from quorate.privacy.events import decode_event, encode_event

vectors = st.builds(
    NoisyVector,
    st.text(min_size=1),
    st.integers(1, 1 << 30),
    st.floats(1e-3, 1e9),
    st.fractions(Fraction(1, 4), 10**12),
)
sums = st.builds(
    lambda kind, noisy, shares, extra, quorum, more: kind(
        tuple(noisy), shares, shares + extra, quorum, 0 if more is None else shares + extra + more
    ),
    st.sampled_from([DistributedDiscreteGaussianEvent, DistributedSkellamEvent]),
    st.lists(vectors, min_size=1, max_size=3),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.none() | st.integers(0, 1000),
)
central = st.builds(
    lambda noisy, quorum: CentralDiscreteGaussianEvent(tuple(noisy), quorum),
    st.lists(vectors, min_size=1, max_size=3),
    st.integers(0, 1000),
)
laplace = st.builds(
    lambda noisy, quorum: CentralDiscreteLaplaceEvent(tuple(noisy), quorum),
    st.lists(
        st.builds(
            LaplaceVector,
            st.text(min_size=1),
            st.integers(1, 1 << 30),
            st.integers(1, 1 << 31),
            st.fractions(Fraction(1, 10**6), 10**12),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 1000),
)
local = st.builds(
    lambda noisy, released, quorum, more: LocalDiscreteGaussianEvent(
        tuple(noisy), released, quorum, released + more
    ),
    st.lists(vectors, min_size=1, max_size=3),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
sampled = st.builds(
    lambda extra, probability, cap, event, dropout: TruncatedPoissonSampledEvent(
        cap + extra, probability, cap, event, dropout
    ),
    st.integers(0, 1000),
    st.floats(1e-6, 1),
    st.integers(1, 1000),
    sums | central | laplace | local,
    st.floats(0, 0.9),
)


@given(st.one_of(sums, central, laplace, local, sampled))
def test_an_event_is_read_back_as_it_was_written(event: Event) -> None:
    text = json.dumps(encode_event(event), sort_keys=True, allow_nan=False)
    assert decode_event(json.loads(text)) == event
    assert hash(decode_event(json.loads(text))) == hash(event)


def written(**changes: Any) -> dict[str, Any]:
    vector = NoisyVector("delta", 4, 2.0, Fraction(3, 2))
    return {**encode_event(DistributedDiscreteGaussianEvent((vector,), 3, 4, 2)), **changes}


@pytest.mark.parametrize(
    "content",
    [
        written(type="gaussian"),
        written(shares=0),
        written(shares=9),
        written(vectors=[]),
        written(surplus=1),
        written(vectors=[{"name": "delta", "dimension": 4, "norm_bound": 2.0, "share_variance": "1/8"}]),
        written(vectors=[{"name": "delta", "dimension": 4, "norm_bound": 0.0, "share_variance": "1"}]),
        written(vectors=[{"name": "delta", "dimension": 4, "norm_bound": 2.0}]),
        {"shares": 3},
        [],
        None,
        {
            "type": "truncated-poisson-sampled",
            "population": 4,
            "probability": 0.0,
            "cap": 2,
            "dropout": 0.1,
            "event": written(),
        },
        {
            "type": "truncated-poisson-sampled",
            "population": 4,
            "probability": 0.5,
            "cap": 5,
            "dropout": 0.1,
            "event": written(),
        },
    ],
)
def test_what_is_no_event_of_this_version_is_refused(content: Any) -> None:
    with pytest.raises(DataError):
        decode_event(content)


def test_a_sampled_event_is_not_sampled_again() -> None:
    inner = {
        "type": "truncated-poisson-sampled",
        "population": 4,
        "probability": 0.5,
        "cap": 4,
        "dropout": 0.1,
        "event": written(),
    }
    assert isinstance(decode_event(inner), TruncatedPoissonSampledEvent)
    with pytest.raises(DataError, match="again"):
        decode_event({**inner, "event": inner})
