"""No process is aborted at its end, whatever its sockets were doing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

EXITS = Path(__file__).parents[1] / "benchmarks" / "exits.py"
COUNT = os.environ.get("OPENOUTCRY_EXITS", "30")
"""How many exits; the wanted figure is of 1,000."""


def test_no_exit_beside_frozen_silent_and_refusing_peers_is_aborted() -> None:
    done = subprocess.run(
        [sys.executable, str(EXITS), "--count", COUNT, "--json"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["exits"] == int(COUNT)
    assert found["said"] == []


HOST = """
import pynng, threading
from openoutcry.transport.sockets import Inbox

connected = threading.Event()
listener, dialler = pynng.Pair0(), pynng.Pair0()
listener.add_post_pipe_connect_cb(lambda _: connected.set())
listener.add_post_pipe_remove_cb(print)
listener.listen("tcp://127.0.0.1:0")
dialler.dial(str(listener.listeners[0].url), block=True)
assert connected.wait(10)
inbox = Inbox("tcp://127.0.0.1:0", on_frame=print, on_pipe_removed=print)
inbox.start()
print("open")
"""


def test_a_host_program_that_leaves_sockets_of_its_own_open_ends_too() -> None:
    done = subprocess.run([sys.executable, "-c", HOST], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "open\n", "")
