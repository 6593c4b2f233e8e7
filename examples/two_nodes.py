"""Two nodes, one book: two processes find each other, trade from both sides, and hold the same book to the byte.

Run it: python examples/two_nodes.py
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from openoutcry.actors import BookView, ExchangeNode, MarketRules, OrderResult, Trade
from openoutcry.transport.rendezvous import Rendezvous

MARKET = "BTC-USD"
RULES = MarketRules(tick_size="0.01", lot_size="0.001")
PATIENCE_S = 12


@dataclass
class Report:
    """What a node's process tells at the end."""

    name: str
    pid: int
    role: str
    found_s: float
    done: list[tuple[OrderResult, str]]
    book: BookView
    trades: list[Trade]


# -- one node ------------------------------------------------------------------------------------------------------


def run_node(name: str, home: Path, directory: str, turn: Barrier, out: Any) -> None:
    """Be one node: find the other, trade, and tell what this node's own copy of the exchange says."""
    started = time.monotonic()
    with ExchangeNode(
        name,
        markets={MARKET: RULES},
        directory=directory,
        data_dir=home / name,
        coordinator=home / "coordinator.sqlite",
    ) as node:
        node.wait_ready(PATIENCE_S)
        node.wait_in_sync(MARKET, 2, PATIENCE_S)
        found_s = time.monotonic() - started

        turn.wait(PATIENCE_S)
        done = alice(node, turn) if name == "alice" else bob(node, turn)
        turn.wait(PATIENCE_S)

        # An answer comes when a command is durable on both nodes; the other node applies it a moment later.
        out.send(max(result.sequence for result, _ in done))
        node.wait_sequence(MARKET, out.recv(), PATIENCE_S)
        role = node.status().markets[MARKET].role
        book, trades = node.get_order_book(MARKET), node.trades(MARKET)
        out.send(Report(name, os.getpid(), role, found_s, done, book, trades))
        turn.wait(PATIENCE_S)


def alice(node: ExchangeNode, turn: Barrier) -> list[tuple[OrderResult, str]]:
    """Offer at three prices, let bob trade, then lower one offer and take another back."""
    cheap = node.submit_order(MARKET, "sell", "100.50", "2")
    middle = node.submit_order(MARKET, "sell", "100.75", "1.5")
    dear = node.submit_order(MARKET, "sell", "101.00", "3")
    turn.wait(PATIENCE_S)  # bob's turn
    turn.wait(PATIENCE_S)
    assert middle.order_id
    assert dear.order_id
    lower = node.amend_order(MARKET, dear.order_id, price="100.90", quantity="2")
    gone = node.cancel_order(MARKET, middle.order_id)
    hit = node.submit_order(MARKET, "sell", "100.00", "1", time_in_force="ioc")
    return [
        (cheap, "sell 2 at 100.50"),
        (middle, "sell 1.5 at 100.75"),
        (dear, "sell 3 at 101.00"),
        (lower, f"amend order {dear.order_id}: 2 at 100.90"),
        (gone, f"cancel order {middle.order_id}"),
        (hit, "sell 1 at 100.00 or better, now"),
    ]


def bob(node: ExchangeNode, turn: Barrier) -> list[tuple[OrderResult, str]]:
    """Wait for alice's offers, bid below them, and buy through two of them."""
    turn.wait(PATIENCE_S)
    bid = node.submit_order(MARKET, "buy", "100.25", "1.2")
    low = node.submit_order(MARKET, "buy", "99.80", "5")
    buy = node.submit_order(MARKET, "buy", "100.75", "2.5")
    turn.wait(PATIENCE_S)  # alice's turn
    return [(bid, "buy 1.2 at 100.25"), (low, "buy 5 at 99.80"), (buy, "buy 2.5 at 100.75")]


# -- both of them --------------------------------------------------------------------------------------------------


def main() -> int:
    """Start two processes, wait for their reports and compare them."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, Rendezvous("tcp://127.0.0.1:0") as rendezvous:
        turn = spawn.Barrier(2)
        pipes, processes = [], []
        for name in ("alice", "bob"):
            ours, theirs = spawn.Pipe()
            arguments = (name, Path(home), rendezvous.address, turn, theirs)
            process = spawn.Process(target=run_node, args=arguments, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        last = max([receive(pipe) for pipe in pipes])
        for pipe in pipes:
            pipe.send(last)
        reports: list[Report] = [receive(pipe) for pipe in pipes]
        for process in processes:
            process.join(PATIENCE_S)
        show(*reports, rendezvous=rendezvous.address)
        ended_well = all(process.exitcode == 0 for process in processes)
    left, right = (report.book for report in reports)
    same = left == right and reports[0].trades == reports[1].trades
    print("\nOne book." if same and ended_well else "\nFAILED: the nodes do not agree, or did not end well.")
    return 0 if same and ended_well else 1


def receive(pipe: Any) -> Any:
    """Return what a process has sent; a process that dies or stays silent ends the example."""
    try:
        if pipe.poll(PATIENCE_S):
            return pipe.recv()
    except EOFError:
        sys.exit("a node has died; its traceback is above")
    sys.exit(f"a node said nothing for {PATIENCE_S} s")


def show(one: Report, two: Report, *, rendezvous: str) -> None:
    """Print both nodes' view of the exchange."""
    print(f"Two processes, found by survey through {rendezvous}\n")
    for report in (one, two):
        print(f"  {report.name:<6} process {report.pid}, {report.role}, in sync after {report.found_s:.2f} s")

    print(f"\n{MARKET}: what was asked, in the one order in which both books applied it\n")
    done = [(result, words, report.name) for report in (one, two) for result, words in report.done]
    for result, words, name in sorted(done, key=lambda each: each[0].sequence):
        fills = ", ".join(f"{trade.quantity} at {trade.price}" for trade in result.trades)
        print(f"  {result.sequence:>3}  {name:<6} {words:<34} {result.status}{': ' if fills else ''}{fills}")

    print("\nTrades, newest first\n")
    for trade in one.trades:
        seller, buyer = trade.maker_account, trade.taker_account
        if trade.side == "sell":
            seller, buyer = buyer, seller
        print(f"  {trade.sequence:>3}  {trade.quantity} at {trade.price}, {seller} to {buyer}")
    if one.trades != two.trades:
        print(f"  {two.name} has others: {two.trades}")

    print("\nBoth books\n")
    beside([report.name for report in (one, two)])
    beside([f"sequence {report.book.sequence}" for report in (one, two)])
    beside([f"state {report.book.state_hash}" for report in (one, two)])
    beside(["", ""])
    for row in itertools.zip_longest(ladder(one.book), ladder(two.book), fillvalue=""):
        beside(row)


def ladder(book: BookView) -> list[str]:
    """Return the lines of a book: asks above bids, best prices in the middle."""
    asks = [f"{'':>9}  {level.price:>7}  {level.quantity:>7}" for level in reversed(book.asks)]
    bids = [f"{level.quantity:>9}  {level.price:>7}" for level in book.bids]
    return [f"{'bid':>9}  {'price':>7}  {'ask':>7}", *asks, *bids]


def beside(cells: Sequence[str]) -> None:
    """Print two cells side by side."""
    print(f"  {cells[0]:<42}{cells[1]}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
