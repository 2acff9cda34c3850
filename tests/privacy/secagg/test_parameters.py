import math
from fractions import Fraction

import pytest

from quorate.privacy.secagg.parameters import SecAggParameters, ThreatModel, most_corrupt_in_a_bucket

HONEST, LYING = ThreatModel.SEMI_HONEST, ThreatModel.SEMI_MALICIOUS

# (members, corrupt, dropout, model): (k, t); the values that the project's notes and docs state.
TABLE = {
    (100, 0.05, 0.05, HONEST): (12, 6),
    (100, 0.05, 0.05, LYING): (16, 11),
    (100, 0.33, 0.05, HONEST): (34, 29),
    (100, 0.2, 0.1, LYING): (42, 32),
    (1_000, 0.05, 0.05, HONEST): (30, 17),
    (1_000, 0.05, 0.05, LYING): (52, 37),
    (1_000, 0.33, 0.05, HONEST): (78, 60),
    (1_000, 0.2, 0.1, LYING): (140, 104),
    (10_000, 0.05, 0.05, HONEST): (34, 20),
    (10_000, 0.05, 0.05, LYING): (62, 44),
    (10_000, 0.33, 0.05, HONEST): (92, 70),
    (10_000, 0.2, 0.1, LYING): (184, 136),
}

# What Google's implementation expects of its own finder (federated-compute, graph_parameter_finder_test).
PUBLISHED = {
    (100, 0.45, 0.45, HONEST): (92, 46),
    (1_000, 0.45, 0.45, HONEST): (822, 417),
    (100, 0.33, 0.33, HONEST): (68, 34),
    (1_000, 0.33, 0.33, HONEST): (286, 150),
    (10_000, 0.33, 0.33, HONEST): (422, 221),
    (100, 0.3, 0.3, LYING): (92, 62),
    (1_000, 0.3, 0.3, LYING): (872, 584),
    (100, 0.05, 0.33, HONEST): (28, 6),
    (1_000, 0.05, 0.33, HONEST): (72, 24),
    (10_000, 0.05, 0.33, HONEST): (86, 29),
    (100, 0.05, 0.33, LYING): (72, 39),
    (1_000, 0.05, 0.33, LYING): (398, 223),
    (10_000, 0.05, 0.33, LYING): (746, 420),
}


def found(members, corrupt, dropout, model, **kwargs):
    fewest = members - int(Fraction(str(dropout)) * members)
    hood = SecAggParameters(model, corrupt, dropout, **kwargs).neighbourhood(members, fewest)
    return hood.neighbours, hood.threshold


@pytest.mark.parametrize("case", TABLE)
def test_degree_and_threshold_are_those_of_the_table(case):
    assert found(*case) == TABLE[case]


@pytest.mark.parametrize("case", PUBLISHED)
def test_degree_and_threshold_are_those_that_google_published(case):
    degree, largest_threshold = PUBLISHED[case]
    k, t = found(*case)
    assert k == degree
    assert t <= largest_threshold


@pytest.mark.parametrize(("rates", "expected"), [((0.05, 0.05), (62, 43)), ((0.2, 0.1), (162, 118))])
def test_a_smaller_failure_probability_costs_neighbours(rates, expected):
    assert found(1_000, *rates, LYING, failure_bits=30) == expected


def test_a_server_that_picks_the_roster_is_met_with_128_bits():
    assert found(1_000, 0.2, 0.1, ThreatModel.MALICIOUS, security_bits=128) == (212, 166)


def test_a_malicious_server_is_not_accepted_with_a_sparse_graph_at_40_bits():
    with pytest.raises(ValueError, match="complete graph, or security_bits of at least 128"):
        SecAggParameters(ThreatModel.MALICIOUS)


@pytest.mark.parametrize("members", [3, 10, 49])
def test_small_cohorts_use_the_complete_graph(members):
    assert SecAggParameters().neighbourhood(members, 3).complete


def test_the_complete_graph_can_be_asked_for_at_any_size():
    hood = SecAggParameters(complete=True).neighbourhood(1_000, 3)
    assert hood.complete
    assert hood.threshold == 51


