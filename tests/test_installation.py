"""What is said of an installation."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from quorate import installation
from quorate.installation import Requirement

releases = st.lists(st.integers(0, 12), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
specifiers = st.one_of(
    st.tuples(st.sampled_from([">=", "<", "=="]), releases).map("".join),
    releases.map(lambda release: f"=={release}.*"),
)


@given(releases, st.lists(specifiers, max_size=2))
def test_versions_are_compared_as_pep_440_says(found, accepted):
    text = ",".join(accepted)
    assert Requirement("x", text, found).good == (Version(found) in SpecifierSet(text))


def test_what_comes_after_the_release_does_not_matter():
    assert Requirement("torch", "==2.13.0", "2.13.0+cpu").good


def test_a_package_that_is_missing_is_not_good():
    one = Requirement("x", ">=1", None)
    assert not one.good
    assert str(one) == "x (missing)"
    assert str(Requirement("x", ">=2", "1.0")) == "x 1.0 (needed: >=2)"


def test_what_quorate_itself_declares_is_found():
    base = {one.name: one for one in installation.base()}
    assert {"numpy", "grpcio", "protobuf", "cryptography", "tuf", "securesystemslib"} <= set(base)
    assert all(one.good for one in base.values())
    extras = {extra.name: extra for extra in installation.extras()}
    assert {"server", "simulation", "flower", "torch"} <= set(extras)
    assert not {"all", "dev"} & set(extras)
    assert "dp-accounting" in {one.name for one in extras["server"].requirements}
    assert extras["server"].remedy == "pip install 'quorate[server]'"


def test_a_port_that_is_taken_is_not_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not installation.free_port(port)
    assert installation.free_port(port)


@pytest.mark.parametrize(
    ("flags", "has"), [("flags : fpu aes sse", True), ("Features\t: fp asimd", False), ("model : 1", None)]
)
def test_aes_is_read_from_what_linux_says(flags, has, monkeypatch):
    monkeypatch.setattr(installation.Path, "read_text", lambda path: f"processor : 0\n{flags}\n")
    assert installation.machine().aes is has
