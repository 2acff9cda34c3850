import contextlib
import dataclasses
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quorate.endorsement import Endorsement
from quorate.errors import ProtocolViolation
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
from quorate.wire.frames import Conclusion, Decline, Frame, SumMessage, decode, encode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
counts = st.integers(0, 2**63 - 1)
codes = st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True)
endorsements = st.builds(Endorsement, st.binary(max_size=40), st.binary(max_size=70))


def vectors(size: int | None = None) -> st.SearchStrategy[np.ndarray]:
    length = st.integers(0, 5) if size is None else size
    return hnp.arrays(np.float32, length, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@st.composite
def broadcasts(draw: st.DrawFn) -> Broadcast:
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    layout = Layout(tuple(draw(st.dictionaries(names, shapes, max_size=3)).items()))
    return Broadcast(
        parameters=layout.unflatten(draw(vectors(layout.size))),
        instruction=Instruction(
            rule=draw(texts),
            settings=draw(st.dictionaries(texts, numbers, max_size=3)),
            extras=draw(st.dictionaries(texts, vectors(), max_size=2)),
            seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        ),
        public=PublicValues(draw(st.none() | positive), draw(st.binary(min_size=32, max_size=32))),
    )


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    honest, fewest, largest = sorted(draw(st.lists(st.integers(1, 2**32 - 1), min_size=3, max_size=3)))
    terms = draw(st.binary(max_size=20))
    return Assignment(
        run=draw(names),
        round=draw(counts),
        kind=draw(st.sampled_from(Kind)),
        base_version=draw(counts),
        terms=terms,
        terms_hash=hashlib.sha256(terms).digest(),
        broadcast=draw(broadcasts()),
        bounds=CohortBounds(largest, fewest, honest, draw(positive)),
        members=(),
        deadlines=Deadlines(draw(positive), draw(positive)),
        endorsement=draw(st.none() | endorsements),
    )


frames = st.one_of(
    assignments(),
    st.builds(SumMessage, names, counts, st.binary(max_size=50)),
    st.builds(Conclusion, names, counts, st.sampled_from(Outcome)),
    st.builds(Decline, names, counts, codes, texts),
)


def content(value: object) -> object:
    """Everything that a frame says, in types that compare by value."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: content(item) for name, item in value.items()}
    if isinstance(value, Broadcast):
        layout, vector = value.parameters.layout, value.parameters.vector
        return layout, content(vector), content(value.instruction), value.public
    if dataclasses.is_dataclass(value):
        return {field.name: content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def an_assignment(**changes: object) -> Assignment:
    layout = Layout((("weights", (2, 3)), ("bias", (3,))))
    base = Assignment(
        run="0123456789abcdef",
        round=7,
        kind=Kind.FIT,
        base_version=5,
        terms=b"{}",
        terms_hash=hashlib.sha256(b"{}").digest(),
        broadcast=Broadcast(
            parameters=layout.unflatten(np.arange(9)),
            instruction=Instruction("sgd", {"learning_rate": 0.5}, {"control": np.ones(9, np.float32)}, 3),
            public=PublicValues(0.5, bytes(range(32))),
        ),
        bounds=CohortBounds(140, 70, 63, 100.0),
        members=(),
    )
    return dataclasses.replace(base, **changes)


def message(assignment: Assignment) -> pb.Frame:
    return pb.Frame.FromString(encode(assignment))


@given(frames)
def test_every_frame_comes_back_as_it_was(frame: Frame) -> None:
    again = decode(encode(frame))
    assert type(again) is type(frame)
    assert content(again) == content(frame)


@given(assignments())
def test_a_broadcast_has_the_same_digest_on_both_sides(assignment: Assignment) -> None:
    again = decode(encode(assignment))
    assert isinstance(again, Assignment)
    assert again.broadcast.digest() == assignment.broadcast.digest()


@given(frames, st.data())
def test_a_truncated_frame_is_refused(frame: Frame, data: st.DataObject) -> None:
    whole = encode(frame)
    with pytest.raises(ProtocolViolation):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    "frame",
    [
        an_assignment(),
        SumMessage("run", 1, bytes(40)),
        Conclusion("run", 1, Outcome.COMMITTED),
        Decline("run", 1, "declined", "no"),
    ],
)
def test_every_truncation_of_a_typical_frame_is_refused(frame: Frame) -> None:
    whole = encode(frame)
    for length in range(len(whole)):
        with pytest.raises(ProtocolViolation):
            decode(whole[:length])


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_a_violation_and_nothing_else(data: bytes) -> None:
    try:
        frame = decode(data)
    except ProtocolViolation:
        return
    assert content(decode(encode(frame))) == content(frame)


@given(st.data())
def test_a_frame_with_changed_bytes_is_a_frame_or_a_violation_and_nothing_else(data: st.DataObject) -> None:
    changed = bytearray(encode(an_assignment()))
    for place in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolViolation):
        decode(bytes(changed))


def test_members_never_travel_in_an_assignment() -> None:
    members = tuple(f"client-{i}" for i in range(100))
    frame = encode(an_assignment(members=members))
    assert frame == encode(an_assignment())
    assert b"client-" not in frame
    again = decode(frame)
    assert isinstance(again, Assignment)
    assert again.members == ()


def test_the_terms_travel_byte_for_byte_and_are_hashed_where_they_arrive() -> None:
    terms = b' { "format" : 1 } '
    again = decode(encode(an_assignment(terms=terms, terms_hash=bytes(32))))
    assert isinstance(again, Assignment)
    assert again.terms == terms
    assert again.terms_hash == hashlib.sha256(terms).digest()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["parameters", "extras"])
def test_vectors_that_are_not_finite_are_refused(where: str, bad: float) -> None:
    frame = message(an_assignment())
    raw = np.array([1.0] * 8 + [bad], "<f4").tobytes()
    if where == "parameters":
        frame.assignment.broadcast.parameters = raw
    else:
        frame.assignment.broadcast.extras["control"] = raw
    with pytest.raises(ProtocolViolation, match="not finite"):
        decode(frame.SerializeToString())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run", ""),
        ("run", "r" * 129),
        ("round", 2**63),
        ("assignment.format", 2),
        ("assignment.kind", "steal"),
        ("assignment.base_version", 2**63),
        ("assignment.training_s", math.nan),
        ("assignment.training_s", -1.0),
        ("assignment.phase_s", math.inf),
        ("assignment.broadcast.parameters", bytes(35)),
        ("assignment.broadcast.parameters", bytes(40)),
        ("assignment.broadcast.clip_norm", 0.0),
        ("assignment.broadcast.clip_norm", math.nan),
        ("assignment.broadcast.rotation_seed", bytes(31)),
        ("assignment.bounds.largest", 69),
        ("assignment.bounds.min_survivors", 62),
        ("assignment.bounds.honest", 0),
        ("assignment.bounds.denominator", 0.0),
        ("assignment.bounds.denominator", math.nan),
        ("conclusion", "maybe"),
    ],
)
def test_a_value_out_of_range_is_refused(path: str, value: object) -> None:
    frame = message(an_assignment())
    *outer, field = path.split(".")
    target: object = frame
    for name in outer:
        target = getattr(target, name)
    setattr(target, field, value)
    with pytest.raises(ProtocolViolation):
        decode(frame.SerializeToString())


@pytest.mark.parametrize(("code", "reason"), [("no", "n" * 1001), ("", "no"), ("No", "no"), ("n" * 33, "no")])
def test_a_decline_without_a_proper_code_or_with_a_long_reason_is_refused(code: str, reason: str) -> None:
    frame = pb.Frame(run="run", round=1, decline=pb.Decline(code=code, reason=reason))
    with pytest.raises(ProtocolViolation, match="reason"):
        decode(frame.SerializeToString())


def test_a_setting_that_is_not_finite_is_refused() -> None:
    frame = message(an_assignment())
    frame.assignment.broadcast.settings["learning_rate"] = math.nan
    with pytest.raises(ProtocolViolation, match="learning_rate"):
        decode(frame.SerializeToString())


def test_a_parameter_that_is_named_twice_is_refused() -> None:
    frame = message(an_assignment())
    frame.assignment.broadcast.layout[1].name = "weights"
    with pytest.raises(ProtocolViolation, match="weights"):
        decode(frame.SerializeToString())


def test_a_shape_that_claims_more_than_what_was_sent_costs_no_memory() -> None:
    frame = message(an_assignment())
    frame.assignment.broadcast.layout[0].shape[:] = [2**62, 2**62]
    with pytest.raises(ProtocolViolation):
        decode(frame.SerializeToString())


def test_a_long_reason_is_cut_where_it_is_sent() -> None:
    again = decode(encode(Decline("run", 1, "declined", "n" * 5000)))
    assert again == Decline("run", 1, "declined", "n" * 1000)
