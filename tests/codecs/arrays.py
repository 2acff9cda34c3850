"""What the codecs' tests draw from."""

import math

import numpy as np
from hypothesis import strategies as st

from quorate.randomness import Randomness

RANDOMNESS = Randomness.from_seed(0)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 40))
modest = st.floats(-1e3, 1e3, width=32)


def norms(values: np.ndarray) -> np.ndarray:
    """Of each row."""
    return np.array([math.hypot(*row) for row in values])
