"""Questions to a market's replica: each function returns a question, which the BookActor answers on its thread.

A question only reads, and little: integers, of one moment. Where there is more to it, the answer is a function that
makes a value of :mod:`.views`, in decimals, on the caller's thread; or None: the caller needs a copy of the book.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final, TypeVar, cast

from ...transport.errors import OpenOutcryError
from ..book.commands import Side
from ..book.orderbook import BookImage, OrderBook, OrderView
from ..book.rules import MarketRules
from ..book.shell import Shell
from ..book.status import MarketStatus
from .views import BookView, OpenOrder, Trade, to_book, to_event, to_open_order

_T = TypeVar("_T")
View = Callable[[], _T]
"""Makes a view of what was read."""
Question = Callable[[Shell], View[_T] | None]
"""Its answer is None if there is too much to be read at once."""


AT_ONCE_MAX: Final = 1000
"""Most orders, or price levels, that a question reads at once; of more, a copy of the book is made in slices."""


def order_book(market: str, depth: int | None) -> Question[BookView]:
    """The best ``depth`` price levels of each side; None: all."""

    def read(shell: Shell) -> View[BookView] | None:
        book = shell.book
        if (book.level_count if depth is None else depth) > AT_ONCE_MAX:
            return None
        bids, asks = book.depth(Side.BUY, depth), book.depth(Side.SELL, depth)
        head = book.sequence, book.state_hash(), book.last_trade, book.rules
        return lambda: to_book(market, *head, bids, asks)

    return read


def book_in(market: str, image: BookImage, depth: int | None) -> BookView:
    """As :func:`order_book`, of a copy."""
    bids, asks = [list(itertools.islice(image.depth(side), depth)) for side in Side]
    return to_book(market, image.sequence, image.state_hash, image.last_trade, image.rules, bids, asks)


def order(market: str, order_id: int) -> Callable[[Shell], View[OpenOrder | None]]:
    """An open order; None if it is not in the book."""

    def read(shell: Shell) -> View[OpenOrder | None]:
        found, sequence, rules = shell.book.order(order_id), shell.book.sequence, shell.book.rules
        return lambda: None if found is None else to_open_order(market, sequence, found, rules)

    return read


def open_orders(market: str, account: str) -> Question[list[OpenOrder]]:
    """An account's open orders, oldest first."""
    return _orders(market, lambda book: book.order_count(account), lambda book: book.open_orders(account))


def all_orders(market: str) -> Question[list[OpenOrder]]:
    """Every open order: bids best first, then asks best first, each level in queue order."""
    return _orders(market, len, lambda book: [found for side in Side for found in book.orders(side)])


def orders_at(market: str, price_ticks: int) -> Question[list[OpenOrder]]:
    """The orders at one price, in queue order."""
    return _orders(market, lambda book: book.order_count_at(price_ticks), lambda book: book.orders_at(price_ticks))


def _orders(
    market: str, count: Callable[[OrderBook], int], found: Callable[[OrderBook], list[OrderView]]
) -> Question[list[OpenOrder]]:
    def read(shell: Shell) -> View[list[OpenOrder]] | None:
        book = shell.book
        if count(book) > AT_ONCE_MAX:
            return None
        orders, sequence, rules = found(book), book.sequence, book.rules
        return lambda: [to_open_order(market, sequence, each, rules) for each in orders]

    return read


def orders_in(market: str, image: BookImage, wanted: Callable[[OrderView], bool]) -> list[OpenOrder]:
    """As :func:`all_orders`, of a copy, and of those that are ``wanted``."""
    sequence, rules = image.sequence, image.rules
    return [to_open_order(market, sequence, each, rules) for each in image.orders() if wanted(each)]


def trades(limit: int) -> Callable[[Shell], View[list[Trade]]]:
    """The last trades, newest first."""

    def read(shell: Shell) -> View[list[Trade]]:
        found, rules = shell.book.trades(limit), shell.book.rules
        return lambda: [cast("Trade", to_event(event, rules)) for event in found]

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
