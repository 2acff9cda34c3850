"""A ClientApp that is called in this process: the messages it is given, and what its replies hold."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    RecordDict,
)
from flwr.app.constants import DEFAULT_TTL
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    EvaluateIns,
    FitIns,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity

from quorate.errors import DataError, TrainingFailed

__all__ = [
    "arrays_of",
    "bytes_of",
    "check_status",
    "identified",
    "message",
    "message_to",
    "metrics_of",
    "records",
    "reply",
]

log = logging.getLogger(__name__)


def message_to(
    app: ClientApp,
    kind: str,
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    node: int,
    keys: tuple[str, str],
) -> Message:
    """An instruction for a ClientApp, in the form that it understands.

    Args:
        app: with registered functions, or with a `client_fn` (which knows arrays by their order only).
        kind: `train` or `evaluate`.
        arrays: of the model.
        config: numbers, strings and bytes.
        node: the id that the app's context has.
        keys: the names of the records of arrays and config; a `client_fn` has its own.
    """
    if _has_client_fn(app):
        parameters = ndarrays_to_parameters(list(arrays.values()))
        content = (
            compat.fitins_to_recorddict(FitIns(parameters, dict(config)), keep_input=False)
            if kind == MessageType.TRAIN
            else compat.evaluateins_to_recorddict(EvaluateIns(parameters, dict(config)), keep_input=False)
        )
    else:
        record = ArrayRecord({name: Array(np.array(array, order="C")) for name, array in arrays.items()})
        content = RecordDict({keys[0]: record, keys[1]: ConfigRecord(dict(config))})
    return message(content, kind, node)


def arrays_of(content: RecordDict, app: ClientApp) -> Mapping[str, np.ndarray] | Sequence[np.ndarray]:
    """The arrays that a client gave back, by name, or by their order where it knows no names.

    Raises:
        TrainingFailed: a `client_fn`'s client says that it could not.
        DataError: there is not one record of arrays.
    """
    if _has_client_fn(app):
        fit = compat.recorddict_to_fitres(content, keep_input=True)
        check_status(fit.status)
        return list(parameters_to_ndarrays(fit.parameters))
    found = list(content.array_records.values())
    if len(found) != 1:
        raise DataError(f"the Flower client gave {len(found)} records of arrays, one is expected")
    return {name: array.numpy() for name, array in found[0].items()}


def metrics_of(content: RecordDict, app: ClientApp) -> dict[str, Any]:
    """What a client measured, `num-examples` (and, where it evaluated, `loss`) among it."""
    if _has_client_fn(app):
        res: Any
        if "evaluateres.loss" in content.metric_records:
            res = compat.recorddict_to_evaluateres(content)
            more = {"loss": res.loss}
        else:
            res, more = compat.recorddict_to_fitres(content, keep_input=True), {}
        check_status(res.status)
        return {**res.metrics, **more, "num-examples": res.num_examples}
    return {name: value for record in content.metric_records.values() for name, value in record.items()}


def bytes_of(content: RecordDict) -> bytes:
    """Records as bytes."""
    return recorddict_to_proto(content).SerializeToString()


def records(raw: bytes) -> RecordDict:
    """Records from bytes."""
    return recorddict_from_proto(ProtoRecordDict.FromString(raw))


def reply(content: RecordDict, node: int) -> Message:
    """What a node would have answered to an instruction to train."""
    return Message(content, reply_to=message(RecordDict(), MessageType.TRAIN, node))


@contextlib.contextmanager
def identified() -> Iterator[None]:
    """Flower makes messages only for a task of a run."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 1, 1, 1
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def _has_client_fn(app: ClientApp) -> bool:
    return app._call is not None


def message(content: RecordDict, kind: str, node: int) -> Message:
    """A message as a node would have got it."""
    metadata = Metadata(1, "1", 0, node, "", "", time.time(), DEFAULT_TTL, kind)
    return make_message(metadata, content=content)


def check_status(status: Any) -> None:
    """Of a `client_fn`'s client.

    Raises:
        TrainingFailed: it says that it could not.
    """
    if status.code != Code.OK:
        log.error("the Flower client answered %s: %s", status.code.name, status.message)
        raise TrainingFailed(f"the Flower client answered {status.code.name}", "training")
