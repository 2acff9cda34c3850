import concurrent.futures
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from quorate.artifacts import pull
from quorate.errors import StateError, VerificationFailed
from quorate.server.registry import Registry
from quorate.server.serving import Endpoint
from quorate.server.signing import Expiry
from tests.artifacts.examples import change_a_byte, examples, new_registry, publish
from tests.waiting import eventually

INPUTS = examples(4)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = new_registry(tmp_path / "registry")
    publish(registry, 1)
    return registry


@pytest.fixture
def endpoint(registry: Registry) -> Iterator[Endpoint]:
    with Endpoint(registry, poll_s=0.01) as endpoint:
        yield endpoint


def predictions(endpoint: Endpoint, path: str = "digits") -> np.ndarray:
    answer = httpx.post(f"{endpoint.url}/v1/models/{path}:predict", json={"instances": INPUTS.tolist()})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["predictions"], np.float32)


def served_version(endpoint: Endpoint) -> int:
    return int(httpx.get(f"{endpoint.url}/v1/models/digits/metadata").json()["model_spec"]["version"])


def wait_for_version(endpoint: Endpoint, version: int) -> None:
    assert eventually(lambda: served_version(endpoint) == version)


def test_what_is_pulled_predicts_the_same_bits_as_the_endpoint(
    endpoint: Endpoint, registry: Registry, tmp_path: Path
) -> None:
    model = pull(f"{endpoint.url}/models", "digits", trust=registry.root_path, directory=tmp_path / "device")
    assert model.version == 1
    np.testing.assert_array_equal(
        np.asarray(model.predict(INPUTS)).view(np.uint32), predictions(endpoint).view(np.uint32)
    )


def test_one_changed_byte_on_the_server_is_refused_by_who_pulls(
    endpoint: Endpoint, registry: Registry, tmp_path: Path
) -> None:
    where = {"trust": registry.root_path, "directory": tmp_path / "device"}
    model = pull(f"{endpoint.url}/models", "digits", **where)  # type: ignore[arg-type]
    change_a_byte(publish(registry, 2).directory / "parameters.safetensors")
    with pytest.raises(VerificationFailed, match=r"parameters\.safetensors"):
        pull(f"{endpoint.url}/models", "digits", **where)  # type: ignore[arg-type]
    assert model.version == 1


def test_a_new_version_and_a_moved_alias_are_served_without_a_restart(
    endpoint: Endpoint, registry: Registry
) -> None:
    first = predictions(endpoint)
    publish(registry, 2)
    wait_for_version(endpoint, 2)
    assert not np.array_equal(predictions(endpoint), first)
    registry.promote("digits", "stable", 1)
    wait_for_version(endpoint, 1)
    np.testing.assert_array_equal(predictions(endpoint), first)


def test_no_request_fails_or_sees_two_versions_while_they_change(
    endpoint: Endpoint, registry: Registry
) -> None:
    done = threading.Event()

    def ask() -> list[np.ndarray]:
        found = []
        with httpx.Client() as client:
            while not done.is_set():
                answer = client.post(
                    f"{endpoint.url}/v1/models/digits:predict", json={"instances": INPUTS.tolist()}
                )
                assert answer.status_code == 200
                found.append(np.array(answer.json()["predictions"], np.float32))
        return found

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for round_ in range(2, 7):
            publish(registry, round_)
            wait_for_version(endpoint, round_)
        done.set()
        found = [each for answers in asking for each in answers.result()]
    possible = [np.asarray(registry.load("digits", version).predict(INPUTS)) for version in range(1, 7)]
    seen = {next(at for at, each in enumerate(possible) if np.array_equal(each, one)) for one in found}
    assert len(seen) > 1


PRIVATE = [
    "/models/keys/timestamp.pem",
    "/models/../keys/timestamp.pem",
    "/models/metadata/../keys/timestamp.pem",
    "/models/metadata/..%2fkeys%2ftimestamp.pem",
    "/models/metadata/%2e%2e/keys/timestamp.pem",
    "/models/%2e%2e/registry/keys/timestamp.pem",
    "/models/..%252fkeys/timestamp.pem",
    "/models/metadata%2f..%2fkeys%2ftimestamp.pem",
    "/models/metadata\\..\\keys\\timestamp.pem",
    "/models//keys/timestamp.pem",
    "/models/./keys/timestamp.pem",
    "/models/metadata/%00/../../keys/timestamp.pem",
    "/models/targets/models/digits/1/../../../../keys/timestamp.pem",
    "/models/targets/models/digits/1/link.pem",
    "/models/targets/models/folder/1/timestamp.pem",
    "/models/lock",
    "/models/metadata",
    "/models/metadata/",
    "/models/",
    "/models",
    "/keys/timestamp.pem",
    "/../keys/timestamp.pem",
    "//keys/timestamp.pem",
]


