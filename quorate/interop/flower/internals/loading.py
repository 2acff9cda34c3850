"""A Flower app's directory: its apps, a node's config, and what its ServerApp sends first."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    MessageType,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common import (
    GetParametersIns,
    parameters_to_ndarrays,
)
from flwr.common.config import (
    flatten_dict,
    fuse_dicts,
    get_metadata_from_config,
    get_project_config,
    parse_config_args,
)
from flwr.common.constant import MessageTypeLegacy
from flwr.compat.common import recorddict_compat as compat
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.object_ref import load_app

from quorate.errors import PlanError
from quorate.interop.flower.internals import calls

__all__ = ["App", "Crowd", "First", "first_message", "load", "node_config"]


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
        with calls.identified():
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
        asked = calls.message(
            compat.getparametersins_to_recorddict(GetParametersIns({})), MessageTypeLegacy.GET_PARAMETERS, 1
        )
        told = compat.recorddict_to_getparametersres(app.client(asked, context).content, keep_input=False)
        calls.check_status(told.status)
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
