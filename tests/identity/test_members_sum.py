"""Secure sums among certified members: certificates and the log stand between a lying server and members it made up."""

from pathlib import Path

import pytest

from quorate.errors import QuorumNotReached
from quorate.identity import Certificate, Holder, Log, Members, Role
from quorate.privacy.secagg import Enrolment, SecAggSummation
from quorate.randomness import Randomness
from quorate.server.authority import Authority
from tests.identity.authorities import DAY, Clock, authority, device, party
from tests.privacy.secagg.sessions import MALICIOUS, Run, TestJournal, drive, prepare, session

COUNT = 6


def followed(by: Authority) -> Log:
    log = Log(by.root)
    log.follow(by.entries(0), by.head())
    return log


class Anybody:
    """What a lying server believes: a certificate is whose it says it is, whoever signed it."""

    def public_key(self, certificate: bytes) -> bytes | None:
        return Certificate.read(certificate).identity


def certified(run: Run, holders: list[Holder], enrolment: Enrolment, *, lying_server: bool) -> Run:
    """The run's members with these identities; a lying server takes whom it likes."""
    common = session()
    for place, (name, holder) in enumerate(zip(run.names, holders, strict=True)):
        summation = SecAggSummation(
            common, TestJournal(), MALICIOUS, enrolment=enrolment, identities=lambda _, holder=holder: holder
        )
        run.clients[name] = summation.client(run.vectors[place], Randomness.from_seed(place))
    run.server._enrolment = Anybody() if lying_server else enrolment
    return run


def test_certified_members_sum(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    holders = [device(tmp_path / str(i), ours) for i in range(COUNT)]
    run = certified(
        prepare(COUNT, MALICIOUS), holders, Members(ours.root, followed(ours), clock), lying_server=False
    )
    drive(run, {"mask": ["client-1"]})
    [(total, members)] = run.sink.added
    assert len(members) == COUNT - 1
    assert (total == run.expected(members)).all()


def stranger(folder: Path, clock: Clock) -> Holder:
    other = authority(folder / "other", clock)
    made = device(folder / "stranger", other)
    other.close()
    return made


@pytest.mark.parametrize(
    "who", ["revoked", "of another authority", "not in the log", "an operator", "expired"]
)
def test_a_member_that_a_lying_server_brings_is_refused_by_all_others(
    who: str, ours: Authority, clock: Clock, tmp_path: Path
) -> None:
    holders = [device(tmp_path / "0", ours)]
    if who == "expired":
        clock.now += 8 * DAY
    holders += [device(tmp_path / str(i), ours) for i in range(1, COUNT)]
    log = followed(ours)
    match who:
        case "revoked":
            ours.revoke(holders[0].name, "stolen")
            log = followed(ours)
        case "of another authority":
            holders[0] = stranger(tmp_path, clock)
        case "not in the log":
            holders[0] = device(tmp_path / "secret", ours)  # enrolled after the log that the others have
        case "an operator":
            holders[0] = party(tmp_path / "operator", ours, Role.OPERATOR)
            log = followed(ours)
    run = certified(prepare(COUNT, MALICIOUS), holders, Members(ours.root, log, clock), lying_server=True)
    with pytest.raises(QuorumNotReached):
        drive(run)
    for name in run.names[1:]:
        assert "is not enrolled" in str(run.refusals[name])
    assert not run.sink.added


def test_an_honest_server_lets_no_stranger_in(ours: Authority, clock: Clock, tmp_path: Path) -> None:
    holders = [stranger(tmp_path, clock), *(device(tmp_path / str(i), ours) for i in range(1, COUNT))]
    members = Members(ours.root, followed(ours), clock)
    run = drive(certified(prepare(COUNT, MALICIOUS), holders, members, lying_server=False))
    assert list(run.refusals) == ["client-0"]
    [(total, survivors)] = run.sink.added
    assert "client-0" not in survivors
    assert (total == run.expected(survivors)).all()
