import numpy as np

from quorate.privacy.audits.inversion import inverted, likeness


def test_one_example_is_read_from_its_gradient_exactly():
    rng = np.random.default_rng(0)
    x, error = rng.random(30), rng.normal(size=5)
    found = inverted(np.outer(x, error), error)
    np.testing.assert_allclose(found, np.tile(x, (5, 1)), rtol=1e-12)
    cosine, _, example = likeness(found, np.stack([rng.random(30), x]))
    assert example == 1
    assert abs(cosine - 1) < 1e-12


def test_an_output_that_did_not_move_tells_nothing():
    assert not inverted(np.ones((4, 2)), np.array([0.0, 1e-15])).any()
    assert likeness(np.zeros((2, 4)), np.ones((3, 4)))[0] == 0.0
