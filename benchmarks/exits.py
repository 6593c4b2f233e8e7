"""Exits of processes whose sockets are in a handshake: how many are aborted by nng, or hang.

    python benchmarks/exits.py [--count 1000] [--workers 2] [--seed 1] [--json]

Each exit is a whole end of a Python interpreter: of a process that has opened one kind of socket, or a whole node, to
peers that are frozen (stopped by SIGSTOP), accept and say nothing, never accept, drop what comes (a full backlog), or
refuse; and to which connections come that say nothing either. Some close in order, others leave it all to the exit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

EXIT_S_MAX: Final = 20.0
"""An exit that takes longer, in seconds, counts as hung."""
OPEN_S_MAX: Final = 0.4
"""Each process begins to end at a random moment within this, in seconds, after it has opened its sockets."""

PEERS: Final = """
import pynng, select, socket, sys
with pynng.Pull0(listen="tcp://127.0.0.1:0") as links, pynng.Respondent0(listen="tcp://127.0.0.1:0") as places:
    print(links.listeners[0].url, places.listeners[0].url, flush=True)
    sys.stdin.read()
"""
SILENT: Final = """
import select, socket, sys
accepted, silent = [], socket.create_server(("127.0.0.1", 0), backlog=4096)
print(silent.getsockname()[1], flush=True)
while True:
    ready, _, _ = select.select([silent, sys.stdin], [], [])
    if sys.stdin in ready:
        break
    accepted.append(silent.accept()[0])
    if len(accepted) % 3 == 0:
        try:
            accepted[-1].sendall(bytes.fromhex("0053500000"))  # it begins to speak, as nng does
        except OSError:
            pass
    del accepted[:-200]
