"""A participation's stream: the versions that are spoken, and frames cut into chunks.

A frame (`quorate.wire.frames`) can be as long as a model, a chunk is short, so that neither side holds more of a slow
stream than it wants. What a stream costs its receiver grows with what has arrived, never with what was announced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError

from quorate.errors import ProtocolViolation
from quorate.wire import device_pb2 as pb

__all__ = [
    "CHUNK_BYTES",
    "FIRST_BYTES",
    "VERSIONS",
    "ZSTD",
    "Joiner",
    "compress",
    "cut",
    "read_message",
    "version",
]

VERSIONS = (1,)
"""Of the device protocol, that this release speaks."""

CHUNK_BYTES = 32 << 10
"""Of every other chunk. Shorter ones cost time, longer ones memory: a thousand streams hold one each, both ways."""

FIRST_BYTES = 4 << 10
"""Of a frame's first chunk: a receiver that has no room for the frame yet holds no more than this of it."""

ZSTD = "zstd"

_PAYS = 0.95  # a shorter frame than this share of it is worth the device's work


def version(offered: Sequence[int]) -> int | None:
    """The newest version that both sides speak; None if there is none."""
    return max(set(VERSIONS).intersection(offered), default=None)


def cut(frame: bytes, compressed: bytes | None = None) -> Iterator[pb.Chunk]:
    """The chunks of a frame, in order.

    Args:
        frame: not empty.
        compressed: what is sent in its place, from `compress`.
    """
    whole = memoryview(frame if compressed is None else compressed)
    size = CHUNK_BYTES if len(whole) <= CHUNK_BYTES else FIRST_BYTES
    encoding = "" if compressed is None else ZSTD
    yield pb.Chunk(
        frame_bytes=len(frame), encoding=encoding, data=bytes(whole[:size]), last=size >= len(whole)
    )
    for start in range(size, len(whole), CHUNK_BYTES):
        data = bytes(whole[start : start + CHUNK_BYTES])
        yield pb.Chunk(data=data, last=start + CHUNK_BYTES >= len(whole))


def read_message(raw: bytes) -> pb.CheckIn | pb.Chunk:
    """The content of a device's message.

    Raises:
        ProtocolViolation: the bytes are not a message, or an empty one.
    """
    try:
        message = pb.DeviceMessage.FromString(raw)
    except (DecodeError, ValueError) as error:
        raise ProtocolViolation(f"{len(raw)} bytes that are no message: {error}") from error
    match message.WhichOneof("content"):
        case "check_in":
            return message.check_in
        case "chunk":
            return message.chunk
    raise ProtocolViolation("a message without content")


def compress(frame: bytes) -> bytes | None:
    """The frame in Zstandard's format (RFC 8878), if that is installed here and pays."""
    try:
        import zstandard
    except ImportError:
        return None
    compressed = zstandard.ZstdCompressor(level=1).compress(frame)
    return compressed if len(compressed) < _PAYS * len(frame) else None


class Joiner:
    """Puts the chunks of one stream together again.

    Args:
        most_bytes: of a frame.
        encodings: that may come: `zstd`, if it is installed here, or none.
    """

    def __init__(self, most_bytes: int, encodings: Sequence[str] = ()):
        self.most_bytes, self._encodings = most_bytes, encodings
        self._pieces: list[bytes] = []
        self._first: pb.Chunk | None = None
        self._held = 0

    @property
    def within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._first is not None

    def add(self, chunk: pb.Chunk) -> bytes | None:
        """Takes the next chunk; returns the frame if it was its last.

        Raises:
            ProtocolViolation: the chunk does not fit; the stream is of no use any more.
        """
        first = self._first or chunk
        if self._first is None:
            self._check_first(chunk)
            self._first = chunk
        elif chunk.frame_bytes or chunk.encoding:
            raise ProtocolViolation("a new frame began within another")
        if not chunk.data:
            raise ProtocolViolation("a chunk without data")
        self._held += len(chunk.data)
        if self._held > first.frame_bytes:
            raise ProtocolViolation(f"more than the {first.frame_bytes} bytes came that were announced")
        self._pieces.append(chunk.data)
        if not chunk.last:
            return None
        data, encoding, announced = b"".join(self._pieces), first.encoding, first.frame_bytes
        self._pieces, self._first, self._held = [], None, 0
        frame = _decompressed(data, announced) if encoding else data
        if len(frame) != announced:
            raise ProtocolViolation(f"a frame of {len(frame)} bytes, {announced} were announced")
        return frame

    def _check_first(self, chunk: pb.Chunk) -> None:
        if not 1 <= chunk.frame_bytes <= self.most_bytes:
            raise ProtocolViolation(
                f"a frame of {chunk.frame_bytes} bytes; from 1 to {self.most_bytes} are accepted here"
            )
        if chunk.encoding and chunk.encoding not in self._encodings:
            accepted = ", ".join(["none", *self._encodings])
            raise ProtocolViolation(f"the encoding {chunk.encoding[:20]!r}; accepted here: {accepted}")


def _decompressed(data: bytes, frame_bytes: int) -> bytes:
    """A frame from Zstandard's format: nothing is allocated before the length it names is the announced one."""
    import zstandard

    try:
        if zstandard.frame_content_size(data) != frame_bytes:
            raise ProtocolViolation("a compressed frame is not as long as was announced")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=frame_bytes)
    except zstandard.ZstdError as error:
        raise ProtocolViolation(f"a frame can't be decompressed: {error}") from error
