"""A member's side of one participation, without I/O: frames in, frames out.

Whatever carries the frames (gRPC, a socket, Flower) feeds them to `receive` and sends back what it returns. Training
happens inside the call that takes the assignment. The member reads the terms itself, builds the pipeline itself, and
declines what it can't or won't do.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping

from quorate import pipeline
from quorate.clients.adapters.dp_sgd import ABILITY, asks
from quorate.clients.slices import check_keys
from quorate.clients.states import ClientStates
from quorate.errors import DataError, PlanError, PolicyRefused, ProtocolViolation, TrainingFailed
from quorate.fleets import Client, Identities
from quorate.plan import SecAggPlus, Terms
from quorate.privacy.dp_sgd import PREFIX
from quorate.randomness import Randomness
from quorate.rounds import Assignment, Instruction, Kind, Member
from quorate.summation import ClientSum, Exposure
from quorate.task import Task
from quorate.wire import frames

__all__ = ["Participation"]

log = logging.getLogger(__name__)


class _NoJournal:
    """A client has nothing to journal: what it releases, it has decided to release."""

    def revealing(self) -> None:
        """Nothing."""


class Participation:
    """One member, one round.

    What it stages is kept when the round is concluded as committed. A participation that ended early (its stream was
    lost, the coordinator broke the protocol) still takes the conclusion.

    Args:
        member: the member's own name.
        client: trains.
        states: where this member's state is kept; no other member's are in it.
        randomness: for keys, masks, rounding and noise: the operating system's on a real device.
        accepts: the member's own policy: raises `PolicyRefused` on terms or bounds that fall short.
        identities: its own identity and whom it believes to be a member, for the signed threat models.
        exposing: told what an answer exposes before it is handed out: whoever must remember it writes it down.
        tasks: those that are installed otherwise than as entry points, by name.

    Attributes:
        concluded: whether the round's outcome was heard.
        declined: what was said when this member declined.
    """

    def __init__(
        self,
        member: Member,
        client: Client,
        states: ClientStates,
        randomness: Randomness,
        accepts: Callable[[Terms, Assignment], None] = lambda terms, assignment: None,
        identities: Identities | None = None,
        exposing: Callable[[Exposure], None] = lambda exposure: None,
        tasks: Mapping[str, Task] | None = None,
    ):
        self._identities, self._exposing, self._tasks = identities, exposing, tasks or {}
        self._exposed = Exposure.NOTHING
        self._member, self._client, self._states = member, client, states
        self._randomness, self._accepts = randomness, accepts
        self._sum: ClientSum | None = None
        self._assignment: Assignment | None = None
        self.concluded = False
        self.declined: frames.Decline | None = None

    def receive(self, data: bytes) -> list[bytes]:
        """Takes a frame from the coordinator and returns the answer, if there is one.

        Raises:
            ProtocolViolation: the coordinator broke the protocol; this participation is over.
        """
        return self.take(frames.decode(data))

    def take(self, frame: frames.Frame) -> list[bytes]:
        """Takes a frame that is decoded already; like `receive` otherwise."""
        match frame:
            case Assignment() as assignment if self._assignment is None:
                return self._begin(assignment)
            case frames.SumMessage(run, round, message) if self._sum is not None and self._is(run, round):
                return self._continue(self._sum, message)
            case frames.Conclusion(run, round, outcome) if self._is(run, round):
                self._states.conclude(run, round, outcome)
                self.concluded = True
                return []
            case _:
                raise ProtocolViolation(
                    f"a {type(frame).__name__} for round {frame.round} of run {frame.run} is not allowed at this "
                    "point of a participation"
                )

    def _begin(self, assignment: Assignment) -> list[bytes]:
        self._assignment = assignment
        try:
            terms = terms_of(assignment, self._tasks)
            check_terms(terms, assignment)
            check_identity(terms, self._identities)
            self._accepts(terms, assignment)
            self._sum = self._trained(terms, assignment)
        except PolicyRefused as refusal:
            return self._decline(refusal.code, str(refusal))
        except PlanError as unread:
            return self._decline("terms", str(unread))
        except TrainingFailed as failure:
            return self._decline(failure.code, str(failure))
        except DataError as unfit:
            return self._decline("update", str(unfit))
        return self._say(self._sum, self._sum.begin())

    def _trained(self, terms: Terms, assignment: Assignment) -> ClientSum:
        broadcast = assignment.broadcast
        check_training(self._client, broadcast.instruction)
        encoding = pipeline.build(terms, assignment.bounds, broadcast.public)
        instruction = dataclasses.replace(pipeline.instructed(assignment, terms), seed=None)
        check_keys(self._client, instruction)
        held = self._states.get(assignment.run, self._member)
        if assignment.kind is Kind.FIT:
            update, state = self._client.fit(broadcast.parameters, instruction, held)
            self._states.stage(assignment.run, assignment.round, {self._member: state})
        else:
            update = self._client.evaluate(broadcast.parameters, instruction, held)
        encoded = encoding.encode(update, self._randomness.spawn("encoding"))
        session = pipeline.session(assignment, encoding)
        summation = pipeline.summation(terms, session, _NoJournal(), self._identities)
        return summation.client(encoded, self._randomness.spawn("sum"))

    def _continue(self, summation: ClientSum, message: bytes) -> list[bytes]:
        try:
            return self._say(summation, summation.receive(message))
        except PolicyRefused as refusal:
            return self._decline(refusal.code, str(refusal))

    def _say(self, summation: ClientSum, message: bytes | None) -> list[bytes]:
        assert self._assignment is not None
        if summation.exposure > self._exposed:
            self._exposed = summation.exposure
            self._exposing(self._exposed)
        run, round = self._assignment.run, self._assignment.round
        return [] if message is None else [frames.encode(frames.SumMessage(run, round, message))]

    def _decline(self, code: str, reason: str) -> list[bytes]:
        assert self._assignment is not None
        run, round = self._assignment.run, self._assignment.round
        log.info("%s declines round %d of run %s: %s: %s", self._member, round, run, code, reason)
        self.declined = frames.Decline(run, round, code, reason)
        return [frames.encode(self.declined)]

    def _is(self, run: str, round: int) -> bool:
        """Whether a frame belongs to this participation."""
        mine = self._assignment
        return mine is not None and (run, round) == (mine.run, mine.round)


def terms_of(assignment: Assignment, tasks: Mapping[str, Task]) -> Terms:
    """The terms of an assignment, as they are for rounds of its kind.

    Args:
        assignment: of any kind.
        tasks: see `Participation`.

    Raises:
        PlanError: they can't be read, or an evaluation is asked for and they have none.
    """
    return Terms.parse(assignment.terms, tasks).at(assignment.kind)


def check_terms(terms: Terms, assignment: Assignment) -> None:
    """Refuses an assignment that is not what its terms say; the noise of every member follows from the bounds.

    Raises:
        PolicyRefused: the bounds, the rule, the numbers of DP-SGD or the layout of the parameters differ from the
            terms'.
    """
    # A member is not told how large the population is, and the bounds of resolved terms do not depend on it.
    rounds = terms.rounds
    if rounds.largest_cohort is None or terms.bounds(rounds.smallest_population) != assignment.bounds:
        raise PolicyRefused(f"the cohort's bounds, {assignment.bounds}, are not those of the terms", "bounds")
    strategy = terms.strategy.resolve()
    if assignment.broadcast.instruction.rule != strategy.local.name:
        raise PolicyRefused(
            f"the assignment asks for the local rule {assignment.broadcast.instruction.rule!r}, "
            f"the terms for {strategy.local.name!r}",
            "rule",
        )
    training = terms.training.settings()
    told, said = (
        {name: value for name, value in numbers.items() if name.startswith(PREFIX)}
        for numbers in (assignment.broadcast.instruction.settings, training)
    )
    if told != said:
        raise PolicyRefused(f"the assignment's numbers of DP-SGD are {told}, the terms' {said}", "dp-sgd")
    layout = strategy.shared(terms.task.resolve().layout)
    if assignment.broadcast.parameters.layout != layout:
        raise PolicyRefused(
            f"the parameters are laid out as {assignment.broadcast.parameters.layout}, the terms' as {layout}",
            "layout",
        )


def check_identity(terms: Terms, identities: Identities | None) -> None:
    """Refuses a threat model in which members sign, where this member has nothing to sign with.

    Raises:
        PolicyRefused: with what is needed.
    """
    if is_signed(terms) and (identities is None or identities.own is None):
        raise PolicyRefused(
            "the terms' threat model needs members with identities; this one is not enrolled", "identity"
        )


def is_signed(terms: Terms) -> bool:
    """Whether the terms' threat model is one in which members sign."""
    summing = terms.secure_aggregation
    return isinstance(summing, SecAggPlus) and summing.signed


def check_training(client: Client, instruction: Instruction) -> None:
    """Refuses a local rule, or DP-SGD, that the client does not implement; neither is ever ignored.

    Raises:
        PolicyRefused: with what the client implements.
    """
    if instruction.rule not in client.rules:
        raise PolicyRefused(
            f"the plan needs the local rule {instruction.rule!r}; this client has {', '.join(sorted(client.rules))}",
            "rule",
        )
    if asks(instruction) and ABILITY not in client.rules:
        raise PolicyRefused(
            "the plan protects single examples (training.dp_sgd), and this client can't clip and noise the gradient of "
            "each; accepted: clients of the reference models, PyTorch (without buffers that follow no gradient), JAX "
            "and Keras, or a plan without [training.dp_sgd]",
            "dp-sgd",
        )
