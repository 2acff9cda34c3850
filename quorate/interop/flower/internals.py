"""Flower's internal modules, all that we use of them, in this one file.

They are not part of its public interface and change without notice, which is why the extra `flower` pins one version.
Three things need them: a coordinator that drives a run of a SuperLink from its own process (`Run`); a node in one
process (`Node`), in the place of a SuperNode that starts a process a message; and a ClientApp that is called without
either (`message_to` and what follows it, `load`). Written against flwr 1.41.0.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import httpx
import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    RecordDict,
)
from flwr.app.constants import DEFAULT_TTL
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    EvaluateIns,
    FitIns,
    GetParametersIns,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.config import (
    flatten_dict,
    fuse_dicts,
    get_metadata_from_config,
    get_project_config,
    parse_config_args,
)
from flwr.common.constant import ErrorCode, MessageTypeLegacy, SubStatus
from flwr.common.serde import fab_to_proto, recorddict_from_proto, recorddict_to_proto, run_from_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_ref import load_app
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_connection import http_request_response

from quorate.errors import DataError, PlanError, QuorateError, StateError, TrainingFailed

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

log = logging.getLogger(__name__)


def build(app: Path) -> bytes:
    """The bundle (FAB) of a Flower app's directory.

    Raises:
        QuorateError: the directory holds no app that Flower accepts.
    """
    try:
        return build_fab_from_disk(app)
    except ValueError as error:
        raise QuorateError(f"{app} is no Flower app: {error}") from error


def error_reply(message: Message, reason: str) -> Message:
    """A reply that says only why there is none."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


