"""Commands a second through N node processes, ordered and durable on all of them, through the public API.

    python benchmarks/pipeline.py [--nodes 2] [--batch 256] [--seconds 5] [--json]

Every node is a process of its own with its own data directory; all are in the in-sync set, and only what has been
acknowledged as durable on all of them counts. Three figures: pipelined (``submit_many_async`` with a bounded number of
commands in flight), one at a time (p50 and p99), and many callers (``submit_order`` from concurrent threads).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import sys
import tempfile
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MARKET = "BENCH"


def follow(index: int, folder: Path, directory: str, pipe: Connection) -> None:
    """Run a node until told to stop; the process of every node but the first."""
    from openoutcry.actors import ExchangeNode, MarketRules

    options: dict[str, Any] = {"coordinator": folder / "coordinator.sqlite", "directory": directory}
    with ExchangeNode(f"n{index}", markets={MARKET: MarketRules()}, data_dir=folder / f"n{index}", **options) as node:
        pipe.send("started")
        while (target := pipe.recv()) is not None:
            node.wait_sequence(MARKET, target)
            pipe.send(node.position(MARKET))


def commands_of(node: Any, count: int, seed: int) -> list[Any]:
    """Return ``count`` limit orders, about half of which trade at once, so that the book stays small."""
    chance = random.Random(seed)
    side, price, lots = chance.randrange, chance.randrange, chance.randrange
    return [
        node.order(
            MARKET, ("buy", "sell")[side(2)], f"100.{price(10, 20)}", lots(1, 5), client_order_id=f"{seed:x}-{number:x}"
        )
        for number in range(count)
    ]


def pipelined(node: Any, *, batch: int, in_flight: int, seconds: float) -> float:
    """Return acknowledged commands a second with up to ``in_flight`` commands unanswered."""
    prepared = [commands_of(node, batch, seed) for seed in range(64)]
    waiting: deque[Any] = deque()
    sent = answered = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        lot = prepared[sent % len(prepared)]
        tag = f"{sent:x}."
        waiting.append(node.submit_many_async(MARKET, [(c[0], c[1], tag + c[2], *c[3:]) for c in lot], timeout=30))
        sent += 1
        while len(waiting) * batch >= in_flight:
            answered += len(waiting.popleft()())
    while waiting:
        answered += len(waiting.popleft()())
    return answered / (time.perf_counter() - started)


def one_at_a_time(node: Any, *, count: int) -> tuple[float, float]:
    """Return p50 and p99 of the time from submit to durable, replicated answer, in milliseconds."""
    chance = random.Random(1)
    times = []
    for _ in range(count):
        price = f"100.{chance.randrange(10, 20)}"
        started = time.perf_counter()
        node.submit_order(MARKET, ("buy", "sell")[chance.randrange(2)], price, "1")
        times.append((time.perf_counter() - started) * 1000)
    times.sort()
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def many_callers(node: Any, *, callers: int, seconds: float) -> float:
    """Return acknowledged single submits a second from ``callers`` threads."""
    counts = [0] * callers
    stop = time.perf_counter() + seconds

    def call(index: int) -> None:
        while time.perf_counter() < stop:
            node.submit_order(MARKET, ("buy", "sell")[index % 2], f"100.{10 + index % 10}", "1", timeout=30)
            counts[index] += 1

    threads = [threading.Thread(target=call, args=(index,)) for index in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start the nodes, run the three loads at the first, and check that all nodes agree at the end."""
    from openoutcry.actors import ExchangeNode, MarketRules

    spawn = multiprocessing.get_context("spawn")
    node = ExchangeNode(
        "n0",
        markets={MARKET: MarketRules()},
        data_dir=folder / "n0",
        coordinator=folder / "coordinator.sqlite",
        serve_directory="tcp://127.0.0.1:0",
        min_in_sync=options.nodes,
    )
    others = []
    with node:
        for index in range(1, options.nodes):
            mine, theirs = spawn.Pipe()
            process = spawn.Process(target=follow, args=(index, folder, node.directory_address, theirs), daemon=True)
            process.start()
            others.append((process, mine))
        node.wait_in_sync(MARKET, options.nodes)
        node.wait_ready()
        pipelined(node, batch=options.batch, in_flight=options.in_flight, seconds=0.5)
        rate = pipelined(node, batch=options.batch, in_flight=options.in_flight, seconds=options.seconds)
        p50, p99 = one_at_a_time(node, count=1000)
        callers = many_callers(node, callers=64, seconds=min(2.0, options.seconds))
        position = node.position(MARKET)
        agreed = True
        for process, pipe in others:
            pipe.recv()
            pipe.send(position[0])
            agreed = agreed and pipe.recv() == position
            pipe.send(None)
            process.join(10)
    return {
        "nodes": options.nodes,
        "batch": options.batch,
        "in_flight": options.in_flight,
        "pipelined_commands_per_s": round(rate),
        "one_at_a_time_p50_ms": round(p50, 3),
        "one_at_a_time_p99_ms": round(p99, 3),
        "64_callers_commands_per_s": round(callers),
        "commands": position[0],
        "state_hashes_equal": agreed,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--nodes", type=int, default=2, help="node processes, all in the in-sync set (default 2)")
    parser.add_argument("--batch", type=int, default=256, help="commands of one submit_many (default 256)")
    parser.add_argument("--in-flight", type=int, default=1024, help="most commands unanswered (default 1024)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the pipelined run (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openoutcry-bench-") as folder:
        result = measure(options, Path(folder))
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write("".join(f"{name:>28}: {value}\n" for name, value in result.items()))
    sys.exit(0 if result["state_hashes_equal"] else 1)


if __name__ == "__main__":
    main()
