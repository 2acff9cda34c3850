"""TFF's client data in SQLite, read without TensorFlow; what TFF itself wrote is read in `tests/interop/tff/`."""

import sqlite3
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import DataError
from quorate.simulations.datasets import tff_sqlite
from quorate.simulations.datasets.client_data import features_of


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features: object) -> bytes:
    """As protobuf writes a tf.train.Example: lists of numbers are packed."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, bytes):
            feature = field(1, field(1, values))
        elif values and isinstance(values[0], float):
            feature = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = field(3, field(1, b"".join(varint(v) for v in values)))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    st.binary(),
)
def test_what_was_written_is_read(integers, floats, text):
    found = features_of(example(a=integers, b=floats, c=text))
    assert found["a"].tolist() == integers
    assert found["b"].tolist() == floats
    assert found["c"].tolist() == [text]


def test_numbers_that_are_not_packed_are_read():
    # Protocol Buffers, "Encoding": a parser takes repeated numbers packed or not. 150 is 96 01.
    one = field(1, field(1, b"a") + field(2, field(3, b"\x08\x96\x01\x08\x01")))
    assert features_of(field(1, one))["a"].tolist() == [150, 1]


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_are_features(content):
    try:
        found = features_of(content)
    except DataError:
        return
    assert all(isinstance(value, np.ndarray) for value in found.values())


def write(path, rows):
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)"
        )
        connection.execute(
            "CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)"
        )
        for split, clients in rows.items():
            for client, examples in clients.items():
                connection.execute(
                    "INSERT INTO client_metadata VALUES (?, ?, ?)", (client, split, len(examples))
                )
                connection.executemany(
                    "INSERT INTO examples VALUES (?, ?, ?)", [(split, client, e) for e in examples]
                )
    connection.close()


@pytest.fixture
def file(tmp_path):
    def of(start: int, count: int):
        return [
            example(pixels=[float(i), i + 0.5, -1.0, 2.0], label=[i % 3]) for i in range(start, start + count)
        ]

    path = tmp_path / "emnist.sqlite"
    write(path, {"train": {"b": of(0, 3), "a": of(10, 2)}, "test": {"a": of(20, 1), "b": of(30, 4)}})
    return path


def test_clients_and_the_test_split_are_those_of_the_file(file):
    data = tff_sqlite(str(file), "pixels", "label")
    assert [data.member(i) for i in range(len(data))] == ["a", "b"]
    assert data.clients.sizes.tolist() == [2, 3]
    np.testing.assert_array_equal(data.clients[1].x, [[i, i + 0.5, -1, 2] for i in range(3)])
    assert data.clients[1].y.tolist() == [0, 1, 2]
    assert data.clients[1].y.dtype == np.int64
    assert len(data.test) == 5


def test_features_have_the_shape_that_is_asked_for(file):
    assert tff_sqlite(str(file), "pixels", "label", shape=(2, 2)).clients[0].x.shape == (2, 2, 2)
    with pytest.raises(DataError, match="does not fit 4 features"):
        tff_sqlite(str(file), "pixels", "label", shape=(3, 3))


def test_what_is_not_there_is_said(file, tmp_path):
    with pytest.raises(DataError, match="no examples of the split 'dev'; it has train, test"):
        tff_sqlite(str(file), "pixels", "label", train="dev")
    with pytest.raises(DataError, match="no feature 'image'; these exist: label, pixels"):
        tff_sqlite(str(file), "image", "label")
    with pytest.raises(DataError, match="there is no file"):
        tff_sqlite(str(tmp_path / "none.sqlite"), "pixels", "label")
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE examples (client_id TEXT)").connection.close()
    with pytest.raises(DataError, match="is not client data of TFF's"):
        tff_sqlite(str(other), "pixels", "label")


def test_a_plan_names_such_a_file(file):
    import quorate as q
    from quorate.planfile import make_plan

    plan = make_plan(
        {
            "task": {"name": "softmax", "inputs": 4, "classes": 3},
            "rounds": {"count": 1, "cohort": 2, "sampling": "fixed"},
            "fleet": {
                "kind": "simulation",
                "dataset": "tff-sqlite",
                "options": {"path": str(file), "features": "pixels", "target": "label"},
                "seed": 1,
            },
        }
    )
    done = q.run(plan, watch=lambda report: None)
    assert done.population == 2
    assert done.metrics["accuracy"] >= 0
