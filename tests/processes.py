"""Nodes in operating-system processes of their own, for tests that kill them: start, command over a pipe, kill -9."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.book.commands import Command
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.leadership import catalogue as markets
from openoutcry.transport.rendezvous import Rendezvous

MARKET = "BTC-USD"
RULES = MarketRules()
_spawn = multiprocessing.get_context("spawn")


def crossing_orders(name: str, seed: int, count: int) -> list[Command]:
    """Return ``count`` commands of a trader: orders around one price, about half of which trade."""
    chance = random.Random(f"{name}/{seed}")
    return [
        (
            1,
            name,
            f"{seed}.{number}",
            chance.randrange(2),
            0,
            chance.randrange(9990, 10011),
            chance.randrange(1, 9),
            0,
            0,
            0,
        )
        for number in range(count)
    ]


def _trade(node: ExchangeNode, pipe: Connection, seed: int, count: int, batch: int) -> None:
    """Submit orders in batches; report each batch's acknowledged sequences as soon as they are known."""
    orders = crossing_orders(node.name, seed, count)
    for at in range(0, count, batch):
        lot = orders[at : at + batch]
        try:
            results = node.submit_many(MARKET, lot, timeout=60)
        except Exception as error:
            pipe.send(("failed", repr(error)))
            return
        pipe.send(("acked", [(c[2], r.sequence) for c, r in zip(lot, results, strict=True)]))
    pipe.send(("traded", count))


def _serve(name: str, folder: Path, directory: str, options: dict[str, Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    markets.HOLD_S = options.pop("hold_s", markets.HOLD_S)  # type: ignore[misc]
    with ExchangeNode(
        name,
        data_dir=folder / name,
        directory=directory,
        **{"markets": {MARKET: RULES}, "coordinator": folder / "coordinator.sqlite", **options},
    ) as node:
        node.wait_ready(60)
        pipe.send(("ready", node.node_id))
        while True:
            what, *arguments = pipe.recv()
            if what == "trade":
                _trade(node, pipe, *arguments)
            elif what == "call":
                method, args = arguments
                pipe.send(("answer", getattr(node, method)(*args)))
            else:
                return


class NodeProcess:
    """One node in its own process."""

    def __init__(self, name: str, folder: Path, directory: str, options: dict[str, Any]) -> None:
        self.name = name
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=_serve, args=(name, folder, directory, options, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.acked: list[tuple[str, int]] = []
        """``(client order id, sequence)`` of what it has been told is durable everywhere."""

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait_ready(self) -> None:
        what, _ = self._receive(60)
        assert what == "ready"

    def trade(self, seed: int, count: int, *, batch: int = 50) -> None:
        """Begin to submit ``count`` orders; :meth:`wait_traded` waits for the end."""
        self._pipe.send(("trade", seed, count, batch))

    def wait_traded(self, within: float = 120) -> None:
        deadline = time.monotonic() + within
        while True:
            what, value = self._receive(deadline - time.monotonic())
            if what == "acked":
                self.acked += value
            else:
                assert what == "traded", f"{self.name}: {value}"
                return

    def wait_acked(self, count: int, within: float = 60) -> None:
        """Wait until at least ``count`` commands have been acknowledged."""
        deadline = time.monotonic() + within
        while len(self.acked) < count:
            what, value = self._receive(deadline - time.monotonic())
            assert what == "acked", f"{self.name}: {what} {value}"
            self.acked += value

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the node and return what it returned."""
        self._pipe.send(("call", method, args))
        what, value = self._receive(60)
        assert what == "answer", f"{self.name}: {what} {value}"
        return value

    def kill(self) -> None:
        """kill -9, and take in what it had reported before."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(10)
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll(0):
                what, value = self._pipe.recv()
                if what == "acked":
                    self.acked += value

    def stop(self) -> None:
        """Close the node in order."""
        with contextlib.suppress(OSError):
            self._pipe.send(("stop",))
        self._process.join(30)
        if self._process.is_alive():
            self.kill()

    def _receive(self, within: float) -> tuple[str, Any]:
        assert self._pipe.poll(max(within, 0)), f"{self.name} said nothing in time"
        what, value = self._pipe.recv()
        return what, value


class Market:
    """Node processes that share a rendezvous, a coordinator and a folder."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self._options = options
        self._rendezvous = Rendezvous("tcp://127.0.0.1:0")
        self._rendezvous.start()
        self.nodes: dict[str, NodeProcess] = {}

    def start(self, *names: str) -> list[NodeProcess]:
        """Start nodes, or start them again on their old folders, and wait until each can trade."""
        for name in names:
            self.nodes[name] = NodeProcess(name, self.folder, self._rendezvous.address, self._options)
        for name in names:
            self.nodes[name].wait_ready()
        return [self.nodes[name] for name in names]

    def wait_in_sync(self) -> None:
        for node in self.nodes.values():
            node.call("wait_in_sync", MARKET, len(self.nodes))

    def settle(self) -> tuple[int, str]:
        """Wait until all nodes are at one sequence number; return it and the hash they agree on."""
        last = max([node.call("sequence", MARKET) for node in self.nodes.values()])
        for node in self.nodes.values():
            node.call("wait_sequence", MARKET, last)
        positions = {node.call("position", MARKET) for node in self.nodes.values()}
        assert len(positions) == 1, f"the nodes disagree: {positions}"
        (position,) = positions
        return position

    def close(self) -> None:
        for node in self.nodes.values():
            node.stop()
        self._rendezvous.close()

    def logged(self, name: str) -> list[tuple[int, Command]]:
        """Return the log of a node that is not running: ``(sequence, command)``."""
        journal = Journal(self.folder / name / "markets" / MARKET)
        found = [
            (record.first_sequence + at, command)
            for record in journal.records()
            for at, command in enumerate(record.commands)
        ]
        journal.close()
        return found


@contextlib.contextmanager
def market(folder: Path, **options: Any) -> Iterator[Market]:
    """Start a market without nodes; stop all of its processes at the end."""
    made = Market(folder, **options)
    try:
        yield made
    finally:
        made.close()


def flip_a_bit(folder: Path) -> None:
    """Damage the only segment of the journal in ``folder``, in the midst of a record."""
    (journal,) = folder.glob("*.log")
    data = bytearray(journal.read_bytes())
    data[300] ^= 1
    journal.write_bytes(data)
