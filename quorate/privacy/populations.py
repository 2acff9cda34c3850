"""One budget for all runs over one population: what they released together, whatever each of them was about.

Runs over the same people add up for whoever sees what all of them release: rounds of different kinds, chosen one after
the other, compose as those of one run do (`quorate.privacy.accounting`). So a population has one ε at one δ, and every
round of every run that counts towards it is charged to both ledgers' limits before it begins: the run's own, and the
population's. There is no second book: what a population has spent is read from its runs' ledgers, the finished ones
included, so that no crash can make the two differ.

One process writes (`quorate.server.store`), and its runs, in threads of their own, charge one after the other: of two
that ask at once for what is left, one gets it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from quorate.errors import BudgetExhausted
from quorate.privacy.accounting import Epsilons, Spend
from quorate.privacy.events import Event
from quorate.privacy.ledger import Charge, Ledger, LedgerRows
from quorate.rounds import Member

__all__ = ["PopulationAccount", "SharedLedger"]


class PopulationAccount:
    """What a population's runs have spent together, and may.

    Args:
        name: of the population.
        epsilon: the `released` ε that all of them together must not pass.
        delta: of that ε.
        ledgers: gives the rows of every run that counts towards it.
    """

    def __init__(self, name: str, epsilon: float, delta: float, ledgers: Callable[[], Iterable[LedgerRows]]):
        self.name, self.epsilon, self.delta = name, epsilon, delta
        self._ledgers = ledgers
        self._lock = threading.RLock()
        self._spend: Spend | None = None
        self._simulated = False

    def spent(self) -> Epsilons:
        """What all its runs have spent together: nobody's rounds are left out.

        Raises:
            VerificationFailed: one of their ledgers was changed.
        """
        with self._lock:
            return self._read().epsilons(self.delta, simulated=self._simulated)

    def reread(self) -> None:
        """Reads the ledgers again before the next charge: a run may have joined."""
        with self._lock:
            self._spend = None

    @contextmanager
    def charging(self, round: int, event: Event, members: Iterable[Member]) -> Iterator[None]:
        """Stands around the writing of a charge; what fails there is read again, since nobody knows what was written.

        Raises:
            BudgetExhausted: with this round, the population's budget would be passed; nothing is to be written.
        """
        with self._lock:
            spend = self._read()
            try:
                spend.add(event, sorted(set(members)))
                if not spend.within(self.epsilon, self.delta):
                    self._refuse(round, spend)
                yield
            except BaseException:
                self._spend = None
                raise

    @contextmanager
    def refunding(self) -> Iterator[None]:
        """Stands around the writing of a refund."""
        with self._lock:
            self._spend = None
            yield

    def _refuse(self, round: int, spend: Spend) -> None:
        after = spend.epsilons(self.delta, simulated=False).released
        self._spend = None
        raise BudgetExhausted(
            f"round {round} would bring what all runs over the population {self.name!r} have released to ε "
            f"{after:.4g}, above their budget of {self.epsilon:g} (δ = {self.delta:.3g}); spent so far: "
            f"{self.spent().released:.4g}"
        )

    def _read(self) -> Spend:
        if self._spend is None:
            spend, self._simulated = Spend(), False
            for rows in self._ledgers():
                ledger = Ledger(rows, delta=self.delta)
                self._simulated |= ledger.is_simulated
                for event, members in ledger.charges:
                    spend.add(event, members)
            self._spend = spend
        return self._spend


class SharedLedger(Ledger):
    """The ledger of a run that counts towards a population's budget.

    Args:
        rows: see `Ledger`.
        account: the population's, shared by all its runs.
        delta: see `Ledger`.
        budget: the run's own.
        simulated: see `Ledger`.
    """

    def __init__(
        self,
        rows: LedgerRows,
        account: PopulationAccount,
        *,
        delta: float,
        budget: float | None = None,
        simulated: bool = False,
    ):
        super().__init__(rows, delta=delta, budget=budget, simulated=simulated)
        self._account = account
        account.reread()

    def reserve(self, round: int, event: Event, members: Iterable[Member]) -> Charge:
        """As `Ledger.reserve`, if the population's budget holds the round as well.

        Raises:
            BudgetExhausted: see `Ledger.reserve` and `PopulationAccount.charging`.
            StateError: see `Ledger.reserve`.
        """
        cohort = tuple(members)
        with self._account.charging(round, event, cohort):
            return super().reserve(round, event, cohort)

    def refund(self, round: int, reason: str, append: Callable[[bytes], None] | None = None) -> None:
        """As `Ledger.refund`."""
        with self._account.refunding():
            super().refund(round, reason, append)
