"""The protocol again, slowly: from docs/secagg.md, in plain integers and the standard library's hashes.

It shares no code with `quorate.privacy.secagg`. Field and curve arithmetic is on Python's integers; AES is the
textbook's (FIPS 197), GCM that of SP 800-38D, X25519 that of RFC 7748, Ed25519 that of RFC 8032, HKDF that of RFC 5869.
"""

from __future__ import annotations

import hashlib
import hmac
from fractions import Fraction
from math import ceil, comb, floor

P = 65_521
LABEL = b"quorate/secagg/1/"

# --- AES-256 -------------------------------------------------------------------------------------------------------


def _times(a: int, b: int) -> int:
    out = 0
    while b:
        if b & 1:
            out ^= a
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return out


def _sbox() -> list[int]:
    box = []
    for value in range(256):
        inverse = next((x for x in range(256) if _times(value, x) == 1), 0)
        out = 0x63
        for turn in range(5):
            out ^= (inverse << turn | inverse >> (8 - turn)) & 0xFF
        box.append(out)
    return box


SBOX = _sbox()
DOUBLE = [_times(2, x) for x in range(256)]
TRIPLE = [_times(3, x) for x in range(256)]


def expand(key: bytes) -> list[list[int]]:
    words = [list(key[4 * i : 4 * i + 4]) for i in range(8)]
    constant = 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [SBOX[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _times(constant, 2)
        elif i % 8 == 4:
            word = [SBOX[byte] for byte in word]
        words.append([a ^ b for a, b in zip(word, words[i - 8], strict=True)])
    return [[byte for word in words[4 * i : 4 * i + 4] for byte in word] for i in range(15)]


def encrypt(rounds: list[list[int]], block: bytes) -> bytes:
    state = [a ^ b for a, b in zip(block, rounds[0], strict=True)]
    for number in range(1, 15):
        state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if number < 14:
            mixed = []
            for column in range(0, 16, 4):
                a, b, c, d = state[column : column + 4]
                mixed += [
                    DOUBLE[a] ^ TRIPLE[b] ^ c ^ d,
                    a ^ DOUBLE[b] ^ TRIPLE[c] ^ d,
                    a ^ b ^ DOUBLE[c] ^ TRIPLE[d],
                    TRIPLE[a] ^ b ^ c ^ DOUBLE[d],
                ]
            state = mixed
        state = [a ^ b for a, b in zip(state, rounds[number], strict=True)]
    return bytes(state)


def key_stream(key: bytes, count: int, counter: int = 0) -> bytes:
    rounds = expand(key)
    blocks = -(-count // 16)
    return b"".join(encrypt(rounds, (counter + i).to_bytes(16, "big")) for i in range(blocks))[:count]


def seal(key: bytes, plain: bytes, associated: bytes) -> bytes:
    """AES-256-GCM with a nonce of 12 zero bytes."""
    rounds = expand(key)
    h = int.from_bytes(encrypt(rounds, bytes(16)), "big")
    pad = key_stream(key, len(plain), counter=2)
    cipher = bytes(a ^ b for a, b in zip(plain, pad, strict=True))

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 16)

    blocks = padded(associated) + padded(cipher)
    blocks += (8 * len(associated)).to_bytes(8, "big") + (8 * len(cipher)).to_bytes(8, "big")
    tag = 0
    for start in range(0, len(blocks), 16):
        x, tag, v = tag ^ int.from_bytes(blocks[start : start + 16], "big"), 0, h
        for bit in range(127, -1, -1):
            if x >> bit & 1:
                tag ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
    first = encrypt(rounds, (1).to_bytes(16, "big"))
    return cipher + bytes(a ^ b for a, b in zip(tag.to_bytes(16, "big"), first, strict=True))


# --- Curves --------------------------------------------------------------------------------------------------------

Q = 2**255 - 19


def x25519(scalar: bytes, point: bytes = (9).to_bytes(32, "little")) -> bytes:
    k = int.from_bytes(scalar, "little")
    k = (k & ~7 & ((1 << 255) - 1)) | 1 << 254
    x1 = int.from_bytes(point, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % Q, b * b % Q, d * a % Q, c * b % Q
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % Q, x1 * (da - cb) ** 2 % Q
        x2, z2 = aa * bb % Q, e * (aa + 121_665 * e) % Q
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, Q - 2, Q) % Q).to_bytes(32, "little")


ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121_665 * pow(121_666, Q - 2, Q) % Q
BASE_Y = 4 * pow(5, Q - 2, Q) % Q


def _recover(y: int, sign: int) -> int:
    square = (y * y - 1) * pow(D * y * y + 1, Q - 2, Q) % Q
    x = pow(square, (Q + 3) // 8, Q)
    if (x * x - square) % Q:
        x = x * pow(2, (Q - 1) // 4, Q) % Q
    return x if x & 1 == sign else Q - x


def _plus(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """RFC 8032, 5.1.4, in extended coordinates."""
    p, q = (a[1] - a[0]) * (b[1] - b[0]) % Q, (a[1] + a[0]) * (b[1] + b[0]) % Q
    r, s = 2 * a[3] * b[3] * D % Q, 2 * a[2] * b[2] % Q
    e, f, g, h = q - p, s - r, s + r, q + p
    return e * f % Q, g * h % Q, f * g % Q, e * h % Q


def _multiple(k: int) -> bytes:
    x = _recover(BASE_Y, 0)
    out, power = (0, 1, 1, 0), (x, BASE_Y, 1, x * BASE_Y % Q)
    while k:
        if k & 1:
            out = _plus(out, power)
        power = _plus(power, power)
        k >>= 1
    scale = pow(out[2], Q - 2, Q)
    return (out[1] * scale % Q | (out[0] * scale % Q & 1) << 255).to_bytes(32, "little")


def sign(private: bytes, message: bytes) -> tuple[bytes, bytes]:
    """The public key and an Ed25519 signature."""
    digest = hashlib.sha512(private).digest()
    a = (int.from_bytes(digest[:32], "little") & ~7 & ((1 << 254) - 1)) | 1 << 254
    public = _multiple(a)
    r = int.from_bytes(hashlib.sha512(digest[32:] + message).digest(), "little") % ORDER
    point = _multiple(r)
    h = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little") % ORDER
    return public, point + ((r + h * a) % ORDER).to_bytes(32, "little")


# --- Derivations ---------------------------------------------------------------------------------------------------


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(extracted, LABEL + info + b"\x01", hashlib.sha256).digest()


def digest(purpose: bytes, *parts: bytes) -> bytes:
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in (LABEL + purpose, *parts))
    return hashlib.sha256(whole).digest()


def two(first: int, second: int) -> bytes:
    return first.to_bytes(2, "big") + second.to_bytes(2, "big")


def packed(elements: list[int]) -> bytes:
    return b"".join(element.to_bytes(2, "little") for element in elements)


def bitmap(flags: list[bool]) -> bytes:
    return sum(flag << i for i, flag in enumerate(flags)).to_bytes((len(flags) + 7) // 8, "little")


# --- Sizes ---------------------------------------------------------------------------------------------------------


def sizes(n, fewest, signed, corrupt, dropout, security_bits, failure_bits, complete) -> tuple[int, int, int]:
    """k, t and the quorum, with exact fractions."""
    gamma, delta = Fraction(corrupt), Fraction(dropout)
    if not complete and n >= 50:
        bad, dropped, absent = floor(gamma * n), floor(delta * n), max(n - fewest, 0)
        for k in range(2, n - 1, 2):
            missing = bad + absent
            apart = Fraction(n * (n - k - 1), 2) * Fraction(comb(missing, k), comb(n, k))
            if apart * 2 ** (security_bits + 1) >= 1:
                continue

            def tail(marked, least, k=k):
                """P(at least `least` of k drawn are marked)."""
                ways = sum(comb(marked, x) * comb(n - marked, k - x) for x in range(least, k + 1))
                return Fraction(ways, comb(n, k))

            t1 = next(t for t in range(-1, k + 1) if tail(bad, t + 1) * n * 2 ** (security_bits + 1) < 1)
            # The largest t such that some member has t neighbours that stay, but for 2^-failure_bits.
            t2 = max(t for t in range(k + 1) if tail(dropped, k - t + 1) * n * 2**failure_bits < 1)
            t1 = (t1 + k) // 2 if signed else t1
            if t1 < t2:
                t = max(t1 + 1, 2)
                return k, t, max(fewest, t + 1)
    bad = min(ceil(gamma * n), n - 1)
    t = max((n - 1 + bad) // 2 + 1 if signed else bad + 1, 2)
    return n - 1, t, max(fewest, t + 1)


# --- A session -----------------------------------------------------------------------------------------------------


class SlowSession:
    """All messages of a session whose randomness is given: `messages[phase][name]` is (incoming, answer)."""

    def __init__(self, case: dict):
        self.case, self.names = case, [member["name"] for member in case["members"]]
        self.binding = bytes.fromhex(case["binding"])
        self.signed = case["threat_model"] != "semi-honest"
        self.drawn = {member["name"]: member for member in case["members"]}
        self.lost = case["lost"]
        self.messages: dict[str, dict[str, tuple[list[bytes], bytes]]] = {}
        self.run()

    def head(self, kind: int, tag: bytes) -> bytes:
        return bytes((1, kind)) + tag[:14]

    def there(self, phase: str, names: list[str]) -> list[str]:
        return [name for name in names if name not in self.lost.get(phase, [])]

    def run(self) -> None:
        self.advertise()
        self.put_on_the_ring()
        self.share()
        self.mask()
        self.unmask()

    def advertise(self) -> None:
        self.bodies, self.private, self.public = {}, {}, {}
        for name in self.there("advertise", self.names):
            member = self.drawn[name]
            encryption = bytes.fromhex(member["encryption_private"])
            mask = hkdf(packed(member["mask_secret"]), self.binding, b"mask-key")
            commitment = hkdf(packed(member["self_secret"]), self.binding, b"commit")
            self.private[name] = encryption, mask
            self.public[name] = x25519(encryption), x25519(mask)
            body = self.public[name][0] + self.public[name][1] + commitment
            if self.signed:
                private = bytes.fromhex(member["identity_private"])
                certificate, _ = sign(private, b"")
                message = digest(b"advertisement", self.binding, *self.public[name], commitment, certificate)
                body += len(certificate).to_bytes(2, "big") + certificate + sign(private, message)[1]
            self.bodies[name] = body
        self.messages["advertise"] = {
            name: ([], self.head(1, self.binding) + body) for name, body in self.bodies.items()
        }

    def put_on_the_ring(self) -> None:
        case = self.case
        leaf = {
            self.identity_of(name) + digest(b"leaf", self.head(1, self.binding) + body): name
            for name, body in self.bodies.items()
        }
        ordered = sorted(leaf)
        self.leaves = b"".join(ordered)
        self.n = n = len(ordered)
        self.k, self.t, quorum = sizes(
            n, case["min_survivors"], self.signed, case["corrupt"], case["dropout"],
            case["security_bits"], case["failure_bits"], case["complete"],
        )  # fmt: skip
        committed = digest(b"ring", self.binding, self.leaves)
        words = key_stream(committed, 8 * n)
        value = [int.from_bytes(words[8 * i : 8 * i + 8], "little") for i in range(n)]
        self.ring = [leaf[ordered[i]] for i in sorted(range(n), key=lambda i: (value[i], i))]
        self.place = {name: place for place, name in enumerate(self.ring)}
        numbers = (n, self.k, self.t, quorum, case["length"], case["bits"])
        text = b"".join(number.to_bytes(8, "big") for number in numbers) + case["threat_model"].encode()
        self.session = digest(b"session", self.binding, text, committed)
        half = self.k // 2
        offsets = range(1, n) if self.k == n - 1 else [*range(-half, 0), *range(1, half + 1)]
        self.near = {name: [self.ring[(self.place[name] + o) % n] for o in offsets] for name in self.ring}

    def identity_of(self, name: str) -> bytes:
        if not self.signed:
            return b""
        certificate, _ = sign(bytes.fromhex(self.drawn[name]["identity_private"]), b"")
        return digest(b"identity", self.binding, certificate)

    def share(self) -> None:
        self.sealed = {}
        self.messages["share"] = {}
        self.pairs = {}
        for name in self.there("share", self.ring):
            member, own = self.drawn[name], self.place[name]
            polynomials = [member["mask_secret"] + member["self_secret"], *member["coefficients"]]
            answer = b""
            for number, peer in enumerate(self.near[name]):
                point = number + 1
                shares = [sum(row[e] * point**m for m, row in enumerate(polynomials)) % P for e in range(32)]
                self.pairs[name, peer] = packed(shares)
                agreed = x25519(self.private[name][0], self.public[peer][0])
                info = b"seal" + two(own, self.place[peer]) + self.public[name][0] + self.public[peer][0]
                key = hkdf(agreed, self.session, info)
                where = self.session + two(own, self.place[peer])
                self.sealed[name, peer] = seal(key, self.pairs[name, peer], where)
                answer += self.sealed[name, peer]
            incoming = [
                self.head(2, self.binding) + self.leaves,
                self.head(3, self.binding) + b"".join(self.bodies[peer] for peer in self.near[name]),
            ]
            self.messages["share"][name] = incoming, self.head(4, self.session) + answer

    def mask(self) -> None:
        size, ring = self.case["bits"] // 8, 2 ** self.case["bits"]
        shared = self.there("share", self.ring)
        self.messages["mask"] = {}
        self.total = [0] * self.case["length"]
        for name in self.there("mask", shared):
            present = [peer in shared for peer in self.near[name]]
            entries = b"".join(self.sealed[peer, name] for peer in self.near[name] if peer in shared)
            own = self.place[name]
            masks = [(hkdf(packed(self.drawn[name]["self_secret"]), self.session, b"self-mask"), 1)]
            for peer in self.near[name]:
                if peer in shared:
                    agreed = x25519(self.private[name][1], self.public[peer][1])
                    low, high = sorted((own, self.place[peer]))
                    key = hkdf(agreed, self.session, b"pair-mask" + two(low, high))
                    masks.append((key, 1 if own == low else -1))
            vector = list(self.drawn[name]["vector"])
            self.total = [(a + b) % ring for a, b in zip(self.total, vector, strict=True)]
            for key, factor in masks:
                stream = key_stream(key, size * len(vector), counter=2)
                for i in range(len(vector)):
                    vector[i] += factor * int.from_bytes(stream[size * i : size * i + size], "little")
            answer = b"".join((value % ring).to_bytes(size, "little") for value in vector)
            incoming = [self.head(5, self.session) + bitmap(present) + entries]
            self.messages["mask"][name] = incoming, self.head(6, self.session) + answer

    def unmask(self) -> None:
        shared = self.there("share", self.ring)
        alive = self.there("mask", shared)
        everybody = bitmap([name in alive for name in self.ring])
        survivors = self.head(7, self.session) + everybody
        asked = {name: [survivors] for name in alive}
        if self.signed:
            signed = {
                name: sign(
                    bytes.fromhex(self.drawn[name]["identity_private"]),
                    digest(b"survivors", self.session, everybody),
                )[1]
                for name in self.there("consistency", alive)
            }
            self.messages["consistency"] = {
                name: ([survivors], self.head(8, self.session) + signature)
                for name, signature in signed.items()
            }
            asked = {}
            for name in signed:
                shown = [peer for peer in self.near[name] if peer in signed][: self.t]
                present = bitmap([peer in shown for peer in self.near[name]])
                entries = b"".join(signed[peer] for peer in shown)
                asked[name] = [self.head(9, self.session) + present + entries]
        self.messages["unmask"] = {}
        for name in self.there("unmask", list(asked)):
            present = [peer in shared for peer in self.near[name]]
            answer = b""
            for peer in self.near[name]:
                if peer in shared:
                    pair = self.pairs[peer, name]
                    answer += pair[32:] if peer in alive else pair[:32]
            self.messages["unmask"][name] = (
                asked[name],
                self.head(10, self.session) + bitmap(present) + answer,
            )
