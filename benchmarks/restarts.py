"""How long links take to come back: one of three node processes with TLS is restarted again and again under load.

    python benchmarks/restarts.py [--restarts 500] [--load-threads 1] [--bound-s 5] [--seed 1] [--json]

The restarted process is stopped in order or killed, by chance, and started again at once at the same address. A restart
is over when it is linked to both others, and both ends agree on the life of each link. Measured from the moment
when the new process has made its node (``made_s``) and from when it was begun (``begun_s``); late are those whose
``made_s`` exceeds the bound. The processes come from a fork server, as a start of Python is no part of this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

MARKET: Final = "BENCH"
NAMES: Final = ("n0", "n1", "n2")
LINK_S_MAX: Final = 60.0
"""A restart without all links after this many seconds ends the run."""
LOAD_BATCH: Final = 16
_spawn = multiprocessing.get_context("forkserver")


def serve(name: str, folder: Path, address: str, directory: str, load_threads: int, pipe: Connection) -> None:
    """Run one node until it is told to stop; answer what its links are; trade all the while."""
    from openoutcry.actors import ExchangeNode, MarketRules
    from openoutcry.transport.certificates import Identity

    stopped = threading.Event()
    with ExchangeNode(
        name,
        markets={MARKET: MarketRules()},
        data_dir=folder / name,
        listen=address,
        directory=directory,
        coordinator=folder / "coordinator.sqlite",
        identity=Identity.load(folder / f"{name}.pem"),
    ) as node:
        pipe.send((node.node_id, time.monotonic()))
        traders = [threading.Thread(target=_trade, args=(node, stopped, seed)) for seed in range(load_threads)]
        for trader in traders:
            trader.start()
        while pipe.recv() == "links":
            pipe.send({peer: (up.link.session, up.link.their_session) for peer, up in [*node.group.links.up.items()]})
        stopped.set()
        for trader in traders:
            trader.join()


def _trade(node: Any, stopped: threading.Event, seed: int) -> None:
    chance = random.Random(f"{node.name}/{seed}")
    while not stopped.is_set():
        with contextlib.suppress(Exception):  # there may be no leader for a moment
            orders = [
                node.order(MARKET, ("buy", "sell")[chance.randrange(2)], str(chance.randrange(90, 111)), "1")
                for _ in range(LOAD_BATCH)
            ]
            node.submit_many(MARKET, orders, timeout=2.0)
        stopped.wait(0.001)


class Nodes:
    """The node processes and what they say of their links."""

    def __init__(self, folder: Path, directory: str, load_threads: int) -> None:
        """Start nothing yet."""
        self._folder, self._directory, self._load_threads = folder, directory, load_threads
        self._addresses = {name: f"tls+tcp://127.0.0.1:{_free_port()}" for name in NAMES}
        self._running: dict[str, tuple[Any, Connection]] = {}
        self.ids: dict[str, str] = {}

    def start(self, name: str) -> float:
        """Start a node; return when it was made, by the clock of ``time.monotonic``."""
        ours, theirs = _spawn.Pipe()
        arguments = (name, self._folder, self._addresses[name], self._directory, self._load_threads, theirs)
        process = _spawn.Process(target=serve, args=arguments)
        process.start()
        theirs.close()
        self._running[name] = process, ours
        self.ids[name], made_s = ours.recv()
        return float(made_s)

    def links(self, name: str) -> dict[str, tuple[int, int]]:
        """Return the life of each link of ``name`` that is up, by its sessions."""
        _, pipe = self._running[name]
        pipe.send("links")
        found: dict[str, tuple[int, int]] = pipe.recv()
        return {other: found[node] for other, node in self.ids.items() if node in found}

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End a node."""
        process, pipe = self._running.pop(name)
        if kill:
            process.kill()
        else:
            pipe.send("stop")
        process.join()
        pipe.close()

    def close(self) -> None:
        """End all."""
        for name in list(self._running):
            self.stop(name, kill=True)

    def wait_linked(self) -> float:
        """Wait until each pair is linked and agrees on the life of its link; return when, by ``time.monotonic``."""
        until_s = time.monotonic() + LINK_S_MAX
        while True:
            found = {name: self.links(name) for name in NAMES}
            pairs = [(one, other) for one in NAMES for other in NAMES if one != other]
            missing = [
                f"{one} to {other}"
                for one, other in pairs
                if other not in found[one] or found[one][other] != found[other].get(one, (0, 0))[::-1]
            ]
            if not missing:
                return time.monotonic()
            if time.monotonic() > until_s:
                raise TimeoutError(f"not linked after {LINK_S_MAX} s: {', '.join(missing)}")
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def restarts(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all restarts; return what was measured."""
    from openoutcry.transport.certificates import Authority, Identity
    from openoutcry.transport.rendezvous import Rendezvous

    authority = Authority.create(folder / "authority")
    for name in NAMES:
        authority.issue_file(folder / f"{name}.pem", name, accounts=["*"])
    place = Rendezvous("tls+tcp://127.0.0.1:0", identity=Identity(authority.issue("rendezvous")))
    place.start()
    chance = random.Random(options.seed)
    nodes = Nodes(folder, place.address, options.load_threads)
    made, begun, kills = [], [], 0
    try:
        for name in NAMES:
            nodes.start(name)
        nodes.wait_linked()
        for _ in range(options.restarts):
            victim = chance.choice(NAMES) if options.any else NAMES[-1]
            kill = chance.random() < 0.5
            kills += kill
            nodes.stop(victim, kill=kill)
            begun_s = time.monotonic()
            made_s = nodes.start(victim)
            linked_s = nodes.wait_linked()
            begun.append(linked_s - begun_s)
            made.append(max(0.0, linked_s - made_s))
    finally:
        nodes.close()
        place.close()
    late = [round(each, 2) for each in made if each > options.bound_s]
    return {
        "restarts": len(made),
        "killed": kills,
        "made_s": {"median": round(statistics.median(made), 3), "longest": round(max(made), 3)},
        "begun_s": {"median": round(statistics.median(begun), 3), "longest": round(max(begun), 3)},
        "late": late,
    }


def main() -> int:
    """Run what the command line says; return 1 if a link came late."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=500)
    parser.add_argument("--load-threads", type=int, default=1, help="In each node.")
    parser.add_argument("--bound-s", type=float, default=5.0)
    parser.add_argument("--any", action="store_true", help="Restart any of the three, not only the last.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    _spawn.set_forkserver_preload(["openoutcry.actors", "openoutcry.transport.certificates"])
    with tempfile.TemporaryDirectory() as folder:
        found = restarts(Path(folder), options)
    print(json.dumps(found) if options.json else "\n".join(f"{key}: {value}" for key, value in found.items()))
    return 1 if found["late"] else 0


if __name__ == "__main__":
    sys.exit(main())
