"""An exchange for a benchmark: the first node in this process, each other one in a process of its own; all in sync."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from openoutcry.actors import ExchangeNode, MarketRules, spare_gc
from openoutcry.actors.testkit.processes import NodeProcess
from openoutcry.transport.certificates import Authority

RULES = MarketRules(tick_size="0.01")
CORES = sorted(os.sched_getaffinity(0))


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep the threads of this process that start meanwhile on ``core``; None: wherever they like.

    All threads that run Python in a process take turns: on one core they find its caches warm.
    """
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _prepare(core: int | None) -> None:
    spare_gc()
    if core is not None:
        os.sched_setaffinity(0, {core})


def _processor_s(_node: ExchangeNode) -> float:
    return time.process_time()


def _position(node: ExchangeNode, market: str, sequence: int) -> tuple[int, str]:
    node.wait_sequence(market, sequence, timeout=60)
    return node.position(market)


class Cluster:
    """Nodes that share markets; ``node`` is the one in this process, and it leads them all."""

    def __init__(self, node: ExchangeNode, others: list[NodeProcess], markets: list[str]) -> None:
        self.node = node
        self.markets = markets
        self._others = others

    def processor_s(self) -> list[float]:
        """Return the processor time that each node's process has used so far, this one's first."""
        return [time.process_time(), *[other.run(_processor_s) for other in self._others]]

    def check(self) -> None:
        """Wait until all nodes are where the first one is, and assert that their state hashes are equal."""
        for market in self.markets:
            here = self.node.position(market)
            for other in self._others:
                assert other.run(_position, market, here[0]) == here, "the nodes do not agree"


@contextmanager
def cluster(nodes: int, markets: int = 1, *, pin: bool = False, identities: bool = False) -> Iterator[Cluster]:
    """Run ``nodes`` nodes that hold ``markets`` markets, durable on all of them, in a temporary folder.

    ``pin``: each node's process stays on one core. ``identities``: their links are TLS.
    """
    names = [f"M{at}" for at in range(markets)]
    with on_core(CORES[0] if pin else None), ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="openoutcry-bench-")))
        authority = Authority.create(folder / "authority") if identities else None

        def options(index: int) -> dict[str, Any]:
            identity = None
            if authority is not None:
                identity = folder / f"n{index}.pem"
                authority.issue_file(identity, f"n{index}", accounts=["*"])
            return {
                "markets": dict.fromkeys(names, RULES),
                "data_dir": folder / f"n{index}",
                "coordinator": folder / "coordinator.sqlite",
                "balance": False,
                "identity": identity,
            }

        place = "tls+tcp://127.0.0.1:0" if identities else "tcp://127.0.0.1:0"
        node = undo.enter_context(ExchangeNode("n0", serve_directory=place, min_in_sync=nodes, **options(0)))
        others = []
        for index in range(1, nodes):
            prepare = functools.partial(_prepare, CORES[index % len(CORES)] if pin else None)
            more = {**options(index), "directory": node.directory_address}
            others.append(NodeProcess(f"n{index}", more, prepare=prepare, wait=False))
            undo.callback(others[-1].close)
        for other in others:
            other.wait_started()
        for name in names:
            node.wait_in_sync(name, nodes, timeout=60)
        node.wait_ready(timeout=60)
        spare_gc()
        found = Cluster(node, others, names)
        yield found
        found.check()