"""


@contextlib.contextmanager
def peers() -> Iterator[dict[str, str]]:
    """Yield an address of each kind of peer."""
    with contextlib.ExitStack() as stack:
        frozen, links = _helper(stack, PEERS)
        frozen.send_signal(signal.SIGSTOP)
        address, place = links.split()
        _, silent = _helper(stack, SILENT)
        mute = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(full.getsockname()))
        unused = stack.enter_context(socket.socket())
        unused.bind(("127.0.0.1", 0))
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "silent"
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(path))
        local.listen(4096)
        yield {
            "frozen": address,
            "frozen_place": place,
            "silent": f"tcp://127.0.0.1:{silent.strip()}",
            "never_accepts": f"tcp://127.0.0.1:{mute.getsockname()[1]}",
            "drops": f"tcp://127.0.0.1:{full.getsockname()[1]}",
            "refuses": f"tcp://127.0.0.1:{unused.getsockname()[1]}",
            "silent_ipc": f"ipc://{path}",
        }


def _helper(stack: contextlib.ExitStack, program: str) -> tuple[subprocess.Popen[str], str]:
    """Start a program and return it with the first line that it prints; kill it in the end."""
    helper = stack.enter_context(
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    stack.callback(helper.kill)
    if helper.stdout is None:
        raise RuntimeError("no output to read the helper's addresses from")
    return helper, helper.stdout.readline()


# -- what a process opens; each returns what closes it ----------------------------------------------------------------


def outlets(at: dict[str, str], _folder: Path) -> Callable[[], None]:
    """Links to every peer."""
    from openoutcry.transport.sockets import Outlet

    opened = [Outlet(address, on_connected=lambda: None, on_broken=lambda: None) for address in at.values()]
    return lambda: _close(*opened)


def secured(at: dict[str, str], folder: Path) -> Callable[[], None]:
    """Links with TLS, whose handshake is another."""
    from openoutcry.transport.certificates import Identity
    from openoutcry.transport.sockets import Inbox, Outlet

    identity = Identity.load(folder.parent / "identity")
    outlets = [
        Outlet(address.replace("tcp://", "tls+tcp://"), on_connected=lambda: None, on_broken=lambda: None,
               name="peer", identity=identity)
        for address in at.values()
        if address.startswith("tcp://")
    ]  # fmt: skip
    inbox = Inbox("tls+tcp://127.0.0.1:0", on_frame=lambda *_: None, on_pipe_removed=lambda _: None, identity=identity)
    inbox.start()
    strangers = _strangers(inbox.address)
    return lambda: _close(*outlets, inbox, *strangers)


def directory(at: dict[str, str], _folder: Path) -> Callable[[], None]:
    """Surveys of every peer."""
    from openoutcry.transport.survey import Directory

    return Directory(list(at.values())[:7]).close


def listeners(_at: dict[str, str], _folder: Path) -> Callable[[], None]:
    """An inbox and a rendezvous to which strangers connect that say nothing, or begin to."""
    from openoutcry.transport.rendezvous import Rendezvous
    from openoutcry.transport.sockets import Inbox

    inbox = Inbox("tcp://127.0.0.1:0", on_frame=lambda *_: None, on_pipe_removed=lambda _: None)
    inbox.start()
    place = Rendezvous("tcp://127.0.0.1:0")
    place.start()
    strangers = _strangers(inbox.address, place.address)
    return lambda: _close(inbox, place, *strangers)


def control(at: dict[str, str], folder: Path) -> Callable[[], None]:
    """A control client: its dial waits for the node, on a thread here, while the process ends."""
    from openoutcry.actors.control import ControlClient

    named = {"name": "peer", "pid": os.getpid(), "token": "x", "status_address": at["frozen"]}
    address = random.choice([at["frozen"], at["silent"], at["never_accepts"], at["refuses"], at["silent_ipc"]])
    (folder / "control.json").write_text(json.dumps({**named, "address": address}))

    def ask() -> None:
        with contextlib.suppress(Exception), ControlClient(folder, timeout=0.2) as client:
            client.status()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    return lambda: None


def node(at: dict[str, str], folder: Path) -> Callable[[], None]:
    """A whole node, beside peers that do not answer and a directory that does not."""
    from openoutcry.actors import ExchangeNode, MarketRules
    from openoutcry.actors.peers.messages import PeerFound

    made = ExchangeNode(
        "node", markets={"M": MarketRules()}, directory=[at["frozen_place"], at["refuses"]], data_dir=folder / "node",
        coordinator=folder / "coordinator.sqlite",
    )  # fmt: skip
    for number, (kind, address) in enumerate(at.items()):
        made.group.supervisor.tell(PeerFound(f"{kind}.0000000{number}", kind, address))
    return made.close


def _close(*opened: Any) -> None:
    for each in opened:
        each.close()


def _strangers(*addresses: str) -> list[socket.socket]:
    made = []
    for address in addresses:
        host, _, port = address.rpartition("/")[2].rpartition(":")
        for said in (b"", b"\0SP\0", b"\x16\x03\x01"):
            made.append(socket.create_connection((host, int(port))))
            made[-1].sendall(said)
    return made


KINDS: Final = {kind.__name__: kind for kind in (outlets, secured, directory, listeners, control, node)}


def end(kind: str, at: dict[str, str], folder: Path, seed: int) -> None:
    """Open what ``kind`` opens, and let the process end at a random moment: in order, or as it is."""
    chance = random.Random(seed)
    random.seed(seed)
    close = KINDS[kind](at, folder)
    time.sleep(chance.random() * OPEN_S_MAX)
    if chance.random() < 0.6:
        close()
    else:
        globals()["_left_open"] = close


def serve(jobs: list[dict[str, Any]], workers: int) -> None:
    """Run ``jobs``, each in a fork of this process, which holds no socket, and print what became of each.

    Forks return; they end as a program ends.
    """
    import openoutcry.actors.control.client
    import openoutcry.transport.certificates
    import openoutcry.transport.rendezvous  # noqa: F401  (once, for all forks)

    running: dict[int, tuple[dict[str, Any], float]] = {}
    while jobs or running:
        if jobs and len(running) < workers:
            job = jobs.pop()
            if (pid := os.fork()) == 0:
                os.dup2(os.open(Path(job["folder"]) / "said", os.O_WRONLY | os.O_CREAT), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                end(job["kind"], job["at"], Path(job["folder"]), job["seed"])
                return
            running[pid] = job, time.monotonic()
            continue
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            job, began = running.pop(pid)
            took_s = round(time.monotonic() - began, 3)
            said = (Path(job["folder"]) / "said").read_text(errors="replace").strip()
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps([job["kind"], f"exit {code}: {said[:500]}" if code or said else "", took_s]), flush=True)
            continue
        for pid, (_, began) in running.items():
            if time.monotonic() - began > EXIT_S_MAX:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def exits(count: int, *, workers: int, seed: int) -> dict[str, Any]:
    """Count the exits of each kind, and those that went wrong."""
    with peers() as at, tempfile.TemporaryDirectory() as folder:
        kinds = list(KINDS)
        if not _identity(Path(folder) / "identity"):
            kinds.remove("secured")
        jobs = []
        for number in range(count):
            (Path(folder) / str(number)).mkdir()
            jobs.append({"kind": kinds[number % len(kinds)], "at": at, "seed": seed + number})
            jobs[-1]["folder"] = f"{folder}/{number}"
        served = subprocess.run(
            [sys.executable, __file__, "--serve", str(workers)],
            input=json.dumps(jobs),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        ended = [json.loads(line) for line in served.stdout.splitlines()]
    wrong = [f"{kind}: {said}" for kind, said, _ in ended if said]
    return {
        "exits": len(ended),
        "of": dict(Counter(kind for kind, _, _ in ended)),
        "longest_s": {of: max(took_s for kind, _, took_s in ended if kind == of) for of in kinds},
        "wrong": len(wrong),
        "said": wrong[:5],
    }


def _identity(path: Path) -> bool:
    """Write an identity; return whether it could be: the package for it is optional."""
    try:
        from openoutcry.transport.certificates import Authority
    except ImportError:
        return False
    Authority.create(path.parent / "authority").issue_file(path, "node")
    return True


def main(arguments: list[str]) -> int:
    """Run what the command line says; return how many exits went wrong, 1 at most."""
    if arguments[:1] == ["--serve"]:
        serve(json.load(sys.stdin), int(arguments[1]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = exits(options.count, workers=options.workers, seed=options.seed)
    print(json.dumps(found) if options.json else "\n".join(f"{key}: {value}" for key, value in found.items()))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
