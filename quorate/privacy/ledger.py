"""The ledger: what every round was charged, written down before the round can release anything.

The reservation *is* the charge. By cases, for a run whose coordinator can be killed anywhere:

- killed before `reserve` returns: either the row is there, and is counted, or it is not, and no assignment
    has left;
- killed after it: the row is counted, whether or not the round released anything;
- a round that provably released nothing can be refunded, once; killed before `refund` returns: it is counted
  until the refund is there. The round can be closed by the same transaction.

So what is recorded covers what was released at every point. Rows are canonical JSON, and each holds the
SHA-256 of the row before it: none can be changed, left out or moved without `verify` seeing it. What the chain alone
can't show is that its last rows were written anew or cut off. Whoever kept the head of an earlier time can:
`row_of` finds it again, or not. Every published version keeps one (`sealed_head`).

A head is a commitment to who was drawn. Without more it would tell a cohort to whoever can guess it, everybody but one
member, say, and sampling would amplify nothing. So every row has a salt, 32 bytes of the operating system's, which are
shown with the row and not before: while it is kept, the hash of a row tells nothing of what is in it (a hash
commitment; SHA-256 as a random oracle).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from quorate.errors import BudgetExhausted, DataError, StateError, VerificationFailed
from quorate.privacy.accounting import Epsilons, Spend
from quorate.privacy.events import Event, decode_event, encode_event
from quorate.rounds import Member

__all__ = ["Charge", "Ledger", "LedgerRows"]

Held = TypeVar("Held")

_FORMAT = "quorate/ledger/1"


class LedgerRows(Protocol):
    """Where the rows are kept; the store implements it."""

    def append(self, entry: bytes) -> None:
        """Adds a row; durable when it returns."""
        ...

    def entries(self) -> Sequence[bytes]:
        """All rows, in order."""
        ...


@dataclass(frozen=True)
class Charge:
    """A reservation.

    Args:
        round: the round's number.
        head: SHA-256 of its row.
    """

    round: int
    head: bytes


class Ledger:
    """The ledger of one run. It has one writer; whoever only reads may have another on the same rows.

    Args:
        rows: see `LedgerRows`. What they hold already is read and verified.
        delta: of every ε.
        budget: the `released` ε that no reservation may pass; None: no limit.
        simulated: whether what is reserved from now on was drawn from a seed.

    Raises:
        VerificationFailed: the rows were changed.
    """

    def __init__(
        self, rows: LedgerRows, *, delta: float, budget: float | None = None, simulated: bool = False
    ):
        if not 0 < delta < 1:
            raise DataError(f"a delta is in (0, 1), got {delta}")
        self._rows, self._delta, self._budget, self._simulated = rows, delta, budget, simulated
        self._load()

    def reserve(self, round: int, event: Event, members: Iterable[Member]) -> Charge:
        """Charges a round, durably, before anything of it leaves. Members that drop out are charged as well.

        Args:
            round: its number; never used twice, refunded or not.
            event: what it releases of its cohort.
            members: the cohort.

        Raises:
            BudgetExhausted: with this round, `released` would pass the budget; nothing was written.
            StateError: the round was reserved before.
        """
        self._fresh()
        if round in self._reserved:
            raise StateError(f"round {round} was charged before; a retried round has a new number")
        cohort = sorted(set(members))
        self._spend.add(event, cohort)
        if self._budget is not None and not self._spend.within(self._budget, self._delta):
            after = self._spend.epsilons(self._delta, simulated=self._simulated)
            self._spend.remove(event, cohort)
            raise BudgetExhausted(
                f"round {round} would bring the released ε to {after.released:.4g}, above the budget of "
                f"{self._budget:g} (δ = {self._delta:.3g}); spent so far: {self.spent().released:.4g}"
            )
        self._write(
            {
                "kind": "reserve",
                "round": round,
                "event": encode_event(event),
                "members": cohort,
                "simulated": self._simulated,
            }
        )
        return Charge(round, self.head)

    def refund(self, round: int, reason: str, append: Callable[[bytes], None] | None = None) -> None:
        """Takes a round's charge back, when the journal proves that nothing of it was released.

        Args:
            round: its number.
            reason: why nothing was.
            append: adds the row, and what belongs to it, durably, all or nothing; None: the row alone is added.

        Raises:
            StateError: the round was not reserved, or was refunded before.
        """
        self._fresh()
        if round not in self._reserved:
            raise StateError(f"round {round} was never charged, so nothing can be refunded")
        if self._reserved[round] is None:
            raise StateError(f"round {round} was refunded before")
        self._write({"kind": "refund", "round": round, "reason": reason}, append)

    def is_charged(self, round: int) -> bool:
        """Whether the round was reserved, and not refunded since."""
        self._fresh()
        return self._reserved.get(round) is not None

    def spent(self) -> Epsilons:
        """What all rounds that were not refunded have spent, together."""
        self._fresh()
        return self._spend.epsilons(self._delta, simulated=self._any_simulated)

    def rounds_left(self, like: int, most: int = 1 << 20) -> int | None:
        """How many more rounds like a charged one the budget allows, up to `most`, if nothing else is charged.

        Of rounds without secret sampling, it is for the member that took part most often, if it is in all of them.

        Args:
            like: the number of a round that is charged.
            most: where counting ends.

        Returns:
            None when there is no budget.

        Raises:
            StateError: the round is not charged.
        """
        self._fresh()
        charged = self._reserved.get(like)
        if charged is None:
            raise StateError(f"round {like} is not charged, so that no rounds like it can be counted")
        if self._budget is None:
            return None
        return self._spend.rounds_left(charged[0], self._budget, self._delta, most)

    @property
    def budget(self) -> float | None:
        """The most `released` ε that may be spent; None: no limit."""
        return self._budget

    @property
    def charged_rounds(self) -> Sequence[int]:
        """The numbers of the rounds that were reserved, and not refunded since."""
        self._fresh()
        return [number for number, charged in self._reserved.items() if charged is not None]

    @property
    def charges(self) -> Sequence[tuple[Event, Sequence[Member]]]:
        """What was reserved, and not refunded since: the events, each with its cohort."""
        self._fresh()
        return [charged for charged in self._reserved.values() if charged is not None]

    @property
    def is_simulated(self) -> bool:
        """Whether any round was drawn from a seed."""
        self._fresh()
        return self._any_simulated

    @property
    def head(self) -> bytes:
        """SHA-256 of the last row; of the format's name when there is none."""
        return self._head

    @property
    def sealed_head(self) -> str | None:
        """The head in hexadecimal, which may be published; None without rows, or if the last one has no salt."""
        self._fresh()
        return self._head.hex() if self._salted else None

    def row_of(self, head: str) -> int | None:
        """Which row, from 1, has this SHA-256 (hexadecimal); None if none has: it is not the ledger of that head."""
        hashes = (hashlib.sha256(row).hexdigest() for row in self._rows.entries())
        return next((number for number, found in enumerate(hashes, 1) if found == head), None)

    def verify(self) -> None:
        """Reads all rows again and checks the chain.

        Raises:
            VerificationFailed: a row was changed, left out, moved or added by hand.
        """
        self._fresh()
        written = self._head
        self._load()
        if self._head != written:
            raise VerificationFailed("the ledger's last row is not the one that was written last")

    # --- rows and what they add up to

    def _fresh(self) -> None:
        """After a write that failed, nobody knows whether the row is there: the rows are read again."""
        if self._stale:
            self._load()

    def _load(self) -> None:
        self._spend = Spend()
        self._reserved: dict[int, tuple[Event, tuple[Member, ...]] | None] = {}
        self._known: dict[Any, Any] = {}  # names and events, each kept once however many rounds it is in
        self._any_simulated = False
        self._head = hashlib.sha256(_FORMAT.encode()).digest()
        self._salted = False
        self._stale = False
        for number, row in enumerate(self._rows.entries(), 1):
            try:
                content = json.loads(row)
                if content.pop("previous") != self._head.hex():
                    raise VerificationFailed(f"row {number} of the ledger does not follow the row before it")
                if _canonical({**content, "previous": self._head.hex()}) != row:
                    raise VerificationFailed(f"row {number} of the ledger is not canonical")
                self._apply(content, count=True)
            except (ValueError, KeyError, TypeError, AttributeError, DataError, StateError) as error:
                raise VerificationFailed(f"row {number} of the ledger can't be read: {error}") from error
            self._follow(row, content)

    def _write(self, content: dict[str, Any], append: Callable[[bytes], None] | None = None) -> None:
        content = {**content, "salt": secrets.token_hex(32)}
        row = _canonical({**content, "previous": self._head.hex()})
        self._stale = True
        (append or self._rows.append)(row)
        self._stale = False
        self._follow(row, content)
        self._apply(content, count=content["kind"] != "reserve")  # a reservation is counted already

    def _follow(self, row: bytes, content: dict[str, Any]) -> None:
        """The chain's end is that row."""
        self._head = hashlib.sha256(row).digest()
        self._salted = "salt" in content

    def _apply(self, content: dict[str, Any], *, count: bool) -> None:
        round = content["round"]
        if content["kind"] == "reserve":
            if round in self._reserved:
                raise StateError(f"round {round} is reserved twice")
            event = self._once(decode_event(content["event"]))
            members = tuple(map(self._once, content["members"]))
            self._reserved[round] = (event, members)
            self._any_simulated |= bool(content["simulated"])
            if count:
                self._spend.add(event, members)
        elif content["kind"] == "refund":
            charged = self._reserved[round]
            if charged is None:
                raise StateError(f"round {round} is refunded twice")
            self._spend.remove(*charged)
            self._reserved[round] = None
        else:
            raise DataError(f"unknown kind {content['kind']!r}")

    def _once(self, held: Held) -> Held:
        """What is held already in its place: in months of rounds a cohort's names would come to gigabytes."""
        same: Held = self._known.setdefault(held, held)
        return same


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
