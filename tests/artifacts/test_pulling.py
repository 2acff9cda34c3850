import os
import shutil
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tuf.api.metadata import TargetFile

from quorate.artifacts import PulledModel, held, pull
from quorate.artifacts.names import version_paths
from quorate.errors import DataError, RegistryError, StateError, VerificationFailed
from quorate.server.registry import Registry
from quorate.server.signing import Expiry
from tests.artifacts.examples import change_a_byte, examples, new_registry, parameters, publish
from tests.waiting import eventually


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return new_registry(tmp_path / "registry")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return tmp_path / "device"


def pulled(registry: Registry, device: Path, **how: object) -> PulledModel:
    return pull(registry.directory, "digits", trust=registry.root_path, directory=device, **how)  # type: ignore[arg-type]


def held_version(device: Path) -> int | None:
    version = held("digits", directory=device)
    return None if version is None else version.version


def test_what_is_pulled_is_what_was_published(registry: Registry, device: Path) -> None:
    version = publish(registry, 1)
    model = pulled(registry, device)
    assert model.version == version.number == 1
    assert model.manifest == version.manifest
    assert model.parameters.layout == parameters(1).layout
    np.testing.assert_array_equal(model.parameters.vector, parameters(1).vector)
    assert {file.name for file in model.directory.iterdir()} == {
        "manifest.json",
        "parameters.safetensors",
        "program.onnx",
    }
    assert held_version(device) == 1


