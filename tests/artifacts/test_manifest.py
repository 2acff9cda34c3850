import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.artifacts import Manifest
from quorate.errors import DataError
from quorate.parameters import Layout

FIELDS = {
    "format": 1,
    "model": "digits",
    "version": 3,
    "parent": 2,
    "run": "run-1",
    "round": 30,
    "terms": "ab" * 32,
    "parameters": {"layout": [["w", [8, 3]], ["b", [3]]], "sha256": "cd" * 32, "length": 270},
    "program": {
        "sha256": "ef" * 32,
        "length": 400,
        "inputs": [{"name": "inputs", "dtype": "float32", "shape": [-1, 8]}],
        "outputs": [{"name": "probabilities", "dtype": "float32", "shape": [-1, 3]}],
    },
    "cohort": {"largest": 140, "min_survivors": 60},
    "privacy": {
        "mechanism": "distributed-gaussian",
        "neighbours": "add or remove one client",
        "epsilon_released": "4.2",
        "epsilon_server": None,
        "delta": "0.0018",
        "simulated": False,
        "summation": "secagg+, semi-honest",
    },
    "evaluation": {"accuracy": "0.94"},
    "created": "2026-11-20T14:00:00Z",
    "code": "quorate 0.1.0",
    "data_card": "Ziffern, von Hand geschrieben: ε ≤ 5",
}


def canonical(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def changed(path: str, value: object) -> bytes:
    fields = json.loads(json.dumps(FIELDS))
    *folders, name = path.split(".")
    inner = fields
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    return canonical(fields)


def test_a_manifest_says_what_single_examples_cost_where_it_is_claimed() -> None:
    examples = {"neighbours": "one example", "epsilon": "3.1", "delta": "1e-05"}
    data = changed("privacy.examples", examples)
    read = Manifest.from_bytes(data)
    assert read.to_bytes() == data
    assert read.privacy.examples is not None
    assert read.privacy.examples.epsilon == "3.1"
    with pytest.raises(DataError, match="canonical"):
        Manifest.from_bytes(changed("privacy.examples", None))


def test_a_manifest_names_the_last_row_of_its_ledger_where_there_is_one() -> None:
    data = changed("privacy.ledger", "0a" * 32)
    assert Manifest.from_bytes(data).privacy.ledger == "0a" * 32
    assert Manifest.from_bytes(data).to_bytes() == data
    assert Manifest.from_bytes(canonical(FIELDS)).privacy.ledger is None
    with pytest.raises(DataError, match="canonical"):
        Manifest.from_bytes(changed("privacy.ledger", None))
    with pytest.raises(DataError, match=r"privacy\.ledger"):
        Manifest.from_bytes(changed("privacy.ledger", "0A" * 32))


def test_a_manifest_is_read_from_its_canonical_bytes_and_written_to_the_same() -> None:
    manifest = Manifest.from_bytes(canonical(FIELDS))
    assert manifest.to_bytes() == canonical(FIELDS)
    assert manifest.parameters.as_layout() == Layout((("w", (8, 3)), ("b", (3,))))
    assert manifest.cohort.min_survivors == 60
    assert manifest.evaluation == {"accuracy": "0.94"}


@given(
    run=st.text(st.characters(codec="utf-8"), min_size=1),
    card=st.text(st.characters(codec="utf-8")),
    evaluation=st.dictionaries(st.text(st.characters(codec="utf-8")), st.floats().map(repr)),
    version=st.integers(1, 10**12),
)
def test_any_manifest_survives_the_way_to_bytes_and_back(
    run: str, card: str, evaluation: dict[str, str], version: int
) -> None:
    fields = {**FIELDS, "run": run, "data_card": card, "evaluation": evaluation, "version": version}
    manifest = Manifest.from_bytes(canonical(fields))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("format", 2, "format 2, this release of Quorate reads 1"),
        ("survivors", 77, "survivors"),
        ("cohort.survivors", 77, "cohort.survivors"),
        ("version", 0, "version"),
        ("version", "3", "version"),
        ("version", True, "version"),
        ("model", "../digits", "model"),
        ("terms", "AB" * 32, "terms"),
        ("terms", "ab" * 31, "terms"),
        ("evaluation", {"accuracy": 0.94}, "evaluation.accuracy"),
        ("evaluation", {"accuracy": "good"}, "evaluation.accuracy"),
        ("privacy.epsilon_released", 4.2, "privacy.epsilon_released"),
        ("privacy.simulated", "no", "privacy.simulated"),
        ("created", "2026-11-20T14:00:00+01:00", "UTC"),
        ("created", "today", "created"),
        ("parameters.length", -1, "parameters.length"),
        ("parameters.layout", [["w", [-1, 3]]], "parameters.layout"),
        ("parameters.layout", [["w", [2**30, 2**30]]], "2^40"),
        ("program.inputs", [], "program.inputs"),
    ],
)
def test_a_bad_field_is_refused_by_name(path: str, value: object, complaint: str) -> None:
    with pytest.raises(DataError) as refused:
        Manifest.from_bytes(changed(path, value))
    assert complaint in str(refused.value)


def test_bytes_that_are_not_canonical_are_refused() -> None:
    with pytest.raises(DataError, match="canonical"):
        Manifest.from_bytes(json.dumps(FIELDS).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"null"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        Manifest.from_bytes(data)


def test_a_manifest_can_not_be_changed() -> None:
    manifest = Manifest.from_bytes(canonical(FIELDS))
    with pytest.raises(ValueError, match="frozen"):
        manifest.version = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        manifest.evaluation["accuracy"] = "1.0"  # type: ignore[index]
