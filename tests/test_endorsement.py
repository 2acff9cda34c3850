"""Who stands behind a plan's terms."""

import dataclasses

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.endorsement import Endorsement

KEY = Ed25519PrivateKey.generate()


def test_an_endorsement_covers_the_terms_that_were_signed():
    assert Endorsement.of(b"terms", KEY).covers(b"terms")


def test_an_endorsement_covers_no_other_terms():
    assert not Endorsement.of(b"terms", KEY).covers(b"terms ")


def test_an_endorsement_names_who_signed():
    endorsement = Endorsement.of(b"terms", KEY)
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    assert not dataclasses.replace(endorsement, signer=other).covers(b"terms")


def test_a_malformed_endorsement_covers_nothing():
    assert not Endorsement(b"", b"").covers(b"terms")


def test_a_signature_made_for_something_else_is_no_endorsement():
    signer = KEY.public_key().public_bytes_raw()
    assert not Endorsement(signer, KEY.sign(b"terms")).covers(b"terms")
