"""Random streams: reproducible, independent by name, uniform."""

import multiprocessing
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import QuorateError
from quorate.randomness import Randomness, generator

BYTES = np.dtype(np.uint8)


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    key = bytes(range(32))
    expected = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(1000))
    assert Randomness(key).bytes(1000) == expected


@given(st.lists(st.integers(0, 100), max_size=8))
def test_the_stream_does_not_depend_on_how_it_is_cut(sizes: list[int]) -> None:
    stream = Randomness.from_seed(1)
    assert b"".join(stream.bytes(size) for size in sizes) == Randomness.from_seed(1).bytes(sum(sizes))


def test_a_stream_longer_than_a_tile_goes_on() -> None:
    stream, count = Randomness.from_seed(1), (1 << 18) + 17
    assert stream.words(count, BYTES).tobytes() == Randomness.from_seed(1).bytes(count)


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Randomness(bytes(16))


def test_the_operating_system_gives_another_stream_each_time() -> None:
    assert Randomness.system().bytes(16) != Randomness.system().bytes(16)
    assert not Randomness.system().seeded
    assert Randomness.from_seed(0).spawn("noise").seeded


names = st.lists(st.one_of(st.integers(), st.text()), max_size=3).map(tuple)


@given(names, names)
def test_streams_of_different_names_differ(
    first: tuple[str | int, ...], second: tuple[str | int, ...]
) -> None:
    root = Randomness.from_seed(5)
    same = root.spawn(*first).bytes(16) == root.spawn(*second).bytes(16)
    assert same == (first == second)


def test_spawning_does_not_move_the_stream() -> None:
    one, two = Randomness.from_seed(5), Randomness.from_seed(5)
    one.spawn("noise").bytes(100)
    assert one.bytes(16) == two.bytes(16)


def test_a_name_and_a_number_are_different_streams() -> None:
    root = Randomness.from_seed(5)
    assert root.spawn("1").bytes(16) != root.spawn(1).bytes(16)
    assert root.spawn("ab", "c").bytes(16) != root.spawn("a", "bc").bytes(16)


def test_simulation_and_protocol_randomness_of_a_seed_differ() -> None:
    simulation = generator(5, "simulation").bytes(16)
    assert simulation != Randomness.from_seed(5).bytes(16)
    assert simulation == generator(5, "simulation").bytes(16)
    assert simulation != generator(6, "simulation").bytes(16)


@given(st.integers(1, 2**70))
def test_a_number_below_a_bound_is_below_it(bound: int) -> None:
    assert 0 <= Randomness.from_seed(bound).below(bound) < bound


@pytest.mark.parametrize("bound", [1, 2, 5, 256, 257, 10**6, 2**63])
def test_many_numbers_below_a_bound_are_those_drawn_one_by_one(bound: int) -> None:
    one_by_one = Randomness.from_seed(bound)
    drawn = Randomness.from_seed(bound).many_below(bound, 50)
    assert drawn == [one_by_one.below(bound) for _ in range(50)]
    assert max(drawn) < bound


def test_numbers_below_a_bound_are_uniform() -> None:
    stream = Randomness.from_seed(9)
    counts = np.bincount([stream.below(5) for _ in range(5000)], minlength=5)
    assert ((counts - 1000) ** 2 / 1000).sum() < 25


def test_nothing_is_below_zero() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Randomness.from_seed(1).below(0)


def test_permutations_are_uniform() -> None:
    stream = Randomness.from_seed(9)
    drawn = [tuple(stream.permutation(3)) for _ in range(6000)]
    counts = np.array([drawn.count(order) for order in sorted(set(drawn))])
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 30


def test_uniform_numbers_lie_on_the_grid_below_one() -> None:
    drawn = Randomness.from_seed(4).uniform(10_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.array_equal(drawn * 2.0**53, np.floor(drawn * 2.0**53))
    assert abs(drawn.mean() - 0.5) < 0.02


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_stream_that_was_carried_over_a_fork_refuses_to_draw() -> None:
    stream = Randomness.from_seed(1)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            stream.bytes(1)
            sender.send("drawn")
        except QuorateError:
            sender.send("refused")

    process = context.Process(target=child)
    process.start()
    try:
        assert receiver.poll(20)
        assert receiver.recv() == "refused"
    finally:
        process.join()
        receiver.close()
        sender.close()
    assert len(stream.bytes(1)) == 1
