"""A guard against lost speed, for CI: the product's rate over that of the bare loop beside it, in one run.

    python benchmarks/guard.py

Exits with 1 when the median ratio is below the bound. Never looks at absolute times, which are the machine's.
"""

from __future__ import annotations

import sys

from bare import bare
from cluster import cluster
from orders import Orders
from pipeline import batches
from reporting import ROUNDS, Report

RATIO_MIN = 0.5
"""The least that is let pass: a busy machine takes its share of what the README claims."""
BATCH = 64


def main() -> None:
    """Measure, report and judge."""
    report = Report("guard")
    with bare() as loop, cluster(2) as net:
        orders = Orders()
        ratios = []
        for turn in range(ROUNDS + 1):
            rate = batches(net, orders, in_flight=1024, batch=BATCH, seconds=0.7)
            yardstick = loop.run(batch=BATCH, seconds=0.7)
            if turn:  # the first is for warming up
                ratios.append(rate / yardstick)
    ratio = report.add(f"submit_many of {BATCH}", "of the bare loop", ratios, bound=RATIO_MIN)
    report.finish()
    sys.exit(0 if ratio >= RATIO_MIN else 1)


if __name__ == "__main__":
    main()
