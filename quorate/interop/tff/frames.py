"""Frames between a process and its TFF child: a JSON header and named arrays, an .npz with its length before it."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

__all__ = ["Frame", "read", "write"]

Frame = tuple[dict[str, Any], dict[str, np.ndarray]]
"""A header, and arrays by name."""

_LENGTH = struct.Struct(">Q")
_HEADER, _ARRAY = "header", "array."
_NONE: Mapping[str, np.ndarray] = {}


def write(stream: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] = _NONE) -> None:
    """Sends a frame.

    Args:
        stream: the other side.
        header: JSON values.
        arrays: of numbers.
    """
    body = io.BytesIO()
    named = {_ARRAY + name: np.asarray(array) for name, array in arrays.items()}
    for name, array in named.items():
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} is of {array.dtype}: a frame holds arrays of numbers")
    content: dict[str, Any] = {_HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8), **named}
    np.savez(body, **content)
    stream.write(_LENGTH.pack(body.tell()))
    stream.write(body.getbuffer())
    stream.flush()


def read(stream: BinaryIO) -> Frame | None:
    """Takes a frame; None when the other side is gone."""
    prefix = stream.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(prefix)
    body = stream.read(length)
    if len(body) < length:
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as content:
        header: dict[str, Any] = json.loads(content[_HEADER].tobytes())
        return header, {name.removeprefix(_ARRAY): content[name] for name in content.files if name != _HEADER}
