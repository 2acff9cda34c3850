"""The signed threat models: identities, and agreement on the survivor set before anything is revealed."""

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.errors import PolicyRefused, ProtocolViolation, QuorumNotReached
from quorate.privacy.secagg import (
    AnyKey,
    Ed25519Identity,
    EnrolledKeys,
    SecAggParameters,
    SecAggSummation,
    ThreatModel,
    messages,
)
from quorate.privacy.secagg.encoding import members_of, to_bitmap
from quorate.privacy.secagg.identity import verifies
from quorate.privacy.secagg.messages import Advertisement, SignedRoster
from quorate.privacy.secagg.states import Phase
from quorate.randomness import Randomness
from tests.privacy.secagg.sessions import (
    MALICIOUS,
    SEMI_MALICIOUS,
    TestJournal,
    TestSink,
    drive,
    prepare,
    session,
    summation,
)

ME = "client-0"
both = pytest.mark.parametrize("parameters", [SEMI_MALICIOUS, MALICIOUS], ids=["semi-malicious", "malicious"])


def delivered(run, name=ME):
    return [message.data for message in run.sent[run.server.phase] if message.member == name]


def refuses(client, data, error, match):
    with pytest.raises(error, match=match):
        client.receive(data)
    assert client.state == "ended"


@both
def test_a_signed_session_gives_the_ring_sum_with_dropouts_in_every_phase(parameters):
    run = prepare(12, parameters)
    names = run.names
    lost = {
        "share": names[:1],
        "mask": names[1:2],
        "consistency": names[2:3],
        "unmask": names[3:4],
    }
    drive(run, lost)
    [(total, members)] = run.sink.added
    assert set(members) == set(names[2:])
    assert (total == run.expected(members)).all()
    assert list(run.sent) == ["advertise", "share", "mask", "consistency", "unmask"]


def test_a_signed_session_runs_on_a_sparse_graph():
    run = drive(
        prepare(60, SEMI_MALICIOUS, min_survivors=48), {"mask": {"client-1"}, "consistency": {"client-2"}}
    )
    assert not run.clients[ME]._ring.hood.complete
    assert (run.sink.added[0][0] == run.expected(run.sink.added[0][1])).all()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(5, 8))
def test_any_dropouts_give_the_exact_sum_or_nothing(data, members):
    run = prepare(members, SEMI_MALICIOUS, length=4)
    lost = {
        phase: set(data.draw(st.permutations(run.names))[: data.draw(st.integers(0, 2))])
        for phase in ("advertise", "share", "mask", "consistency", "unmask")
    }
    ended = "done"
    try:
        drive(run, lost)
    except QuorumNotReached as refusal:
        ended = refusal.phase
    if ended != "done":
        assert run.sink.added == []
        assert ("unmask" in run.sent) is (ended == "unmask")
        return
    [(total, survivors)] = run.sink.added
    assert set(survivors) == set(run.names) - lost["advertise"] - lost["share"] - lost["mask"]
    assert (total == run.expected(survivors)).all()


def test_nothing_is_revealed_before_the_survivor_set_is_acknowledged():
    run = drive(prepare(6, MALICIOUS), until="consistency")
    assert not run.server.reveals
    answer = run.clients[ME].receive(delivered(run)[0])
    assert messages.Acknowledgement.decode(answer, run.clients[ME]._tag, run.clients[ME]._sizes)


# --- Identities ---


def test_a_neighbour_that_is_not_enrolled_is_refused():
    run = prepare(6, MALICIOUS)
    client = run.clients[ME]
    own = client._trust.identity.certificate
    client._trust = dataclasses.replace(client._trust, enrolment=EnrolledKeys(frozenset({own})))
    drive(run, until="share")
    roster, neighbours = delivered(run)
    client.receive(roster)
    refuses(client, neighbours, ProtocolViolation, "is not enrolled")


def believe_everybody(server, identities=None):
    """Makes a server one that checks no advertisement, and gives some members another identity in the roster."""

    def take(member, data):
        advertisement = Advertisement.decode(data, server._tag, server._sizes)
        server._advertisements[member] = advertisement
        server._identities[member] = (identities or {}).get(member, advertisement.certificate)

    server._takers = {**server._takers, Phase.ADVERTISE: take}


