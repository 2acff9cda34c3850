"""The ledger: the reservation is the charge, rows can only be added, and a crash never loses one."""

import json
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from quorate.errors import BudgetExhausted, DataError, StateError, VerificationFailed
from quorate.privacy import (
    DistributedDiscreteGaussianEvent,
    Epsilons,
    Event,
    Ledger,
    NoisyVector,
    Spend,
    TruncatedPoissonSampledEvent,
)

DELTA = 300**-1.1
COHORT = ("ann", "bob", "cleo")


class Rows:
    """Rows in memory; a crash can be planned before or after the next row is kept."""

    def __init__(self, rows: list[bytes] | None = None):
        self.rows = [] if rows is None else rows
        self.crash: str | None = None

    def append(self, entry: bytes) -> None:
        crash, self.crash = self.crash, None
        if crash == "before":
            raise OSError("the disk is full")
        self.rows.append(entry)
        if crash == "after":
            raise OSError("the disk went away")

    def entries(self) -> list[bytes]:
        return list(self.rows)


def event(multiplier: float = 2.0) -> Event:
    vector = NoisyVector("delta", 1024, 5000.0, Fraction(round((5000 * multiplier) ** 2 / 70)))
    inner = DistributedDiscreteGaussianEvent((vector,), 70, 130, 70)
    return TruncatedPoissonSampledEvent(300, 1 / 3, 140, inner)


def ledger(rows: Rows, **settings: object) -> Ledger:
    return Ledger(rows, delta=DELTA, **settings)  # type: ignore[arg-type]


def test_a_reservation_is_charged_at_once_and_says_what_is_spent() -> None:
    book = ledger(rows := Rows())
    assert book.spent() == Epsilons(0.0, 0.0, DELTA)
    charge = book.reserve(1, event(), COHORT)
    assert charge.head == book.head
    assert book.spent().released > 0
    assert json.loads(rows.rows[0])["members"] == sorted(COHORT)


def test_rows_that_are_loaded_again_have_spent_the_same() -> None:
    book = ledger(rows := Rows())
    book.reserve(1, event(), COHORT)
    book.reserve(2, event(3.0), COHORT[:1])
    book.refund(1, "nobody came")
    again = ledger(rows)
    assert again.spent() == book.spent()
    assert again.head == book.head


def test_names_and_events_are_held_once_however_many_rounds_they_are_in() -> None:
    book = ledger(rows := Rows())
    for round in (1, 2):
        book.reserve(round, event(), [f"member-{number}" for number in range(3)])
    for held in (book, ledger(rows)):
        (first, names), (second, again) = held.charges
        assert first is second
        assert all(one is other for one, other in zip(names, again, strict=True))


def test_a_round_is_charged_once() -> None:
    book = ledger(Rows())
    book.reserve(1, event(), COHORT)
    with pytest.raises(StateError, match="charged before"):
        book.reserve(1, event(), COHORT)
    book.refund(1, "nobody came")
    with pytest.raises(StateError, match="charged before"):
        book.reserve(1, event(), COHORT)


def test_a_round_is_refunded_once_and_only_if_it_was_charged() -> None:
    book = ledger(Rows())
    with pytest.raises(StateError, match="never charged"):
        book.refund(1, "no reason")
    book.reserve(1, event(), COHORT)
    book.refund(1, "nobody came")
    assert book.spent().released == 0
    with pytest.raises(StateError, match="refunded before"):
        book.refund(1, "again")


def test_a_refund_that_could_not_be_written_is_none() -> None:
    book = ledger(rows := Rows())
    book.reserve(1, event(), COHORT)

    def fails(row: bytes) -> None:
        raise StateError("the disk is full")

    with pytest.raises(StateError, match="full"):
        book.refund(1, "nobody came", fails)
    assert book.is_charged(1)
    assert len(rows.rows) == 1
    book.refund(1, "nobody came", rows.append)
    assert not book.is_charged(1)


