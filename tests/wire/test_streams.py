"""Frames in chunks: what was cut is joined again, and nothing else is taken."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import ProtocolViolation
from quorate.wire import device_pb2 as pb
from quorate.wire.streams import CHUNK_BYTES, VERSIONS, ZSTD, Joiner, compress, cut, version


@pytest.mark.parametrize("length", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
def test_a_frame_survives_being_cut(length: int) -> None:
    frame = os.urandom(length)
    joiner = Joiner(length)
    for _ in range(2):
        joined = [joiner.add(chunk) for chunk in cut(frame)]
        assert joined == [None] * (len(joined) - 1) + [frame]
        assert not joiner.within


def test_a_frame_that_compresses_travels_compressed() -> None:
    frame = b"federated " * 100_000
    compressed = compress(frame)
    assert compressed is not None
    chunks = list(cut(frame, compressed))
    assert sum(len(chunk.data) for chunk in chunks) < len(frame) / 100
    assert Joiner(len(frame), [ZSTD]).add(chunks[-1]) == frame


def test_a_frame_that_does_not_compress_is_sent_as_it_is() -> None:
    assert compress(os.urandom(10_000)) is None


def test_a_compressed_frame_that_unfolds_to_another_length_is_refused_before_it_is_unfolded() -> None:
    bomb = compress(bytes(1 << 24))
    assert bomb is not None
    chunk = pb.Chunk(frame_bytes=1 << 20, encoding=ZSTD, data=bomb, last=True)
    with pytest.raises(ProtocolViolation, match="not as long"):
        Joiner(1 << 20, [ZSTD]).add(chunk)


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([pb.Chunk(frame_bytes=11, data=b"x")], "from 1 to 10"),
        ([pb.Chunk(data=b"x", last=True)], "from 1 to 10"),
        ([pb.Chunk(frame_bytes=4, encoding="zstd", data=b"x")], "accepted here: none"),
        ([pb.Chunk(frame_bytes=4, data=b"")], "without data"),
        ([pb.Chunk(frame_bytes=4, data=b"xx"), pb.Chunk(frame_bytes=4, data=b"xx")], "within another"),
        ([pb.Chunk(frame_bytes=4, data=b"xx"), pb.Chunk(data=b"xxx", last=True)], "more than the 4"),
        ([pb.Chunk(frame_bytes=4, data=b"xxx", last=True)], "4 were announced"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(chunks: list[pb.Chunk], says: str) -> None:
    joiner = Joiner(10)
    for chunk in chunks[:-1]:
        assert joiner.add(chunk) is None
    with pytest.raises(ProtocolViolation, match=says):
        joiner.add(chunks[-1])


@given(st.binary(min_size=1, max_size=300), st.binary(max_size=200))
def test_random_bytes_never_do_more_than_break_the_protocol(first: bytes, second: bytes) -> None:
    joiner = Joiner(1000, [ZSTD])
    chunks = [
        pb.Chunk(frame_bytes=len(first), encoding=ZSTD, data=first, last=True),
        pb.Chunk(frame_bytes=len(second), data=second, last=len(second) % 2 == 0),
    ]
    for chunk in itertools.chain(chunks, chunks):
        try:
            joiner.add(chunk)
        except ProtocolViolation:
            return


def test_the_newest_common_version_is_spoken() -> None:
    assert version([*VERSIONS, 99]) == VERSIONS[-1]
    assert version([99]) is None
