import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quorate.errors import ProtocolViolation, QuorumNotReached
from quorate.randomness import Randomness
from quorate.rounds import CohortBounds
from quorate.summation import SumSession
from quorate.sums import BucketSums, DirectSummation, RunningSum, Spool

RING, PLAIN = np.dtype(np.uint32), np.dtype(np.float32)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 5))
blocks = hnp.arrays(np.uint16, shapes) | hnp.arrays(np.uint32, shapes)


class Unwritten:
    def revealing(self):
        raise AssertionError("the driver journals, not the sum")


def summation(dtype=PLAIN, length=3, min_survivors=2):
    bounds = CohortBounds(largest=4, min_survivors=min_survivors, honest=min_survivors, denominator=3.0)
    return DirectSummation(SumSession(bytes(32), length, dtype, bounds), Unwritten())


def message(vector, dtype=PLAIN):
    return summation(dtype, len(vector)).client(np.asarray(vector, dtype), Randomness.from_seed(0)).begin()


@given(blocks)
def test_a_running_sum_is_the_sum_modulo_the_ring(block):
    sink = RunningSum(block.shape[1], block.dtype)
    for i, row in enumerate(block):
        sink.add(row[None, :], [f"client-{i}"])
    expected = [sum(int(value) for value in column) % 2 ** (8 * block.itemsize) for column in block.T]
    assert sink.result().sums.tolist() == [expected]
    assert sink.result().sums.dtype == block.dtype


@given(blocks, st.data())
def test_partial_sums_and_blocks_add_up_to_the_same(block, data):
    cut = data.draw(st.integers(0, len(block)))
    sink = RunningSum(block.shape[1], block.dtype)
    sink.add(block[:cut].sum(axis=0, dtype=block.dtype), [f"a{i}" for i in range(cut)])
    sink.add(block[cut:], [f"b{i}" for i in range(len(block) - cut)])
    np.testing.assert_array_equal(sink.result().sums[0], block.sum(axis=0, dtype=block.dtype))
    assert sink.result().sizes == (len(block),)
    assert len(sink.result().survivors) == len(block)


def test_floats_are_added_in_float64():
    sink = RunningSum(1, PLAIN)
    sink.add(np.array([[1e8], [1.0], [-1e8]], np.float32), ["a", "b", "c"])
    assert sink.result().sums[0].tolist() == [1.0]
    assert sink.result().sums[0].dtype == np.float64


def test_nothing_added_is_zero_and_nobody():
    result = RunningSum(2, RING).result()
    assert result.sums[0].tolist() == [0, 0]
    assert result.survivors == ()
    assert Spool(2, PLAIN).result().sums.shape == (0, 2)


def test_a_result_does_not_change_when_more_is_added():
    sink = RunningSum(1, RING)
    sink.add(np.array([1], np.uint32), ["a"])
    first = sink.result()
    sink.add(np.array([1], np.uint32), ["b"])
    assert first.sums[0].tolist() == [1]
    assert first.survivors == ("a",)


