"""Whatever comes from others is read, or refused: bytes that were changed, cut or made up raise nothing else."""

import contextlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import IdentityRefused
from quorate.identity import Certificate, Entry, Log, Members, Role, Root, Token, read_request
from quorate.identity.log import entry_hash
from quorate.identity.requests import make_request
from quorate.server.issuing import Issuer, Validity
from tests.identity.authorities import START

ISSUER = Issuer.create("ours", START, Validity())
HOSTS = ("fl.example.org", "192.0.2.1")
REQUEST = make_request(Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1()), HOSTS)
SERVER = ISSUER.issue(read_request(REQUEST), Role.COORDINATOR, START, HOSTS)
DEVICE = ISSUER.issue(read_request(REQUEST), Role.DEVICE, START)

# Odd certificates are parsed with a warning, and refused.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


@st.composite
def changed(draw: st.DrawFn, original: bytes) -> bytes:
    """A few bytes of it changed, left out or put in."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


def members_key(data: bytes) -> None:
    """What a member does with a neighbour's certificate; None refuses it."""
    found = Members(ISSUER.root, clock=lambda: START).public_key(data)
    assert found in (None, DEVICE.identity)


@pytest.mark.parametrize(
    ("read", "original"),
    [
        (Certificate.read, SERVER.der),
        (Certificate.read, SERVER.pem),
        (Root, ISSUER.root.der),
        (lambda data: ISSUER.root.verify(data, START), SERVER.der),
        (members_key, DEVICE.der),
        (read_request, REQUEST),
    ],
    ids=["certificate", "certificate as text", "root", "verification", "neighbour", "request"],
)
@settings(max_examples=300)
@given(data=st.data())
def test_changed_bytes_are_refused_or_harmless(
    read: Callable[[bytes], object], original: bytes, data: st.DataObject
) -> None:
    with contextlib.suppress(IdentityRefused):
        read(data.draw(st.one_of(changed(original), st.binary(max_size=200))))


@settings(max_examples=300)
@given(data=st.data())
def test_no_change_of_a_certificate_makes_another_of_it(data: st.DataObject) -> None:
    other = data.draw(changed(DEVICE.der))
    with contextlib.suppress(IdentityRefused):
        verified = ISSUER.root.verify(other, START)
        assert (verified.identity, verified.role, verified.expires) == (
            DEVICE.identity,
            DEVICE.role,
            DEVICE.expires,
        )


@settings(max_examples=300)
@given(
    content=st.one_of(st.binary(max_size=100), changed(b'{"at":"","kind":"revoked","name":"x","reason":""}'))
)
def test_any_content_of_an_entry_is_an_entry_or_refused(content: bytes) -> None:
    log = Log(ISSUER.root)
    with contextlib.suppress(IdentityRefused):
        log.follow([Entry(0, content, entry_hash(log.hash, content))])
        assert log.size == 1


TOKEN = str(Token(bytes(32), bytes(32)))


@settings(max_examples=300)
@given(text=st.one_of(st.text(), changed(TOKEN.encode()).map(lambda data: data.decode("latin1"))))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with contextlib.suppress(IdentityRefused):
        token = Token.parse(text)
        assert Token.parse(str(token)) == token
