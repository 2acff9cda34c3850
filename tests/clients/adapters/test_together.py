"""What clients that are trained at once share."""

import numpy as np
import pytest

from quorate.clients.adapters.batches import batches
from quorate.clients.adapters.together import Together
from quorate.errors import DataError
from tests.clients.adapters.frameworks import RULES, blobs, instruction

START = np.arange(4, dtype=np.float32)


def job(sizes, instructions=None, states=None, **training):
    data = [batches(blobs(size)) for size in sizes]
    told = [instruction(**training)] * len(sizes) if instructions is None else instructions
    return Together.of(START, data, told, [{}] * len(sizes) if states is None else states, ("loss",))


def test_blocks_have_those_with_most_steps_first_and_of_equally_many_most_examples():
    made = job([3, 9, 4, 8, 1], batch_size=4)
    assert [block.tolist() for block in made.blocks(2)] == [[1, 3], [2, 0], [4]]


def test_what_blocks_give_back_lies_where_their_clients_are():
    made = job([3, 9, 4])
    for chosen in made.blocks(2):
        _, schedule = made.begin(chosen)
        assert schedule.counts.sum(axis=0).tolist() == (2 * made.sizes[chosen]).tolist()
        delta = np.repeat(chosen[:, None], len(START), axis=1).astype(np.float32)
        made.keep(chosen, {"delta": delta}, {}, chosen[None].astype(float))
    updates, states = made.made()
    assert updates.vectors["delta"][:, 0].tolist() == updates.metrics["loss"].tolist() == [0, 1, 2]
    assert updates.examples.tolist() == [3, 9, 4]
    assert states == [{}, {}, {}]


@pytest.mark.parametrize(
    ("sizes", "options", "said"),
    [
        ([], {}, "got 0 clients"),
        ([3, 3], {"states": [{}]}, "2 clients, 2 instructions, 1 states"),
        ([3, 3], {"instructions": [instruction(), instruction(epochs=1)]}, "the same local rule and settings"),
        ([3], {"states": [{"control": START}]}, "keeps nothing between rounds"),
        ([3], {"instructions": [instruction(RULES[2])], "states": [{"control": START[:2]}]}, "between rounds, got"),
        ([3, 0], {}, "at least one example of each client"),
    ],
)  # fmt: skip
def test_what_can_not_be_trained_together_is_refused(sizes, options, said):
    with pytest.raises(DataError, match=said):
        job(sizes, **options)
