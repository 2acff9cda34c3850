"""Frames: what a coordinator and a member say to each other, as bytes.

`encode` and `decode` convert between the nouns of a round and the protobuf messages of `quorate.proto`. What is decoded
is checked here, so that nothing malformed gets further than this file.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from quorate.endorsement import Endorsement
from quorate.errors import DataError, ProtocolViolation
from quorate.parameters import Layout
from quorate.rounds import (
    Assignment,
    Broadcast,
    CohortBounds,
    Deadlines,
    Instruction,
    Kind,
    Outcome,
    PublicValues,
)
from quorate.wire import quorate_pb2 as pb

__all__ = ["Conclusion", "Decline", "Frame", "SumMessage", "decode", "encode"]

FORMAT = 1
_SEED_BYTES = 32
_LONGEST_RUN = 128
_LONGEST_REASON = 1000


@dataclass(frozen=True)
class SumMessage:
    """A message of the summation, opaque to the wire."""

    run: str
    round: int
    data: bytes


@dataclass(frozen=True)
class Conclusion:
    """How a round ended for a member."""

    run: str
    round: int
    outcome: Outcome


@dataclass(frozen=True)
class Decline:
    """A member will not take part.

    Args:
        run: the run's id.
        round: the round's number.
        code: why, in a word that does not change: coordinators count refusals by it.
        reason: why, for people, in at most 1000 characters (what is longer is cut).
    """

    run: str
    round: int
    code: str
    reason: str


Frame = Assignment | SumMessage | Conclusion | Decline


def encode(frame: Frame) -> bytes:
    """A frame as bytes. Of an assignment, the members are left out: a member is not told who the others are."""
    message = pb.Frame(run=frame.run, round=frame.round)
    match frame:
        case Assignment():
            message.assignment.CopyFrom(_assignment(frame))
        case SumMessage():
            message.sum = frame.data
        case Conclusion():
            message.conclusion = frame.outcome.value
        case Decline():
            message.decline.code = frame.code
            message.decline.reason = frame.reason[:_LONGEST_REASON]
    return message.SerializeToString()


def decode(data: bytes) -> Frame:
    """A frame from bytes.

    Raises:
        ProtocolViolation: the bytes are not a frame, or a value in it is out of range.
    """
    try:
        frame = pb.Frame.FromString(data)
        run, round = _run(frame.run), _count("a round's number", frame.round)
        match frame.WhichOneof("content"):
            case "assignment":
                return _read_assignment(run, round, frame.assignment)
            case "sum":
                return SumMessage(run, round, frame.sum)
            case "conclusion":
                return Conclusion(run, round, Outcome(frame.conclusion))
            case "decline":
                return Decline(run, round, _code(frame.decline.code), _reason(frame.decline.reason))
    except (DecodeError, DataError, ValueError) as error:
        raise ProtocolViolation(f"a malformed frame of {len(data)} bytes: {error}") from error
    raise ProtocolViolation(f"a frame of {len(data)} bytes with unknown content")


def _assignment(assignment: Assignment) -> pb.Assignment:
    broadcast, bounds = assignment.broadcast, assignment.bounds
    instruction, public = broadcast.instruction, broadcast.public
    return pb.Assignment(
        format=FORMAT,
        kind=assignment.kind.value,
        base_version=assignment.base_version,
        terms=assignment.terms,
        broadcast=pb.Broadcast(
            layout=[
                pb.NamedShape(name=name, shape=shape) for name, shape in broadcast.parameters.layout.entries
            ],
            parameters=_raw(broadcast.parameters.vector),
            rule=instruction.rule,
            settings=dict(instruction.settings),
            extras={name: _raw(vector) for name, vector in instruction.extras.items()},
            seed=instruction.seed,
            clip_norm=public.clip_norm,
            rotation_seed=public.rotation_seed,
        ),
        bounds=pb.Bounds(
            largest=bounds.largest,
            min_survivors=bounds.min_survivors,
            honest=bounds.honest,
            denominator=bounds.denominator,
        ),
        training_s=assignment.deadlines.training_s,
        phase_s=assignment.deadlines.phase_s,
        endorsement=None
        if assignment.endorsement is None
        else pb.Endorsement(signer=assignment.endorsement.signer, signature=assignment.endorsement.signature),
    )


def _read_assignment(run: str, round: int, message: pb.Assignment) -> Assignment:
    if message.format != FORMAT:
        raise ProtocolViolation(f"an assignment of format {message.format}; this version reads {FORMAT}")
    broadcast, bounds = message.broadcast, message.bounds
    layout = Layout(tuple((entry.name, tuple(entry.shape)) for entry in broadcast.layout))
    if not (1 <= bounds.honest <= bounds.min_survivors <= bounds.largest):
        raise ProtocolViolation(
            "the bounds of a cohort are 1 ≤ honest ≤ min_survivors ≤ largest, "
            f"got {bounds.honest}, {bounds.min_survivors}, {bounds.largest}"
        )
    if len(broadcast.rotation_seed) != _SEED_BYTES:
        raise ProtocolViolation(
            f"a rotation seed has {_SEED_BYTES} bytes, got {len(broadcast.rotation_seed)}"
        )
    return Assignment(
        run=run,
        round=round,
        kind=Kind(message.kind),
        base_version=_count("a base version", message.base_version),
        terms=message.terms,
        terms_hash=hashlib.sha256(message.terms).digest(),
        broadcast=Broadcast(
            parameters=layout.unflatten(_floats(broadcast.parameters)),
            instruction=Instruction(
                rule=broadcast.rule,
                settings={name: _finite(name, value) for name, value in broadcast.settings.items()},
                extras={name: _floats(raw) for name, raw in broadcast.extras.items()},
                seed=broadcast.seed if broadcast.HasField("seed") else None,
            ),
            public=PublicValues(
                clip_norm=_positive("a clip norm", broadcast.clip_norm)
                if broadcast.HasField("clip_norm")
                else None,
                rotation_seed=broadcast.rotation_seed,
            ),
        ),
        bounds=CohortBounds(
            bounds.largest,
            bounds.min_survivors,
            bounds.honest,
            _positive("a denominator", bounds.denominator),
        ),
        members=(),
        deadlines=Deadlines(
            _positive("a deadline", message.training_s), _positive("a deadline", message.phase_s)
        ),
        endorsement=Endorsement(message.endorsement.signer, message.endorsement.signature)
        if message.HasField("endorsement")
        else None,
    )


def _run(name: str) -> str:
    if not 1 <= len(name) <= _LONGEST_RUN:
        raise ProtocolViolation(f"a run has a name of 1 to {_LONGEST_RUN} characters, got {len(name)}")
    return name


def _code(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", text):
        raise ProtocolViolation(f"a reason's code is 1 to 32 of a-z, 0-9 and '-', got {text[:32]!r}")
    return text


def _reason(text: str) -> str:
    if len(text) > _LONGEST_REASON:
        raise ProtocolViolation(f"a reason has at most {_LONGEST_REASON} characters, got {len(text)}")
    return text


def _count(what: str, value: int) -> int:
    """Databases keep signed integers of 64 bits."""
    if value >= 1 << 63:
        raise ProtocolViolation(f"{what} is below 2^63, got {value}")
    return value


def _finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ProtocolViolation(f"{what} is finite, got {value}")
    return value


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ProtocolViolation(f"{what} is positive and finite, got {value}")
    return value


def _raw(vector: np.ndarray) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()


def _floats(raw: bytes) -> np.ndarray:
    vector = np.frombuffer(raw, "<f4").astype(np.float32, copy=False)
    if not np.isfinite(vector).all():
        raise ProtocolViolation("a vector of the broadcast holds values that are not finite")
    return vector
