"""Rounds over a real SuperLink, with stock SuperNodes and nodes of ours, on this machine."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from quorate import assembly
from quorate.errors import QuorateError
from quorate.interop.flower.fleet import Flower
from quorate.result import FinishedRun
from quorate.server.coordinator import RoundReport
from tests import federations
from tests.cli.commands import started
from tests.interop.flower.federations import NODES, plan
from tests.interop.flower.processes import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPLIES_BEFORE_MASKING = 6  # four in the first round, and two in the second


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as started:
        yield started


def run(superlink: str, rounds: int, training_s: float = 240.0, **sections: object) -> FinishedRun:
    fleet = Flower(superlink, NODES, held_out="wine", training_s=training_s, phase_s=90.0)
    return assembly.run(plan(rounds=rounds, **sections), fleet=fleet, watch=lambda report: None)


def kill_after_replies(processes: Processes, node: subprocess.Popen[bytes], log: Path, count: int) -> None:
    """Kills a SuperNode as soon as it has sent so many replies."""
    while log.read_text().count("Sent successfully") < count:
        time.sleep(0.1)
    processes.kill(node)


def test_nodes_of_ours_sum_in_secret_over_a_superlink_and_a_killed_one_is_left_out(
    processes: Processes,
) -> None:
    superlink = processes.superlink()
    nodes = [processes.python("tests.interop.flower.node", superlink, str(i)) for i in range(NODES)]
    assert [round.survivors for round in run(superlink, rounds=2).history] == [NODES] * 2
    processes.kill(nodes[0])
    # Flower lists the dead node for up to a minute more
    found = run(superlink, rounds=2, training_s=20.0)
    assert [round.survivors for round in found.history] == [NODES - 1] * 2
    assert [round.lost for round in found.history] == [{"advertise": 1}] * 2


def endings(superlink: str) -> list[tuple[str, str]]:
    """How the SuperLink says that its runs ended, oldest first, with the details."""
    with ControlHttpClient.from_server_address(
        superlink, True, None, [RuntimeVersionHttpInterceptor(component_name="test")]
    ) as control:
        runs = control.ListRuns(ListRunsRequest()).run_dict.values()
    ended = sorted(runs, key=lambda run: str(run.pending_at))
    return [(run.status.sub_status, run.status.details) for run in ended]


def test_a_run_that_fails_here_ends_as_failed_there(processes: Processes) -> None:
    superlink = processes.superlink()
    for part in range(NODES):
        processes.python("tests.interop.flower.node", superlink, str(part))

    def fail(report: RoundReport) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        assembly.run(plan(rounds=2), fleet=Flower(superlink, NODES), watch=fail)
    assembly.run(plan(rounds=1), fleet=Flower(superlink, NODES), watch=lambda report: None)
    assert endings(superlink) == [("failed", "OSError: disk full"), ("completed", "")]


def certificates(directory: Path) -> None:
    """A certificate authority, and a certificate of this machine by it."""
    now = datetime.datetime.now(datetime.UTC)

    def made(name: str, public: Any, by: str, key: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(key, hashes.SHA256())

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    ca = made("ca", authority.public_key(), "ca", authority, x509.BasicConstraints(True, None))
    server = made("server", own.public_key(), "ca", authority, names)
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(ca.public_bytes(pem))
    (directory / "server.pem").write_bytes(server.public_bytes(pem))
    (directory / "server.key").write_bytes(
        own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_coordinator_and_nodes_verify_a_superlink_with_tls(processes: Processes, tmp_path: Path) -> None:
    certificates(tmp_path)
    trusted = str(tmp_path / "ca.pem")
    superlink = processes.superlink(tls=tmp_path)
    for part in range(NODES):
        processes.python("tests.interop.flower.node", superlink, str(part), trusted)
    fleet = Flower(superlink, NODES, root_certificates=trusted, training_s=120.0)
    found = assembly.run(plan(rounds=1), fleet=fleet, watch=lambda report: None)
    assert [round.survivors for round in found.history] == [NODES]
    with pytest.raises(QuorateError, match="does not start a run"):
        assembly.run(plan(rounds=1), fleet=Flower(superlink, NODES), watch=lambda report: None)


def test_three_supernodes_and_a_node_of_ours_go_on_when_one_is_killed_and_the_model_is_served(
    processes: Processes, tmp_path: Path
) -> None:
    superlink = processes.superlink()
    config = 'quorate-data="tests.interop.flower.federations:examples" part={}'
    supernodes = [processes.supernode(superlink, config.format(part)) for part in range(3)]
    processes.python("tests.interop.flower.node", superlink, "3")
    killing = threading.Thread(
        target=kill_after_replies,
        args=(processes, supernodes[0], tmp_path / "flower-supernode-1.log", REPLIES_BEFORE_MASKING),
        daemon=True,
    )
    killing.start()
    registry = tmp_path / "registry"
    published = {"registry": str(registry), "model": "wine"}
    found = run(superlink, rounds=3, publish=published)
    assert [round.survivors for round in found.history] == [NODES, NODES - 1, NODES - 1]
    assert found.history[1].lost == {"mask": 1}
    assert found.metrics["accuracy"] > 0.8
    assert found.epsilon is not None
    assert not found.record.simulated

    test = federations.wine(NODES).test
    assert test is not None
    with started("serve", str(registry), "--port", "0", cwd=tmp_path) as serving:
        assert serving.stdout is not None
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+", serving.stdout.readline())
        request = urllib.request.Request(
            f"{url}/v1/models/wine:predict", json.dumps({"instances": test.x.tolist()}).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            predicted = np.array(json.load(answer)["predictions"])
    assert (predicted.argmax(axis=1) == test.y).mean() == pytest.approx(found.metrics["accuracy"])
