"""Events of dp-accounting's in our ledger."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant

from quorate.errors import DataError
from quorate.privacy import ExternalEvent, Ledger
from quorate.privacy.accounting import released_epsilon, server_epsilon
from quorate.privacy.events import decode_event, encode_event
from quorate.privacy.external import external_curve, is_accounted, parse, write
from quorate.privacy.gaussian_rounds import gaussian_epsilon

GAUSSIAN = dp_accounting.GaussianDpEvent(1.5)
SAMPLED = dp_accounting.PoissonSampledDpEvent(0.01, GAUSSIAN)
COMPOSED = dp_accounting.ComposedDpEvent([GAUSSIAN, dp_accounting.GaussianDpEvent(5.0)])
EVENTS = [GAUSSIAN, SAMPLED, COMPOSED, dp_accounting.SelfComposedDpEvent(SAMPLED, 12)]


class Rows:
    def __init__(self):
        self.rows = []

    def append(self, entry):
        self.rows.append(entry)

    def entries(self):
        return list(self.rows)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_the_same_after_it_was_written(event):
    assert parse(write(event)) == event
    external = ExternalEvent(write(event))
    assert decode_event(encode_event(external)) == external


def test_numbers_of_numpy_are_written_as_numbers():
    assert write(dp_accounting.GaussianDpEvent(np.float32(0.5))) == write(dp_accounting.GaussianDpEvent(0.5))


@pytest.mark.parametrize("event", EVENTS)
def test_the_curve_is_that_of_dp_accounting(event):
    orders = (2.0, 4.0, 8.5, 32.0)
    theirs = RdpAccountant(orders, dp_accounting.NeighboringRelation.REPLACE_SPECIAL).compose(event).rdp
    np.testing.assert_array_equal(external_curve(ExternalEvent(write(event)), orders), theirs)


def test_what_dp_accounting_does_not_know_is_not_accounted():
    assert not is_accounted(dp_accounting.UnsupportedDpEvent())
    assert released_epsilon({ExternalEvent(write(dp_accounting.UnsupportedDpEvent())): 1}, 1e-5) == np.inf


@pytest.mark.parametrize(
    "event",
    [
        SAMPLED,
        dp_accounting.ComposedDpEvent([GAUSSIAN, SAMPLED]),
        dp_accounting.SelfComposedDpEvent(SAMPLED, 12),
        dp_accounting.SampledWithoutReplacementDpEvent(100, 10, GAUSSIAN),
        dp_accounting.dp_event.SingleEpochTreeAggregationDpEvent(2.0, [8]),
    ],
)
def test_an_event_that_rests_on_a_draw_which_nothing_here_enforces_is_not_accounted(event):
    assert not is_accounted(event)
    assert is_accounted(COMPOSED)


def test_gaussian_events_compose_exactly():
    # Balle and Wang 2018, Theorem 8, for μ² = 3 (1/1.5² + 1/5²).
    mean = np.sqrt(3 * (1 / 1.5**2 + 1 / 25))
    found = released_epsilon({ExternalEvent(write(COMPOSED)): 3}, 1e-5)
    assert found == pytest.approx(gaussian_epsilon(mean, 1e-5), rel=1e-9)


def test_a_sampled_event_costs_what_dp_accounting_says():
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    theirs = accountant.compose(SAMPLED, 200).get_epsilon(1e-5)
    found = released_epsilon({ExternalEvent(write(SAMPLED)): 200}, 1e-5)
    assert found == pytest.approx(theirs, rel=2e-3)


def test_nothing_is_claimed_against_whoever_runs_the_mechanism():
    assert server_epsilon({ExternalEvent(write(GAUSSIAN)): 1}, 1e-5) == np.inf


def test_the_ledger_charges_it_and_reads_it_again():
    rows = Rows()
    ledger = Ledger(rows, delta=1e-5)
    ledger.reserve(1, ExternalEvent(write(GAUSSIAN)), ["a", "b"])
    ledger.reserve(2, ExternalEvent(write(GAUSSIAN)), ["b", "c"])
    again = Ledger(rows, delta=1e-5)
    assert again.spent() == ledger.spent()
    assert again.spent().released == pytest.approx(gaussian_epsilon(np.sqrt(2) / 1.5, 1e-5), rel=1e-9)


def test_an_event_that_is_none_is_refused():
    with pytest.raises(DataError, match="no event 'Path'"):
        parse('{"type":"Path"}')
    with pytest.raises(DataError, match="can't be read"):
        parse('{"type":"GaussianDpEvent","sigma":1}')
