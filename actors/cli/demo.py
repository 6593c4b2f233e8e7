"""A demonstration on this machine: nodes, trading bots, and a view of them."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import click

from ...transport.errors import OpenOutcryError, present
from ..tools.local import Bot, LocalExchange
from .common import until_signalled
from .live import WATCH_S, watch
from .numbers import NumberRange, WholeRange
from .output import Failure, say
from .show import book_lines, table, trade_line

MARKET: Final = "BTC-USD"
_LINES_S: Final = 2.0
"""Seconds between two prints of the view if it cannot be shown in place."""


@click.command()
@click.option("--nodes", type=WholeRange(1, 9), default=3, show_default=True, help="How many node processes.")
@click.option("--bots", type=WholeRange(0, 50), default=4, show_default=True, help="How many traders.")
@click.option("--orders-per-s", type=NumberRange(0.1, 200), default=10.0, show_default=True, help="Of each.")
@click.option("--seconds", type=NumberRange(1), help="End after so long.  [default: on Ctrl-C]")
def demo(*, nodes: int, bots: int, orders_per_s: float, seconds: float | None) -> None:
    """Run an exchange on this machine, in a temporary folder, with bots that trade at all of its nodes.

    Watch how all nodes reach the same book. Kill one of the processes shown, and watch again. Ctrl-C ends the
    demonstration and leaves nothing behind.
    """
    with (
        until_signalled() as ended,
        tempfile.TemporaryDirectory(prefix="openoutcry-demo-", ignore_cleanup_errors=True) as folder,
        LocalExchange(Path(folder), markets=[f"{MARKET}:tick_size=0.01,lot_size=0.01"]) as exchange,
    ):
        names = [f"node-{at + 1}" for at in range(nodes)]
        say(f"starting {', '.join(names)} in {folder}")
        for name in names:
            exchange.start(name)
        _wait_in_sync(exchange, ended)
        if ended.is_set():
            return
        traders = [Bot(exchange, f"bot-{at + 1}", MARKET, orders_per_s=orders_per_s) for at in range(bots)]
        for trader in traders:
            trader.start()
        if seconds is not None:
            timer = threading.Timer(seconds, ended.set)
            timer.daemon = True
            timer.start()
        watch(_View(exchange, traders), ended, every_s=WATCH_S if sys.stdout.isatty() else _LINES_S)
        say("ending the bots and the nodes")
        for trader in traders:
            trader.stop()
        equal = _settled(exchange)
        alive = exchange.alive()
        codes = exchange.close()
        # The user may have killed some: a node that a signal ended has not failed.
        failed = {name: code for name, code in codes.items() if code > 0 or (code and name in alive)}
        told = "; ".join([f"{name} ended with {code}: {exchange.last_words(name)}" for name, code in failed.items()])
    if equal is False or failed:
        raise Failure(f"the demonstration did not end as it should: {told or 'the nodes differ'}", "demo_failed")


def _wait_in_sync(exchange: LocalExchange, ended: threading.Event) -> None:
    """Wait until the nodes are ready, or the user ends the demonstration."""
    while not ended.is_set():
        try:
            exchange.wait_in_sync(within_s=1)
        except OpenOutcryError:
            if len(exchange.alive()) < len(exchange.processes):
                raise
        else:
            return


def _settled(exchange: LocalExchange) -> bool | None:
    """Return whether the nodes reach one state once the bots have stopped; None if some nodes were killed."""
    if len(exchange.alive()) < len(exchange.processes):
        return None
    ends = exchange.wait_same_sequence(MARKET)
    equal = len(set(ends.values())) == 1
    sequence, state_hash = next(iter(ends.values()))
    say(f"all nodes are at sequence {sequence}, {f'state {state_hash}' if equal else 'and DIFFER'}")
    return equal


class _View:
    """The view of an exchange: a row for each node, a few levels of the book, the last trades."""

    def __init__(self, exchange: LocalExchange, traders: list[Bot]) -> None:
        self._exchange = exchange
        self._traders = traders
        self._last: tuple[float, int] | None = None

    def __call__(self) -> list[str]:
        statuses = {name: self._exchange.status(name) for name in self._exchange.processes}
        rows: list[tuple[str, ...]] = [("NODE", "PROCESS", "ROLE", "READY", "EPOCH", "IN SYNC", "SEQUENCE", "STATE")]
        for name, status in statuses.items():
            rows.append((name, str(self._exchange.processes[name].pid), *_cells(status)))
        answered = sum([trader.answered for trader in self._traders])
        now_s = time.monotonic()
        before_s, before = self._last or (now_s, answered)
        self._last = now_s, answered
        rate = f", {(answered - before) / (now_s - before_s):.0f} a second" if now_s > before_s else ""
        lines = [*table(rows), "", f"{len(self._traders)} bots: {answered} orders answered{rate}"]
        for name in statuses:
            try:
                with self._exchange.client(name, timeout=1.0) as client:
                    book = present(client.book(MARKET, depth=4), "no book, asked without a known sequence number")
                    trades = client.trades(MARKET, limit=4)
            except OpenOutcryError:
                continue
            return [*lines, "", *book_lines(book), "", *[trade_line(trade) for trade in trades]]
        return lines


def _cells(status: dict[str, Any] | None) -> tuple[str, ...]:
    market = status["markets"].get(MARKET) if status is not None else None
    if market is None or "applied" not in market:
        return ("down" if market is None else "stopped", "no", "-", "-", "-", "-")
    ready = "yes" if market["ready"] else "no"
    counts = str(market["epoch"]), str(len(market["in_sync"])), str(market["applied"])
    return (market["role"], ready, *counts, market["state_hash"][:16])