def test_keys_that_no_enrolled_identity_signed_are_refused_by_client_and_server():
    run = prepare(6, MALICIOUS)

    def forge(phase, name, data):
        return data[:-1] + bytes([data[-1] ^ 1]) if (phase, name) == ("advertise", "client-3") else data

    with_server = drive(run, to_server=forge)
    assert "no enrolled identity has signed" in str(with_server.refusals["client-3"])

    run = prepare(6, MALICIOUS)
    believe_everybody(run.server)
    with pytest.raises(QuorumNotReached):
        drive(run, to_server=forge)
    assert all("not signed by its identity" in str(r) for n, r in run.refusals.items() if n != "client-3")


def test_keys_signed_for_another_round_are_refused():
    replayed = prepare(6, MALICIOUS, binding=b"r" * 32).clients["client-3"].begin()
    run = prepare(6, MALICIOUS)
    believe_everybody(run.server)

    def replay(phase, name, data):
        return data[:16] + replayed[16:] if (phase, name) == ("advertise", "client-3") else data

    with pytest.raises(QuorumNotReached):
        drive(run, to_server=replay)
    assert "not signed by its identity" in str(run.refusals[ME])


def test_one_identity_cannot_stand_for_two_members():
    run = prepare(6, MALICIOUS)
    run.clients["client-4"]._trust = run.clients["client-3"]._trust
    drive(run)
    assert "an identity that another member has" in str(run.refusals["client-4"])

    leaves = [digest * 32 + leaf * 32 for digest, leaf in ((b"a", b"1"), (b"b", b"2"), (b"b", b"3"))]
    with pytest.raises(ProtocolViolation, match="not strictly increasing"):
        SignedRoster(bytes(14), b"".join(leaves))
    SignedRoster(bytes(14), b"".join(leaves[:2]))


def test_a_roster_that_hides_an_identity_behind_another_digest_is_refused_by_its_neighbours():
    run = prepare(6, MALICIOUS)
    run.clients["client-4"]._trust = run.clients["client-3"]._trust
    believe_everybody(run.server, {"client-4": b"somebody else"})
    with pytest.raises(QuorumNotReached):
        drive(run)
    assert "not those that the roster lists" in str(run.refusals[ME])


# --- Consistency ---


def acknowledging(members=6, parameters=MALICIOUS):
    """A session in which everybody has acknowledged, and the signatures have not been delivered."""
    run = drive(prepare(members, parameters), until="unmask")
    return (
        run,
        run.clients[ME],
        messages.Acknowledgements.decode(delivered(run)[0], run.clients[ME]._tag, run.clients[ME]._sizes),
    )


def test_fewer_than_t_signatures_are_refused():
    _, client, message = acknowledging()
    present = members_of(message.present, 5)
    present[np.flatnonzero(present)[-1]] = False
    fewer = messages.Acknowledgements(message.tag, to_bitmap(present), message.entries[:-64])
    refuses(client, fewer.encode(), PolicyRefused, "neighbours have signed the survivor set, at least")


def test_a_wrong_signature_is_refused():
    _, client, message = acknowledging()
    wrong = dataclasses.replace(message, entries=message.entries[:-1] + bytes([message.entries[-1] ^ 1]))
    refuses(client, wrong.encode(), ProtocolViolation, "not on the survivor set that came here")


def test_a_signature_of_somebody_who_is_not_in_the_set_is_refused():
    run = drive(prepare(6, MALICIOUS), {"mask": {"client-2"}}, until="unmask")
    client = run.clients[ME]
    message = messages.Acknowledgements.decode(delivered(run)[0], client._tag, client._sizes)
    number = client._places.tolist().index(run.server._place["client-2"])
    present = np.zeros(5, bool)
    present[number] = True
    present[[n for n in range(5) if n != number][: message.present[0].bit_count()]] = True
    forged = messages.Acknowledgements(client._tag, to_bitmap(present), bytes(64 * int(present.sum())))
    refuses(client, forged.encode(), ProtocolViolation, "that is not in it")


def test_a_client_signs_one_survivor_set():
    run = drive(prepare(6, MALICIOUS), until="consistency")
    client = run.clients[ME]
    client.receive(delivered(run)[0])
    refuses(client, delivered(run)[0], ProtocolViolation, "came to a client that is acknowledged")


