"""One budget for several runs: together they never pass it, whoever asks first, whatever crashes."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import BudgetExhausted, VerificationFailed
from quorate.privacy import Event, PopulationAccount, SharedLedger, Spend
from tests.privacy.test_ledger import COHORT, DELTA, Rows, event


class Population:
    """Some runs' rows in memory, and what is opened on them: at once, or again after a restart."""

    def __init__(self, epsilon: float, runs: int = 2):
        self.epsilon, self.rows = epsilon, [Rows() for _ in range(runs)]
        self.restart()

    def restart(self) -> None:
        self.account = PopulationAccount("phones", self.epsilon, DELTA, lambda: self.rows)
        self.books = [SharedLedger(rows, self.account, delta=DELTA) for rows in self.rows]


def cost(*rounds: Event) -> float:
    """The released ε of rounds together."""
    spend = Spend()
    for one in rounds:
        spend.add(one, COHORT)
    return spend.epsilons(DELTA, simulated=False).released


def test_a_round_that_would_pass_what_all_runs_may_spend_is_refused_though_its_own_run_has_spent_little() -> (
    None
):
    shared = Population(cost(event(2.0), event(2.0), event(4.0)))
    first, second = shared.books
    first.reserve(1, event(2.0), COHORT)
    first.reserve(2, event(2.0), COHORT)
    second.reserve(1, event(4.0), COHORT)
    assert shared.account.spent().released == pytest.approx(shared.epsilon)
    with pytest.raises(BudgetExhausted, match=r"round 2 would bring .* 'phones' .* above their budget"):
        second.reserve(2, event(4.0), COHORT)
    assert len(shared.rows[1].rows) == 1
    assert second.spent().released == cost(event(4.0))


def test_what_one_run_is_refunded_another_may_spend() -> None:
    shared = Population(cost(event()))
    first, second = shared.books
    first.reserve(1, event(), COHORT)
    with pytest.raises(BudgetExhausted):
        second.reserve(1, event(), COHORT)
    first.refund(1, "nobody came")
    second.reserve(2, event(), COHORT)
    with pytest.raises(BudgetExhausted):
        first.reserve(2, event(), COHORT)


def test_of_many_runs_that_ask_at_once_for_the_last_round_one_gets_it() -> None:
    runs = 8
    shared = Population(cost(event(), event()), runs)
    shared.books[0].reserve(1, event(), COHORT)
    together, refused = threading.Barrier(runs), []

    def ask(book: SharedLedger) -> None:
        together.wait(30)
        try:
            book.reserve(2, event(), COHORT)
        except BudgetExhausted:
            refused.append(book)

    threads = [threading.Thread(target=ask, args=(book,)) for book in shared.books]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(refused) == runs - 1
    assert sum(len(rows.rows) for rows in shared.rows) == 2


def test_a_member_of_several_runs_is_counted_over_all_of_them() -> None:
    """Rounds without amplification cost who takes part in them, so that disjoint cohorts cost as one."""
    inner = event().event
    shared = Population(cost(inner))
    shared.books[0].reserve(1, inner, ("ann",))
    shared.books[1].reserve(1, inner, ("bob",))
    with pytest.raises(BudgetExhausted):
        shared.books[1].reserve(2, inner, ("ann",))


def test_a_run_s_own_budget_holds_beside_the_population_s() -> None:
    shared = Population(10 * cost(event()))
    own = SharedLedger(shared.rows[0], shared.account, delta=DELTA, budget=cost(event()))
    own.reserve(1, event(), COHORT)
    before = shared.account.spent()
    with pytest.raises(BudgetExhausted, match="above the budget of"):
        own.reserve(2, event(), COHORT)
    assert shared.account.spent() == before


def test_a_population_of_which_a_ledger_was_changed_charges_nothing() -> None:
    shared = Population(cost(*[event()] * 3))
    shared.books[0].reserve(1, event(), COHORT)
    shared.books[0].reserve(2, event(), COHORT)
    shared.rows[0].rows[0] = shared.rows[0].rows[0].replace(b'"round":1', b'"round":9')
    shared.account.reread()
    with pytest.raises(VerificationFailed):
        shared.books[1].reserve(1, event(), COHORT)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(["reserve", "refund", "restart"]),
            st.sampled_from([None, "before", "after"]),
        ),
        max_size=12,
    )
)
def test_no_order_of_charges_refunds_crashes_and_restarts_passes_the_budget(steps) -> None:
    shared = Population(cost(*[event()] * 3))
    left: list[tuple[int, int]] = []
    for number, (run, what, crash) in enumerate(steps):
        shared.rows[run].crash = crash
        try:
            if what == "restart":
                shared.restart()
            elif what == "reserve":
                shared.books[run].reserve(number, event(), COHORT)
                left.append((run, number))
            elif any(owner == run for owner, _ in left):
                mine = next(one for one in left if one[0] == run)
                left.remove(mine)
                shared.books[run].refund(mine[1], "nothing was released")
        except (OSError, BudgetExhausted):
            pass
        shared.rows[run].crash = None
        spent = shared.account.spent().released
        assert cost(*[event()] * len(left)) <= spent <= shared.epsilon
        again = PopulationAccount("phones", shared.epsilon, DELTA, lambda: shared.rows)
        assert again.spent().released == spent
