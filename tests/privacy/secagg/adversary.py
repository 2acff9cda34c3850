"""A server that lies in any message, with one corrupt member that helps it; and what it has learned.

It runs the honest members' real clients, each against its own choice of roster, inbox and survivor set, keeps
everything they send, opens what was sealed for the corrupt member, and counts which secrets it could restore.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.errors import PolicyRefused, ProtocolViolation
from quorate.privacy.secagg import (
    Ed25519Identity,
    EnrolledKeys,
    SecAggClient,
    SecAggParameters,
    keys,
    messages,
)
from quorate.privacy.secagg.encoding import TAG_BYTES, VERSION, Kind, members_of, to_bitmap
from quorate.privacy.secagg.graph import neighbours_of
from quorate.privacy.secagg.identity import Trust
from quorate.privacy.secagg.messages import signed_keys, signed_survivors
from quorate.privacy.secagg.roster import Ring, leaf_of
from quorate.randomness import Randomness
from tests.privacy.secagg.sessions import session

LENGTH = 4


@dataclass
class Told:
    """What one honest client was made to believe, and gave."""

    client: SecAggClient
    own: messages.Advertisement
    roster: tuple[messages.Advertisement, ...] = ()
    ring: Ring | None = None
    place: int = -1
    masked_with: set[int] = field(default_factory=set)
    masked: bool = False
    alive: np.ndarray | None = None
    signature: bytes = b""


class LyingServer:
    """Args: how many honest members there are, and the parameters they insist on."""

    def __init__(self, honest: int, parameters: SecAggParameters, min_survivors: int, seed: int = 0):
        randomness = Randomness.from_seed(seed)
        self.parameters = parameters
        self.session = session(length=LENGTH, min_survivors=min_survivors, largest=honest + 2)
        identities = [Ed25519Identity.draw(randomness.spawn("identity", i)) for i in range(honest + 1)]
        self.corrupt = identities[-1]
        enrolment = EnrolledKeys(frozenset(identity.certificate for identity in identities))
        self.told: list[Told] = []
        for i in range(honest):
            trust = Trust(identities[i], enrolment)
            client = SecAggClient(
                self.session, parameters, np.full(LENGTH, i, np.uint32), randomness.spawn(i), trust
            )
            own = messages.Advertisement.decode(client.begin(), self.session.binding, client._sizes)
            self.told.append(Told(client, own))
        self.corrupt_keys: dict[bytes, X25519PrivateKey] = {}
        self.corrupt_advertisements = [self._advertise(randomness) for _ in range(2)]
        self.sealed: dict[tuple[bytes, int, int], bytes] = {}
        # (session, owner's place, kind) → {holder's place: share}; kind 0 is the mask key, 1 the self mask
        self.known: dict[tuple[bytes, int, int], dict[int, bytes]] = defaultdict(dict)
        self.refused = 0

    def _advertise(self, randomness: Randomness) -> messages.Advertisement:
        private = X25519PrivateKey.from_private_bytes(randomness.bytes(32))
        public, binding = private.public_key().public_bytes_raw(), self.session.binding
        parts = (
            public,
            X25519PrivateKey.from_private_bytes(randomness.bytes(32)).public_key().public_bytes_raw(),
        )
        signature, certificate = b"", b""
        if self.parameters.threat_model.signed:
            certificate = self.corrupt.certificate
            signature = self.corrupt.sign(signed_keys(binding, *parts, bytes(32), certificate))
        self.corrupt_keys[public] = private
        return messages.Advertisement(binding[:TAG_BYTES], *parts, bytes(32), certificate, signature)

    def _leaf(self, advertisement: messages.Advertisement) -> bytes:
        return leaf_of(advertisement, self.session.binding, advertisement.certificate or None)

    # --- Lies ---

    def list_members(self, who: int, roster: list[messages.Advertisement], order: int = 0) -> bool:
        """Tells a client a roster, and the advertisements of its neighbours on it."""
        told, binding = self.told[who], self.session.binding
        unique = {self._leaf(each): each for each in roster}
        leaves = b"".join(sorted(unique))
        # As bytes: an identity may be in it twice.
        common = bytes((VERSION, Kind.ROSTER)) + binding[:TAG_BYTES] + leaves
        if not self._deliver(told, common)[0]:
            return False
        ring = Ring.build(self.session, self.parameters, leaves)
        by_place = tuple(unique[ring.leaves[place].tobytes()] for place in range(len(unique)))
        place = ring.places(self._leaf(told.own))[0]
        near = [by_place[p] for p in neighbours_of(place, ring.hood).tolist()]
        near = near[order:] + near[:order]
        ok, answer = self._deliver(told, messages.Neighbours(binding[:TAG_BYTES], tuple(near)).encode())
        if not ok:
            return False
        told.roster, told.ring, told.place = by_place, ring, place
        for number, peer in enumerate(neighbours_of(place, ring.hood).tolist()):
            piece = answer[16 + 80 * number : 16 + 80 * (number + 1)]
            self.sealed[ring.session, place, peer] = piece
            self._open(ring, by_place, place, peer, piece)
        return True

    def _open(self, ring, by_place, source, destination, piece) -> None:
        private = self.corrupt_keys.get(by_place[destination].encryption_key)
        if private is None:
            return
        source_key, own_key = by_place[source].encryption_key, by_place[destination].encryption_key
        agreed = keys.agree(private, source_key)
        _, key = keys.seal_keys(agreed, ring.session, destination, source, own_key, source_key)
        pair = keys.open_sealed(key, ring.session, source, destination, piece)
        assert pair is not None
        self.known[ring.session, source, 0][destination] = pair[:32]
        self.known[ring.session, source, 1][destination] = pair[32:]

    def forward(self, who: int, hide: set[int], swap: bool = False) -> bool:
        """Gives a client the shares that were sealed for it, without those of some places, or in a wrong order."""
        told = self.told[who]
        if told.ring is None:
            return False
        ring, places = told.ring, neighbours_of(told.place, told.ring.hood).tolist()
        present = np.zeros(len(places), bool)
        entries = []
        for number, source in enumerate(places):
            piece = self.sealed.get((ring.session, source, told.place))
            if piece is None and told.roster[source].encryption_key in self.corrupt_keys:
                piece = bytes(80)  # the corrupt member's shares need not open
            if piece is not None and source not in hide:
                present[number] = True
                entries.append(piece)
        if swap:
            entries.reverse()
        ok, _ = self._deliver(
            told, messages.Inbox(ring.session[:TAG_BYTES], to_bitmap(present), b"".join(entries)).encode()
        )
        if ok:
            told.masked, told.masked_with = (
                True,
                {p for p, there in zip(places, present, strict=True) if there},
            )
        return ok

    def say_who_survived(self, who: int, dead: set[int]) -> bool:
        """Tells a client that everybody survived whom it can't know to be gone, but for some places."""
        told = self.told[who]
        if told.ring is None:
            return False
        alive = np.ones(told.ring.hood.members, bool)
        alive[list(set(neighbours_of(told.place, told.ring.hood).tolist()) - told.masked_with)] = False
        alive[list(dead & set(range(len(alive))))] = False
        ok, answer = (
            self._deliver(told, messages.Survivors(told.ring.session[:TAG_BYTES], to_bitmap(alive)).encode())
            if alive.any()
            else (False, None)
        )
        if ok:
            told.alive = alive
            if self.parameters.threat_model.signed:
                told.signature = answer[16:]
            else:
                self._learn(told, answer)
        return ok

    def show_signatures(self, who: int, forge: bool = False) -> bool:
        """Gives a client every signature there is on the set it was told, the corrupt member's among them."""
        told = self.told[who]
        if told.alive is None or told.ring is None:
            return False
        ring, bitmap = told.ring, to_bitmap(told.alive)
        places = neighbours_of(told.place, ring.hood).tolist()
        present, entries = np.zeros(len(places), bool), []
        for number, place in enumerate(places):
            signature = self._signature(ring, bitmap, told.roster[place], forge)
            if signature and told.alive[place]:
                present[number] = True
                entries.append(signature)
        message = messages.Acknowledgements(ring.session[:TAG_BYTES], to_bitmap(present), b"".join(entries))
        ok, answer = self._deliver(told, message.encode())
        if ok:
            self._learn(told, answer)
        return ok

    def _signature(self, ring, bitmap, of: messages.Advertisement, forge: bool) -> bytes:
        if of.encryption_key in self.corrupt_keys:
            return self.corrupt.sign(signed_survivors(ring.session, bitmap))
        for other in self.told:
            if other.own == of and other.signature and other.ring.session == ring.session:
                same = to_bitmap(other.alive) == bitmap
                return other.signature if same or forge else b""
        return b""

    def disturb(self, who: int, data: bytes) -> None:
        """Sends anything at all."""
        self._deliver(self.told[who], data)

    def _deliver(self, told: Told, data: bytes) -> tuple[bool, bytes | None]:
        try:
            return True, told.client.receive(data)
        except (ProtocolViolation, PolicyRefused):
            self.refused += 1
            assert told.client.state == "ended"
            return False, None

    def _learn(self, told: Told, answer: bytes) -> None:
        ring = told.ring
        reveal = messages.Reveal.decode(
            answer, ring.session[:TAG_BYTES], replace(told.client._sizes, neighbours=ring.hood.neighbours)
        )
        places = neighbours_of(told.place, ring.hood)
        for entry, number in enumerate(np.flatnonzero(members_of(reveal.present, len(places))).tolist()):
            owner = int(places[number])
            kind = int(told.alive[owner])
            self.known[ring.session, owner, kind][told.place] = reveal.entries[32 * entry : 32 * (entry + 1)]

    # --- What came of it ---

    def restored(self, told: Told, kind: int) -> bool:
        """Whether enough shares of one secret of an honest member are known."""
        if told.ring is None:
            return False
        return len(self.known[told.ring.session, told.place, kind]) >= told.ring.hood.threshold

    def both_secrets_of_somebody(self) -> bool:
        """Whether some honest member's self mask and mask key are both known: then its vector is."""
        return any(self.restored(told, 0) and self.restored(told, 1) for told in self.told)

    def smallest_sum(self) -> int | None:
        """How many honest members are in the smallest sum that can be read, if any can.

        Members hang together by masks whose keys are unknown: a component can be read once all of it have sent their
        vectors, and all their self masks are known.
        """
        smallest = None
        for told in self.told:
            if told.ring is None:
                continue
            peers = {
                other.place: other
                for other in self.told
                if other.ring is not None and other.ring.session == told.ring.session
            }
            component, frontier = {told.place}, [told.place]
            while frontier:
                place = frontier.pop()
                for other in peers[place].masked_with if place in peers else ():
                    hidden = other in peers and not (
                        self.restored(peers[other], 0) or self.restored(peers[place], 0)
                    )
                    if hidden and other not in component:
                        component.add(other)
                        frontier.append(other)
            if all(peers[p].masked and self.restored(peers[p], 1) for p in component):
                smallest = len(component) if smallest is None else min(smallest, len(component))
        return smallest
