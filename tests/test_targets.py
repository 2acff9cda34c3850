"""What noise a target ε asks for, before there is a plan."""

from dataclasses import replace

from quorate import targets
from quorate.targets import Target

EVERYBODY = Target(epsilon=2.0, rounds=4, cohort=20, population=20, delta=1e-6, dimension=100)
"""Without sampling ε is an exact formula, and quick."""


def test_the_least_epsilon_is_the_first_that_can_be_had():
    wanted = replace(EVERYBODY, epsilon=1e-3)
    assert targets.noise_for(wanted) is None
    least = targets.least_epsilon(wanted)
    had = targets.noise_for(replace(wanted, epsilon=least))
    assert had is not None
    assert 0.99 * least <= had.released <= least
    assert targets.noise_for(replace(wanted, epsilon=0.99 * least)) is None


def test_noise_over_signal_is_the_length_of_the_noise_in_the_mean():
    found = targets.noise_for(EVERYBODY)
    assert found is not None
    assert found.released <= 2.0
    # min_survivors is 14 of 20, of whom 13 are honest: the noise of all 20 is √(20/13) of theirs, over 20 members.
    assert found.over_signal == found.multiplier * (20 / 13) ** 0.5 * 10 / 20


def test_the_others_are_different_and_possible():
    others = targets.others(EVERYBODY)
    assert EVERYBODY not in others
    assert len(set(others)) == len(others)
    assert all(other.cohort <= other.population and other.rounds >= 1 for other in others)
    assert {other.cohort for other in others} == {10, 20, 200}


def test_a_target_is_drawn_with_its_mark_whether_it_can_be_had_or_not(tmp_path):
    figure = targets.draw(EVERYBODY, tmp_path / "had.png")
    marked = [line.get_label() for line in figure.axes[0].lines]
    assert any(label.startswith("asked for: noise multiplier") for label in marked)
    assert all(len(axes.lines[0].get_xdata()) == 5 for axes in figure.axes)
    figure = targets.draw(replace(EVERYBODY, epsilon=1e-3), tmp_path / "not.png")
    assert "asked for: can't be had" in [line.get_label() for line in figure.axes[0].lines]
    assert (
        (tmp_path / "not.png").read_bytes()[:8]
        == (tmp_path / "had.png").read_bytes()[:8]
        == b"\x89PNG\r\n\x1a\n"
    )