class Run:
    """A run of a SuperLink, driven from this process in the place of a ServerApp that the SuperLink would start.

    The SuperLink must leave its server apps to others (`flower-superlink --isolation process`). A context manager:
    leaving it ends the run.

    Args:
        address: of the SuperLink, `host:port`.
        bundle: the app whose ClientApp stock SuperNodes run.
        certificates: PEM, to verify the SuperLink with; None connects without TLS.

    Raises:
        QuorateError: the SuperLink can't be reached, or refuses the app.
        StateError: another process took the run.
    """

    def __init__(self, address: str, bundle: bytes, certificates: bytes | None = None):
        self._address, self._certificates = address, certificates
        try:
            run_id = self._start(bundle)
            token = self._acquire(run_id)
        except httpx.HTTPError as error:
            raise QuorateError(
                f"the SuperLink at {address} does not start a run: {_reason(error)}"
            ) from error
        grid = HttpGrid(address, insecure=certificates is None, root_certificates=certificates, token=token)
        self._client = grid._runtime_client
        given = self._client.PullTaskInput(PullTaskInputRequest())
        grid.set_run(run_from_proto(given.run))
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        self.grid: Grid = grid
        self._heart = HeartbeatSender(self._beat)
        self._heart.start()

    def close(self, failure: BaseException | None = None) -> None:
        """Ends the run: as failed, with the reason, if there was a failure; as stopped, if it was Ctrl-C."""
        self._heart.stop()
        if failure is None:
            status, details = SubStatus.COMPLETED, ""
        elif isinstance(failure, KeyboardInterrupt):
            status, details = SubStatus.STOPPED, "interrupted"
        else:
            status, details = SubStatus.FAILED, f"{type(failure).__name__}: {failure}"
        with contextlib.suppress(httpx.HTTPError):
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        self.grid.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def _start(self, bundle: bytes) -> int:
        with ControlHttpClient.from_server_address(
            self._address,
            self._certificates is None,
            self._certificates,
            [RuntimeVersionHttpInterceptor(component_name="quorate")],
        ) as control:
            fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
            return int(control.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id)

    def _acquire(self, run_id: int) -> str:
        with RuntimeHttpClient.from_server_address(
            self._address,
            self._certificates is None,
            self._certificates,
            [RuntimeVersionHttpInterceptor(component_name="quorate")],
        ) as runtime:
            taken = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        if not taken.token or taken.task.run_id != run_id:
            raise StateError(
                f"the SuperLink at {self._address} gave run {run_id} to another process: start it with "
                "--isolation process, and let no other process take its server apps"
            )
        return str(taken.token)

    def _beat(self) -> bool:
        try:
            return bool(self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except httpx.HTTPError as error:
            log.warning("the SuperLink at %s does not answer: %s", self._address, error)
            return False


class Node:
    """A node of a SuperLink in this process: messages in, replies out. A SuperNode without processes of its own.

    A context manager: the node is registered while it is open, under a fresh key, as a SuperNode without
    authentication is.

    Args:
        address: of the SuperLink, `host:port`.
        certificates: PEM, to verify the SuperLink with; None connects without TLS.
        patience_s: how long it tries to reach a SuperLink that does not answer; None: for ever.
    """

    def __init__(self, address: str, certificates: bytes | None = None, patience_s: float | None = None):
        self._address, self._certificates, self._patience_s = address, certificates, patience_s
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Node:
        try:
            connection = self._open.enter_context(
                http_request_response(
                    self._address,
                    insecure=self._certificates is None,
                    root_certificates=self._certificates,
                    max_wait_time=self._patience_s,
                )
            )
        except SystemExit as error:  # what it does instead of raising
            raise QuorateError(f"the SuperLink at {self._address} does not take this node") from error
        self.id, self._receive, self._send, _, _, self._pull, self._push, self._confirm = connection
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(None, None, None)  # it would swallow an error that it is told of

    def receive(self) -> Message | None:
        """The next message to this node, if there is one now.

        Raises:
            httpx.HTTPError: the SuperLink does not answer any more.
        """
        received = self._receive()
        if received is None:
            return None
        message, tree = received
        run, id = message.metadata.run_id, tree.object_id
        contents = pull_objects(
            [node.object_id for node in iterate_object_tree(tree)], lambda object: self._pull(run, object)
        )
        self._confirm(run, id)
        whole = inflate_object_from_contents(id, contents)
        assert isinstance(whole, Message)
        whole.metadata.__dict__["_message_id"] = id
        return whole

    def reply(self, message: Message, seconds: float) -> None:
        """Sends a reply.

        Args:
            message: made with `reply_to`.
            seconds: how long the work on it took.

        Raises:
            httpx.HTTPError: the SuperLink does not answer, or does not wait for this reply any more.
        """
        message.metadata.__dict__["_message_id"] = message.object_id
        run = message.metadata.run_id
        with no_object_id_recompute():
            wanted, session = self._send(message, get_object_tree(message), seconds)
            push_objects(
                get_all_nested_objects(message),
                lambda object, content: self._push(run, session, object, content),
                object_ids_to_push=wanted,
            )


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.text[:500] or str(error)
    return str(error) or type(error).__name__


# --- a ClientApp that is called here


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
    return _message(content, kind, node)


def arrays_of(content: RecordDict, app: ClientApp) -> Mapping[str, np.ndarray] | Sequence[np.ndarray]:
    """The arrays that a client gave back, by name, or by their order where it knows no names.

    Raises:
        TrainingFailed: a `client_fn`'s client says that it could not.
        DataError: there is not one record of arrays.
    """
    if _has_client_fn(app):
        fit = compat.recorddict_to_fitres(content, keep_input=True)
        _check_status(fit.status)
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
        _check_status(res.status)
        return {**res.metrics, **more, "num-examples": res.num_examples}
    return {name: value for record in content.metric_records.values() for name, value in record.items()}


def bytes_of(content: RecordDict) -> bytes:
    """Records as bytes."""
    return recorddict_to_proto(content).SerializeToString()


def records(raw: bytes) -> RecordDict:
    """Records from bytes."""
    return recorddict_from_proto(ProtoRecordDict.FromString(raw))


def _has_client_fn(app: ClientApp) -> bool:
    return app._call is not None


def _message(content: RecordDict, kind: str, node: int) -> Message:
    metadata = Metadata(1, "1", 0, node, "", "", time.time(), DEFAULT_TTL, kind)
    return make_message(metadata, content=content)


def _check_status(status: Any) -> None:
    if status.code != Code.OK:
        log.error("the Flower client answered %s: %s", status.code.name, status.message)
        raise TrainingFailed(f"the Flower client answered {status.code.name}", "training")


# --- an app's directory


def node_config(text: str) -> dict[str, Any]:
    """A node's config, as Flower's command line takes it: `partition-id=0 num-partitions=2`.

    Raises:
        PlanError: it can't be read.
    """
    refusal = f"--node-config: found {text!r}; accepted: key=value, with spaces between, strings in quotes"
    try:
        found, written = dict(parse_config_args([text])), len(shlex.split(text))
    except (ValueError, SystemExit, click.ClickException) as error:
        raise PlanError(refusal) from error
    if len(found) != written:  # it passes over what it can't read
        raise PlanError(refusal)
    return found


@dataclass(frozen=True)
class App:
    """What a Flower app's directory holds.

    Args:
        id: publisher and name.
        version: as its `pyproject.toml` says.
        client: its ClientApp.
        server: its ServerApp.
        run_config: its run config.
    """

    id: str
    version: str
    client: ClientApp
    server: ServerApp
    run_config: Mapping[str, Any]


@dataclass(frozen=True)
class First:
    """What a ServerApp sends first.

    Args:
        arrays: where learning starts.
        config: of the message.
        keys: the names of the records that hold the two.
    """

    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    keys: tuple[str, str] = ("arrays", "config")


def load(path: Path, run_config: Mapping[str, Any]) -> App:
    """The app of a directory. Its modules are imported: it is code that the caller trusts.

    Args:
        path: the directory, with a `pyproject.toml`.
        run_config: replaces values of the app's own.

    Raises:
        PlanError: there is no Flower app, it can't be imported, or a key is none of the app's.
    """
    try:
        project = get_project_config(path)
        app = project["tool"]["flwr"]["app"]
        config = fuse_dicts(flatten_dict(app.get("config", {})), dict(run_config))
        client, server = (
            load_app(app["components"][part], ValueError, path) for part in ("clientapp", "serverapp")
        )
    except (OSError, ValueError, ImportError) as error:
        raise PlanError(f"{path}: no Flower app can be loaded from there: {error}") from error
    for found, kind in ((client, ClientApp), (server, ServerApp)):
        if not isinstance(found, kind):
            raise PlanError(f"{path}: {found!r} was found in the place of a {kind.__name__}")
    id, version = get_metadata_from_config(project)
    return App(id, version, client, server, config)


def first_message(app: App) -> First:
    """Runs an app's ServerApp until it sends something to train, and says what.

    Raises:
        PlanError: it does not come to that.
    """
    context = Context(1, 1, {}, RecordDict(), dict(app.run_config))
    if app.server._server_fn is not None:
        return _first_of_strategy(app, context)
    try:
        with identified():
            app.server(_FirstMessage(), context)
    except _Sent as sent:
        return sent.first
    except Exception as error:  # an application's own, of whatever kind
        raise PlanError(f"{app.id}: its ServerApp fails before it sends anything: {error}") from error
    raise PlanError(f"{app.id}: its ServerApp ends and has sent nothing to train")


def _first_of_strategy(app: App, context: Context) -> First:
    """Of a `server_fn`: its strategy's initial parameters, or those that its client has."""
    assert app.server._server_fn is not None
    strategy = app.server._server_fn(context).strategy
    parameters = None if strategy is None else strategy.initialize_parameters(None)  # type: ignore[arg-type]
    if parameters is None:
        asked = _message(
            compat.getparametersins_to_recorddict(GetParametersIns({})), MessageTypeLegacy.GET_PARAMETERS, 1
        )
        told = compat.recorddict_to_getparametersres(app.client(asked, context).content, keep_input=False)
        _check_status(told.status)
        parameters = told.parameters
    arrays = parameters_to_ndarrays(parameters)
    return First({str(i): array for i, array in enumerate(arrays)}, {})


class _Sent(BaseException):
    """Ends a ServerApp at its first message, whatever it catches."""

    def __init__(self, first: First):
        self.first = first


class Crowd(Grid):
    """A grid with as many nodes as anybody asks for; what it is given goes nowhere."""

    def get_node_ids(self) -> Iterable[int]:
        """A thousand."""
        return range(1, 1001)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Nothing is sent."""
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Nothing comes back."""
        self.push_messages(messages)
        return []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Nothing comes."""
        return []

    def set_run(self, run: Any) -> None:
        """There is none."""
        raise NotImplementedError

    @property
    def run(self) -> Any:
        """There is none."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Deprecated in Flower."""
        raise NotImplementedError


class _FirstMessage(Crowd):
    """Ends the run at the first message to train."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            if message.metadata.message_type.partition(".")[0] == MessageType.TRAIN:
                raise _Sent(_first(message.content))
        return []


def _first(content: RecordDict) -> First:
    if len(content.array_records) != 1:
        raise PlanError(
            f"a first message with {len(content.array_records)} records of arrays was found; one is accepted"
        )
    ((arrays_key, arrays),) = content.array_records.items()
    config_key, config = next(iter(content.config_records.items()), ("config", ConfigRecord()))
    return First(
        {name: array.numpy() for name, array in arrays.items()}, dict(config), (arrays_key, config_key)
    )


def reply(content: RecordDict, node: int) -> Message:
    """What a node would have answered to an instruction to train."""
    return Message(content, reply_to=_message(RecordDict(), MessageType.TRAIN, node))


@contextlib.contextmanager
def identified() -> Iterator[None]:
    """Flower makes messages only for a task of a run."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 1, 1, 1
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before
