"""The secure sum is the ring sum, bit for bit, for any dropouts; or nothing is released."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.privacy.secagg import SecAggParameters, SecAggSummation, ThreatModel
from quorate.privacy.secagg.graph import neighbour_table
from quorate.privacy.secagg.masks import TILE_BYTES, add_masks
from quorate.randomness import Randomness
from tests.privacy.secagg.sessions import TestJournal, TestSink, drive, prepare, session


def outcome(run, lost, parameters, min_survivors):
    """What must happen, from sets alone: (survivors or None, the phase it ended in)."""
    gone: set[str] = set(lost.get("advertise", ()))
    roster = [name for name in run.names if name not in gone]
    if len(roster) < max(min_survivors, 3):
        return None, "advertise"
    try:
        hood = parameters.neighbourhood(len(roster), min_survivors)
    except ValueError:
        return None, "advertise"
    place = run.server._place
    table = neighbour_table(hood)
    near = {name: {run.server._members[p] for p in table[place[name]]} for name in roster}
    shared = {name for name in roster if name not in lost.get("share", ())}
    while lonely := {name for name in shared if len(near[name] & shared) < hood.threshold}:
        shared -= lonely
    if len(shared) < hood.quorum:
        return None, "share"
    alive = {name for name in shared if name not in lost.get("mask", ())}
    needed = alive | {name for name in shared if near[name] & alive}
    if len(alive) < hood.quorum or any(len(near[name] & alive) < hood.threshold for name in needed):
        return None, "mask"
    answered = {name for name in alive if name not in lost.get("unmask", ())}
    if any(len(near[name] & answered) < hood.threshold for name in needed):
        return None, "unmask"
    return alive, "done"


def check(run, lost, parameters, min_survivors):
    try:
        drive(run, lost)
    except QuorumNotReached as refusal:
        ended = refusal.phase
    else:
        ended = "done"
    survivors, phase = outcome(run, lost, parameters, min_survivors)
    assert ended == phase
    if survivors is None:
        assert run.server.phase == "aborted"
        assert run.sink.added == []
        assert ("unmask" in run.sent) == (phase == "unmask")
        return False
    [(total, members)] = run.sink.added
    assert set(members) == survivors
    assert (total == run.expected(members)).all()
    assert not set(run.refusals) & survivors
    return True


PHASES = ("advertise", "share", "mask", "unmask")


@st.composite
def dropouts(draw, members, most):
    lost, names = {}, [f"client-{i}" for i in range(members)]
    for phase in PHASES:
        lost[phase] = set(draw(st.permutations(names))[: draw(st.integers(0, most))])
    return lost


@settings(max_examples=120, deadline=None)
@given(st.data(), st.integers(3, 9), st.sampled_from([np.uint16, np.uint32]))
def test_any_dropouts_in_a_complete_graph_give_the_exact_sum_or_nothing(data, members, dtype):
    lost = data.draw(dropouts(members, 3))
    floor = data.draw(st.integers(1, members))
    parameters = SecAggParameters(corrupt=data.draw(st.sampled_from([0.0, 0.2, 0.4])))
    run = prepare(members, parameters, dtype=dtype, min_survivors=floor, length=9)
    check(run, lost, parameters, floor)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_dropouts_in_a_sparse_graph_give_the_exact_sum_or_nothing(data):
    members = data.draw(st.integers(60, 64))
    lost = data.draw(dropouts(members, data.draw(st.sampled_from([1, 3, 6, 18]))))
    parameters = SecAggParameters(dropout=0.3)
    floor = int(0.75 * members)
    assert not parameters.neighbourhood(members, floor).complete
    check(prepare(members, parameters, length=5, min_survivors=floor), lost, parameters, floor)


def test_losing_exactly_as_many_as_the_quorum_allows_gives_the_sum_and_one_more_gives_nothing():
    parameters = SecAggParameters()
    for lost, released in ((3, True), (4, False)):
        run = prepare(8, parameters, min_survivors=5)
        assert check(run, {"mask": set(run.names[:lost])}, parameters, 5) is released


def test_dropouts_before_the_masked_vector_do_not_lose_the_round():
    run = prepare(60, min_survivors=50)
    gone = {"share": set(run.names[:2]), "mask": set(run.names[2:5]), "unmask": set(run.names[5:9])}
    assert not SecAggParameters().neighbourhood(58, 50).complete
    assert check(run, gone, SecAggParameters(), 50)


@pytest.mark.parametrize("length", [1, 2, 17, 70_000])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_vectors_of_any_length_are_summed(length, dtype):
    run = prepare(4, length=length, dtype=dtype)
    assert check(run, {"mask": {"client-1"}}, SecAggParameters(), 3)


@pytest.mark.parametrize("phase", PHASES)
def test_a_member_that_is_not_awaited_is_refused(phase):
    run = drive(prepare(5), until=phase)
    with pytest.raises(ProtocolViolation, match="is not awaited"):
        run.server.receive("stranger", b"")


@pytest.mark.parametrize("phase", PHASES)
def test_a_member_answers_once_in_a_phase(phase):
    run, seen = prepare(5), []

    def twice(now, name, data):
        if now == phase and name == "client-2":
            run.server.receive(name, data)
            seen.append(name)
        return data

    drive(run, to_server=twice)
    assert seen == ["client-2"]
    assert "is not awaited" in str(run.refusals["client-2"])
    [(total, members)] = run.sink.added
    assert "client-2" in members
    assert (total == run.expected(members)).all()


def test_a_server_asks_for_shares_once_and_reveals_only_from_then_on():
    run, phases = prepare(5), []

    def watch(phase, name, data):
        phases.append((phase, run.server.reveals))
        return data

    drive(run, to_server=watch)
    assert {phase for phase, reveals in phases if reveals} == {"unmask"}
    assert [phase for phase in run.sent if any(m.data[1] == 7 for m in run.sent[phase])] == ["unmask"]
    with pytest.raises(ValueError, match="a session that is done can't advance"):
        run.server.advance()


def test_an_aborted_server_sends_nothing_more():
    run = drive(prepare(5), until="unmask")
    with pytest.raises(QuorumNotReached):
        run.server.advance()
    with pytest.raises(ValueError, match="aborted"):
        run.server.advance()
    with pytest.raises(ProtocolViolation):
        run.server.receive("client-0", b"")


def test_a_session_begins_once():
    run = drive(prepare(5))
    with pytest.raises(ValueError, match="begins once"):
        run.server.begin(run.names)
    with pytest.raises(ProtocolViolation, match="begins once"):
        run.clients["client-0"].begin()


def test_a_vector_that_wraps_wraps_modulo_the_ring():
    run = prepare(3, dtype=np.uint16)
    run.vectors[:] = 65_535
    drive(run)
    assert (run.sink.added[0][0] == 65_533).all()


def test_the_server_keeps_one_sum_and_no_masked_vector():
    run = drive(prepare(6, length=50_000), until="unmask")
    arrays = [value for value in vars(run.server).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes >= 4 * 50_000 for array in arrays) == 1


def test_a_clients_vector_must_fit_the_session():
    made = SecAggSummation(session(length=4), TestJournal(), SecAggParameters())
    for wrong in (np.zeros(5, np.uint32), np.zeros(4, np.uint16), np.zeros((1, 4), np.uint32)):
        with pytest.raises(ValueError, match=r"a vector of shape \(4,\) and dtype uint32"):
            made.client(wrong, Randomness.from_seed(0))


def test_only_rings_are_summed():
    with pytest.raises(ValueError, match="uint16 or uint32, not float32"):
        SecAggSummation(session(dtype=np.float32), TestJournal(), SecAggParameters())
    with pytest.raises(ValueError, match="32 bytes"):
        SecAggSummation(session(binding=b"short"), TestJournal(), SecAggParameters())


def test_wrong_shares_are_found_by_spare_ones():
    run = prepare(8)

    def lie(phase, name, data):
        if phase == "unmask" and name == "client-3":
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    drive(run, {"mask": {"client-0"}}, to_server=lie)
    [(total, members)] = run.sink.added
    assert (total == run.expected(members)).all()
    assert {holder for holder, _ in run.server.wrong_shares} == {"client-3"}


def test_too_many_wrong_shares_end_the_round_and_release_nothing():
    parameters = SecAggParameters(corrupt=0.6)
    run = prepare(5, parameters)
    assert parameters.neighbourhood(5, 3).threshold == 4  # every share is needed

    def lie(phase, name, data):
        return data[:-1] + bytes([data[-1] ^ 1]) if phase == "unmask" and name == "client-3" else data

    with pytest.raises(QuorumNotReached, match="too many are wrong"):
        drive(run, to_server=lie)
    assert run.sink.added == []
    assert run.server.phase == "aborted"


def test_names_of_the_threat_models():
    assert [str(model) for model in ThreatModel] == ["semi-honest", "semi-malicious", "malicious"]


def test_a_sink_is_given_the_sum_once():
    sink = TestSink()
    made = SecAggSummation(session(), TestJournal(), SecAggParameters())
    assert made.direct is False
    assert not made.server(sink).done
    assert sink.added == []


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_masked_vector_can_be_sent_while_it_is_masked(dtype):
    whole = drive(prepare(4, length=200_000, dtype=dtype), until="mask")
    parts = drive(prepare(4, length=200_000, dtype=dtype), until="mask")
    for name in whole.names:
        incoming = next(message.data for message in whole.sent["mask"] if message.member == name)
        pieces = list(parts.clients[name].stream(incoming))
        assert max(len(piece) for piece in pieces) <= TILE_BYTES
        assert b"".join(pieces) == whole.clients[name].receive(incoming)
        assert parts.clients[name].state == "masked"


def test_streaming_takes_memory_for_a_tile_only():
    run = drive(prepare(3, length=8_000_000), until="mask")
    client = run.clients["client-0"]
    incoming = next(message.data for message in run.sent["mask"] if message.member == "client-0")
    tracemalloc.start()
    taken = sum(len(piece) for piece in client.stream(incoming))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken == 16 + 4 * 8_000_000
    assert peak < 6 * TILE_BYTES


def test_every_other_answer_can_be_streamed_too():
    run = drive(prepare(4), until="share")
    roster, neighbours = (message.data for message in run.sent["share"] if message.member == "client-0")
    client = run.clients["client-0"]
    assert list(client.stream(roster)) == []
    [answer] = client.stream(neighbours)
    run.server.receive("client-0", answer)


def test_unmasking_can_be_spread_over_ranges():
    used = []

    def spread(vector, masks):
        for start, stop in pairwise((0, 400, 800, 1000)):
            used.append((start, stop))
            add_masks(vector[start:stop], masks, start)

    run = prepare(5, length=1000)
    run.server._unmask = spread
    assert check(run, {"mask": {"client-1"}}, SecAggParameters(), 3)
    assert len(used) == 3
