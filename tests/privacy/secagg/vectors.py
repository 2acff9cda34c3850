"""Writes the known-answer vectors: python -m tests.privacy.secagg.vectors. Done once; a change breaks compatibility."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.privacy.secagg import Ed25519Identity, SecAggParameters, ThreatModel, shamir
from tests.privacy.secagg.sessions import drive, prepare

FILE = Path(__file__).parent / "vectors.json"
CASES = [
    ("semi-honest, complete graph, 32 bits", 4, 5, 32, 3, SecAggParameters(), {}),
    (
        "semi-honest, complete graph, 16 bits, dropouts in each phase", 8, 9, 16, 4,
        SecAggParameters(),
        {"advertise": [0], "share": [1], "mask": [2], "unmask": [3]},
    ),
    (
        "malicious, complete graph, 32 bits, dropouts", 7, 6, 32, 4,
        SecAggParameters(ThreatModel.MALICIOUS, complete=True),
        {"mask": [5], "consistency": [1]},
    ),
    (
        "semi-honest, sparse graph, 16 bits", 54, 3, 16, 49,
        SecAggParameters(corrupt=0.02, dropout=0.1),
        {"share": [3], "mask": [10, 20], "unmask": [30]},
    ),
    (
        "semi-malicious, sparse graph, 32 bits, dropouts", 50, 3, 32, 47,
        SecAggParameters(ThreatModel.SEMI_MALICIOUS, corrupt=0.02, dropout=0.04),
        {"share": [3], "mask": [10], "consistency": [20], "unmask": [30]},
    ),
]  # fmt: skip


def text(data: bytes) -> str:
    """Messages in full where they are short, else their SHA-256."""
    return data.hex() if len(data) <= 512 else "sha256:" + hashlib.sha256(data).hexdigest()


def make(number: int) -> dict:
    title, members, length, bits, fewest, parameters, lost_numbers = CASES[number]
    binding = hashlib.sha256(f"binding {number}".encode()).digest()
    keys: list[bytes] = []

    def identity(randomness):
        keys.append(randomness.bytes(32))
        return Ed25519Identity(Ed25519PrivateKey.from_private_bytes(keys[-1]))

    with mock.patch.object(Ed25519Identity, "draw", identity):
        run = prepare(
            members, parameters, seed=number, binding=binding, length=length, largest=60,
            min_survivors=fewest, dtype=np.dtype(f"u{bits // 8}"),
        )  # fmt: skip
    lost = {phase: {f"client-{i}" for i in which} for phase, which in lost_numbers.items()}
    drawn: dict[str, dict] = {name: {} for name in run.names}
    current = [""]
    real = shamir.draw

    def spy(randomness, count):
        out = real(randomness, count)
        drawn[current[0]].setdefault("draws", []).append(out.tolist())
        return out

    def watched(name, call, *args):
        current[0] = name
        answer = call(*args)
        secrets = client_secrets(run.clients[name])
        if secrets:
            drawn[name]["encryption_private"] = secrets
        return answer

    for name, client in run.clients.items():
        client.begin = partial(watched, name, client.begin)
        client.receive = partial(watched, name, client.receive)
    with mock.patch.object(shamir, "draw", spy):
        drive(run, lost)
    messages: dict[str, dict] = {}
    for (phase, name), answer in run.answers.items():
        incoming = [message.data for message in run.sent[phase] if message.member == name]
        messages.setdefault(phase, {})[name] = {"in": [text(data) for data in incoming], "out": text(answer)}
    [(total, survivors)] = run.sink.added
    described = []
    for i, name in enumerate(run.names):
        draws = drawn[name].get("draws", [])
        described.append(
            {
                "name": name,
                "vector": run.vectors[i].tolist(),
                **({"identity_private": keys[i].hex()} if parameters.threat_model.signed else {}),
                "encryption_private": drawn[name].get("encryption_private", ""),
                "mask_secret": draws[0] if draws else [],
                "self_secret": draws[1] if draws else [],
                "coefficients": np.reshape(draws[2], (-1, 32)).tolist() if len(draws) > 2 else [],
            }
        )
    return {
        "title": title, "threat_model": str(parameters.threat_model), "corrupt": str(parameters.corrupt),
        "dropout": str(parameters.dropout), "security_bits": parameters.security_bits,
        "failure_bits": parameters.failure_bits, "complete": parameters.complete, "binding": binding.hex(),
        "length": length, "bits": bits, "min_survivors": fewest,
        "lost": {phase: sorted(names) for phase, names in lost.items()},
        "members": described, "messages": messages, "survivors": list(survivors), "sum": total.tolist(),
    }  # fmt: skip


def client_secrets(client) -> str:
    return client._secrets.encryption.private_bytes_raw().hex() if client._secrets else ""


if __name__ == "__main__":
    cases = ",\n".join(json.dumps(make(number), separators=(",", ":")) for number in range(len(CASES)))
    FILE.write_text(f"[\n{cases}\n]\n")
