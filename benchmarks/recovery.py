"""How long a node takes to come back: from its disk, and from the others when its disk was wiped.

    python benchmarks/recovery.py [--rounds 5] [--commands 1000000] [--orders 10000] [--json]

Three figures, medians: (a) a node is started on a log of ``--commands`` commands, with its snapshots and without any,
until it is ready to trade; (b) one of three node processes is killed and its disk wiped, and it is started again while
the others trade, until it is in the in-sync set once more, from the start of its process on. ``complete``: all that was
acknowledged was there again, and the nodes' state hashes were equal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import platform
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

MARKET: Final = "BENCH"
BATCH: Final = 1000
LOAD_BATCH: Final = 64
WAIT_S_MAX: Final = 60.0


def orders_of(node: Any, count: int, seed: int) -> Iterator[list[Any]]:
    """Yield ``count`` limit orders in batches; most trade in the end, and some rest away from the touch."""
    chance = random.Random(seed)
    for first in range(0, count, BATCH):
        yield [
            node.order(
                MARKET,
                ("buy", "sell")[chance.randrange(2)],
                f"100.{chance.randrange(10, 90)}",
                str(chance.randrange(1, 9)),
                client_order_id=f"{seed:x}.{number:x}",
            )
            for number in range(first, min(first + BATCH, count))
        ]


def from_disk(options: argparse.Namespace, folder: Path, *, snapshots: bool) -> dict[str, Any]:
    """Measure recovery from a log of so many commands."""
    from openoutcry.actors import ExchangeNode, MarketRules

    settings: dict[str, Any] = {"markets": {MARKET: MarketRules()}, "data_dir": folder, "timeout": WAIT_S_MAX}
    if not snapshots:
        settings["snapshot_every"] = 10 * options.commands
    with ExchangeNode("n0", **settings) as node:
        node.wait_ready()
        waiting: deque[Any] = deque()
        for batch in orders_of(node, options.commands, 1):
            waiting.append(node.submit_many_async(MARKET, batch, timeout=WAIT_S_MAX))
            if len(waiting) > 4:
                waiting.popleft()()
        while waiting:
            waiting.popleft()()
        left = node.position(MARKET)
        resting = len(node.all_orders(MARKET))
    times = []
    same = True
    for _ in range(options.rounds):
        began = time.perf_counter()
        with ExchangeNode("n0", **settings) as node:
            node.wait_ready(timeout=WAIT_S_MAX)
            times.append(time.perf_counter() - began)
            same = same and node.position(MARKET)[0] >= left[0] and len(node.all_orders(MARKET)) == resting
    return {
        "figure": "recovery from " + ("snapshot and log" if snapshots else "the log alone"),
        "commands": left[0],
        "resting_orders": resting,
        "seconds": times,
        "complete": same,
    }


def follow(name: str, folder: Path, directory: str, coordinator: str, pipe: Any) -> None:
    """Run a node until told to stop; the process of every node but the first."""
    from openoutcry.actors import ExchangeNode, MarketRules

    rules = {MARKET: MarketRules()}
    with ExchangeNode(name, markets=rules, data_dir=folder, directory=directory, coordinator=coordinator) as node:
        while (target := pipe.recv()) is not None:
            node.wait_sequence(MARKET, target)
            pipe.send(node.position(MARKET))


def load(node: Any, stop: threading.Event, answered: list[int]) -> None:
    """Trade at one price, away from all that rests, so that the book stays as large as it is."""
    for number in itertools.count():
        if stop.is_set():
            return
        batch = [
            node.order(MARKET, ("buy", "sell")[at % 2], "100.00", "1", client_order_id=f"load.{number:x}.{at:x}")
            for at in range(LOAD_BATCH)
        ]
        answered[0] += len(node.submit_many(MARKET, batch, timeout=WAIT_S_MAX))


def wiped(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the return of a replica whose disk was wiped, under load."""
    from openoutcry.actors import ExchangeNode, MarketRules

    spawn = multiprocessing.get_context("spawn")
    coordinator = str(folder / "coordinator.sqlite")
    settings: dict[str, Any] = {
        "coordinator": coordinator,
        "serve_directory": "tcp://127.0.0.1:0",
        "timeout": WAIT_S_MAX,
    }
    times = []
    same = True
    with ExchangeNode("n0", markets={MARKET: MarketRules()}, data_dir=folder / "n0", **settings) as node:

        def start(name: str) -> tuple[Any, Any]:
            mine, theirs = spawn.Pipe()
            process = spawn.Process(
                target=follow, args=(name, folder / name, node.directory_address, coordinator, theirs), daemon=True
            )
            process.start()
            return process, mine

        def wait_in_sync(count: int) -> None:
            deadline = time.perf_counter() + WAIT_S_MAX
            while len(node.status().markets[MARKET].in_sync) != count:
                if time.perf_counter() > deadline:
                    raise TimeoutError(f"{count} replicas are not in sync: {node.status()}")
                time.sleep(0.005)

        node.wait_ready()
        others = {name: start(name) for name in ("n1", "n2")}
        wait_in_sync(3)
        half = options.orders // 2
        resting = [("buy", f"{50 + at % 4000 / 100:.2f}") for at in range(half)]
        resting += [("sell", f"{110 + at % 4000 / 100:.2f}") for at in range(options.orders - half)]
        for first in range(0, len(resting), BATCH):
            node.submit_many(MARKET, [node.order(MARKET, s, p, "1") for s, p in resting[first : first + BATCH]])
        stop, answered = threading.Event(), [0]
        thread = threading.Thread(target=load, args=(node, stop, answered))
        thread.start()
        began_all = time.perf_counter()
        for _ in range(options.rounds):
            process, _pipe = others["n2"]
            process.kill()
            process.join()
            wait_in_sync(2)
            shutil.rmtree(folder / "n2")
            began = time.perf_counter()
            others["n2"] = start("n2")
            wait_in_sync(3)
            times.append(time.perf_counter() - began)
        rate = answered[0] / (time.perf_counter() - began_all)
        stop.set()
        thread.join()
        position = node.position(MARKET)
        for process, pipe in others.values():
            pipe.send(position[0])
            same = same and pipe.recv() == position
            pipe.send(None)
            process.join(10)
        rest = len(node.all_orders(MARKET))
    return {
        "figure": "wiped replica in sync again, under load",
        "commands": position[0],
        "resting_orders": rest,
        "load_commands_per_s": round(rate),
        "seconds": times,
        "complete": same,
    }


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures, each with its median."""
    figures: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: from_disk(options, folder / "a", snapshots=True),
        lambda: from_disk(options, folder / "b", snapshots=False),
        lambda: wiped(options, folder / "c"),
    )
    for figure in figures:
        row = figure()
        times = row.pop("seconds")
        row |= {
            "rounds": len(times),
            "median_s": round(statistics.median(times), 3),
            "max_s": round(max(times), 3),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        yield row


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--commands", type=int, default=1_000_000, help="in the log (default 1000000)")
    parser.add_argument("--orders", type=int, default=10_000, help="in the book of the wiped replica (default 10000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    good = True
    if not options.json:
        sys.stdout.write(f"{'figure':<42} {'commands':>9} {'resting':>8} {'rounds':>6} {'median s':>9} {'max s':>7}\n")
    with tempfile.TemporaryDirectory(prefix="openoutcry-bench-") as name:
        folder = Path(name)
        (folder / "c").mkdir()
        for row in measure(options, folder):
            good = good and row["complete"]
            size = f"{row['commands']:>9} {row['resting_orders']:>8}"
            line = f"{row['figure']:<42} {size} {row['rounds']:>6} {row['median_s']:>9.3f} {row['max_s']:>7.3f}"
            sys.stdout.write((json.dumps(row) if options.json else line) + "\n")
            sys.stdout.flush()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