@pytest.mark.parametrize("model", list(ThreatModel))
@pytest.mark.parametrize("members", [3, 4, 7, 20, 49])
@pytest.mark.parametrize("corrupt", [0.0, 0.1, 0.3])
def test_the_complete_graphs_threshold_beats_the_corrupt_members(model, members, corrupt):
    try:
        hood = SecAggParameters(model, corrupt, complete=True).neighbourhood(members, 3)
    except ValueError:
        assert model.signed  # a majority of honest holders is not there
        return
    bad = -int(-corrupt * members // 1)
    assert hood.threshold > bad
    if model.signed:
        assert 2 * hood.threshold > hood.neighbours + bad
    assert hood.threshold < hood.quorum <= members


@pytest.mark.parametrize("members", range(80, 141, 10))
def test_the_quorum_does_not_depend_on_how_many_were_drawn(members):
    assert SecAggParameters(corrupt=0.05, dropout=0.15).neighbourhood(members, 70).quorum == 70


def test_a_graph_is_made_for_every_dropout_that_its_quorum_accepts():
    degrees = [
        SecAggParameters(dropout=0.1).neighbourhood(100, fewest).neighbours for fewest in (90, 70, 50, 3)
    ]
    assert degrees == sorted(degrees)
    assert degrees[0] == found(100, 0.05, 0.1, HONEST)[0]
    assert degrees[-1] == 99


def test_rates_are_read_as_the_decimal_numbers_that_were_written():
    # 0.29 · 100 is 28.999999999999996 in binary floating point.
    assert SecAggParameters(corrupt=0.29, complete=True).neighbourhood(100, 3).threshold == 30


@pytest.mark.parametrize(
    "bad",
    [{"corrupt": 1.0}, {"corrupt": -0.1}, {"dropout": 1.5}, {"security_bits": 0}, {"failure_bits": 257}],
)
def test_impossible_values_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SecAggParameters(**bad)


@pytest.mark.parametrize("members", [0, 2, 65_521])
def test_sessions_of_impossible_size_are_refused(members):
    with pytest.raises(ValueError, match="a session has from 3 to 65520 members"):
        SecAggParameters().neighbourhood(members, 1)


def test_a_quorum_above_the_roster_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="at least 12 must stay"):
        SecAggParameters().neighbourhood(10, 12)


# --- Corrupt members of random buckets


def tail(cohort, corrupt, size, more_than):
    """P(more than so many of `size` members, drawn from a cohort, are corrupt), exactly."""
    ways = sum(
        math.comb(corrupt, k) * math.comb(cohort - corrupt, size - k) for k in range(more_than + 1, size + 1)
    )
    return Fraction(ways, math.comb(cohort, size))


@pytest.mark.parametrize("buckets", [2, 5, 20])
@pytest.mark.parametrize("corrupt", [0.01, 0.05, 0.2])
def test_no_bucket_of_any_cohort_has_more_corrupt_members_than_the_bound(buckets, corrupt):
    size = 40
    bound = most_corrupt_in_a_bucket(size * buckets, buckets, size, corrupt)
    for cohort in range(10 * buckets, size * buckets + 1, 7):
        bad = int(Fraction(str(corrupt)) * cohort)
        assert buckets * tail(cohort, bad, -(-cohort // buckets), bound) <= Fraction(1, 2**40)


def test_the_bound_is_no_larger_than_it_must_be_by_much():
    """It is Chernoff's; the exact number that is passed with probability 2^-40 is 19."""
    exact = next(c for c in range(50) if 20 * tail(1000, 50, 50, c) <= Fraction(1, 2**40))
    assert (exact, most_corrupt_in_a_bucket(1000, 20, 50, 0.05)) == (19, 21)


def test_all_corrupt_members_may_be_in_one_small_bucket():
    assert most_corrupt_in_a_bucket(100, 10, 10, 0.05) == 5
    assert most_corrupt_in_a_bucket(40, 4, 10, 0.3) == 10
    assert most_corrupt_in_a_bucket(40, 4, 10, 0.0) == 0


def test_a_number_of_corrupt_members_takes_the_place_of_a_share():
    share = SecAggParameters(LYING, corrupt=0.1)
    for members in (20, 40, 100):
        number = SecAggParameters(LYING, corrupt=0.0, corrupt_members=members // 10)
        assert number.neighbourhood(members, members - 5) == share.neighbourhood(members, members - 5)
    with pytest.raises(ValueError, match="corrupt_members must be at least 0"):
        SecAggParameters(corrupt_members=-1)
