import json
import sys

import numpy as np
import pytest

from quorate.errors import DataError, MissingExtra
from quorate.simulations import datasets


def columns(rows=40):
    rng = np.random.default_rng(0)
    return {
        "height": rng.normal(size=rows),
        "weight": rng.normal(size=rows),
        "species": np.array(["newt", "axolotl"])[rng.integers(2, size=rows)],
        "pond": [f"pond {i % 4}" for i in range(rows)],
    }


def test_a_table_with_a_key_gives_each_key_its_own_rows():
    table = columns()
    data = datasets.from_table(table, "species", "pond")
    assert [data.member(i) for i in range(4)] == ["pond 0", "pond 1", "pond 2", "pond 3"]
    assert data.index("pond 2") == 2
    assert data.clients.sizes.tolist() == [9, 9, 9, 9]
    assert data.test is not None
    assert len(data.test) == 4
    heights = {
        float(np.float32(h)) for h, p in zip(table["height"], table["pond"], strict=True) if p == "pond 2"
    }
    assert set(data.clients[2].x[:, 0].tolist()) <= heights


def test_words_become_labels_in_alphabetical_order():
    data = datasets.from_table(columns(), "species", "pond")
    table = columns()
    newts = sum(species == "newt" for species in table["species"])
    labels = np.concatenate([client.y for client in data] + [data.test.y])
    assert labels.dtype == np.int64
    assert labels.sum() == newts


def test_a_table_without_a_key_is_in_one_place():
    data = datasets.from_table(columns(), "species", features=["height", "weight"])
    assert isinstance(data, datasets.Dataset)
    assert data.train.x.shape[1] == 2
    assert len(data.test) == 8


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_files_are_read(tmp_path, suffix):
    import pandas

    file, table = tmp_path / f"newts{suffix}", columns()
    if suffix == ".npz":
        numbers = {"x": np.stack([table["height"], table["weight"]], axis=1), "y": np.arange(40) % 3}
        np.savez(file, **numbers, key=np.array(table["pond"]))
        data = datasets.read(str(file), "y", "key", ["x"])
    else:
        frame = pandas.DataFrame(table)
        frame.to_csv(file, index=False) if suffix == ".csv" else frame.to_parquet(file)
        data = datasets.read(str(file), "species", "pond")
    assert len(data) == 4
    assert data.clients[0].x.shape == (9, 2)


def test_a_column_of_lists_is_one_row_of_features_an_example(tmp_path):
    import pandas

    frame = pandas.DataFrame({"pixels": [[0.0, 1.0, 2.0]] * 6, "label": [0, 1] * 3, "user": list("aabbcc")})
    frame.to_parquet(tmp_path / "images.parquet")
    data = datasets.read(str(tmp_path / "images.parquet"), "label", "user")
    assert data.clients[0].x.shape[1] == 3


def test_hugging_face_datasets_are_read_from_memory_and_from_disk(tmp_path):
    import datasets as hugging_face

    made = hugging_face.Dataset.from_dict(
        {"image": np.zeros((12, 2, 2)).tolist(), "label": [0, 1, 2] * 4, "writer": list("aaaabbbbcccc")}
    )
    made.save_to_disk(tmp_path / "writers")
    for source in (made, str(tmp_path / "writers")):
        data = datasets.from_hugging_face(source, "label", "writer")
        assert [data.member(i) for i in range(3)] == ["a", "b", "c"]
        assert data.clients[0].x.shape == (3, 4)


def test_pytorch_datasets_are_read():
    import torch

    made = torch.utils.data.TensorDataset(torch.rand(20, 3, 4), torch.arange(20) % 2)
    data = datasets.from_torch(made, keys=[i % 5 for i in range(20)])
    assert len(data) == 5
    assert data.clients[0].x.shape == (3, 12)
    assert isinstance(datasets.from_torch(made), datasets.Dataset)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: datasets.from_table(columns(), "kind"), "there is no column 'kind'; these exist: height"),
        (lambda: datasets.from_table(columns(), "species"), "features are numbers"),
        (lambda: datasets.from_arrays(np.ones((3, 2)), np.ones(3), ["a"]), "need as many keys, got 1"),
        (lambda: datasets.read("nowhere.csv", "y"), "there is no file nowhere.csv"),
        (lambda: datasets.read(__file__, "y"), "can be read"),
    ],
)
def test_what_can_not_be_read_is_refused_with_the_reason(call, said):
    with pytest.raises(DataError, match=said):
        call()


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pandas", None)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(MissingExtra, match=r"quorate\[data\]"):
        datasets.read(str(tmp_path / "a.csv"), "y")


def leaf_file(folder, users):
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(labels) for labels in users.values()],
        "user_data": {u: {"x": [[i, 0.5] for i in labels], "y": labels} for u, labels in users.items()},
    }
    (folder / f"{'-'.join(users)}.json").write_text(json.dumps(content))


def test_leaf_files_are_read_with_their_users_and_their_test_set(tmp_path):
    leaf_file(tmp_path / "train", {"ann": [1, 2, 3], "bob": [4]})
    leaf_file(tmp_path / "train", {"cem": [0, 9]})
    leaf_file(tmp_path / "test", {"ann": [7], "bob": [8, 8]})
    data = datasets.leaf(str(tmp_path))
    assert [data.member(i) for i in range(3)] == ["ann", "bob", "cem"]
    assert data.clients[2].y.tolist() == [0, 9]
    assert data.clients[0].x.tolist() == [[1, 0.5], [2, 0.5], [3, 0.5]]
    assert data.test is not None
    assert data.test.y.tolist() == [7, 8, 8]


def test_what_is_not_leaf_s_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.json files"):
        datasets.leaf(str(tmp_path))
    (tmp_path / "a.json").write_text('{"users": ["ann"], "user_data": {"ann": {"x": ["a word"], "y": [0]}}}')
    with pytest.raises(DataError, match="words have to be made numbers"):
        datasets.leaf(str(tmp_path))
