"""What subscribers cost the market: batches through two nodes, with 0, 1, 10 and 100 subscribers at the leading one.

    python benchmarks/subscribers.py

Each subscriber has a function that is called with every update; ``--look`` lets it look at the events in decimals. In
each round the load runs once for each number of subscribers, and their rates are compared with that of none.
"""

from __future__ import annotations

import argparse

from cluster import Cluster, cluster
from openoutcry.actors import MarketUpdate
from orders import Orders
from pipeline import batches
from reporting import ROUNDS, Report, numbers


def with_subscribers(net: Cluster, orders: Orders, count: int, *, look: bool, seconds: float) -> tuple[float, int]:
    """Return commands a second while ``count`` subscribers are called, and how many of these were cut."""

    def called(update: MarketUpdate) -> None:
        if look:
            assert update.events

    market = net.markets[0]
    subscriptions = [net.node.subscribe(market, called, queue_size_max=100_000) for _ in range(count)]
    rate = batches(net, orders, in_flight=1024, batch=64, seconds=seconds)
    cut = sum([subscription.ended for subscription in subscriptions])
    for subscription in subscriptions:
        subscription.close()
    return rate, cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=numbers, default=[1, 10, 100], help="numbers of subscribers")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each; the median is quoted")
    parser.add_argument("--look", action="store_true", help="each subscriber looks at the events in decimals")
    options = parser.parse_args()
    report = Report("subscribers")
    with cluster(2) as net:
        orders = Orders()
        batches(net, orders, in_flight=1024, batch=64, seconds=1)
        rates: dict[int, list[float]] = {count: [] for count in (0, *options.counts)}
        for _ in range(options.rounds):
            for count, found in rates.items():
                rate, cut = with_subscribers(net, orders, count, look=options.look, seconds=options.seconds)
                assert not cut, f"{cut} of {count} subscribers were cut"
                found.append(rate)
        for count, found in rates.items():
            report.add(f"{count} subscribers", "commands/s", found, subscribers=count, look=options.look)
            if count:
                ratios = [rate / none for rate, none in zip(found, rates[0], strict=True)]
                report.add("  ratio", "of none", ratios, subscribers=count, look=options.look)
    report.finish()


if __name__ == "__main__":
    main()
