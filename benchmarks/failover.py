"""How long nobody is answered when a market's leader goes: killed, stopped, handing over, closed.

    python benchmarks/failover.py [--rounds 10] [--faults kill,stop,transfer,close] [--json]
    python benchmarks/failover.py --etcd [--lose-etcd-leader] [--etcd-option=--election-timeout=500 ...]

Three node processes, each with a caller that asks for one order after the other. In each round the leader is hurt, and
the gap is the longest time in which neither of the two others had an answer, from the fault on. Over SQLite, or over an
etcd of three members on loopback that this program starts; ``--lose-etcd-leader`` kills etcd's leader at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

MARKET: Final = "BENCH"
NAMES: Final = ("ann", "bob", "cat")
FAULTS: Final = ("kill", "stop", "transfer", "close")
WAIT_S_MAX: Final = 60.0


def serve(name: str, folder: Path, directory: str, options: dict[str, Any], pipe: Any) -> None:
    """Run a node with one caller until told to close; the process of every node."""
    from openoutcry.actors import ExchangeNode, MarketRules, OpenOutcryError

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answered: list[float] = []
    stopping = threading.Event()

    def call() -> None:
        number = 0
        life = time.monotonic_ns()
        while not stopping.is_set():
            number += 1
            side, wanted = ("buy", "sell")[number % 2], f"{life:x}.{number:x}"
            while not stopping.is_set():
                with contextlib.suppress(OpenOutcryError):
                    node.submit_order(MARKET, side, "100", "1", account=name, client_order_id=wanted, timeout=10)
                    answered.append(time.monotonic())
                    break
            stopping.wait(0.001)

    rules = {MARKET: MarketRules()}
    with ExchangeNode(name, markets=rules, data_dir=folder / name, directory=directory, **options) as node:
        node.wait_ready(WAIT_S_MAX)
        caller = threading.Thread(target=call)
        caller.start()
        pipe.send(node.node_id)
        while True:
            what = pipe.recv()
            if what == "close":
                break
            if what == "status":
                pipe.send(node.status().markets[MARKET].to_dict())
            elif what == "transfer":
                with contextlib.suppress(OpenOutcryError):
                    node.transfer(MARKET)
                pipe.send(None)
            else:
                pipe.send([at for at in list(answered) if at >= what])
        stopping.set()
    caller.join()


class Node:
    """One node's process, seen from here."""

    def __init__(self, name: str, *rest: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(name, *rest, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.ask()

    def tell(self, what: Any) -> None:
        """Ask for something without waiting for it."""
        self._pipe.send(what)

    def ask(self, what: Any = None) -> Any:
        """Return what the process says, to ``what`` if that is given."""
        if what is not None:
            self.tell(what)
        if not self._pipe.poll(WAIT_S_MAX):
            raise TimeoutError(f"{self.name} says nothing")
        return self._pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


class Etcd:
    """Three members on loopback."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self._folder, self._options = folder, options
        ports = free_ports(6)
        self._ports = list(zip(ports[:3], ports[3:], strict=True))
        self._members: dict[int, subprocess.Popen[bytes]] = {}
        self.start()

    @property
    def address(self) -> str:
        """What nodes take for a coordinator."""
        return f"etcd://{','.join([f'127.0.0.1:{port}' for port, _ in self._ports])}/bench"

    def start(self) -> None:
        """Start the members that do not run, and wait until there is a leader."""
        peers = ",".join([f"m{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(self._ports)])
        for number, (port, peer) in enumerate(self._ports):
            if number not in self._members:
                urls = [f"--{kind}-client-urls=http://127.0.0.1:{port}" for kind in ("listen", "advertise")]
                urls += [f"--{kind}-peer-urls=http://127.0.0.1:{peer}" for kind in ("listen", "initial-advertise")]
                where = [f"--name=m{number}", f"--data-dir={self._folder / f'm{number}'}", f"--initial-cluster={peers}"]
                self._members[number] = subprocess.Popen(
                    ["etcd", *where, *urls, "--log-level=error", *self._options],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        wait_for(lambda: self.leader() is not None, "etcd has a leader")

    def leader(self) -> int | None:
        """Return the number of the member that leads etcd, if one does."""
        for number in self._members:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                connection = http.client.HTTPConnection("127.0.0.1", self._ports[number][0], timeout=1)
                with contextlib.closing(connection):
                    connection.request("POST", "/v3/maintenance/status", "{}")
                    status = json.loads(connection.getresponse().read())
                if status["leader"] == status["header"]["member_id"]:
                    return number
        return None

    def kill(self, number: int) -> None:
        """kill -9."""
        member = self._members.pop(number)
        member.kill()
        member.wait()

    def close(self) -> None:
        """End all members."""
        for number in list(self._members):
            self.kill(number)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Return what ``condition`` returns as soon as that is true."""
    deadline = time.monotonic() + WAIT_S_MAX
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {WAIT_S_MAX} s: {what}")
        time.sleep(0.02)
    return found


class Exchange:
    """The nodes, of which one leads."""

    def __init__(self, folder: Path, directory: str, options: dict[str, Any]) -> None:
        self._rest = (folder, directory, options)
        self.nodes = {name: Node(name, *self._rest) for name in NAMES}

    def gap_s(self, fault: str, etcd: Etcd | None) -> float:
        """Hurt the leader, and return the longest time without an answer at the others; then make all whole again."""
        self.wait_in_sync()
        leader = wait_for(self._leader, "a node leads")
        others = [node for node in self.nodes.values() if node is not leader]
        began = time.monotonic()
        wait_for(lambda: all([len(node.ask(began)) > 20 for node in others]), "orders flow")
        doomed = None if etcd is None else etcd.leader()
        hurt = time.monotonic()
        if etcd is not None and doomed is not None:
            etcd.kill(doomed)
        if fault == "kill":
            leader.signal(signal.SIGKILL)
        elif fault == "stop":
            leader.signal(signal.SIGSTOP)
        else:
            leader.tell(fault)
        # An order that was answered just after the fault may have been on its way before: look on until all is quiet.
        wait_for(lambda: all([len(node.ask(hurt + 0.1)) > 50 for node in others]), "orders flow again")
        wait_for(lambda: self._leader(others) is not None, "another leads")
        later = time.monotonic()
        wait_for(lambda: all([len(node.ask(later)) > 50 for node in others]), "orders flow on")
        times = sorted([at for node in others for at in node.ask(began)])
        found: float = max([b - a for a, b in itertools.pairwise(times) if b >= hurt])
        if fault == "stop":
            leader.signal(signal.SIGCONT)
        elif fault == "transfer":
            leader.ask()
        else:
            leader.process.join(WAIT_S_MAX)
            self.nodes[leader.name] = Node(leader.name, *self._rest)
        if etcd is not None:
            etcd.start()
        return found

    def wait_in_sync(self) -> None:
        """Wait until all three are in sync, as all of them know."""
        wait_for(
            lambda: all([len(node.ask("status")["in_sync"]) == len(NAMES) for node in self.nodes.values()]),
            "all are in sync",
        )

    def close(self) -> None:
        """End all processes."""
        for node in self.nodes.values():
            node.process.kill()

    def _leader(self, among: list[Node] | None = None) -> Node | None:
        nodes = list(self.nodes.values()) if among is None else among
        return next((node for node in nodes if node.ask("status")["role"] == "leading"), None)


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what each fault came to."""
    from openoutcry.actors import ExchangeNode

    with contextlib.ExitStack() as stack:
        etcd = stack.enter_context(contextlib.closing(Etcd(folder, options.etcd_option))) if options.etcd else None
        coordinator = etcd.address if etcd else str(folder / "coordinator.sqlite")
        directory = stack.enter_context(
            ExchangeNode("directory", markets={}, coordinator=coordinator, serve_directory="tcp://127.0.0.1:0")
        )
        shared = {"coordinator": coordinator, "lease_ms": options.lease_ms}
        net = stack.enter_context(contextlib.closing(Exchange(folder, str(directory.directory_address), shared)))
        for fault in options.faults.split(","):
            gaps = [net.gap_s(fault, etcd if options.lose_etcd_leader else None) for _ in range(options.rounds)]
            yield {
                "fault": fault + (" + etcd's leader" if options.lose_etcd_leader else ""),
                "coordinator": "etcd" if etcd else "sqlite",
                "etcd_options": " ".join(options.etcd_option),
                "lease_ms": options.lease_ms,
                "rounds": len(gaps),
                "gap_median_s": round(statistics.median(gaps), 3),
                "gap_max_s": round(max(gaps), 3),
                "python": platform.python_version(),
                "machine": platform.machine(),
            }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=10, help="how often each fault is tried (default 10)")
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"which (default {','.join(FAULTS)})")
    parser.add_argument("--lease-ms", type=int, default=2000, help="of the nodes (default 2000, as the nodes have it)")
    parser.add_argument("--etcd", action="store_true", help="start an etcd of three members for the coordinator")
    parser.add_argument("--etcd-option", action="append", default=[], help="of every member, written with an =")
    parser.add_argument("--lose-etcd-leader", action="store_true", help="kill etcd's leader at the same time")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    if set(options.faults.split(",")) - set(FAULTS):
        parser.error(f"faults are {', '.join(FAULTS)}")
    if options.etcd and shutil.which("etcd") is None:
        parser.error("there is no etcd program on PATH")
    if (options.etcd_option or options.lose_etcd_leader) and not options.etcd:
        parser.error("that needs --etcd")
    if not options.json:
        sys.stdout.write(f"{'fault':<24} {'coordinator':<11} {'rounds':>6} {'median s':>9} {'max s':>9}\n")
    with tempfile.TemporaryDirectory(prefix="openoutcry-bench-") as folder:
        for row in measure(options, Path(folder)):
            figures = f"{row['rounds']:>6} {row['gap_median_s']:>9.3f} {row['gap_max_s']:>9.3f}"
            line = f"{row['fault']:<24} {row['coordinator']:<11} {figures}"
            sys.stdout.write((json.dumps(row) if options.json else line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
