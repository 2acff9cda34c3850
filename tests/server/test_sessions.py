"""The session driver: deadlines, lost members, violations, and the journal before anything is revealed."""

import threading
import time
from collections import Counter, deque

import numpy as np
import pytest

from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.privacy.secagg import SecAggParameters, SecAggSummation
from quorate.randomness import Randomness
from quorate.rounds import Close, CohortBounds, Deadlines
from quorate.server.sessions import drive
from quorate.simulations.transport import InProcess
from quorate.summation import Loss, Lost, Message, Outgoing, SumSession
from quorate.sums import DirectSummation, RunningSum

LENGTH = 6
MEMBERS = [f"client-{i}" for i in range(10)]
QUICK = Deadlines(training_s=0.2, phase_s=0.2)
PATIENT = Deadlines(training_s=60, phase_s=60)


class Diary:
    """A journal that notes when it is written, among everything else that happens."""

    def __init__(self):
        self.events: list[str] = []

    def revealing(self):
        self.events.append("journal")


def summation(kind, journal, min_survivors=6):
    bounds = CohortBounds(len(MEMBERS), min_survivors, min_survivors, float(len(MEMBERS)))
    session = SumSession(bytes(32), LENGTH, np.dtype(np.uint32), bounds)
    if kind == "secagg":
        return SecAggSummation(session, journal, SecAggParameters(dropout=0.4))
    return DirectSummation(session, journal)


def vectors():
    rng = np.random.default_rng(0)
    return {member: rng.integers(0, 2**32, LENGTH, dtype=np.uint32) for member in MEMBERS}


def halves(kind, journal, **options):
    made = summation(kind, journal, **options)
    return {
        member: made.client(vector, Randomness.from_seed(i))
        for i, (member, vector) in enumerate(vectors().items())
    }


def run(
    kind="secagg", transport=None, drops=None, deadlines=PATIENT, journal=None, min_survivors=6, wrap=None
):
    """Drives a sum of all members; gives the sink's result and who was lost."""
    journal = journal or Diary()
    sink = RunningSum(LENGTH, np.dtype(np.uint32))
    if transport is None:
        transport = InProcess(halves(kind, journal, min_survivors=min_survivors), drops or {})
    if wrap is not None:
        transport = wrap(transport)
    half = summation(kind, journal, min_survivors).server(sink)
    lost = drive(half, transport, MEMBERS, deadlines, journal)
    return sink.result(), lost


def total(members):
    return sum((vectors()[member] for member in members), np.zeros(LENGTH, np.uint32))


class Tampered:
    """A transport in which some of what comes in is changed: `change` gives the events that take an event's place."""

    def __init__(self, inner, change):
        self._inner, self._change = inner, change
        self._events = deque()
        self.sent: list[Outgoing] = []

    def send(self, member, data):
        self.sent.append(Outgoing(member, data))
        self._inner.send(member, data)

    def receive(self, timeout_s):
        while not self._events:
            event = self._inner.receive(timeout_s)
            if event is None:
                return None
            self._events.extend(self._change(event))
        return self._events.popleft()


@pytest.mark.parametrize("kind", ["plain", "secagg"])
def test_the_sum_is_that_of_all_members(kind):
    aggregate, lost = run(kind)
    np.testing.assert_array_equal(aggregate.sums[0], total(MEMBERS))
    assert sorted(aggregate.survivors) == MEMBERS
    assert lost == {}


@pytest.mark.parametrize(
    ("silent_after", "phase", "in_the_sum"),
    [(0, "advertise", False), (1, "share", False), (2, "mask", False), (3, "unmask", True)],
)
def test_a_lost_member_is_counted_in_the_phase_it_was_lost_in(silent_after, phase, in_the_sum):
    aggregate, lost = run(drops={"client-3": silent_after, "client-7": silent_after})
    left = [m for m in MEMBERS if in_the_sum or m not in ("client-3", "client-7")]
    assert lost == {phase: 2}
    assert sorted(aggregate.survivors) == left
    np.testing.assert_array_equal(aggregate.sums[0], total(left))


@pytest.mark.parametrize("kind", ["plain", "secagg"])
def test_a_sum_below_the_quorum_is_not_made(kind):
    sink = RunningSum(LENGTH, np.dtype(np.uint32))
    journal = Diary()
    transport = InProcess(halves(kind, journal), dict.fromkeys(MEMBERS[:5], 0))
    with pytest.raises(QuorumNotReached, match=r"5 members were left .* 6 are needed") as shortage:
        drive(summation(kind, journal).server(sink), transport, MEMBERS, PATIENT, journal)
    assert (shortage.value.present, shortage.value.needed) == (5, 6)
    assert kind == "plain" or sink.result().survivors == ()


