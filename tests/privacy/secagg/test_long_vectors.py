"""A session over 100 million values: what it needs beside the vector, measured by the system.

In a process of its own, so that nothing else is in its peak.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quorate.privacy.secagg.masks import TILE_BYTES

LENGTH = 10**8
SCRIPT = """
import json, sys
import numpy as np
from quorate.sums import RunningSum
from tests.privacy.secagg.sessions import session, summation
from quorate.privacy.secagg import SecAggParameters
from quorate.randomness import Randomness

length, dtype = int(sys.argv[1]), np.dtype(sys.argv[2])


def measured(work):
    '''What `work` needs at its peak beyond what there was before, in bytes, and what it returns.'''
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the peak begins anew
    before = memory("VmRSS")
    result = work()
    return memory("VmHWM") - before, result


def memory(name):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))


def sent(pieces):
    '''Takes the pieces as a socket would, keeping none, and says how many bytes they were.'''
    return sum(len(piece) for piece in pieces)


vector = np.arange(length).astype(dtype)
summed = summation(session(length, dtype), SecAggParameters())
names, sink = ["a", "b", "c"], RunningSum(length, dtype)
clients = {name: summed.client(vector, Randomness.from_seed(i)) for i, name in enumerate(names)}
probe = summed.client(vector, Randomness.from_seed(0))  # client a again, to be listened to only
server = summed.server(sink)
outgoing = server.begin(names)
for name in names:
    server.receive(name, clients[name].begin())
probe.begin()
client_bytes = server_bytes = 0
while not server.done:
    outgoing = server.advance()
    for message in outgoing:
        if message.member == "a" and server.phase == "mask":
            client_bytes, on_the_wire = measured(lambda: sent(probe.stream(message.data)))
        elif message.member == "a" and server.phase == "share":
            probe.receive(message.data)
        answer = clients[message.member].receive(message.data)
        if answer is not None and server.phase == "mask":
            grown, _ = measured(lambda: server.receive(message.member, answer))
            server_bytes = max(server_bytes, grown)
        elif answer is not None:
            server.receive(message.member, answer)
        del answer
    if server.phase == "unmask":
        unmask_bytes, _ = measured(server.advance)
total = sink.result().sums[0]
exact = all(
    (total[i : i + 10**7] == (3 * vector[i : i + 10**7].astype(np.uint64)).astype(dtype)).all()
    for i in range(0, length, 10**7)
)
print(json.dumps([exact, on_the_wire, client_bytes, server_bytes, unmask_bytes]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_hundred_million_values_need_a_few_tiles_beside_the_vector(dtype):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(LENGTH), dtype],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    exact, on_the_wire, client_bytes, server_bytes, unmask_bytes = json.loads(done.stdout)
    vector_bytes = LENGTH * (2 if dtype == "uint16" else 4)
    assert exact
    assert on_the_wire == 16 + vector_bytes
    assert client_bytes < 20 * TILE_BYTES  # 2 MB, of which the system's own rounding is a part
    assert server_bytes < vector_bytes + 20 * TILE_BYTES  # the pages of the sum, when the first vector comes
    assert unmask_bytes < vector_bytes + 20 * TILE_BYTES  # the sink's sum
    print(f"{dtype}: client {client_bytes}, server {server_bytes}, unmasking {unmask_bytes} bytes")
