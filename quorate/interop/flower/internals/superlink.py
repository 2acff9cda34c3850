"""Joining a SuperLink from this process: as the one that drives a run, or as a node.

The first is in the place of a ServerApp that the SuperLink would start, the second in that of a SuperNode, which starts
a process a message.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path
from types import TracebackType

import httpx
from flwr.app import (
    Error,
    Message,
)
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
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
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_connection import http_request_response

from quorate.errors import QuorateError, StateError

__all__ = ["Node", "Run", "build", "error_reply"]

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
