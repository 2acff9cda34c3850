"""Who somebody is: certificates, requests for them, and the public log of who was enrolled.

A party has two keys. Its *identity key* (Ed25519, RFC 8032) is made once and is what it is: its name is a hash of it,
and it signs what the party advertises in secure aggregation. Its *TLS key* (P-256) is replaced with each certificate:
gRPC's TLS accepts no Ed25519 certificates. One certificate binds both. This package is what both sides need; the
authority that issues certificates is `quorate.server.authority`.
"""

from quorate.identity.certificates import Certificate, Role, Root, name_of
from quorate.identity.holder import Holder
from quorate.identity.log import Entry, Head, Log
from quorate.identity.membership import Members
from quorate.identity.requests import Request, Withdrawal, read_request
from quorate.identity.tokens import Token

__all__ = [
    "Certificate",
    "Entry",
    "Head",
    "Holder",
    "Log",
    "Members",
    "Request",
    "Role",
    "Root",
    "Token",
    "Withdrawal",
    "name_of",
    "read_request",
]
