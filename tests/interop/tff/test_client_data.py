"""What TFF writes as client data, our reader reads."""

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from quorate.simulations.datasets import tff_sqlite

pytestmark = pytest.mark.interop


def test_client_data_that_tff_saved_are_the_same_here(tmp_path):
    rng = np.random.default_rng(0)
    held = {
        f"writer-{i}": collections.OrderedDict(
            label=rng.integers(-5, 10, size=i + 1).astype(np.int32),
            pixels=rng.random((i + 1, 28, 28)).astype(np.float32),
        )
        for i in range(3)
    }
    path = str(tmp_path / "saved.sqlite")
    tff.simulation.datasets.save_to_sql_client_data(
        list(held), lambda client: tf.data.Dataset.from_tensor_slices(held[client]), path
    )
    data = tff_sqlite(path, "pixels", "label", train=None, test=None, shape=(28, 28))
    theirs = tff.simulation.datasets.load_and_parse_sql_client_data(
        path, tf.data.Dataset.from_tensor_slices(held["writer-0"]).element_spec
    )
    assert [data.member(i) for i in range(len(data))] == theirs.client_ids
    for index, client in enumerate(theirs.client_ids):
        ours = data.clients[index]
        np.testing.assert_array_equal(ours.x, held[client]["pixels"])
        np.testing.assert_array_equal(ours.y, held[client]["label"])
        parsed = list(theirs.create_tf_dataset_for_client(client).as_numpy_iterator())
        np.testing.assert_array_equal(ours.x, np.stack([one["pixels"] for one in parsed]))
