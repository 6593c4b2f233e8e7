"""An exchange for a benchmark: the first node in this process, each other one in a process of its own; all in sync."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from openoutcry.actors import ExchangeNode, MarketRules, spare_gc
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


def _serve(
    index: int,
    folder: Path,
    directory: str,
    markets: list[str],
    pipe: Connection,
    core: int | None,
    identity: Path | None,
) -> None:
    with on_core(core):
        _serve_here(index, folder, directory, markets, pipe, identity)


def _serve_here(
    index: int, folder: Path, directory: str, markets: list[str], pipe: Connection, identity: Path | None
) -> None:
    node = ExchangeNode(
        f"n{index}",
        markets=dict.fromkeys(markets, RULES),
        data_dir=folder / f"n{index}",
        coordinator=folder / "coordinator.sqlite",
        directory=directory,
        balance=False,
        identity=identity,
    )
    with node:
        spare_gc()
        pipe.send("started")
        while (asked := pipe.recv()) is not None:
            if asked == "cpu":
                pipe.send(time.process_time())
                continue
            for market, sequence in asked.items():
                node.wait_sequence(market, sequence, timeout=60)
            pipe.send({market: node.position(market) for market in asked})


class Cluster:
    """Nodes that share markets; ``node`` is the one in this process, and it leads them all."""

    def __init__(self, node: ExchangeNode, pipes: list[Connection], markets: list[str]) -> None:
        self.node = node
        self.markets = markets
        self._pipes = pipes

    def processor_s(self) -> list[float]:
        """Return the processor time that each node's process has used so far, this one's first."""
        for pipe in self._pipes:
            pipe.send("cpu")
        return [time.process_time(), *[pipe.recv() for pipe in self._pipes]]

    def check(self) -> None:
        """Wait until all nodes are where the first one is, and assert that their state hashes are equal."""
        here = {market: self.node.position(market) for market in self.markets}
        for pipe in self._pipes:
            pipe.send({market: position[0] for market, position in here.items()})
        for pipe in self._pipes:
            assert pipe.recv() == here, "the nodes do not agree"


@contextmanager
def cluster(nodes: int, markets: int = 1, *, pin: bool = False, identities: bool = False) -> Iterator[Cluster]:
    """Run ``nodes`` nodes that hold ``markets`` markets, durable on all of them, in a temporary folder.

    ``pin``: each node's process stays on one core. ``identities``: their links are TLS.
    """
    names = [f"M{at}" for at in range(markets)]
    spawn = multiprocessing.get_context("spawn")
    with on_core(CORES[0] if pin else None), ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="openoutcry-bench-")))
        files: list[Path | None] = [None] * nodes
        if identities:
            authority = Authority.create(folder / "authority")
            for index in range(nodes):
                files[index] = file = folder / f"n{index}.pem"
                authority.issue_file(file, f"n{index}", accounts=["*"])
        node = undo.enter_context(
            ExchangeNode(
                "n0",
                markets=dict.fromkeys(names, RULES),
                data_dir=folder / "n0",
                coordinator=folder / "coordinator.sqlite",
                serve_directory="tls+tcp://127.0.0.1:0" if identities else "tcp://127.0.0.1:0",
                min_in_sync=nodes,
                balance=False,
                identity=files[0],
            )
        )
        pipes = []
        for index in range(1, nodes):
            ours, theirs = spawn.Pipe()
            arguments = (
                index,
                folder,
                node.directory_address,
                names,
                theirs,
                CORES[index % len(CORES)] if pin else None,
                files[index],
            )
            process: Any = spawn.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            undo.callback(process.join, 30)
            undo.callback(ours.send, None)
            pipes.append(ours)
        for pipe in pipes:
            assert pipe.recv() == "started"
        for name in names:
            node.wait_in_sync(name, nodes, timeout=60)
        node.wait_ready(timeout=60)
        spare_gc()
        found = Cluster(node, pipes, names)
        yield found
        found.check()
