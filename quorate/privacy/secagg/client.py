"""The client's half of a session: bytes in, bytes out.

    begin        → Advertisement                      two fresh keys, and a commitment to the self mask
    Roster       → (nothing)                          who takes part: the ring, the session's hash
    Neighbours   → SealedShares                       both secrets, shared among the neighbours
    Inbox        → MaskedInput                        the vector + self mask ± a mask with each neighbour
    Survivors    → Reveal                             one share for each neighbour

In the signed threat models the neighbours agree on the survivor set first:

    Survivors        → Acknowledgement                a signature on the whole set, once
    Acknowledgements → Reveal                         once t neighbours have signed the same set

Keys live in this object only: a client that restarts is a dropout, so that no second answer to a survivor
set can exist. What the client insists on is in `checks`; the order of messages is the table in `states`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.errors import PolicyRefused, ProtocolViolation
from quorate.privacy.secagg import checks, keys, shamir
from quorate.privacy.secagg.encoding import (
    TAG_BYTES,
    VERSION,
    Kind,
    Sizes,
    kind_of,
    members_of,
    to_bitmap,
)
from quorate.privacy.secagg.graph import neighbours_of
from quorate.privacy.secagg.identity import Trust
from quorate.privacy.secagg.masks import Mask, MaskStream
from quorate.privacy.secagg.messages import (
    SEALED_BYTES,
    SHARE_BYTES,
    SIGNATURE_BYTES,
    Acknowledgement,
    Acknowledgements,
    Advertisement,
    Inbox,
    Neighbours,
    Reveal,
    SealedShares,
    Survivors,
    signed_keys,
    signed_survivors,
)
from quorate.privacy.secagg.parameters import SecAggParameters
from quorate.privacy.secagg.roster import Ring, leaf_of, roster_type
from quorate.privacy.secagg.states import CLIENT, SIGNED_CLIENT, ClientState
from quorate.randomness import Randomness
from quorate.summation import Exposure, SumSession

__all__ = ["SecAggClient"]

_EXPOSURE = {
    ClientState.MASKED: Exposure.MASKED,
    ClientState.ACKNOWLEDGED: Exposure.MASKED,
    ClientState.DONE: Exposure.REVEALED,
}


@dataclass
class _Secrets:
    """What must not outlive the session."""

    encryption: X25519PrivateKey
    mask: X25519PrivateKey
    mask_secret: np.ndarray
    self_secret: np.ndarray


class SecAggClient:
    """One client in one session.

    Args:
        session: as this client knows it: its binding is over the terms that it verified and the broadcast
            that it got, its bounds are those it accepts.
        parameters: from the verified terms.
        encoded: the vector, shape (length,), of the session's dtype.
        randomness: for keys, secrets and coefficients.
        trust: the client's identity and the enrolment it believes; needed in the signed threat models.
    """

    def __init__(
        self,
        session: SumSession,
        parameters: SecAggParameters,
        encoded: np.ndarray,
        randomness: Randomness,
        trust: Trust | None = None,
    ):
        if parameters.threat_model.signed and trust is None:
            raise ValueError(
                f"a client needs an identity and an enrolment where the server is {parameters.threat_model}"
            )
        self._trust = trust if parameters.threat_model.signed else None
        self._table = SIGNED_CLIENT if self._trust else CLIENT
        if encoded.shape != (session.length,) or encoded.dtype != session.dtype:
            raise ValueError(
                f"a vector of shape ({session.length},) and dtype {session.dtype} is needed, "
                f"got {encoded.shape} and {encoded.dtype}"
            )
        self.state = ClientState.NEW
        self._session, self._parameters = session, parameters
        self._encoded: np.ndarray | None = encoded
        self._randomness = randomness
        self._tag = session.binding[:TAG_BYTES]
        self._sizes = Sizes(session.bounds.largest, 0, 0, encoded.nbytes, self._trust is not None)
        self._secrets: _Secrets | None = None
        self._handlers: Mapping[Kind, Callable[[bytes], bytes | Iterator[bytes] | None]] = {
            Kind.ROSTER: self._roster,
            Kind.NEIGHBOURS: self._neighbours,
            Kind.INBOX: self._inbox,
            Kind.SURVIVORS: self._survivors,
            Kind.ACKNOWLEDGEMENTS: self._acknowledgements,
        }
        self._own: Advertisement
        self._ring: Ring
        self._place: int
        self._places: np.ndarray
        self._peers: tuple[Advertisement, ...]
        self._open_keys: list[bytes]
        self._present: np.ndarray
        self._held: list[bytes | None]
        self._peer_keys: list[bytes]
        self._alive: np.ndarray
        self._signed: bytes

    @property
    def exposure(self) -> Exposure:
        """What its last answer exposes."""
        return _EXPOSURE.get(self.state, Exposure.NOTHING)

    def begin(self) -> bytes:
        """The advertisement.

        Raises:
            ProtocolViolation: the session has begun already.
        """
        if self.state is not ClientState.NEW:
            raise ProtocolViolation(f"a session begins once, this one is {self.state}")
        binding = self._session.binding
        mask_secret = shamir.draw(self._randomness, shamir.ELEMENTS)
        self_secret = shamir.draw(self._randomness, shamir.ELEMENTS)
        secrets = _Secrets(
            encryption=X25519PrivateKey.from_private_bytes(self._randomness.bytes(keys.KEY_BYTES)),
            mask=keys.mask_private_key(shamir.pack(mask_secret), binding),
            mask_secret=mask_secret,
            self_secret=self_secret,
        )
        self._secrets = secrets
        public = (
            secrets.encryption.public_key().public_bytes_raw(),
            secrets.mask.public_key().public_bytes_raw(),
            keys.commitment(shamir.pack(self_secret), binding),
        )
        if self._trust is None:
            self._own = Advertisement(self._tag, *public)
        else:
            identity = self._trust.identity
            signature = identity.sign(signed_keys(binding, *public, identity.certificate))
            self._own = Advertisement(self._tag, *public, identity.certificate, signature)
        self.state = ClientState.ADVERTISED
        return self._own.encode()

    def receive(self, data: bytes) -> bytes | None:
        """Takes the server's message and returns the answer.

        Raises:
            ProtocolViolation: the message is not allowed now, not canonical, or fails a check.
            PolicyRefused: the roster or the survivors fall short of what the client accepts.
        """
        answer = self._take(data)
        return answer if answer is None or isinstance(answer, bytes) else b"".join(answer)

    def stream(self, data: bytes) -> Iterator[bytes]:
        """Like `receive`, but gives the answer in pieces: a long vector is masked while it is sent.

        Beside the vector itself it needs memory for a tile only. Once it was called, the pieces must be used
        up before the next message is taken.
        """
        answer = self._take(data)
        return iter(()) if answer is None else iter((answer,)) if isinstance(answer, bytes) else answer

    def _take(self, data: bytes) -> bytes | Iterator[bytes] | None:
        state, self.state = self.state, ClientState.ENDED
        answered = False
        try:
            kind = kind_of(data)
            following = self._table.get((state, kind))
            if following is None:
                raise ProtocolViolation(f"a message of kind {kind.name} came to a client that is {state}")
            answer = self._handlers[kind](data)
            self.state, answered = following, True
            return answer
        finally:
            if not answered or self.state is ClientState.DONE:
                self._forget()

    def _forget(self) -> None:
        self._secrets = self._encoded = None
        self._held, self._open_keys = [], []

    def _roster(self, data: bytes) -> None:
        roster = roster_type(self._parameters).decode(data, self._tag, self._sizes)
        checks.check_roster_size(roster.members, self._session.bounds)
        try:
            self._ring = Ring.build(self._session, self._parameters, roster.leaves)
        except ValueError as unmet:
            raise PolicyRefused(str(unmet)) from unmet
        own_identity = self._trust.enrolment.public_key(self._own.certificate) or b"" if self._trust else None
        own_leaf = leaf_of(self._own, self._session.binding, own_identity)
        self._place = checks.check_own_place(self._ring, own_leaf)
        hood = self._ring.hood
        self._places = neighbours_of(self._place, hood)
        self._sizes = replace(self._sizes, members=hood.members, neighbours=hood.neighbours)

    def _neighbours(self, data: bytes) -> bytes:
        assert self._secrets is not None
        peers = Neighbours.decode(data, self._tag, self._sizes).advertisements
        binding = self._session.binding
        identities: list[bytes] | list[None] = [None] * len(peers)
        if self._trust:
            identities = self._peer_keys = checks.check_neighbours_are_enrolled(self._trust.enrolment, peers)
        leaves = [leaf_of(peer, binding, identity) for peer, identity in zip(peers, identities, strict=True)]
        checks.check_neighbours_are_listed(self._ring, self._places, leaves)
        checks.check_distinct_keys(self._own, peers)
        if self._trust:
            checks.check_neighbours_have_signed(binding, self._peer_keys, peers)
        session, hood, own = self._ring.session, self._ring.hood, self._place
        shares = shamir.deal(
            np.concatenate([self._secrets.mask_secret, self._secrets.self_secret]),
            self._randomness,
            hood.neighbours,
            hood.threshold,
        )
        plain = shamir.pack(shares)
        own_key, sealed, self._open_keys = self._own.encryption_key, [], []
        for number, (place, peer) in enumerate(zip(self._places.tolist(), peers, strict=True)):
            agreed = keys.agree(self._secrets.encryption, peer.encryption_key)
            outward, inward = keys.seal_keys(agreed, session, own, place, own_key, peer.encryption_key)
            pair = plain[2 * SHARE_BYTES * number : 2 * SHARE_BYTES * (number + 1)]
            sealed.append(keys.seal(outward, session, own, place, pair))
            self._open_keys.append(inward)
        self._peers = peers
        self._tag = session[:TAG_BYTES]
        return SealedShares(self._tag, b"".join(sealed)).encode()

    def _inbox(self, data: bytes) -> Iterator[bytes]:
        inbox = Inbox.decode(data, self._tag, self._sizes)
        self._present = members_of(inbox.present, self._ring.hood.neighbours)
        checks.check_enough_holders(self._present, self._ring.hood.threshold)
        session, own = self._ring.session, self._place
        self._held = [None] * len(self._peers)
        for entry, number in enumerate(np.flatnonzero(self._present).tolist()):
            sealed = inbox.entries[SEALED_BYTES * entry : SEALED_BYTES * (entry + 1)]
            place = int(self._places[number])
            self._held[number] = keys.open_sealed(self._open_keys[number], session, place, own, sealed)
        self._open_keys = []
        return self._masked(self._masks())

    def _masks(self) -> list[Mask]:
        """The self mask, and one with each neighbour that is there: the one on the lower place adds it."""
        assert self._secrets is not None
        session, own = self._ring.session, self._place
        masks = [Mask(keys.self_mask_key(shamir.pack(self._secrets.self_secret), session))]
        for number in np.flatnonzero(self._present).tolist():
            place = int(self._places[number])
            agreed = keys.agree(self._secrets.mask, self._peers[number].mask_key)
            key = keys.pair_mask_key(agreed, session, min(own, place), max(own, place))
            masks.append(Mask(key, negative=own > place))
        return masks

    def _masked(self, masks: list[Mask]) -> Iterator[bytes]:
        """The masked vector's message, in pieces."""
        assert self._encoded is not None
        encoded, self._encoded = self._encoded, None
        yield bytes((VERSION, Kind.MASKED_INPUT)) + self._tag
        wire = encoded.dtype.newbyteorder("<")
        for tile in MaskStream(masks, encoded.dtype).tiles(encoded):
            yield tile.astype(wire, copy=False).tobytes()

    def _survivors(self, data: bytes) -> bytes:
        hood = self._ring.hood
        survivors = Survivors.decode(data, self._tag, self._sizes)
        self._alive = alive = members_of(survivors.alive, hood.members)
        checks.check_survivor_count(alive, hood.quorum)
        checks.check_self_survived(alive, self._place)
        checks.check_survivors_had_shared(alive, self._places, self._present)
        if self._trust is None:
            return self._reveal()
        self._signed = signed_survivors(self._ring.session, survivors.alive)
        return Acknowledgement(self._tag, self._trust.identity.sign(self._signed)).encode()

    def _acknowledgements(self, data: bytes) -> bytes:
        message = Acknowledgements.decode(data, self._tag, self._sizes)
        hood = self._ring.hood
        present = members_of(message.present, hood.neighbours)
        checks.check_acknowledged(present, self._alive[self._places], hood.threshold)
        keys_there = [self._peer_keys[number] for number in np.flatnonzero(present).tolist()]
        signatures = [
            message.entries[start : start + SIGNATURE_BYTES]
            for start in range(0, len(message.entries), SIGNATURE_BYTES)
        ]
        checks.check_acknowledgements(self._signed, keys_there, signatures)
        return self._reveal()

    def _reveal(self) -> bytes:
        """One share for each neighbour: the second of its pair if it is alive, else the first."""
        entries = []
        for place, pair in zip(self._places.tolist(), self._held, strict=True):
            if pair is not None:
                entries.append(pair[SHARE_BYTES:] if self._alive[place] else pair[:SHARE_BYTES])
        present = np.array([pair is not None for pair in self._held])
        return Reveal(self._tag, to_bitmap(present), b"".join(entries)).encode()