@pytest.mark.parametrize(
    ("instead", "loss", "deadlines"),
    [
        ([], Loss.LATE, QUICK),
        ([Lost("client-3")], Loss.GONE, PATIENT),
        ([Lost("client-3", "not me", Loss.DECLINED)], Loss.DECLINED, PATIENT),
        ([Message("client-3", b"garbage")], Loss.VIOLATION, PATIENT),
    ],
)
def test_it_is_told_why_members_are_lost_once_each(instead, loss, deadlines):
    journal, told = Diary(), []
    inner = InProcess(halves("secagg", journal), {})
    transport = Tampered(inner, lambda event: instead if event.member == "client-3" else [event])
    sink = RunningSum(LENGTH, np.dtype(np.uint32))
    half = summation("secagg", journal).server(sink)
    lost = drive(half, transport, MEMBERS, deadlines, journal, closed=lambda *event: told.append(event[::2]))
    assert lost == {"advertise": 1}
    assert told[0] == ("advertise", {loss: 1})
    assert not any(missing for _, missing in told[1:])


def test_the_log_names_a_member_that_went_between_two_phases(caplog):
    """It has answered, so that nobody misses it before the next phase."""
    caplog.set_level("INFO", "quorate.server.sessions")
    told = []

    def change(event):
        told.append(event.member)
        went = event.member == "client-3" and told.count("client-3") == 1
        return [event, Lost("client-3", "the stream ended")] if went else [event]

    _, lost = run(wrap=lambda inner: Tampered(inner, change))
    assert lost == {"share": 1}
    (line,) = map(vars, caplog.records)
    assert (line["device"], line["phase"], line["reason"]) == ("client-3", "share", "the stream ended")


def test_a_sum_below_the_quorum_says_where_the_others_are():
    journal = Diary()
    refuse = {"client-0": Loss.DECLINED, "client-1": Loss.DECLINED, "client-2": Loss.VIOLATION}
    refuse |= dict.fromkeys(MEMBERS[3:5], Loss.GONE)

    def change(event):
        return [Lost(event.member, "", refuse[event.member])] if event.member in refuse else [event]

    with pytest.raises(QuorumNotReached) as shortage:
        run(wrap=lambda inner: Tampered(inner, change), journal=journal)
    said = str(shortage.value).partition("; lost: ")[2].split(", ")
    assert sorted(said) == ["1 broke the protocol", "2 declined", "2 gone"]


def test_a_quorum_that_is_lost_before_unmasking_leaves_the_journal_unwritten():
    journal = Diary()
    with pytest.raises(QuorumNotReached):
        run(drops=dict.fromkeys(MEMBERS[:5], 2), journal=journal)
    assert journal.events == []


def test_a_quorum_that_is_lost_while_unmasking_finds_the_journal_written():
    journal = Diary()
    with pytest.raises(QuorumNotReached):
        run(drops=dict.fromkeys(MEMBERS, 3), journal=journal)
    assert journal.events == ["journal"]


def test_the_journal_is_written_once_and_before_the_first_request_to_unmask():
    journal = Diary()

    class Noted:
        def __init__(self, inner):
            self._inner = inner

        def send(self, member, data):
            journal.events.append("send")
            self._inner.send(member, data)

        def receive(self, timeout_s):
            event = self._inner.receive(timeout_s)
            journal.events.append("receive")
            return event

    run(journal=journal, wrap=Noted)
    assert journal.events.count("journal") == 1
    before = journal.events[: journal.events.index("journal")]
    after = journal.events[journal.events.index("journal") + 1 :]
    # Advertise, share and mask are taken before; every request to unmask, and every answer, comes after.
    assert before.count("receive") == 3 * len(MEMBERS)
    assert after == ["send"] * len(MEMBERS) + ["receive"] * len(MEMBERS)


def test_the_journal_of_a_plain_sum_is_written_before_the_first_vector_is_taken():
    journal = Diary()

    class Noted(RunningSum):
        def add(self, encoded, members):
            journal.events.append("add")
            super().add(encoded, members)

    sink = Noted(LENGTH, np.dtype(np.uint32))
    made = summation("plain", journal)
    drive(made.server(sink), InProcess(halves("plain", journal), {}), MEMBERS, PATIENT, journal)
    assert journal.events == ["journal"] + ["add"] * len(MEMBERS)


