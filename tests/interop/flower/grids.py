"""A Flower grid in this process: each node is a ClientApp and its context, called when it is sent something."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

RUN = 7


class DirectGrid(Grid):
    """Calls every node at once. A context goes through Flower's own serialisation, as between processes.

    Args:
        apps: by node.
        configs: each node's config.
        run_config: of the app.
    """

    def __init__(
        self,
        apps: Mapping[int, ClientApp],
        configs: Mapping[int, Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
    ):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
        self.apps = dict(apps)
        self.contexts = {
            node: Context(RUN, node, dict(configs[node]), RecordDict(), dict(run_config or {}), series_id=RUN)
            for node in apps
        }
        self.listed = set(apps)
        self.dead: set[int] = set()
        self.before: Callable[[int, int], None] = lambda node, count: None
        self.asked: dict[int, int] = dict.fromkeys(apps, 0)
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.listed)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            given = message.metadata
            node, id = given.dst_node_id, f"{given.dst_node_id}-{self.asked[given.dst_node_id]}"
            ids.append(id)
            self.asked[node] += 1
            self.before(node, self.asked[node])
            if node in self.dead:
                continue
            metadata = Metadata(
                RUN, id, 1, node, "", given.group_id, given.created_at, given.ttl, given.message_type
            )
            sent = make_message(metadata, content=copy.deepcopy(message.content))
            self._replies[id] = self.apps[node](sent, self.contexts[node])
            self.contexts[node] = context_from_proto(context_to_proto(self.contexts[node]))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(id) for id in list(message_ids) if id in self._replies]

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return list(self.pull_messages(self.push_messages(messages)))
