import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.errors import IdentityRefused
from quorate.identity import Entry, Log, Members, Role
from quorate.identity.log import canonical, entry_hash, revoked
from quorate.server.authority import Authority
from tests.identity.authorities import START, Clock, authority, device


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Authority]:
    made = authority(tmp_path / "authority", Clock())
    yield made
    made.close()


def rewritten(entries: list[Entry], start: bytes, place: int, content: bytes) -> list[Entry]:
    """The entries with one changed, and every hash after it made anew: what a lying server would show."""
    contents = [entry.content for entry in entries]
    contents[place] = content
    return chained(contents, start)


def chained(contents: list[bytes], start: bytes) -> list[Entry]:
    entries = []
    for index, content in enumerate(contents):
        start = entry_hash(start, content)
        entries.append(Entry(index, content, start))
    return entries


def test_a_device_that_follows_the_log_knows_who_is_enrolled(ours: Authority, tmp_path: Path) -> None:
    first, second = device(tmp_path / "first", ours), device(tmp_path / "second", ours)
    log = Log(ours.root)
    log.follow(ours.entries(0), ours.head())
    assert log.names(Role.DEVICE) == [first.name, second.name]
    ours.revoke(first.name, "lost")
    log.follow(ours.entries(log.size), ours.head())
    assert log.names(Role.DEVICE) == [second.name]
    members = Members(ours.root, log, clock=lambda: START)
    assert members.public_key(first.certificate) is None
    assert members.public_key(second.certificate) is not None


def test_a_member_that_is_not_in_the_log_is_nobody(ours: Authority, tmp_path: Path) -> None:
    log = Log(ours.root)
    secretly = device(tmp_path / "device", ours)
    assert Members(ours.root, clock=lambda: START).public_key(secretly.certificate) is not None
    assert Members(ours.root, log, clock=lambda: START).public_key(secretly.certificate) is None


def test_a_rewritten_past_is_refused(ours: Authority, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        device(tmp_path / name, ours)
    log = Log(ours.root)
    start = log.hash
    log.follow(ours.entries(0, 2))
    lie = rewritten(ours.entries(0), start, 1, revoked("f" * 32, "never", START))
    with pytest.raises(IdentityRefused, match=r"entry 2 .* continue the 2 entries .* rewritten or forked"):
        log.follow(lie[2:])
    assert log.size == 2
    log.follow(ours.entries(2), ours.head())


def test_a_changed_or_missing_entry_is_refused(ours: Authority, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        device(tmp_path / name, ours)
    entries = ours.entries(0)
    changed = [entries[0], dataclasses.replace(entries[1], content=entries[2].content), entries[2]]
    for lie in (changed, [entries[0], entries[2]], entries[1:], [*entries, entries[2]]):
        with pytest.raises(IdentityRefused, match="does not continue"):
            Log(ours.root).follow(lie)


def test_a_log_that_its_authority_has_not_signed_is_refused(ours: Authority, tmp_path: Path) -> None:
    device(tmp_path / "first", ours)
    log, head = Log(ours.root), ours.head()
    added = chained([*[e.content for e in ours.entries(0)], revoked("f" * 32, "never", START)], log.hash)
    with pytest.raises(IdentityRefused, match="do not lead up to the head"):
        log.follow(added, head)
    grown = dataclasses.replace(head, size=2, hash=added[-1].hash)
    with pytest.raises(IdentityRefused, match="not signed by the authority"):
        log.follow(added, grown)
    with pytest.raises(IdentityRefused, match="do not lead up to the head"):
        log.follow([], head)
    assert log.size == 0


def test_a_log_that_became_shorter_is_refused(ours: Authority, tmp_path: Path) -> None:
    device(tmp_path / "first", ours)
    earlier = ours.head()
    device(tmp_path / "second", ours)
    log = Log(ours.root)
    log.follow(ours.entries(0), ours.head())
    with pytest.raises(IdentityRefused, match="has 1 entries and does not hold the 2 that are known"):
        log.follow([], earlier)


def test_another_authoritys_log_is_refused(ours: Authority, tmp_path: Path) -> None:
    other = authority(tmp_path / "other", Clock())
    device(tmp_path / "theirs", other)
    with pytest.raises(IdentityRefused, match="does not continue"):
        Log(ours.root).follow(other.entries(0))
    other.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"kind": "revoked"}',
        canonical({"kind": "crowned", "name": "x", "reason": "", "at": ""}),
        canonical({"kind": "revoked", "name": "x", "reason": 1, "at": ""}),
        canonical({"kind": "revoked", "name": "x", "reason": "", "at": "", "more": ""}),
        canonical({"kind": "enrolled", "role": "king", "identity": "00" * 32, "at": ""}),
        canonical({"kind": "enrolled", "role": "device", "identity": "00" * 31, "at": ""}),
        canonical({"kind": "revoked", "name": "x", "reason": "y" * 1024, "at": ""}),
        b'{"at":"","kind":"revoked","name":"x", "reason":""}',
        b'{"at":"","kind":["revoked"],"name":"x","reason":""}',
    ],
)
def test_what_is_no_entry_is_refused(ours: Authority, content: bytes) -> None:
    log = Log(ours.root)
    with pytest.raises(IdentityRefused, match="is not an entry"):
        log.follow(chained([content], log.hash))
    assert log.size == 0


def test_a_revocation_is_for_good(ours: Authority, tmp_path: Path) -> None:
    holder = device(tmp_path / "device", ours)
    ours.revoke(holder.name, "lost")
    log = Log(ours.root)
    contents = [entry.content for entry in ours.entries(0)]
    log.follow(chained([*contents, contents[0]], log.hash))  # even if the authority enrolled it anew
    assert log.is_revoked(holder.name)
    assert log.identity(holder.name, Role.DEVICE) is None
