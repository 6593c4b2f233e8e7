"""Questions to a market's replica: each function returns a question, which the BookActor answers on its thread.

A question only reads. Its answer belongs to one moment: values of :mod:`.views`, in decimals.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from ...transport.errors import OpenOutcryError
from ..book.commands import Side
from ..book.rules import MarketRules
from ..book.shell import Shell
from ..book.status import MarketStatus
from .views import BookView, OpenOrder, Trade, to_event, to_level, to_open_order


def order_book(market: str, depth: int | None) -> Callable[[Shell], BookView]:
    """The best ``depth`` price levels of each side; None: all."""

    def read(shell: Shell) -> BookView:
        book, rules = shell.book, shell.book.rules
        last = cast("Trade", to_event(book.last_trade, rules)) if book.last_trade is not None else None
        return BookView(
            market,
            book.sequence,
            book.state_hash(),
            tuple([to_level(level, rules) for level in book.depth(Side.BUY, depth)]),
            tuple([to_level(level, rules) for level in book.depth(Side.SELL, depth)]),
            last,
        )

    return read


def order(market: str, order_id: int) -> Callable[[Shell], OpenOrder | None]:
    """An open order; None if it is not in the book."""

    def read(shell: Shell) -> OpenOrder | None:
        book = shell.book
        found = book.order(order_id)
        return to_open_order(market, book.sequence, found, book.rules) if found is not None else None

    return read


def open_orders(market: str, account: str) -> Callable[[Shell], list[OpenOrder]]:
    """An account's open orders, oldest first."""

    def read(shell: Shell) -> list[OpenOrder]:
        book = shell.book
        return [to_open_order(market, book.sequence, found, book.rules) for found in book.open_orders(account)]

    return read


def all_orders(market: str) -> Callable[[Shell], list[OpenOrder]]:
    """Every open order: bids best first, then asks best first, each level in queue order."""

    def read(shell: Shell) -> list[OpenOrder]:
        book = shell.book
        return [to_open_order(market, book.sequence, found, book.rules) for side in Side for found in book.orders(side)]

    return read


def orders_at(market: str, price_ticks: int) -> Callable[[Shell], list[OpenOrder]]:
    """The orders at one price, in queue order."""

    def read(shell: Shell) -> list[OpenOrder]:
        book = shell.book
        return [to_open_order(market, book.sequence, found, book.rules) for found in book.orders_at(price_ticks)]

    return read


def trades(limit: int) -> Callable[[Shell], list[Trade]]:
    """The last trades, newest first."""

    def read(shell: Shell) -> list[Trade]:
        rules = shell.book.rules
        return [cast("Trade", to_event(event, rules)) for event in shell.book.trades(limit)]

    return read


def position(shell: Shell) -> tuple[int, str]:
    """Sequence number and state hash."""
    return shell.book.sequence, shell.book.state_hash()


def sequence(shell: Shell) -> int:
    """The sequence number up to which the log is applied."""
    return shell.book.sequence


def status(shell: Shell) -> MarketStatus:
    """How the replica is."""
    replica, book, requests, hindrance = shell.replica, shell.book, shell.core.requests, shell.hindrance
    return MarketStatus(
        market=replica.market,
        role=replica.role.value,
        ready=shell.ready,
        epoch=replica.epoch,
        leader=replica.leader,
        in_sync=tuple(replica.in_sync),
        min_in_sync=replica.min_in_sync,
        present=replica.present,
        resigned=replica.resigned,
        yields=replica.yields,
        time_off_s=round(shell.timekeeper.off_ns(shell.last_ns) / 1e9, 3),
        linked=replica.leader in shell.frames.links,
        matched=replica.matched,
        known=replica.known_committed,
        subscribers=len(shell.feed),
        outstanding=len(requests.outstanding),
        appended=replica.tail.sequence,
        durable=replica.durable,
        committed=replica.committed,
        applied=replica.applied,
        state_hash=book.state_hash(),
        followers=replica.followers(time.monotonic_ns()),
        open_orders=len(book),
        trades=book.trade_count,
        waiting=requests.waiting_commands,
        recovered=shell.recovered,
        observer=replica.observer,
        repairing=shell.storage.damage,
        put_aside=shell.aside,
        trouble=str(shell.storage.placed(replica.trouble)) if replica.trouble else None,
        error=str(hindrance) if hindrance else None,
        snapshot_error=shell.imaging.error,
        counters=shell.counters,
    )


def in_sync_count(shell: Shell) -> int:
    """How many replicas are in sync, as far as this one knows."""
    return len(shell.replica.in_sync)


def configured(shell: Shell) -> bool:
    """Whether the market's rules are in the log that is applied here."""
    return shell.book.configured


def leader(shell: Shell) -> str | None:
    """The id of the node that leads, as far as is known."""
    return shell.replica.leader


def rules(shell: Shell) -> MarketRules | MarketStatus:
    """The market's rules, or the replica's status if its log has not reached them."""
    return shell.book.rules if shell.book.configured else status(shell)


def readiness(shell: Shell) -> tuple[bool, OpenOutcryError | None, MarketRules]:
    """Whether commands can be sent from here, what only a person can solve, and the market's rules."""
    return shell.ready, shell.hindrance, shell.book.rules
