"""Commands a second through an exchange: ordered, durable on every node, executed and answered, by the public API.

    python benchmarks/pipeline.py                 # the figures of the README, a few minutes
    python benchmarks/pipeline.py --only latency  # a part: batches, callers, latency, nodes, markets, identities
    python benchmarks/pipeline.py --pin           # each process on one core, as `taskset` or `CPUAffinity=` have it

Every node is a process with a data directory of its own and all are in the in-sync set: what counts was synced on all
of their disks and answered. The bare loop (``bare.py``) runs in turn with the figures that are compared with it.

*batches*: ``submit_many_async`` with a bounded number of commands in flight. *callers*: threads, and tasks of an event
loop, that submit one order and wait for its answer, again and again. *latency*: one order at a time, and orders at a
fixed rate, where the time counts from when an order was due, not from when the program came to send it (no coordinated
omission). *nodes*, *markets*: batches with more of them; the load of a market is the same for each.
*identities*: the same over TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from bare import bare
from cluster import Cluster, cluster
from hdrh.histogram import HdrHistogram
from openoutcry.actors import AsyncNode
from orders import Orders
from reporting import ROUNDS, Report, numbers

PARTS = ("batches", "callers", "latency", "nodes", "markets", "identities")
_HISTOGRAM = (1, 60_000_000, 3)
"""Microseconds: lowest, highest, significant digits."""


def batches(net: Cluster, orders: Orders, *, in_flight: int, batch: int, seconds: float) -> float:
    """Return commands a second over all markets, with up to ``in_flight`` commands of each market unanswered."""
    node = net.node
    waiting: dict[str, deque[Callable[[], Any]]] = {market: deque() for market in net.markets}
    answered = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for market, sent in waiting.items():
            sent.append(node.submit_many_async(market, orders.batch(batch), timeout=60))
            while len(sent) * batch >= in_flight:
                answered += len(sent.popleft()())
    for sent in waiting.values():
        while sent:
            answered += len(sent.popleft()())
    return answered / (time.perf_counter() - started)


def callers(net: Cluster, *, threads: int, seconds: float) -> float:
    """Return single orders a second from ``threads`` callers, each of which waits for its answer."""
    node, market = net.node, net.markets[0]
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def call(index: int) -> None:
        while time.perf_counter() < end:
            node.submit_order(market, ("buy", "sell")[index % 2], f"100.{10 + index % 10}", 1, timeout=60)
            counts[index] += 1

    _run(threads, call)
    return sum(counts) / seconds


async def tasks(net: Cluster, *, count: int, seconds: float) -> float:
    """Return single orders a second from ``count`` tasks of one event loop, each of which waits for its answer."""
    node, market = AsyncNode(net.node), net.markets[0]
    counts = [0] * count
    end = time.perf_counter() + seconds

    async def call(index: int) -> None:
        while time.perf_counter() < end:
            await node.submit_order(market, ("buy", "sell")[index % 2], f"100.{10 + index % 10}", 1, timeout=60)
            counts[index] += 1

    await asyncio.gather(*[call(index) for index in range(count)])
    return sum(counts) / seconds


def one_at_a_time(net: Cluster, *, count: int) -> HdrHistogram:
    """Return how long single orders took from call to answer, in microseconds, with nothing else going on."""
    histogram = HdrHistogram(*_HISTOGRAM)
    for at in range(count):
        started = time.perf_counter()
        net.node.submit_order(net.markets[0], ("buy", "sell")[at % 2], f"100.{10 + at % 10}", 1)
        histogram.record_value(int((time.perf_counter() - started) * 1e6))
    return histogram


def at_rate(net: Cluster, *, rate: int, threads: int, seconds: float) -> HdrHistogram:
    """Return how long single orders took from when they were due to their answer, at ``rate`` orders a second."""
    node, market = net.node, net.markets[0]
    histograms = [HdrHistogram(*_HISTOGRAM) for _ in range(threads)]
    started = time.perf_counter() + 0.1

    def call(index: int) -> None:
        due = started + index / rate
        while due < started + seconds:
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
            node.submit_order(market, ("buy", "sell")[index % 2], f"100.{10 + index % 10}", 1, timeout=60)
            histograms[index].record_value(int((time.perf_counter() - due) * 1e6))
            due += threads / rate

    _run(threads, call)
    for histogram in histograms[1:]:
        histograms[0].add(histogram)
    return histograms[0]


def _run(threads: int, call: Callable[[int], None]) -> None:
    started = [threading.Thread(target=call, args=(index,)) for index in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def _percentiles(histogram: HdrHistogram) -> dict[str, float]:
    return {f"p{at:g}_ms": histogram.get_value_at_percentile(at) / 1000 for at in (50, 99, 99.9, 100)}


def measure_batches(report: Report, options: argparse.Namespace) -> None:
    """Two nodes, with the bare loop in turn."""
    with bare(pin=options.pin) as loop, cluster(2, pin=options.pin) as net:
        orders = Orders()
        for in_flight in options.in_flight:
            batch = min(in_flight, options.batch)
            batches(net, orders, in_flight=in_flight, batch=batch, seconds=0.5)
            loop.run(batch=batch, seconds=0.2)
            rates, yardstick = [], []
            for _ in range(options.rounds):
                rates.append(batches(net, orders, in_flight=in_flight, batch=batch, seconds=options.seconds))
                yardstick.append(loop.run(batch=batch, seconds=options.seconds))
            details = {"nodes": 2, "markets": 1, "in_flight": in_flight, "batch": batch}
            report.add(f"submit_many of {batch}, {in_flight} in flight", "commands/s", rates, **details)
            report.add(f"  bare loop, batch {batch}", "commands/s", yardstick, batch=batch)
            ratios = [rate / bare_rate for rate, bare_rate in zip(rates, yardstick, strict=True)]
            report.add("  ratio", "of the bare loop", ratios, **details)


def measure_callers(report: Report, options: argparse.Namespace) -> None:
    """Two nodes, single orders from several callers at the leading node."""
    with cluster(2, pin=options.pin) as net:
        callers(net, threads=16, seconds=0.5)
        for count in (1, 16, 64, 256):
            on_threads, in_tasks = [], []
            for _ in range(options.rounds):
                on_threads.append(callers(net, threads=count, seconds=options.seconds))
                in_tasks.append(asyncio.run(tasks(net, count=count, seconds=options.seconds)))
            details = {"nodes": 2, "callers": count, "pinned": options.pin}
            report.add(f"submit_order, {count} threads", "orders/s", on_threads, **details)
            report.add(f"submit_order, {count} tasks of an event loop", "orders/s", in_tasks, **details)


def measure_latency(report: Report, options: argparse.Namespace) -> None:
    """Two nodes, one order at a time and at fixed rates."""
    with cluster(2, pin=options.pin) as net:
        one_at_a_time(net, count=500)
        runs = [_percentiles(one_at_a_time(net, count=1000)) for _ in range(options.rounds)]
        for name in runs[0]:
            report.add(f"one at a time, {name[:-3]}", "ms", [run[name] for run in runs], nodes=2)
        for rate in (1000, 5000):
            runs = [
                _percentiles(at_rate(net, rate=rate, threads=32, seconds=options.seconds))
                for _ in range(options.rounds)
            ]
            for name in runs[0]:
                report.add(f"{rate} a second, {name[:-3]}", "ms", [run[name] for run in runs], nodes=2, rate=rate)


def measure_nodes(report: Report, options: argparse.Namespace) -> None:
    """One market on 1, 2, 3 and 5 nodes, with two nodes again and again as the yardstick."""
    with cluster(2, pin=options.pin) as two:
        batches(two, Orders(), in_flight=1024, batch=options.batch, seconds=0.5)
        for nodes in (1, 3, 5):
            with cluster(nodes, pin=options.pin) as net:
                _compare(report, options, net, two, f"{nodes} nodes", nodes=nodes)


def measure_markets(report: Report, options: argparse.Namespace) -> None:
    """10 and 100 markets on two nodes, all led by one of them, with one market as the yardstick."""
    with cluster(2, pin=options.pin) as one:
        batches(one, Orders(), in_flight=1024, batch=options.batch, seconds=0.5)
        for markets in (10, 100):
            with cluster(2, markets, pin=options.pin) as net:
                _compare(report, options, net, one, f"{markets} markets", nodes=2, markets=markets)


def measure_identities(report: Report, options: argparse.Namespace) -> None:
    """Two nodes with identities, with two without as the yardstick."""
    with cluster(2, pin=options.pin) as plain, cluster(2, pin=options.pin, identities=True) as net:
        batches(plain, Orders(), in_flight=1024, batch=options.batch, seconds=0.5)
        _compare(report, options, net, plain, "2 nodes with identities", nodes=2)
        ratios = []
        for _ in range(options.rounds):
            mine, other = [_percentiles(one_at_a_time(each, count=1000))["p50_ms"] for each in (net, plain)]
            ratios.append(mine / other)
        report.add("  one at a time, p50: ratio", "of without", ratios, nodes=2)


def _compare(
    report: Report, options: argparse.Namespace, net: Cluster, yardstick: Cluster, what: str, **details: int
) -> None:
    load = {"in_flight": 1024, "batch": options.batch}
    mine, other = Orders(), Orders(account="other")
    batches(net, mine, **load, seconds=1.0)
    rates, ratios = [], []
    for _ in range(options.rounds):
        rates.append(batches(net, mine, **load, seconds=options.seconds))
        ratios.append(rates[-1] / batches(yardstick, other, **load, seconds=options.seconds))
    report.add(f"{what}, 1024 in flight each", "commands/s", rates, **details, **load)
    report.add("  ratio", "of 2 nodes, 1 market, no identities", ratios, **details, **load)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--batch", type=int, default=64, help="most commands of one submit_many (default 64)")
    parser.add_argument(
        "--in-flight", type=numbers, default=[1, 16, 64, 256, 1024], help="most commands unanswered, a list"
    )
    parser.add_argument("--pin", action="store_true", help="keep each process on one core")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round (default 2)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each figure (default {ROUNDS})")
    options = parser.parse_args()
    report = Report("pipeline")
    for part in PARTS:
        if options.only in (None, part):
            globals()[f"measure_{part}"](report, options)
    report.finish()


if __name__ == "__main__":
    main()
