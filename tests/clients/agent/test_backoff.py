"""How long the agent waits after failures."""

from quorate.clients.agent.backoff import Backoff


def test_waits_are_spread_below_a_bound_that_doubles_up_to_the_cap():
    backoff = Backoff(base_s=1.0, cap_s=100.0)
    bounds = [1, 2, 4, 8, 16, 32, 64, 100, 100, 100]
    assert all(0 <= backoff.failed() <= bound for bound in bounds)


def test_waits_use_the_whole_range():
    draws = [Backoff(base_s=1.0).failed() for _ in range(200)]
    assert min(draws) < 0.2
    assert max(draws) > 0.8


def test_success_makes_the_next_failure_the_first_again():
    backoff = Backoff(base_s=1.0, failures=20)
    backoff.worked()
    assert backoff.failed() <= 1.0


def test_after_very_many_failures_the_wait_is_still_bounded():
    assert Backoff(failures=10**6).failed() <= 900.0


def test_shared_waits_are_between_half_of_the_time_and_all_of_it():
    assert all(30.0 <= Backoff().around(60.0) <= 60.0 for _ in range(100))
