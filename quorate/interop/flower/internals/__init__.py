"""Flower's internal modules: all that we use of them is in this package.

They are not part of its public interface and change without notice, which is why the extra `flower` pins one version.
Three things need them: a coordinator that drives a run of a SuperLink from its own process, and a node in one process
(`superlink`); a ClientApp that is called without either (`calls`); an app's directory (`loading`). Written against flwr
1.41.0.
"""

from quorate.interop.flower.internals.calls import (
    arrays_of,
    bytes_of,
    identified,
    message_to,
    metrics_of,
    records,
    reply,
)
from quorate.interop.flower.internals.loading import App, Crowd, First, first_message, load, node_config
from quorate.interop.flower.internals.superlink import Node, Run, build, error_reply

__all__ = [
    "App",
    "Crowd",
    "First",
    "Node",
    "Run",
    "arrays_of",
    "build",
    "bytes_of",
    "error_reply",
    "first_message",
    "identified",
    "load",
    "message_to",
    "metrics_of",
    "node_config",
    "records",
    "reply",
]
