"""Secure summation, as the rest of a round sees it: makes the two halves of a session.

Protocol: SecAgg+ (Bell et al., CCS 2020), on SecAgg (Bonawitz et al., CCS 2017), over Z_2^16 or Z_2^32.

What the server learns, in every threat model: the sum of the survivors' vectors, the roster, who dropped
out in which phase, refusals, and timing. It does not learn a single vector, nor the sum of a smaller set,
as long as no more than the assumed share of members is corrupt. It can still learn from the sum itself, and
from the sums of overlapping cohorts: only differential privacy bounds that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quorate.privacy.secagg.client import SecAggClient
from quorate.privacy.secagg.identity import Enrolment, Identity, Trust
from quorate.privacy.secagg.masks import add_masks
from quorate.privacy.secagg.parameters import LARGEST_COHORT, SecAggParameters
from quorate.privacy.secagg.server import SecAggServer
from quorate.privacy.secagg.unmasking import Unmask
from quorate.randomness import Randomness
from quorate.summation import Journal, Sink, SumSession

__all__ = ["SecAggSummation"]


@dataclass(frozen=True)
class SecAggSummation:
    """Secure aggregation for one round.

    Args:
        session: the binding must be fresh: over the run, the round's number, the terms and everything
            broadcast. Its dtype is uint16 or uint32.
        journal: the driver writes it before the unmask phase opens (`ServerSum.reveals`).
        parameters: from the terms.
        unmask: takes masks off the sum; another one may spread the work over processes.
        enrolment: who is a member; needed in the signed threat models.
        identities: gives a client's half its identity (on a device, always the same one); needed by clients
            in the signed threat models. In a simulation, `Ed25519Identity.draw` with the enrolment
            `AnyKey()`.

    Raises:
        ValueError: the session's dtype is no ring, its binding has another length, or the cohort is too
        large.
    """

    session: SumSession
    journal: Journal
    parameters: SecAggParameters
    unmask: Unmask = add_masks
    enrolment: Enrolment | None = None
    identities: Callable[[Randomness], Identity] | None = None
    direct: bool = False

    def __post_init__(self) -> None:
        if self.session.dtype not in (np.dtype(np.uint16), np.dtype(np.uint32)):
            raise ValueError(f"secure aggregation sums uint16 or uint32, not {self.session.dtype}")
        if len(self.session.binding) != 32:
            raise ValueError(f"a binding has 32 bytes, got {len(self.session.binding)}")
        if self.parameters.threat_model.signed and self.enrolment is None:
            raise ValueError(
                f"the threat model {self.parameters.threat_model} needs an enrolment of identities"
            )
        if self.session.length < 1:
            raise ValueError("a vector has at least one value")
        if self.session.bounds.largest > LARGEST_COHORT:
            raise ValueError(
                f"a session has at most {LARGEST_COHORT} members, "
                f"the cohort may have {self.session.bounds.largest}"
            )

    def server(self, sink: Sink) -> SecAggServer:
        """The server's half."""
        return SecAggServer(self.session, self.parameters, sink, self.unmask, self.enrolment)

    def client(self, encoded: np.ndarray, randomness: Randomness) -> SecAggClient:
        """A client's half."""
        trust = None
        if self.identities is not None and self.enrolment is not None:
            trust = Trust(self.identities(randomness.spawn("identity")), self.enrolment)
        return SecAggClient(self.session, self.parameters, encoded, randomness, trust)