def test_nothing_is_revealed_if_the_journal_can_not_be_written():
    sent = []

    class Broken:
        def revealing(self):
            sent.append("journal")
            raise OSError("the disk is full")

    class Noted:
        def __init__(self, inner):
            self._inner = inner

        def send(self, member, data):
            sent.append(member)
            self._inner.send(member, data)

        def receive(self, timeout_s):
            return self._inner.receive(timeout_s)

    with pytest.raises(OSError, match="full"):
        run(journal=Broken(), wrap=Noted)
    assert sent[-1] == "journal"


# --- Deadlines


@pytest.mark.parametrize("kind", ["plain", "secagg"])
def test_a_phase_closes_at_its_deadline_without_those_who_are_late(kind):
    def silent(event):
        return [] if event.member == "client-2" else [event]

    started = time.monotonic()
    aggregate, lost = run(kind, deadlines=QUICK, wrap=lambda inner: Tampered(inner, silent))
    assert 0.2 <= time.monotonic() - started < 30
    assert lost.total() == 1
    assert sorted(aggregate.survivors) == [m for m in MEMBERS if m != "client-2"]


def test_training_has_a_deadline_of_its_own():
    class Slow(InProcess):
        """Answers of the first phase come after 0.3 s."""

        def receive(self, timeout_s):
            if not hasattr(self, "waited"):
                self.waited = True
                time.sleep(0.3)
            return super().receive(timeout_s)

    journal = Diary()
    transport = Slow(halves("plain", journal), {})
    aggregate, _ = run("plain", transport=transport, deadlines=Deadlines(training_s=20, phase_s=0.01))
    assert len(aggregate.survivors) == len(MEMBERS)


def test_the_later_phases_have_a_shorter_one():
    said = Counter()

    def falls_silent(event):
        said[event.member] += 1
        return [] if event.member == "client-2" and said["client-2"] > 1 else [event]

    started = time.monotonic()
    deadlines = Deadlines(training_s=60, phase_s=0.2)
    _, lost = run(deadlines=deadlines, wrap=lambda inner: Tampered(inner, falls_silent))
    assert time.monotonic() - started < 20
    assert lost == {"share": 1}


def test_a_phase_ends_as_soon_as_nobody_is_awaited():
    started = time.monotonic()
    run(drops={"client-1": 2}, deadlines=PATIENT)
    assert time.monotonic() - started < 20


def test_a_transport_may_return_early_without_an_event():
    class Restless:
        """Says that nothing came, every other time it is asked."""

        def __init__(self, inner):
            self._inner, self._asked = inner, 0

        def send(self, member, data):
            self._inner.send(member, data)

        def receive(self, timeout_s):
            self._asked += 1
            return None if self._asked % 2 else self._inner.receive(timeout_s)

    aggregate, lost = run(wrap=Restless)
    assert len(aggregate.survivors) == len(MEMBERS)
    assert lost == {}


# --- Members that break the rules


def test_a_violation_ends_only_that_member_s_part():
    def garbled(event):
        if event.member == "client-4" and isinstance(event, Message):
            return [Message(event.member, b"\xff" + event.data[1:])]
        return [event]

    aggregate, lost = run(wrap=lambda inner: Tampered(inner, garbled))
    assert lost == {"advertise": 1}
    assert sorted(aggregate.survivors) == [m for m in MEMBERS if m != "client-4"]


def test_a_member_that_says_something_twice_is_heard_no_more():
    said = Counter()

    def twice(event):
        said[event.member] += 1
        return [event, event] if event.member == "client-4" and said["client-4"] == 1 else [event]

    aggregate, lost = run(wrap=lambda inner: Tampered(inner, twice))
    assert lost == {"share": 1}
    assert "client-4" not in aggregate.survivors


def test_a_member_that_floods_is_counted_once():
    def flood(event):
        return [event] + [Message("client-5", b"x")] * 50 if event.member == "client-0" else [event]

    _, lost = run(wrap=lambda inner: Tampered(inner, flood))
    assert lost.total() == 1


def test_a_vector_that_is_in_the_sum_stays_in_it_whatever_its_member_sends_next():
    def twice(event):
        return [event, event] if event.member == "client-4" else [event]

    aggregate, lost = run("plain", wrap=lambda inner: Tampered(inner, twice))
    assert len(aggregate.survivors) == len(MEMBERS)
    assert lost == {}


