"""The directory over tcp: how long a lookup takes, how soon an announcement is found, and how soon a death is noticed.

    python benchmarks/lookup.py [--rounds 20]

The announcing node is a process of its own; *gone* is from ``kill -9`` of it until no lookup finds it any more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from openoutcry.actors import ExchangeNode
from openoutcry.transport.rendezvous import Rendezvous
from reporting import Report, percentiles


def _announce(directory: str, pipe: Connection) -> None:
    with ExchangeNode("announcer", directory=directory) as node:
        pipe.send("ready")
        while (service := pipe.recv()) is not None:
            started = time.perf_counter()
            node.announce(service, "tcp://127.0.0.1:9")
            pipe.send(started)


def _until(node: ExchangeNode, service: str, *, found: bool) -> float:
    while bool(node.lookup(service).entries) is not found:
        pass
    return time.perf_counter()


def measure(report: Report, rounds: int) -> None:
    """Take all figures ``rounds`` times."""
    spawn = multiprocessing.get_context("spawn")
    lookups: list[float] = []
    found: list[float] = []
    gone: list[float] = []
    with Rendezvous("tcp://127.0.0.1:0") as rendezvous, ExchangeNode("seeker", directory=rendezvous.address) as node:
        for number in range(rounds):
            ours, theirs = spawn.Pipe()
            process: Any = spawn.Process(target=_announce, args=(rendezvous.address, theirs), daemon=True)
            process.start()
            assert ours.recv() == "ready"
            service = f"prices-{number}"
            ours.send(service)
            at = _until(node, service, found=True)
            found.append((at - ours.recv()) * 1000)
            for _ in range(50):
                started = time.perf_counter()
                node.lookup(service)
                lookups.append((time.perf_counter() - started) * 1000)
            started = time.perf_counter()
            process.kill()
            gone.append((_until(node, service, found=False) - started) * 1000)
            process.join()
    report.add("lookup", "ms", [percentiles(lookups)["p50"]], **percentiles(lookups))
    report.add("announce to found by another process", "ms", found, **percentiles(found))
    report.add("kill -9 to gone", "ms", gone, **percentiles(gone))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20, help="processes that are started and killed (default 20)")
    report = Report("lookup")
    measure(report, parser.parse_args().rounds)
    report.finish()


if __name__ == "__main__":
    main()