def test_keys_are_never_served(endpoint: Endpoint, registry: Registry) -> None:
    key = (registry.directory / "keys" / "timestamp.pem").read_bytes()
    models = registry.directory / "targets" / "models"
    (models / "digits" / "1" / "link.pem").symlink_to(registry.directory / "keys" / "timestamp.pem")
    (models / "folder").mkdir()
    (models / "folder" / "1").symlink_to(registry.directory / "keys")
    address = endpoint.url.removeprefix("http://")
    for path in PRIVATE:
        connection = http.client.HTTPConnection(address)
        connection.putrequest("GET", path, skip_host=False)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status in (400, 404), path
        assert key not in body
        assert b"PRIVATE" not in body


def test_the_public_part_is_served_for_reading_only(endpoint: Endpoint, registry: Registry) -> None:
    url = f"{endpoint.url}/models/metadata/timestamp.json"
    content = (registry.directory / "metadata" / "timestamp.json").read_bytes()
    assert httpx.get(url).content == content
    head = httpx.head(url)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(content)))
    assert httpx.put(url, content=b"{}").status_code == 405
    assert httpx.delete(url).status_code == 405


def test_other_paths_and_methods_get_json_errors(endpoint: Endpoint) -> None:
    assert httpx.get(f"{endpoint.url}/").status_code == 404
    assert "error" in httpx.get(f"{endpoint.url}/").json()
    assert httpx.delete(f"{endpoint.url}/v1/models/digits").status_code == 405
    assert httpx.post(f"{endpoint.url}/v1/models/letters:predict", json={}).status_code == 404


def test_a_request_that_is_too_long_is_refused(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.server.serving.application.MAX_BODY_BYTES", 1000)
    answer = httpx.post(f"{endpoint.url}/v1/models/digits:predict", content=b" " * 1001)
    assert answer.status_code == 413


def test_an_answer_does_not_wait_for_the_network_to_acknowledge(endpoint: Endpoint) -> None:
    # asyncio switches Nagle's algorithm off for the connections of a socket that names its protocol, and no other.
    assert endpoint._socket is not None
    assert endpoint._socket.proto == socket.IPPROTO_TCP


def test_an_endpoint_starts_and_stops_as_often_as_wanted(registry: Registry) -> None:
    endpoint = Endpoint(registry)
    endpoint.stop()
    with pytest.raises(StateError, match="not running"):
        _ = endpoint.url
    for _ in range(2):
        with endpoint:
            url = endpoint.url
            assert served_version(endpoint) == 1
            with pytest.raises(StateError, match="running already"):
                endpoint.start()
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quorate-endpoint")]


def test_an_address_that_is_taken_says_so(registry: Registry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StateError, match=f"can't listen on 127.0.0.1:{port}"):
            Endpoint(registry, port=port).start()


SERVE = """
import sys
from quorate.server.serving import Endpoint
endpoint = Endpoint(sys.argv[1]).start()
print(endpoint.url, flush=True)
endpoint.serve_forever()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_blocking_endpoint_cleanly(registry: Registry, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SERVE, str(registry.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert httpx.get(f"{url}/v1/models/digits").status_code == 200
        os.kill(process.pid, number)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(60) == 0


def test_an_endpoint_signs_anew_what_is_about_to_expire(registry: Registry) -> None:
    longer = Registry(registry.directory, expiry=Expiry(timestamp=timedelta(days=60)))
    timestamp = registry.directory / "metadata" / "timestamp.json"
    before = timestamp.read_bytes()
    with Endpoint(longer, poll_s=0.01):
        assert eventually(lambda: timestamp.read_bytes() != before)
    assert registry.verify() == []


def test_serving_without_the_extra_says_what_to_install() -> None:
    code = """
import sys
sys.modules["uvicorn"] = None
from quorate.errors import MissingExtra
from tests.waiting import eventually
try:
    import quorate.server.serving
except MissingExtra as missing:
    print(missing)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'quorate[server]'" in done.stdout