def test_a_round_that_would_pass_the_budget_is_not_written() -> None:
    free = ledger(Rows())
    for number in range(1, 4):
        free.reserve(number, event(), COHORT)
        budget = free.spent().released
    book = ledger(rows := Rows(), budget=budget)
    for number in range(1, 4):
        book.reserve(number, event(), COHORT)
    with pytest.raises(BudgetExhausted, match="above the budget"):
        book.reserve(4, event(), COHORT)
    assert len(rows.rows) == 3
    assert book.spent().released == budget
    book.refund(2, "nobody came")
    book.reserve(5, event(), COHORT)


def test_one_simulated_round_marks_the_whole_spend() -> None:
    rows = Rows()
    ledger(rows).reserve(1, event(), COHORT)
    assert not ledger(rows).spent().simulated
    ledger(rows, simulated=True).reserve(2, event(), COHORT)
    assert ledger(rows).spent().simulated
    assert ledger(rows).spent().simulated


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(DataError, match="delta"):
        Ledger(Rows(), delta=delta)


# --- The chain


def written() -> Rows:
    book = ledger(rows := Rows())
    for number in range(1, 5):
        book.reserve(number, event(), COHORT)
    book.refund(3, "nobody came")
    return rows


def replaced(row: bytes, old: bytes, new: bytes) -> bytes:
    assert old in row
    return row.replace(old, new)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda rows: rows.pop(1),
        lambda rows: rows.insert(1, rows[1]),
        lambda rows: rows.reverse(),
        lambda rows: rows.__setitem__(1, replaced(rows[1], b'"round":2', b'"round":7')),
        lambda rows: rows.__setitem__(4, replaced(rows[4], b'"kind"', b' "kind"')),
        lambda rows: rows.__setitem__(4, replaced(rows[4], b'"refund"', b'"gift"')),
        lambda rows: rows.__setitem__(0, b"not json"),
        lambda rows: rows.__setitem__(0, b"[]"),
        lambda rows: rows.append(rows[-1]),
    ],
)
def test_rows_that_were_changed_are_noticed(tamper: object) -> None:
    rows = written()
    ledger(rows).verify()
    book = ledger(rows)
    tamper(rows.rows)  # type: ignore[operator]
    with pytest.raises(VerificationFailed):
        book.verify()
    with pytest.raises(VerificationFailed):
        ledger(rows)


def test_a_row_that_was_cut_off_is_noticed_by_whoever_kept_the_head() -> None:
    rows = written()
    book = ledger(rows)
    rows.rows.pop()
    with pytest.raises(VerificationFailed, match="last row"):
        book.verify()
    ledger(rows)  # a fresh reader has nothing to compare with


def forged(row: bytes, members: list[str]) -> bytes:
    """The row with another cohort, canonical, in its place in the chain."""
    return json.dumps({**json.loads(row), "members": members}, sort_keys=True, separators=(",", ":")).encode()


def test_a_last_row_that_was_written_anew_is_noticed_by_whoever_kept_the_head() -> None:
    book = ledger(rows := Rows())
    book.reserve(1, event(), COHORT)
    book.reserve(2, event(), COHORT)
    kept = book.sealed_head
    assert kept is not None
    book.reserve(3, event(), COHORT)
    assert ledger(rows).row_of(kept) == 2
    other = Rows([rows.rows[0], forged(rows.rows[1], ["somebody else"])])
    ledger(other).verify()  # the chain alone shows nothing
    assert ledger(other).row_of(kept) is None
    assert ledger(Rows(rows.rows[:1])).row_of(kept) is None


def test_a_head_tells_nothing_of_the_cohort_to_who_guesses_it() -> None:
    one, same = ledger(first := Rows()), ledger(second := Rows())
    for book in (one, same):
        assert book.sealed_head is None
        book.reserve(1, event(), COHORT)
    assert one.sealed_head == one.head.hex() != same.sealed_head
    salts = {json.loads(rows.rows[0])["salt"] for rows in (first, second)}
    assert {len(bytes.fromhex(salt)) for salt in salts} == {32}
    one.refund(1, "2 of 3 members are left")
    assert len({json.loads(row)["salt"] for row in first.rows}) == 2


