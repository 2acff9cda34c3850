"""Exact sampling of a unimodal, log-concave law on the integers, by rejection from a histogram.

The law is given by its density f relative to its mode, which is 0. Non-negative and negative integers are cut into
blocks of 2^e; block j of either side has n_j of 2^16 slots, of which m_j are *sure*, so that for a unit S, and every x
of the block,

    m_j ≤ S·f(x) ≤ n_j;   propose: a slot (16 bits), an offset in its block (e bits);
    accept in a sure slot always, in one of the r_j = n_j - m_j others with probability (S·f(x) - m_j) / r_j

is exact whatever the slots are: the slots of a block accept x with S·f(x) of 2^16. Zero belongs to the positive block
0; in the negative one, which has no sure slots, it is refused. One slot of either side stands for the infinite tail
from block K on: for wider blocks of 2^(e+t), the g-th of them with probability 2^-(g+1), which dominates, because each
is at most half as likely as the one before.

Speed: a sure slot, 19 of 20, costs 4 bytes of the stream, one look into a table and one addition; only the others need
a uniform number and the density.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Protocol

import numpy as np

from quorate.randomness import Randomness

__all__ = ["MARGIN", "Density", "Table"]

_SLOTS = 1 << 16
_TILE = 1 << 15
_MOST_BLOCKS = 1 << 11
MARGIN = 2.0**-36
"""Relative width of the band around the acceptance probability in which float64 does not decide."""


class Density(Protocol):
    """A law on the integers: unimodal with mode 0, log-concave, given relative to the mode."""

    def ratio(self, negative: np.ndarray, size: np.ndarray) -> np.ndarray:
        """f(±size) / f(0), float64, with a relative error below 2^-38 wherever it is above 2^-200.

        Args:
            negative: bool, which sign.
            size: whole numbers at least 0, float64.
        """
        ...

    def logarithm(self, negative: bool, size: int, digits: int) -> decimal.Decimal | None:
        """The logarithm of f(±size) / f(0), with an absolute error below 10^-digits; None where f is 0."""
        ...


@dataclass(frozen=True)
class Table:
    """The histogram of one law. Signed blocks are numbered: K positive, K negative, both tails.

    Args:
        density: of the law.
        offset_bits: e; a block holds 2^e integers.
        unit: S.
        tail: K, the first block of the tail.
        tail_bits: t; the tail's blocks are 2^t times as wide.
        slots: n of each signed block, shape (2K + 2,).
        sure: m of each signed block.
    """

    density: Density
    offset_bits: int
    unit: int
    tail: int
    tail_bits: int
    slots: np.ndarray
    sure: np.ndarray

    @classmethod
    def of(cls, density: Density, offset_bits: int) -> Table:
        """The histogram with blocks of 2^offset_bits; good when a block is 1/32 to 1/64 of a deviation, or one integer.

        Raises:
            ValueError: the blocks are too narrow for 2^16 slots.
        """
        width = 1 << offset_bits
        first = np.arange(_MOST_BLOCKS) * float(width)
        most = np.stack([density.ratio(np.full(len(first), side), first) for side in (False, True)])
        tail, tail_bits = min((_tail_start(most, t), t) for t in range(8))
        if tail == _MOST_BLOCKS:
            raise ValueError(f"blocks of {width} are too narrow for this law")
        most, first = most[:, :tail], first[:tail]
        least = np.stack([density.ratio(np.full(tail, side), first + (width - 1)) for side in (False, True)])
        if width == 1:
            most[1, 0] = 0.0  # the negative zero
        # The largest unit S for which all blocks and tails fit, rounded up; MARGIN covers float errors.
        unit = int((_SLOTS - 4 - 2 * tail) / most.sum())
        slots = np.minimum(np.ceil(most * unit * (1 + MARGIN)).astype(np.int64), unit)
        sure = np.floor(least * unit * (1 - MARGIN)).astype(np.int64)
        slots[0, 0] = unit
        sure[1, 0] = 0
        if width == 1:
            sure[0, 0] = unit
        slots, sure = np.append(slots.ravel(), [1, 1]), np.append(sure.ravel(), [0, 0])
        assert slots.sum() <= _SLOTS
        return cls(density, offset_bits, unit, tail, tail_bits, slots, sure)

    def sample(self, count: int, randomness: Randomness) -> np.ndarray:
        """Independent samples, int64, shape (count,)."""
        out = np.zeros(count, np.int64)
        self.add_to(out, randomness)
        return out

    def add_to(self, out: np.ndarray, randomness: Randomness) -> None:
        """Adds independent samples to `out`, contiguous signed integers, modulo its width.

        Sure slots are added in tiles; what is open of all of them is decided together.
        """
        places, slots, values = [], [], []
        for start in range(0, len(out), _TILE):
            tile = out[start : start + _TILE]
            slot, offset = self._drawn(len(tile), randomness)
            value = self._bases.take(slot, mode="clip")  # every index is in range
            if offset is not None:
                np.add(value, offset, out=value, casting="unsafe")
            found = np.flatnonzero(slot >= self._sure_slots)
            places.append(found + start)
            slots.append(slot[found])
            values.append(value[found])
            value[found] = 0
            np.add(tile, value, out=tile, casting="unsafe")
        if any(map(len, places)):
            block = self._open_blocks[np.concatenate(slots) - self._sure_slots]
            decided = np.concatenate(values).astype(np.int64)
            rejected = self._decide(decided, block, randomness)
            decided[rejected] = self.sample(len(rejected), randomness)
            out[np.concatenate(places)] += decided.astype(out.dtype)

    def _drawn(self, count: int, randomness: Randomness) -> tuple[np.ndarray, np.ndarray | None]:
        """Slots, and offsets within their blocks unless blocks are single integers."""
        if not self.offset_bits:
            return randomness.words(count, np.dtype(np.uint16)), None
        if self.offset_bits > 16:
            slot = randomness.words(count, np.dtype(np.uint16))
            offset = randomness.words(count, np.dtype(np.uint64))
        else:
            both = randomness.words(2 * count, np.dtype(np.uint16))
            slot, offset = both[:count], both[count:]
        offset &= offset.dtype.type((1 << self.offset_bits) - 1)
        return slot, offset

    def _decide(self, values: np.ndarray, block: np.ndarray, randomness: Randomness) -> np.ndarray:
        """Decides about proposals; returns where they are rejected. What a tail accepts is put into `values`."""
        uniform = randomness.words(len(values), np.dtype(np.uint64))
        known = np.minimum(block, 2 * self.tail + 1)
        sure, rest = self._sure_and_rest
        value, negative = values.astype(np.float64), block >= self.tail
        target = self.density.ratio(negative, np.abs(value)) * self.unit
        drawn = uniform * 2.0**-64
        drawn *= rest[known]
        drawn += sure[known]
        possible = ~negative | ((block < 2 * self.tail) & (value != 0))  # there is no minus zero
        distance = drawn - target
        accepted = (distance < 0) & possible
        unclear = (np.abs(distance) <= target * MARGIN) & possible
        in_tail = (block >= 2 * self.tail) & (block < 2 * self.tail + 2) & (drawn <= self._tail_chance)
        for i in np.flatnonzero(unclear | in_tail):
            found = self._settle(int(block[i]), abs(int(values[i])), int(uniform[i]), randomness)
            accepted[i] = found is not None
            if found is not None and in_tail[i]:
                values[i] = found if block[i] == 2 * self.tail else -found
        return np.flatnonzero(~accepted)

    def _settle(self, block: int, size: int, uniform: int, randomness: Randomness) -> int | None:
        """The exact decision about one proposal: |x|, or None when it is rejected."""
        unit = Fraction(self.unit)
        sure, rest = int(self.sure[block]), int(self.slots[block] - self.sure[block])
        negative = block == 2 * self.tail + 1 or self.tail <= block < 2 * self.tail
        if block >= 2 * self.tail:
            beyond = _geometric_half(randomness)
            within = int(randomness.words(1, np.dtype(np.uint64))[0]) & ((1 << self.tail_bits) - 1)
            first = self.tail + (beyond << self.tail_bits) + within
            size = (first << self.offset_bits) | (size & ((1 << self.offset_bits) - 1))
            unit *= 1 << (self.tail_bits + beyond + 1)
        accepted = self._below(uniform, rest / unit, sure / unit, negative, size, randomness)
        return size if accepted else None

    def _below(
        self,
        uniform: int,
        slope: Fraction,
        start: Fraction,
        negative: bool,
        size: int,
        randomness: Randomness,
    ) -> bool:
        """Whether slope·U + start < f(±size)/f(0), for a uniform U in [0, 1) of which the first 64 bits are given.

        `Decimal.exp` is correctly rounded, so the bounds below are rigorous: an error of the logarithm becomes a
        relative error of the result. Ends with probability 1: U hits no number exactly.
        """
        digits, bits = 30, 64
        while True:
            log = self.density.logarithm(negative, size, digits)
            if log is None:
                return False
            context = decimal.Context(prec=digits, Emin=-(10**9), Emax=10**9)
            bound = Fraction(context.exp(log))
            slack = bound / 10 ** (digits - 3)
            if slope * Fraction(uniform + 1, 1 << bits) + start <= bound - slack:
                return True
            if slope * Fraction(uniform, 1 << bits) + start >= bound + slack:
                return False
            uniform = (uniform << 64) | int(randomness.words(1, np.dtype(np.uint64))[0])
            bits += 64
            digits += 20

    @cached_property
    def _tail_chance(self) -> float:
        """No proposal of a tail is accepted with a larger probability: its blocks halve, g by g."""
        start = np.full(2, float(self.tail << self.offset_bits))
        first = self.density.ratio(np.array([False, True]), start).max()
        return min(1.0, self.unit * float(first) * 2.0 ** (self.tail_bits + 1) * (1 + MARGIN))

    @cached_property
    def _sure_and_rest(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each signed block m and r, float64."""
        return self.sure.astype(np.float64), (self.slots - self.sure).astype(np.float64)

    @cached_property
    def _sure_slots(self) -> int:
        """How many there are; they come first."""
        return int(self.sure.sum())

    @cached_property
    def _open_blocks(self) -> np.ndarray:
        """The signed block of every slot that is not sure; 2K + 2 for a slot to be drawn again."""
        blocks = np.full(_SLOTS - self._sure_slots, 2 * self.tail + 2, np.int64)
        counts = self.slots - self.sure
        blocks[: counts.sum()] = np.repeat(np.arange(len(counts)), counts)
        return blocks

    @cached_property
    def _bases(self) -> np.ndarray:
        """What is added to the offset in every slot: the smallest integer of its block."""
        lowest = np.arange(self.tail, dtype=np.int64) << self.offset_bits
        last = (1 << self.offset_bits) - 1
        bases = np.concatenate([lowest, -lowest - last, [self.tail << self.offset_bits, 0, 0]])
        slots = np.concatenate([np.repeat(np.arange(2 * self.tail + 2), self.sure), self._open_blocks])
        dtype = np.int32 if (self.tail + 1) << self.offset_bits < 2**31 else np.int64
        found: np.ndarray = bases[slots].astype(dtype)
        return found


def _tail_start(most: np.ndarray, tail_bits: int) -> int:
    """The first block from which a tail of blocks 2^tail_bits as wide can stand; _MOST_BLOCKS if none of these.

    From it on wide blocks at least halve (by log-concavity, if two neighbours do), with a hundredth to spare for float
    errors; and the tail's slot covers the first of them five hundred times over, so that nearly all it proposes is
    refused at a glance.

    Args:
        most: the density where blocks start, shape (2, _MOST_BLOCKS).
        tail_bits: t.
    """
    wide = 1 << tail_bits
    unit = _SLOTS / np.cumsum(most[0])  # at most, as the blocks before have to fit
    here, there = most[:, 1:-wide], most[:, 1 + wide :]
    good = ((there <= 0.49 * here) & (here * unit[: -wide - 1] * wide <= 2.0**-10)).all(axis=0)
    return 1 + int(good.argmax()) if good.any() else _MOST_BLOCKS


def _geometric_half(randomness: Randomness) -> int:
    """The number of tails before the first head of a fair coin."""
    count = 0
    while True:
        bits = int(randomness.words(1, np.dtype(np.uint64))[0])
        if bits:
            return count + 64 - bits.bit_length()
        count += 64