def test_two_neighbourhoods_that_are_told_different_survivors_reveal_nothing():
    run = drive(prepare(8, MALICIOUS), until="consistency")
    server, n = run.server, 8
    victim = server._place["client-7"]
    told = {}
    signatures = {}
    for name in run.names[:7]:
        alive = np.ones(n, bool)
        alive[victim] = server._place[name] % 2 == 0
        told[name] = to_bitmap(alive)
        answer = run.clients[name].receive(messages.Survivors(server._tag, told[name]).encode())
        signatures[name] = answer[16:]
    place_to_name = {place: name for name, place in server._place.items()}
    for name in run.names[:7]:
        client = run.clients[name]
        present, entries = np.zeros(7, bool), b""
        for number, place in enumerate(client._places.tolist()):
            peer = place_to_name[place]
            if peer != "client-7" and told[peer] == told[name]:
                present[number] = True
                entries += signatures[peer]
        refuses(
            client,
            messages.Acknowledgements(server._tag, to_bitmap(present), entries).encode(),
            PolicyRefused,
            "have signed the survivor set",
        )


def test_the_server_refuses_an_acknowledgement_of_another_set():
    run = prepare(6, MALICIOUS)

    def lie(phase, name, data):
        return data[:16] + bytes(64) if (phase, name) == ("consistency", "client-2") else data

    drive(run, to_server=lie)
    assert "signed something else than the survivor set" in str(run.refusals["client-2"])
    assert set(run.sink.added[0][1]) == set(run.names)


def test_a_round_without_enough_acknowledgements_ends_before_anything_is_asked():
    run = prepare(6, MALICIOUS)
    with pytest.raises(QuorumNotReached) as refusal:
        drive(run, {"consistency": set(run.names[:4])})
    assert refusal.value.phase == "consistency"
    assert "unmask" not in run.sent
    assert not run.server.reveals


# --- Set-up ---


def test_a_signed_session_needs_an_enrolment_and_identities():
    with pytest.raises(ValueError, match="needs an enrolment"):
        SecAggSummation(session(), TestJournal(), MALICIOUS)
    made = SecAggSummation(session(length=3), TestJournal(), MALICIOUS, enrolment=AnyKey())
    with pytest.raises(ValueError, match="needs an identity"):
        made.client(np.zeros(3, np.uint32), Randomness.from_seed(0))


def test_an_unsigned_session_ignores_identities():
    run = drive(prepare(4, SecAggParameters()))
    assert len(run.answers["advertise", ME]) == 16 + 96
    assert "consistency" not in run.sent


@pytest.mark.parametrize("size", [0, 1025])
def test_certificates_have_a_size_limit(size):
    with pytest.raises(ProtocolViolation, match="1 to 1024 are accepted"):
        messages.Advertisement(bytes(14), b"a" * 32, b"b" * 32, b"c" * 32, bytes(size), bytes(64))


def test_long_certificates_travel_in_whole():
    randomness = Randomness.from_seed(1)
    private = Ed25519PrivateKey.from_private_bytes(randomness.bytes(32))
    identity = Ed25519Identity(private, certificate=bytes(range(256)) * 4)
    message = messages.Advertisement(
        bytes(14), b"a" * 32, b"b" * 32, b"c" * 32, identity.certificate, identity.sign(b"")
    )
    sizes = dataclasses.replace(prepare(3, MALICIOUS).clients[ME]._sizes, neighbours=2)
    assert messages.Advertisement.decode(message.encode(), bytes(14), sizes) == message
    pair = messages.Neighbours(bytes(14), (message, message))
    assert messages.Neighbours.decode(pair.encode(), bytes(14), sizes) == pair
    for length in range(16, len(pair.encode())):
        with pytest.raises(ProtocolViolation):
            messages.Neighbours.decode(pair.encode()[:length], bytes(14), sizes)


def test_a_signature_under_a_key_that_is_no_point_is_wrong():
    assert not verifies(b"\xff" * 32, bytes(64), b"")
    assert not verifies(b"short", bytes(64), b"")


def test_enrolment_by_a_list_knows_who_is_on_it():
    assert EnrolledKeys(frozenset({b"k" * 32})).public_key(b"k" * 32) == b"k" * 32
    assert EnrolledKeys(frozenset()).public_key(b"k" * 32) is None
    assert AnyKey().public_key(b"short") is None


def test_the_threat_model_is_part_of_the_session():
    a = summation(session(), SEMI_MALICIOUS).server(TestSink())
    assert ThreatModel.SEMI_MALICIOUS.signed
    assert not ThreatModel.SEMI_HONEST.signed
    assert a.phase == "new"