def test_a_row_of_before_without_a_salt_is_read_and_its_hash_not_published() -> None:
    ledger(rows := Rows()).reserve(1, event(), COHORT)
    fields = {name: value for name, value in json.loads(rows.rows[0]).items() if name != "salt"}
    old = Rows([json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()])
    book = ledger(old)
    assert book.spent() == ledger(rows).spent()
    assert book.sealed_head is None
    book.reserve(2, event(), COHORT)
    assert book.sealed_head is not None
    assert ledger(old).sealed_head == book.sealed_head


def test_rounds_that_are_left_are_like_the_one_that_is_named_and_for_the_most_frequent_member() -> None:
    often, rarely = event(2.0), event(8.0)
    assert isinstance(often, TruncatedPoissonSampledEvent)
    spend = ledger(Rows())
    for number in range(1, 11):
        spend.reserve(number, often, COHORT)
    budget = spend.spent().released
    book = ledger(Rows(), budget=budget)
    book.reserve(1, often, COHORT)
    assert book.rounds_left(1) == 9
    book.reserve(2, rarely, COHORT)
    left = book.rounds_left(2)
    assert left is not None
    assert 8 <= book.rounds_left(1) <= 9 < left
    assert ledger(Rows(book._rows.rows)).rounds_left(1) is None  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="not charged"):
        book.rounds_left(3)
    unsampled = ledger(Rows(), budget=ledger_cost(often.event, 3))
    unsampled.reserve(1, often.event, ["ann"])
    unsampled.reserve(2, often.event, ["bob"])
    assert unsampled.rounds_left(2) == 2


def ledger_cost(released: Event, count: int) -> float:
    spend = Spend()
    for _ in range(count):
        spend.add(released, ["ann"])
    return spend.epsilons(DELTA, simulated=False).released


def test_a_write_of_which_nobody_knows_whether_it_was_kept_is_read_again() -> None:
    book = ledger(rows := Rows())
    for number, crash in enumerate(["before", "after"]):
        rows.crash = crash
        with pytest.raises(OSError, match="disk"):
            book.reserve(number, event(), COHORT)
        book.verify()
        assert book.spent() == ledger(rows).spent()
    assert len(rows.rows) == 1


# --- Crashes, in any interleaving


class Interleaving(RuleBasedStateMachine):
    """Reservations, refunds, failing disks and restarts, beside what really left the coordinator."""

    @initialize(budget=st.sampled_from([None, 1.0, 2.5]))
    def start(self, budget: float | None) -> None:
        self.rows, self.budget = Rows(), budget
        self.book = ledger(self.rows, budget=budget)
        self.number = 0
        self.left: dict[int, tuple[Event, tuple[str, ...]]] = {}

    @rule(
        z=st.sampled_from([1.0, 2.0, 4.0]),
        size=st.integers(0, 3),
        crash=st.sampled_from([None, "before", "after"]),
    )
    def reserve(self, z: float, size: int, crash: str | None) -> None:
        self.number += 1
        self.rows.crash = crash
        try:
            self.book.reserve(self.number, event(z), COHORT[:size])
            self.left[self.number] = (event(z), COHORT[:size])  # only now does the assignment leave
        except (OSError, BudgetExhausted):
            self.rows.crash = None

    @rule(data=st.data(), crash=st.sampled_from([None, "before", "after"]))
    def refund(self, data: st.DataObject, crash: str | None) -> None:
        if not self.left:
            return
        number = data.draw(st.sampled_from(sorted(self.left)))
        self.left.pop(number)  # its journal proves that nothing was released
        self.rows.crash = crash
        try:
            self.book.refund(number, "nothing was released")
        except OSError:
            self.rows.crash = None

    @rule()
    def restart(self) -> None:
        self.book = ledger(self.rows, budget=self.budget)

    @invariant()
    def what_left_is_covered(self) -> None:
        if not hasattr(self, "book"):
            return
        truth = Spend()
        for released, members in self.left.values():
            truth.add(released, members)
        least, spent = truth.epsilons(DELTA, simulated=False), self.book.spent()
        assert spent.released >= least.released
        assert spent.server >= least.server
        assert self.budget is None or spent.released <= self.budget
        assert ledger(self.rows).spent() == spent
        self.book.verify()


Interleaving.TestCase.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
TestInterleaving = Interleaving.TestCase
