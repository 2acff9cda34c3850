"""The server's half of a session: routes shares, adds masked vectors on arrival, removes the masks.

    advertise   Advertisement   →  Roster, Neighbours      who takes part
    share       SealedShares    →  Inbox                   what the neighbours sealed
    mask        MaskedInput     →  Survivors               added on arrival; the vector is not kept
    unmask      Reveal          →  the sum                 restored, checked, unmasked, given to the sink

In the signed threat models, `consistency` comes before `unmask`: Survivors are answered by Acknowledgement,
and Acknowledgements by Reveal.

Members drop out in any phase. Before it asks for shares, the server makes sure that enough of them can
come; below the quorum nothing is asked, and nothing reaches the sink. Memory is the sum, and n·k shares:
O(d + n·k).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.privacy.secagg import shamir
from quorate.privacy.secagg.checks import is_signed
from quorate.privacy.secagg.consistency import Consistency
from quorate.privacy.secagg.encoding import TAG_BYTES, Sizes, kind_of, members_of, to_bitmap
from quorate.privacy.secagg.graph import neighbour_table
from quorate.privacy.secagg.identity import Enrolment
from quorate.privacy.secagg.messages import (
    SEALED_BYTES,
    Acknowledgement,
    Advertisement,
    Inbox,
    MaskedInput,
    Neighbours,
    Reveal,
    SealedShares,
    Survivors,
)
from quorate.privacy.secagg.parameters import SMALLEST_COHORT, SecAggParameters
from quorate.privacy.secagg.restoring import Opened, restore_secrets
from quorate.privacy.secagg.roster import Ring, leaf_of, roster_type
from quorate.privacy.secagg.states import SERVER, SIGNED_SERVER, Phase
from quorate.privacy.secagg.unmasking import Unmask, masks_to_remove
from quorate.rounds import Member
from quorate.summation import Outgoing, Sink, SumSession

__all__ = ["SecAggServer"]


class SecAggServer:
    """The server in one session; see `quorate.rounds.ServerSum` for how it is driven.

    Args:
        session: length, dtype, bounds and the binding.
        parameters: from the terms.
        sink: gets the sum, once, when everything was restored and checked.
        unmask: takes masks off a vector: `masks.add_masks`, or something that spreads ranges over processes.
        enrolment: who is a member, in the signed threat models: a forged advertisement is refused at once.
    """

    def __init__(
        self,
        session: SumSession,
        parameters: SecAggParameters,
        sink: Sink,
        unmask: Unmask,
        enrolment: Enrolment | None = None,
    ):
        self._session, self._parameters, self._sink, self._unmask = session, parameters, sink, unmask
        self._enrolment = enrolment if parameters.threat_model.signed else None
        self._table_of_states = SIGNED_SERVER if parameters.threat_model.signed else SERVER
        self._phase = Phase.NEW
        self._awaited: dict[Member, None] = {}
        self._tag = session.binding[:TAG_BYTES]
        wire = session.dtype.newbyteorder("<")
        self._wire = wire
        self._sizes = Sizes(
            session.bounds.largest, 0, 0, session.length * wire.itemsize, parameters.threat_model.signed
        )
        self._advertisements: dict[Member, Advertisement] = {}
        self._keys_seen: set[bytes] = set()
        self._identities: dict[Member, bytes] = {}
        self._takers: Mapping[Phase, Callable[[Member, bytes], None]] = {
            Phase.ADVERTISE: self._take_advertisement,
            Phase.SHARE: self._take_shares,
            Phase.MASK: self._take_vector,
            Phase.CONSISTENCY: self._take_acknowledgement,
            Phase.UNMASK: self._take_reveal,
        }
        self._closers: Mapping[Phase, Callable[[], list[Outgoing]]] = {
            Phase.ADVERTISE: self._close_advertise,
            Phase.SHARE: self._close_share,
            Phase.MASK: self._close_mask,
            Phase.CONSISTENCY: self._close_consistency,
            Phase.UNMASK: self._close_unmask,
        }
        self.wrong_shares: tuple[tuple[Member, Member], ...] = ()
        """(holder, owner) of each share that was found to be wrong; either of the two may be to blame."""
        self._ring: Ring
        self._members: list[Member]
        self._place: dict[Member, int]
        self._table: np.ndarray
        self._sealed: np.ndarray | None
        self._shared: np.ndarray
        self._alive: np.ndarray
        self._total: np.ndarray
        self._opened: Opened
        self._consistency: Consistency

    # --- What a driver sees ---

    @property
    def phase(self) -> str:
        """The phase's name: advertise, share, mask, unmask; done or aborted at the end."""
        return str(self._phase)

    @property
    def awaited(self) -> Collection[Member]:
        """Who has not answered in this phase yet."""
        return self._awaited.keys()

    @property
    def done(self) -> bool:
        """Whether the sum is in the sink."""
        return self._phase is Phase.DONE

    @property
    def reveals(self) -> bool:
        """True from the unmask phase on: its requests ask for what opens the sum."""
        return self._phase in (Phase.UNMASK, Phase.DONE)

    def begin(self, members: Sequence[Member]) -> list[Outgoing]:
        """Opens the session; the clients speak first."""
        if self._phase is not Phase.NEW:
            raise ValueError("a session begins once")
        self._awaited = dict.fromkeys(members)
        self._phase = Phase.ADVERTISE
        return []

    def receive(self, member: Member, data: bytes) -> None:
        """Takes a member's message of this phase.

        Raises:
            ProtocolViolation: the member is not awaited, or the message is not what the phase takes.
        """
        if member not in self._awaited:
            raise ProtocolViolation(f"{member} is not awaited in phase {self._phase}")
        kind = kind_of(data)
        if (self._phase, kind) not in self._table_of_states:
            raise ProtocolViolation(f"a message of kind {kind.name} came in phase {self._phase}")
        self._takers[self._phase](member, data)
        del self._awaited[member]

    def lose(self, member: Member) -> None:
        """The member answers no more; what it has sent stands."""
        self._awaited.pop(member, None)

    def advance(self) -> list[Outgoing]:
        """Closes the phase, and returns the next one's messages; each phase closes once.

        Raises:
            QuorumNotReached: too few members, or too few holders of a secret; the session is over.
        """
        closer = self._closers.get(self._phase)
        if closer is None:
            raise ValueError(f"a session that is {self._phase} can't advance")
        closing, self._phase = self._phase, Phase.ABORTED
        self._awaited = {}
        outgoing = closer()
        self._phase = next(
            following for (phase, _), following in self._table_of_states.items() if phase is closing
        )
        self._awaited = dict.fromkeys(message.member for message in outgoing)
        return outgoing

    # --- Advertise ---

    def _take_advertisement(self, member: Member, data: bytes) -> None:
        advertisement = Advertisement.decode(data, self._tag, self._sizes)
        fresh = {advertisement.encryption_key, advertisement.mask_key}
        if fresh & self._keys_seen:
            raise ProtocolViolation(f"{member} advertised a key that another member has")
        if self._enrolment is not None:
            identity = self._enrolment.public_key(advertisement.certificate)
            if identity is None or not is_signed(self._session.binding, identity, advertisement):
                raise ProtocolViolation(f"{member} advertised keys that no enrolled identity has signed")
            fresh.add(identity)
            if identity in self._keys_seen:
                raise ProtocolViolation(f"{member} advertised with an identity that another member has")
            self._identities[member] = identity
        self._keys_seen |= fresh
        self._advertisements[member] = advertisement

    def _close_advertise(self) -> list[Outgoing]:
        needed = max(self._session.bounds.min_survivors, SMALLEST_COHORT)
        self._require(Phase.ADVERTISE, len(self._advertisements), needed)
        binding, identities = self._session.binding, self._identities
        by_leaf = {
            leaf_of(advertisement, binding, identities.get(member)): member
            for member, advertisement in self._advertisements.items()
        }
        roster = roster_type(self._parameters)(self._tag, b"".join(sorted(by_leaf)))
        try:
            self._ring = Ring.build(self._session, self._parameters, roster.leaves)
        except ValueError as unmet:
            present = len(self._advertisements)
            raise QuorumNotReached(str(Phase.ADVERTISE), present, present + 1) from unmet
        hood = self._ring.hood
        n, k = hood.members, hood.neighbours
        self._members = [by_leaf[leaf.tobytes()] for leaf in self._ring.leaves]
        self._place = {member: place for place, member in enumerate(self._members)}
        self._table = neighbour_table(hood)
        self._sizes = replace(self._sizes, members=n, neighbours=k)
        self._sealed = np.zeros((n, k, SEALED_BYTES), np.uint8)
        self._shared = np.zeros(n, bool)
        common = roster.encode()
        bodies = [self._advertisements[member].body for member in self._members]
        outgoing = []
        for member, row in zip(self._members, self._table.tolist(), strict=True):
            outgoing.append(Outgoing(member, common))
            neighbours = Neighbours.encoded(self._tag, [bodies[place] for place in row])
            outgoing.append(Outgoing(member, neighbours))
        self._tag = self._ring.session[:TAG_BYTES]
        return outgoing

    # --- Share ---

    def _take_shares(self, member: Member, data: bytes) -> None:
        assert self._sealed is not None
        message = SealedShares.decode(data, self._tag, self._sizes)
        place = self._place[member]
        self._sealed[place] = np.frombuffer(message.sealed, np.uint8).reshape(-1, SEALED_BYTES)
        self._shared[place] = True

    def _close_share(self) -> list[Outgoing]:
        assert self._sealed is not None
        self._leave_out_the_lonely()
        self._require(Phase.SHARE, int(self._shared.sum()), self._ring.hood.quorum)
        numbers_there = np.arange(self._ring.hood.neighbours)[::-1]
        outgoing = []
        for place in np.flatnonzero(self._shared).tolist():
            row = self._table[place]
            present = self._shared[row]
            entries = self._sealed[row[present], numbers_there[present]].tobytes()
            inbox = Inbox(self._tag, to_bitmap(present), entries)
            outgoing.append(Outgoing(self._members[place], inbox.encode()))
        self._sealed = None
        self._alive = np.zeros(self._ring.hood.members, bool)
        self._total = np.zeros(self._session.length, self._session.dtype)
        return outgoing

    def _leave_out_the_lonely(self) -> None:
        """Who has fewer than t neighbours left would refuse, and leave a secret that nobody can restore."""
        while True:
            lonely = self._shared & (self._shared[self._table].sum(axis=1) < self._ring.hood.threshold)
            if not lonely.any():
                return
            self._shared &= ~lonely

    # --- Mask ---

    def _take_vector(self, member: Member, data: bytes) -> None:
        message = MaskedInput.decode(data, self._tag, self._sizes)
        self._total += np.frombuffer(message.packed, self._wire)
        self._alive[self._place[member]] = True

    def _close_mask(self) -> list[Outgoing]:
        hood = self._ring.hood
        self._require(Phase.MASK, int(self._alive.sum()), hood.quorum)
        self._require_holders(Phase.MASK, self._alive)
        self._opened = Opened.empty(hood)
        survivors = Survivors(self._tag, to_bitmap(self._alive))
        self._consistency = Consistency(self._ring, self._table, survivors.alive)
        request = survivors.encode()
        return [Outgoing(self._members[place], request) for place in np.flatnonzero(self._alive).tolist()]

    # --- Consistency ---

    def _take_acknowledgement(self, member: Member, data: bytes) -> None:
        signature = Acknowledgement.decode(data, self._tag, self._sizes).signature
        self._consistency.take(self._place[member], self._identities[member], signature)

    def _close_consistency(self) -> list[Outgoing]:
        asked = self._consistency.convinced()
        self._require_holders(Phase.CONSISTENCY, asked)
        return [
            Outgoing(self._members[place], self._consistency.shown_to(place))
            for place in np.flatnonzero(asked).tolist()
        ]

    def _require_holders(self, phase: Phase, asked: np.ndarray) -> None:
        """Enough neighbours of every member whose secret is needed are going to be asked for shares."""
        needed = self._alive | (self._shared & self._alive[self._table].any(axis=1))
        fewest = int(asked[self._table].sum(axis=1)[needed].min())
        self._require(phase, fewest, self._ring.hood.threshold)

    # --- Unmask ---

    def _take_reveal(self, member: Member, data: bytes) -> None:
        message = Reveal.decode(data, self._tag, self._sizes)
        place = self._place[member]
        present = members_of(message.present, self._ring.hood.neighbours)
        if (present & ~self._shared[self._table[place]]).any():
            raise ProtocolViolation(f"{member} gave shares of neighbours that had sent none")
        shares = shamir.unpack(message.entries)
        if shares is None:
            raise ProtocolViolation(f"{member} gave shares that are not elements of the field")
        self._opened.add(place, present, shares)

    def _close_unmask(self) -> list[Outgoing]:
        advertisements = [self._advertisements[member] for member in self._members]
        secrets, wrong = restore_secrets(
            self._ring,
            self._session.binding,
            self._table,
            self._opened,
            self._alive,
            self._shared,
            advertisements,
        )
        self.wrong_shares = tuple((self._members[holder], self._members[owner]) for holder, owner in wrong)
        masks = masks_to_remove(
            self._ring.session, self._session.binding, self._table, self._alive, secrets, advertisements
        )
        self._unmask(self._total, masks)
        survivors = [self._members[place] for place in np.flatnonzero(self._alive).tolist()]
        self._sink.add(self._total, survivors)
        return []

    def _require(self, phase: Phase, present: int, needed: int) -> None:
        if present < needed:
            raise QuorumNotReached(str(phase), present, needed)
