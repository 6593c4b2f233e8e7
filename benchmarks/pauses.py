"""How long a market stands still: the longest gap between answers while something large happens beside a steady flow.

    python benchmarks/pauses.py [--orders 1000000] [--lapse 300000] [--cancel 100000] [--seconds 5]

Two nodes; the leading one is in this process. A book of ``--orders`` resting orders; a thread that submits orders one
at a time. For each disturbance, the longest time from one answer to the next, in milliseconds: *nothing*, *list*
(``all_orders`` again and again), *depth* (a book of full depth again and again), *cancel-all* of ``--cancel`` orders,
*lapse* of ``--lapse`` orders at once.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import threading
import time
from collections.abc import Callable

from cluster import Cluster, cluster
from openoutcry.actors import ExchangeNode
from reporting import ROUNDS, Report

_BATCH = 1000


class Flow:
    """Orders one at a time, from one thread, and when each was answered."""

    def __init__(self, node: ExchangeNode, market: str) -> None:
        self._node = node
        self._market = market
        self._over = threading.Event()
        self._answers: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        at = 0
        while not self._over.is_set():
            at += 1
            side, price = (("buy", "100.00"), ("sell", "100.00"))[at % 2]
            self._node.submit_order(self._market, side, price, 1, account=f"flow{at % 2}", timeout=60)
            self._answers.append(time.perf_counter())

    def longest_ms(self, disturbance: Callable[[], None]) -> float:
        """Return the longest gap between two answers, from the start of ``disturbance`` to its end."""
        self._thread.start()
        time.sleep(0.3)
        begun = time.perf_counter()
        disturbance()
        ended = time.perf_counter()
        self._over.set()
        self._thread.join()
        within = [at for at in self._answers if begun <= at] or [ended]
        before = [at for at in self._answers if at < begun][-1:]
        times = [*before, *within]
        return max([later - earlier for earlier, later in itertools.pairwise(times)]) * 1000


def fill(net: Cluster, count: int, account: str, *, expire: datetime.datetime | int = 0) -> None:
    """Let ``count`` orders rest, over some thousands of prices."""
    node, market = net.node, net.markets[0]
    waiting = []
    for first in range(0, count, _BATCH):
        orders = [
            node.order(
                market,
                ("buy", "sell")[at % 2],
                f"{50 + at * 7919 % 4000 / 100:.2f}" if at % 2 == 0 else f"{110 + at * 7919 % 4000 / 100:.2f}",
                1,
                account=account,
                expire_ns=expire,
            )
            for at in range(first, min(first + _BATCH, count))
        ]
        waiting.append(node.submit_many_async(market, orders, timeout=60))
        while len(waiting) > 4:
            waiting.pop(0)()
    for done in waiting:
        done()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--lapse", type=int, default=300_000)
    parser.add_argument("--cancel", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run of nothing, and of reads")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each; the median is quoted")
    options = parser.parse_args()
    report = Report("pauses")
    with cluster(2) as net:
        node, market = net.node, net.markets[0]
        fill(net, options.orders, "rest")

        def again_and_again(read: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                until = time.perf_counter() + options.seconds
                while time.perf_counter() < until:
                    read()

            return run

        def cancelled() -> None:
            node.cancel_all(market, account="many", timeout=60)
            time.sleep(1.0)

        def measure(what: str, run: Callable[[], None], prepare: Callable[[], None] = lambda: None) -> None:
            found = []
            for _ in range(options.rounds):
                prepare()
                found.append(Flow(node, market).longest_ms(run))
            report.add(what, "ms", found, orders=options.orders)

        measure("nothing", lambda: time.sleep(options.seconds))
        measure("list", again_and_again(lambda: node.all_orders(market)))
        measure("depth", again_and_again(lambda: node.get_order_book(market)))
        measure("cancel-all", cancelled, lambda: fill(net, options.cancel, "many"))
        if options.lapse:
            due = [datetime.datetime.now(datetime.UTC)]

            def to_lapse() -> None:
                due[0] = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20 + options.lapse / 5_000)
                fill(net, options.lapse, "late", expire=due[0])

            def lapsed() -> None:
                left = (due[0] - datetime.datetime.now(datetime.UTC)).total_seconds()
                assert left > 0, "the orders took too long"
                time.sleep(left + 2.0)

            measure("lapse", lapsed, to_lapse)
    report.finish()


if __name__ == "__main__":
    main()
