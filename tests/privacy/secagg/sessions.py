"""Runs whole sessions in this process, with members lost in any phase."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from quorate.errors import PolicyRefused, ProtocolViolation
from quorate.privacy.secagg import (
    AnyKey,
    Ed25519Identity,
    SecAggClient,
    SecAggParameters,
    SecAggServer,
    SecAggSummation,
    ThreatModel,
)
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds
from quorate.summation import Outgoing, SumSession

SEMI_MALICIOUS = SecAggParameters(ThreatModel.SEMI_MALICIOUS, dropout=0.1)
MALICIOUS = SecAggParameters(ThreatModel.MALICIOUS, complete=True)


def summation(of: SumSession, parameters: SecAggParameters, enrolment=None) -> SecAggSummation:
    enrolment = enrolment or AnyKey()
    return SecAggSummation(
        of, TestJournal(), parameters, enrolment=enrolment, identities=Ed25519Identity.draw
    )


class TestSink:
    """Keeps what it is given, as it is."""

    __test__ = False

    def __init__(self) -> None:
        self.added: list[tuple[np.ndarray, tuple[str, ...]]] = []

    def add(self, encoded, members):
        self.added.append((encoded.copy(), tuple(members)))

    def result(self):
        raise NotImplementedError


class TestJournal:
    """Never asked here: the driver writes it."""

    __test__ = False

    def revealing(self) -> None:
        raise AssertionError


def bounds(largest: int = 200, min_survivors: int = 3) -> CohortBounds:
    return CohortBounds(largest, min_survivors, min_survivors, float(largest))


def session(length=40, dtype=np.uint32, binding=bytes(range(32)), **kwargs) -> SumSession:
    return SumSession(binding, length, np.dtype(dtype), bounds(**kwargs))


@dataclass
class Run:
    """A session that has run: what was sent, and what came out."""

    names: list[str]
    vectors: np.ndarray
    clients: dict[str, SecAggClient]
    server: SecAggServer
    sink: TestSink
    sent: dict[str, list[Outgoing]] = field(default_factory=dict)
    answers: dict[tuple[str, str], bytes] = field(default_factory=dict)
    refusals: dict[str, Exception] = field(default_factory=dict)

    def expected(self, survivors: Collection[str]) -> np.ndarray:
        rows = [self.names.index(name) for name in survivors]
        return self.vectors[rows].sum(axis=0, dtype=self.vectors.dtype)


Tamper = Callable[[str, str, bytes], bytes]


def prepare(members=6, parameters=None, seed=0, of=None, **kwargs) -> Run:
    """A session with fresh halves; `of` may give another session to some members: {name: SumSession}."""
    parameters = parameters or SecAggParameters()
    common = session(**kwargs)
    randomness = Randomness.from_seed(seed)
    names = [f"client-{i}" for i in range(members)]
    vectors = randomness.words(members * common.length, common.dtype).reshape(members, common.length)
    clients = {
        name: summation((of or {}).get(name, common), parameters).client(vectors[i], randomness.spawn(name))
        for i, name in enumerate(names)
    }
    sink = TestSink()
    server = summation(common, parameters).server(sink)
    return Run(names, vectors, clients, server, sink)


def drive(
    run: Run,
    lost: Mapping[str, Collection[str]] | None = None,
    to_client: Tamper | None = None,
    to_server: Tamper | None = None,
    until: str = "",
) -> Run:
    """Drives a session to its end, or until a phase opens.

    Args:
        run: prepared.
        lost: the members lost in each phase, before they answer.
        to_client: changes what reaches a client: (phase, member, data) → data.
        to_server: changes what reaches the server.
        until: stops when this phase opens, before its messages are delivered.
    """
    lost, server = lost or {}, run.server
    outgoing = server.begin(run.names)
    while True:
        phase = server.phase
        run.sent[phase] = outgoing
        if phase == until:
            return run
        for name in list(server.awaited):
            if name in lost.get(phase, ()):
                server.lose(name)
                continue
            client = run.clients[name]
            incoming = [message.data for message in outgoing if message.member == name]
            try:
                answer = client.begin() if phase == "advertise" else None
                for data in incoming:
                    answer = client.receive(to_client(phase, name, data) if to_client else data)
                assert answer is not None
                run.answers[phase, name] = answer
                server.receive(name, to_server(phase, name, answer) if to_server else answer)
            except (ProtocolViolation, PolicyRefused) as refusal:
                run.refusals[name] = refusal
                server.lose(name)
        outgoing = server.advance()
        if server.done:
            return run