def test_a_late_answer_is_not_counted_as_another_loss():
    said, held = Counter(), []

    def late(event):
        """The second message of client-6 comes only among the third ones of the others."""
        said[event.member] += 1
        if event.member == "client-6" and said["client-6"] == 2:
            held.append(event)
            return []
        return [held.pop(), event] if held and said[event.member] == 3 else [event]

    aggregate, lost = run(wrap=lambda inner: Tampered(inner, late), deadlines=QUICK)
    assert not held
    assert lost == {"share": 1}
    assert "client-6" not in aggregate.survivors


def test_who_is_not_in_the_cohort_is_not_heard():
    def stranger(event):
        return [Message("stranger", b"hello"), Lost("stranger"), event]

    aggregate, lost = run(wrap=lambda inner: Tampered(inner, stranger))
    assert sorted(aggregate.survivors) == MEMBERS
    assert lost == {}


def test_a_connection_that_breaks_after_the_answer_is_a_loss_of_the_next_phase():
    said = Counter()

    def breaks(event):
        said[event.member] += 1
        broken = event.member == "client-8" and said["client-8"] == 2
        return [event, Lost("client-8")] if broken else [event]

    started = time.monotonic()
    aggregate, lost = run(wrap=lambda inner: Tampered(inner, breaks), deadlines=PATIENT)
    assert lost == {"mask": 1}
    assert "client-8" not in aggregate.survivors
    assert time.monotonic() - started < 20


def test_nothing_is_sent_to_a_member_that_is_gone():
    kept = []

    def twice(event):
        return [event, event] if event.member == "client-4" else [event]

    def tampered(inner):
        kept.append(Tampered(inner, twice))
        return kept[0]

    run(wrap=tampered)
    asked = {message.member for message in kept[0].sent}
    assert asked == set(MEMBERS) - {"client-4"}


def test_an_error_that_is_not_a_member_s_ends_the_round():
    class Broken(InProcess):
        def receive(self, timeout_s):
            raise ConnectionError("the network is down")

    journal = Diary()
    with pytest.raises(ConnectionError):
        run("plain", transport=Broken(halves("plain", journal), {}))


def test_members_may_answer_from_other_threads():
    """A transport that is a queue: members work at their own pace, in threads."""

    class Threads:
        def __init__(self, halves):
            self._halves, self._events = halves, deque()
            self._there = threading.Condition()
            for member in halves:
                self._start(member, lambda half: half.begin())

        def _start(self, member, step):
            def work():
                try:
                    data = step(self._halves[member])
                except ProtocolViolation as violation:
                    self._put(Lost(member, str(violation)))
                else:
                    if data is not None:
                        self._put(Message(member, data))

            previous = getattr(self, f"_{member}", None)

            def in_turn():
                if previous is not None:
                    previous.join()
                work()

            thread = threading.Thread(target=in_turn)
            setattr(self, f"_{member}", thread)
            thread.start()

        def _put(self, event):
            with self._there:
                self._events.append(event)
                self._there.notify()

        def send(self, member, data):
            self._start(member, lambda half: half.receive(data))

        def receive(self, timeout_s):
            with self._there:
                if not self._events:
                    self._there.wait(timeout_s)
                return self._events.popleft() if self._events else None

    aggregate, lost = run(transport=Threads(halves("secagg", Diary())))
    np.testing.assert_array_equal(aggregate.sums[0], total(MEMBERS))
    assert lost == {}


@pytest.mark.parametrize(("kind", "phase"), [("plain", "update"), ("secagg", "advertise")])
def test_once_enough_have_reported_the_others_are_too_late(kind, phase):
    journal, sink, seen = Diary(), RunningSum(LENGTH, np.dtype(np.uint32)), []
    transport = InProcess(halves(kind, journal), {"client-9": 3})
    half = summation(kind, journal).server(sink)
    told = lambda *event: seen.append((event[0], event[2]))  # noqa: E731
    lost = drive(half, transport, MEMBERS, PATIENT, journal, Close(after=7), told)
    assert lost == {phase: 3}
    assert sorted(sink.result().survivors) == MEMBERS[:7]
    np.testing.assert_array_equal(sink.result().sums[0], total(MEMBERS[:7]))
    assert seen[0] == (phase, {Loss.SPARE: 3})
    assert not any(missing for _, missing in seen[1:])
