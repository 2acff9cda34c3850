"""A node of ours in a process of its own, for tests: `python -m tests.interop.flower.node SUPERLINK PART [CA.pem]`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from quorate.clients.participation import Participation
from quorate.clients.states import ClientStates
from quorate.interop.flower.internals import Node
from quorate.interop.flower.nodes import Attendance, serve
from quorate.plan import Terms
from quorate.randomness import Randomness
from quorate.rounds import Assignment
from tests import federations
from tests.interop.flower.federations import NODES

if __name__ == "__main__":
    superlink, part, *trusted = sys.argv[1:]
    own, states = federations.wine(NODES).clients[int(part)], ClientStates()
    with Node(superlink, Path(trusted[0]).read_bytes() if trusted else None) as node:

        def begin(assignment: Assignment) -> Participation:
            client = Terms.parse(assignment.terms).task.resolve().model.client(own)
            return Participation(str(node.id), client, states, Randomness.system())

        serve(node, Attendance(begin, states.conclude).answer, threading.Event())