def test_a_pulled_model_predicts_for_arrays_of_any_real_dtype(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    model, inputs = pulled(registry, device), examples(5)
    expected = model.predict(inputs)
    np.testing.assert_array_equal(model.predict(inputs.astype(np.float64)), expected)
    np.testing.assert_array_equal(model.predict({"inputs": inputs.tolist()}), expected)
    with pytest.raises(DataError, match="float32 is needed"):
        model.predict(inputs.astype(complex))
    with pytest.raises(DataError, match="are needed"):
        model.predict({"images": inputs})


def test_a_version_can_be_pulled_by_its_number(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    publish(registry, 2)
    assert pulled(registry, device, version=1).version == 1
    assert pulled(registry, device).version == 2


def test_a_held_version_is_not_downloaded_again(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    pulled(registry, device)
    shutil.rmtree(registry.directory / "targets")
    assert pulled(registry, device).version == 1


def test_a_damaged_held_version_is_downloaded_again(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    change_a_byte(pulled(registry, device).directory / "parameters.safetensors")
    with pytest.raises(VerificationFailed):
        held("digits", directory=device)
    np.testing.assert_array_equal(pulled(registry, device).parameters.vector, parameters(1).vector)
    assert held_version(device) == 1


@pytest.mark.parametrize("file", ["parameters.safetensors", "program.onnx", "manifest.json"])
def test_one_changed_byte_is_refused_and_the_held_version_stays(
    registry: Registry, device: Path, file: str
) -> None:
    publish(registry, 1)
    model = pulled(registry, device)
    change_a_byte(publish(registry, 2).directory / file, at=20)
    with pytest.raises(VerificationFailed, match=f"{file}.*not what was signed"):
        pulled(registry, device)
    with pytest.raises(VerificationFailed):
        model.poll()
    assert held_version(device) == model.version == 1
    model.predict(examples(1))


@pytest.mark.parametrize(("cut", "add"), [(1, b""), (0, b"\0")], ids=["shorter", "longer"])
def test_a_file_of_another_length_is_refused(registry: Registry, device: Path, cut: int, add: bytes) -> None:
    file = publish(registry, 1).directory / "parameters.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - cut] + add)
    with pytest.raises(VerificationFailed):
        pulled(registry, device)
    assert held_version(device) is None


def test_a_replayed_old_state_is_refused(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    timestamp = registry.directory / "metadata" / "timestamp.json"
    old = timestamp.read_bytes()
    publish(registry, 2)
    assert pulled(registry, device).version == 2
    timestamp.write_bytes(old)
    with pytest.raises(VerificationFailed, match="older than what was seen before"):
        pulled(registry, device)
    assert held_version(device) == 2


def test_expired_metadata_are_refused(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    pulled(registry, device)
    publish(Registry(registry.directory, expiry=Expiry(timestamp=timedelta(seconds=-1))), 2)
    with pytest.raises(VerificationFailed, match="expired"):
        pulled(registry, device)
    assert held_version(device) == 1


def test_another_trust_root_is_refused(registry: Registry, device: Path, tmp_path: Path) -> None:
    publish(registry, 1)
    other = Registry.create(tmp_path / "other")
    with pytest.raises(VerificationFailed, match="not signed by the keys"):
        pull(registry.directory, "digits", trust=other.root_path, directory=device)
    assert held_version(device) is None


def test_a_changed_trust_root_is_refused(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    root = registry.root_path.read_bytes().replace(b'"threshold":1', b'"threshold":2', 1)
    with pytest.raises(VerificationFailed):
        pull(registry.directory, "digits", trust=root, directory=device)


def test_changed_metadata_are_refused(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    for file in (registry.directory / "metadata").glob("*.releases-*.json"):
        file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(VerificationFailed):
        pulled(registry, device)


def test_signed_files_of_another_version_are_refused(registry: Registry, device: Path) -> None:
    """Even the owner's keys can't make version 2 of what says that it is version 1."""
    version = publish(registry, 1)
    publish(registry, 2)
    renamed = {}
    for name, path in version_paths("digits", 2).items():
        data = (version.directory / name).read_bytes()
        (registry.directory / "targets" / path).write_bytes(data)
        renamed[path] = TargetFile.from_data(path, data)
    registry._signed.commit(renamed)
    with pytest.raises(VerificationFailed, match="its manifest is that of version 1"):
        pulled(registry, device)


def test_an_alias_moves_forward_and_back(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    publish(registry, 2)
    model = pulled(registry, device)
    assert model.version == 2
    registry.promote("digits", "stable", 1)
    assert model.poll()
    assert model.version == 1
    np.testing.assert_array_equal(model.parameters.vector, parameters(1).vector)
    registry.promote("digits", "stable", 2)
    assert pulled(registry, device).version == 2
    assert not pulled(registry, device).poll()


def test_the_version_before_is_kept_and_older_ones_are_not(registry: Registry, device: Path) -> None:
    for round_ in (1, 2, 3):
        publish(registry, round_)
        directory = pulled(registry, device).directory
    assert {folder.name for folder in directory.parent.iterdir() if folder.is_dir()} == {"2", "3"}


@pytest.mark.parametrize(
    "how", [{"alias": "canary"}, {"version": 2}, {"alias": "../../keys"}, {"version": 0}]
)
def test_what_is_not_there_is_an_error_of_the_registry(
    registry: Registry, device: Path, how: dict[str, object]
) -> None:
    publish(registry, 1)
    with pytest.raises(RegistryError):
        pulled(registry, device, **how)


def test_an_unknown_model_is_an_error_of_the_registry(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    with pytest.raises(RegistryError, match="no model 'letters'"):
        pull(registry.directory, "letters", trust=registry.root_path, directory=device)


def test_a_place_without_a_registry_says_so(registry: Registry, device: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is there a registry"):
        pull(tmp_path / "nowhere", "digits", trust=registry.root_path, directory=device)
    with pytest.raises(RegistryError, match="http or https URL or a folder"):
        pull("ftp://example.org", "digits", trust=registry.root_path, directory=device)


def test_a_server_that_does_not_answer_says_so_and_the_held_version_stays(
    registry: Registry, device: Path
) -> None:
    publish(registry, 1)
    pulled(registry, device)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RegistryError, match="can't be reached"):
        pull(f"http://127.0.0.1:{port}", "digits", trust=registry.root_path, directory=device)
    assert held_version(device) == 1


def test_a_trust_root_that_can_not_be_read_says_so(registry: Registry, device: Path) -> None:
    with pytest.raises(StateError, match="trust root"):
        pull(registry.directory, "digits", trust=device / "root.json", directory=device)


def test_an_interrupted_activation_leaves_the_old_version(
    registry: Registry, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, 1)
    pulled(registry, device)
    publish(registry, 2)

    class PowerCutError(BaseException):
        pass

    flush, steps = os.fsync, 0
    while True:
        folder = device.with_name(f"device-{steps}")
        shutil.copytree(device, folder)
        left = steps

        def fails_later(descriptor: int) -> None:
            nonlocal left
            if left == 0:
                raise PowerCutError
            left -= 1
            flush(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fails_later)
            try:
                pulled(registry, folder)
                break
            except PowerCutError:
                steps += 1
        assert held_version(folder) in (1, 2)
        assert pulled(registry, folder).version == 2
    assert steps == 7, "three files, their folder, the model's folder, the pointer, its folder"


def test_the_default_folder_is_one_for_each_trust_root(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    publish(registry, 1)
    model = pull(registry.directory, "digits", trust=registry.root_path)
    assert model.directory.is_relative_to(tmp_path / "data" / "quorate" / "pulled")


def test_a_follower_uses_new_versions_and_every_prediction_is_of_one(
    registry: Registry, device: Path
) -> None:
    publish(registry, 1)
    inputs = examples(4)
    with pulled(registry, device, follow=True, interval_s=0.01) as model:
        seen = []
        for round_ in range(2, 6):
            publish(registry, round_)
            expected = registry.load("digits", round_).predict(inputs)
            deadline = time.monotonic() + 60
            while model.version != round_ and time.monotonic() < deadline:
                seen.append((model.predict(inputs), round_))
            np.testing.assert_array_equal(model.predict(inputs), expected)
        possible = [registry.load("digits", version).predict(inputs) for version in range(1, 6)]
        assert all(any(np.array_equal(found, each) for each in possible) for found, _ in seen)
        assert model.failed_polls == 0
    publish(registry, 6)
    time.sleep(0.05)
    assert model.version == 5


def test_a_follower_keeps_its_version_when_a_look_fails_and_goes_on(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    with pulled(registry, device, follow=True, interval_s=0.01) as model:
        file = publish(registry, 2, alias=None).directory / "parameters.safetensors"
        good = file.read_bytes()
        change_a_byte(file)
        registry.promote("digits", "stable", 2)
        assert eventually(lambda: model.failed_polls > 0)
        assert model.version == held_version(device) == 1
        assert isinstance(model.last_error, VerificationFailed)
        file.write_bytes(good)
        assert eventually(lambda: model.version == 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quorate-follow")]


def test_a_fixed_version_can_not_be_followed(registry: Registry, device: Path) -> None:
    publish(registry, 1)
    with pytest.raises(RegistryError, match="only an alias can be followed"):
        pulled(registry, device, version=1, follow=True)
