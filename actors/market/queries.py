"""Questions to a market's replica: each function returns a question, which the BookActor answers on its thread.

A question only reads. Its answer belongs to one moment: values of :mod:`.views`, in decimals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from ...transport.errors import OpenOutcryError
from ..book.actor import BookActor
from ..book.commands import Side
from ..book.rules import MarketRules
from ..book.status import MarketStatus
from .views import BookView, OpenOrder, Trade, to_event, to_level, to_open_order


def order_book(market: str, depth: int | None) -> Callable[[BookActor], BookView]:
    """The best ``depth`` price levels of each side; None: all."""

    def read(actor: BookActor) -> BookView:
        book, rules = actor.book, actor.book.rules
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


def order(market: str, order_id: int) -> Callable[[BookActor], OpenOrder | None]:
    """An open order; None if it is not in the book."""

    def read(actor: BookActor) -> OpenOrder | None:
        book = actor.book
        found = book.order(order_id)
        return to_open_order(market, book.sequence, found, book.rules) if found is not None else None

    return read


def open_orders(market: str, account: str) -> Callable[[BookActor], list[OpenOrder]]:
    """An account's open orders, oldest first."""

    def read(actor: BookActor) -> list[OpenOrder]:
        book = actor.book
        return [to_open_order(market, book.sequence, found, book.rules) for found in book.open_orders(account)]

    return read


def all_orders(market: str) -> Callable[[BookActor], list[OpenOrder]]:
    """Every open order: bids best first, then asks best first, each level in queue order."""

    def read(actor: BookActor) -> list[OpenOrder]:
        book = actor.book
        return [to_open_order(market, book.sequence, found, book.rules) for side in Side for found in book.orders(side)]

    return read


def orders_at(market: str, price_ticks: int) -> Callable[[BookActor], list[OpenOrder]]:
    """The orders at one price, in queue order."""

    def read(actor: BookActor) -> list[OpenOrder]:
        book = actor.book
        return [to_open_order(market, book.sequence, found, book.rules) for found in book.orders_at(price_ticks)]

    return read


def trades(limit: int) -> Callable[[BookActor], list[Trade]]:
    """The last trades, newest first."""

    def read(actor: BookActor) -> list[Trade]:
        rules = actor.book.rules
        return [cast("Trade", to_event(event, rules)) for event in actor.book.trades(limit)]

    return read


def position(actor: BookActor) -> tuple[int, str]:
    """Sequence number and state hash."""
    return actor.book.sequence, actor.book.state_hash()


def sequence(actor: BookActor) -> int:
    """The sequence number up to which the log is applied."""
    return actor.book.sequence


def status(actor: BookActor) -> MarketStatus:
    """How the replica is."""
    return actor.status()


def in_sync_count(actor: BookActor) -> int:
    """How many replicas are in sync, as far as this one knows."""
    return len(actor.replica.in_sync)


def configured(actor: BookActor) -> bool:
    """Whether the market's rules are in the log that is applied here."""
    return actor.book.configured


def leader(actor: BookActor) -> str | None:
    """The id of the node that leads, as far as is known."""
    return actor.replica.leader


def rules(actor: BookActor) -> MarketRules | MarketStatus:
    """The market's rules, or the replica's status if its log has not reached them."""
    return actor.book.rules if actor.book.configured else actor.status()


def readiness(actor: BookActor) -> tuple[bool, OpenOutcryError | None, MarketRules]:
    """Whether commands can be sent from here, what only a person can solve, and the market's rules."""
    return actor.ready, actor.hindrance, actor.book.rules
