"""Remote actors between two processes over tcp on this machine: asks and tells a second, and how soon a death is told.

    python benchmarks/remote.py [--seconds 3] [--deaths 10] [--json]

Prints one JSON line for each run and a table; with ``--json`` the lines only. *asks*: one at a time, each answered by
the other process's actor (p50 and p99 too). *tells*: by one sender; the actor checks that each comes once and in order,
and the clock stops when the last has been handled. *deaths*: ``kill -9`` of a process until a watching actor is told.
Exits with 1 if a message was lost or out of order.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import queue
import signal
import statistics
import sys
import threading
import time
from typing import Any

from openoutcry.actors import Actor, ExchangeNode
from openoutcry.actors.remote.refs import Terminated
from openoutcry.actors.remote.schema import message


@message("bench.tick")
class Tick:
    number: int
    symbol: str
    price: float


@message("bench.report")
class Report:
    """Ask: how many ticks were handled, and how many of them did not have the number that was next."""


class Feed(Actor):
    """Counts ticks; answers an asked one with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.handled = 0
        self.misplaced = 0

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, Report):
            return (self.handled, self.misplaced)
        self.misplaced += message.number != self.handled
        self.handled += 1
        return message


class Watcher(Actor):
    """Notes when it is told of a death."""

    def __init__(self, told: queue.SimpleQueue[float]) -> None:
        super().__init__()
        self._told = told

    def on_receive(self, message: Any) -> None:
        assert isinstance(message, Terminated)
        self._told.put(time.perf_counter())


def serve(name: str, directory: str) -> None:
    """Be the other process."""
    node = ExchangeNode(name, directory=directory)
    node.register("feed", Feed.start(), accepts=[Tick, Report])
    threading.Event().wait()


def start(name: str, node: ExchangeNode) -> tuple[Any, Any]:
    """Start a process and return it and the ref of its feed."""
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=serve, args=(name, node.directory_address), daemon=True)
    process.start()
    return process, node.wait_actor(f"feed@{name}")


def asks(feed: Any, first: int, seconds: float) -> tuple[int, dict[str, float]]:
    """Return how many were asked, and the figures."""
    times = []
    number = first
    started = time.perf_counter()
    while (now := time.perf_counter()) - started < seconds:
        feed.ask(Tick(number, "ACME", 20.1))
        times.append(time.perf_counter() - now)
        number += 1
    times.sort()
    count = len(times)
    figures: dict[str, float] = {
        "asks_per_s": round(count / (time.perf_counter() - started)),
        "ask_p50_us": round(times[count // 2] * 1e6),
        "ask_p99_us": round(times[int(count * 0.99)] * 1e6),
    }
    return count, figures


def tells(feed: Any, first: int, seconds: float) -> tuple[int, dict[str, float]]:
    """Return how many were told, and the figures."""
    number = first
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(100):
            feed.tell(Tick(number, "ACME", 20.1), timeout=30)
            number += 1
    handled, misplaced = feed.ask(Report(), timeout=60)
    taken = time.perf_counter() - started
    return number - first, {
        "tells_per_s": round((number - first) / taken),
        "tells_lost": number - handled,
        "tells_misplaced": misplaced,
    }


def deaths(node: ExchangeNode, count: int) -> dict[str, float]:
    """Return the figures of ``count`` processes killed."""
    told: queue.SimpleQueue[float] = queue.SimpleQueue()
    watcher = Watcher.start(told)
    times = []
    for index in range(count):
        process, feed = start(f"mortal-{index}", node)
        node.watch(feed, watcher)
        feed.ask(Report())
        killed = time.perf_counter()
        os.kill(process.pid, signal.SIGKILL)
        times.append((told.get(timeout=30) - killed) * 1000)
        process.join()
    watcher.stop()
    return {
        "death_watch_median_ms": round(statistics.median(times), 2),
        "death_watch_max_ms": round(max(times), 2),
        "deaths": count,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each run (default 3)")
    parser.add_argument("--deaths", type=int, default=10, help="processes to kill (default 10)")
    parser.add_argument("--json", action="store_true", help="no table")
    options = parser.parse_args()
    found: dict[str, Any] = {}

    def say(figures: dict[str, Any]) -> None:
        found.update(figures)
        print(json.dumps(figures), flush=True)

    say({"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()})
    with ExchangeNode("bench", serve_directory="tcp://127.0.0.1:0") as node:
        process, feed = start("other", node)
        sent, _ = asks(feed, 0, 0.5)
        more, figures = asks(feed, sent, options.seconds)
        say(figures)
        more, figures = tells(feed, sent + more, options.seconds)
        say(figures)
        say(deaths(node, options.deaths))
        process.kill()
        process.join()
    if not options.json:
        print("".join(f"{name:>24}: {value}\n" for name, value in found.items()), end="")
    sys.exit(1 if found["tells_lost"] or found["tells_misplaced"] else 0)


if __name__ == "__main__":
    main()
