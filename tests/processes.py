"""Nodes in processes that trade at full speed, and that say what is acknowledged before they can be killed."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from pathlib import Path
from typing import Any

from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.book.commands import Command
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.leadership import catalogue as markets
from openoutcry.actors.testing import ProcessExchange, eventually
from openoutcry.actors.testkit.processes import NodeProcess, report

MARKET = "BTC-USD"
RULES = MarketRules()


def crossing_orders(name: str, seed: int, count: int) -> list[Command]:
    """Return ``count`` commands of a trader: orders around one price, about half of which trade."""
    chance = random.Random(f"{name}/{seed}")
    return [
        (
            1,
            name,
            f"{seed}.{at}",
            chance.randrange(2),
            0,
            chance.randrange(9990, 10011),
            chance.randrange(1, 9),
            0,
            0,
            0,
        )
        for at in range(count)
    ]


def _trade(node: ExchangeNode, seed: int, count: int, batch: int) -> None:
    """Submit orders in batches; report each batch's acknowledged sequences as soon as they are known."""
    orders = crossing_orders(node.name, seed, count)
    for at in range(0, count, batch):
        lot = orders[at : at + batch]
        try:
            results = node.submit_many(MARKET, lot, timeout=60)
        except Exception as error:
            report(repr(error))
            return
        report([(c[2], r.sequence) for c, r in zip(lot, results, strict=True)])
    report(None)


def _begin(node: ExchangeNode, *work: int) -> None:
    threading.Thread(target=_trade, args=(node, *work), daemon=True).start()


def _hold(seconds: float) -> None:
    markets.HOLD_S = seconds  # type: ignore[misc]


class Trader(NodeProcess):
    """A node that trades in its own process."""

    def __init__(self, name: str, options: dict[str, Any], hold_s: float) -> None:
        self.acked: list[tuple[str, int]] = []
        """``(client order id, sequence)`` of what it has been told is durable everywhere."""
        self._traded = threading.Event()
        self._failed = ""
        super().__init__(name, options, prepare=functools.partial(_hold, hold_s), on_report=self._take)

    def _take(self, reported: list[tuple[str, int]] | str | None) -> None:
        if reported is None:
            self._traded.set()
        elif isinstance(reported, str):
            self._failed = reported
        else:
            self.acked += reported

    def trade(self, seed: int, count: int, *, batch: int = 50) -> None:
        """Begin to submit ``count`` orders; :meth:`wait_traded` waits for the end."""
        self._traded.clear()
        self.run(_begin, seed, count, batch)

    def wait_traded(self) -> None:
        eventually(lambda: self._failed or self._traded.is_set(), f"{self.name} has traded", within=120)
        assert not self._failed, f"{self.name}: {self._failed}"

    def wait_acked(self, count: int) -> None:
        """Wait until at least ``count`` commands have been acknowledged."""
        eventually(lambda: self._failed or len(self.acked) >= count, f"{self.name}: {count} acknowledged", within=60)
        assert not self._failed, f"{self.name}: {self._failed}"


class Traders(ProcessExchange):
    """An exchange of nodes that trade, on a folder whose logs can be read when they have ended."""

    def __init__(self, folder: Path, *, hold_s: float = markets.HOLD_S, **options: Any) -> None:
        self.folder = folder
        self._hold_s = hold_s
        super().__init__(folder, **options)

    def make_node(self, name: str, options: dict[str, Any]) -> Trader:
        return Trader(name, options, self._hold_s)

    def wait_known_in_sync(self, count: int) -> None:
        """Wait until the first node's status shows ``count`` nodes in sync."""
        eventually(lambda: len(self[0].status().markets[MARKET].in_sync) == count, f"{count} nodes are in sync")

    def logged(self, name: str) -> list[tuple[int, Command]]:
        """Return the log of a node that is not running: ``(sequence, command)``."""
        with contextlib.closing(Journal(self.folder / name / "markets" / MARKET)) as journal:
            return [
                (record.first_sequence + at, command)
                for record in journal.records()
                for at, command in enumerate(record.commands)
            ]


def flip_a_bit(folder: Path) -> None:
    """Damage the only segment of the journal in ``folder``, in the midst of a record."""
    (journal,) = folder.glob("*.log")
    data = bytearray(journal.read_bytes())
    data[300] ^= 1
    journal.write_bytes(data)
