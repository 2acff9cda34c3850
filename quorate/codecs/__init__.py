"""Codecs: composable pairs of `encode` (on the client) and `decode` (on the server) around a sum.

A codec maps a block of client vectors, shape (clients, n), to another, shape (clients, m), and maps the *sum*
of such vectors back. Codecs chain as gradient transformations do in Optax: encoding runs from the first to
the last, decoding from the last to the first. The leading clients axis lets a vectorised simulation use the
same code as one device.

Values are float32 or float64 until `Discretise`, int32 or int64 until `Wrap`, and uint16 or uint32 on the wire. The
codecs of a mechanism (noise shares) live with it, in `quorate.privacy.mechanisms`.
"""

from quorate.codecs.clipping import Clip, ClipL1, ClipParts, norms
from quorate.codecs.contract import Chain, Codec
from quorate.codecs.integers import Digits, Discretise, Wrap, rounded_norm_bound
from quorate.codecs.rotation import Rotate, hadamard

__all__ = [
    "Chain",
    "Clip",
    "ClipL1",
    "ClipParts",
    "Codec",
    "Digits",
    "Discretise",
    "Rotate",
    "Wrap",
    "hadamard",
    "norms",
    "rounded_norm_bound",
]