def test_a_spool_keeps_single_updates_in_the_order_of_the_survivors():
    sink = Spool(2, PLAIN)
    sink.add(np.array([[1, 2], [3, 4]], np.float32), ["a", "b"])
    sink.add(np.array([5, 6], np.float32), ["c"])
    result = sink.result()
    assert result.sizes == (1, 1, 1)
    assert result.survivors == ("a", "b", "c")
    np.testing.assert_array_equal(result.sums, np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    assert result.sums.dtype == np.float32


def test_a_spool_keeps_what_it_was_given_even_if_the_caller_s_array_changes():
    sink, block = Spool(1, PLAIN), np.ones((1, 1), np.float32)
    sink.add(block, ["a"])
    block[:] = 9
    assert sink.result().sums.tolist() == [[1.0]]


def test_a_spool_refuses_the_sum_of_several():
    with pytest.raises(ValueError, match="single updates, got 1 vectors for 2 members"):
        Spool(2, PLAIN).add(np.zeros(2, np.float32), ["a", "b"])


def test_bucket_sums_are_kept_apart_with_their_sizes():
    sink = BucketSums(2, np.dtype(np.uint16))
    sink.add(np.array([1, 65_535], np.uint16), ["a", "b"])
    sink.add(np.array([3, 4], np.uint16), ["c"])
    result = sink.result()
    assert result.sums.tolist() == [[1, 65_535], [3, 4]]
    assert result.sums.dtype == np.uint16
    assert (result.sizes, result.survivors) == ((2, 1), ("a", "b", "c"))


def test_bucket_sums_take_one_sum_at_a_time():
    for encoded, members in ((np.zeros((1, 2), np.uint32), ["a"]), (np.zeros(2, np.uint32), [])):
        with pytest.raises(ValueError, match="a bucket's sum is one vector, over members"):
            BucketSums(2, RING).add(encoded, members)


@pytest.mark.parametrize("sink", [RunningSum(3, PLAIN), Spool(3, PLAIN)])
def test_a_vector_of_another_length_is_refused(sink):
    with pytest.raises(ValueError, match=r"of 3 values are expected, got shape \(1, 1\)"):
        sink.add(np.zeros((1, 1), np.float32), ["a"])
    with pytest.raises(ValueError, match=r"of 3 values are expected, got shape \(1,\)"):
        sink.add(np.zeros(1, np.float32), ["a"])


def test_a_running_sum_refuses_more_vectors_than_members():
    with pytest.raises(ValueError, match="2 vectors for 1 members"):
        RunningSum(3, PLAIN).add(np.zeros((2, 3), np.float32), ["a"])


@pytest.mark.parametrize("dtype", [RING, PLAIN])
def test_a_round_over_messages_gives_the_sum_of_those_who_answered(dtype):
    sums, sink = summation(dtype), RunningSum(3, dtype)
    server = sums.server(sink)
    assert server.begin(["a", "b", "c"]) == []
    server.receive("a", message([1, 2, 3], dtype))
    server.receive("c", message([10, 20, 30], dtype))
    assert list(server.awaited) == ["b"]
    server.lose("b")
    server.lose("a")  # its vector is here already
    assert not server.awaited
    assert not server.done
    assert server.advance() == []
    assert server.done
    assert sink.result().sums[0].tolist() == [11, 22, 33]
    assert sink.result().survivors == ("a", "c")


def test_too_few_answers_are_not_quorate():
    server = summation(min_survivors=2).server(RunningSum(3, PLAIN))
    server.begin(["a", "b"])
    server.receive("a", message([1, 2, 3]))
    server.lose("b")
    with pytest.raises(QuorumNotReached) as caught:
        server.advance()
    assert (caught.value.present, caught.value.needed) == (1, 2)
    assert not server.done


@pytest.mark.parametrize(
    ("member", "data", "said"),
    [
        ("z", message([1, 2, 3]), "not awaited"),
        ("a", message([1, 2]), "8 bytes, 12 are expected"),
        ("a", b"", "0 bytes"),
        ("a", message([1, np.nan, 3]), "not finite"),
        ("a", message([1, np.inf, 3]), "not finite"),
    ],
)
def test_a_message_that_is_not_allowed_is_refused_and_adds_nothing(member, data, said):
    sink = RunningSum(3, PLAIN)
    server = summation().server(sink)
    server.begin(["a", "b"])
    with pytest.raises(ProtocolViolation, match=said):
        server.receive(member, data)
    assert not sink.result().survivors


def test_a_second_vector_of_the_same_member_is_refused():
    server = summation().server(RunningSum(3, PLAIN))
    server.begin(["a", "b"])
    server.receive("a", message([1, 2, 3]))
    with pytest.raises(ProtocolViolation, match="second vector"):
        server.receive("a", message([1, 2, 3]))


def test_nothing_is_taken_once_the_sum_is_closed():
    sink = RunningSum(3, PLAIN)
    server = summation(min_survivors=1).server(sink)
    server.begin(["a", "b"])
    server.receive("a", message([1, 2, 3]))
    server.advance()
    with pytest.raises(ProtocolViolation):
        server.receive("b", message([1, 2, 3]))
    assert sink.result().survivors == ("a",)


def test_the_message_is_little_endian():
    assert message([1], RING) == b"\x01\x00\x00\x00"
    assert message([1.0]) == b"\x00\x00\x80\x3f"


def test_a_client_says_one_thing_and_hears_nothing():
    client = summation().client(np.zeros(3, np.float32), Randomness.from_seed(0))
    assert len(client.begin()) == 12
    with pytest.raises(ProtocolViolation):
        client.receive(b"")


def test_a_client_refuses_to_send_a_vector_of_another_length():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        summation(length=3).client(np.zeros(2, np.float32), Randomness.from_seed(0))
