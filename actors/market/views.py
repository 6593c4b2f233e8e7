"""Views for users of a node: results, events, orders and books in decimals. Values only; made on access.

The core uses ticks, lots and tuples; a view keeps those and converts on access, so that a batch of a thousand answers
costs nothing until somebody reads one.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

from ...transport.errors import InvariantBroken, OpenOutcryError, present
from ...transport.numerals import in_json, times_in_json, written
from ..book.commands import (
    ACCEPTED,
    ACCEPTED_QUANTITY,
    AMENDED,
    AMENDED_OPEN_QUANTITY,
    CANCEL_ALL,
    CANCELLED,
    CANCELLED_QUANTITY,
    CANCELLED_REASON,
    CONFIGURED,
    DUPLICATE,
    MESSAGES,
    NOTED,
    ORDER_ID,
    REJECTED,
    REJECTED_CODE,
    TRADE,
    TRADE_QUANTITY,
    TRADE_TAKER_ID,
    CancelReason,
    Command,
    Event,
    Side,
)
from ..book.orderbook import DepthLevel, OrderView, events_between
from ..book.rules import MarketRules

if TYPE_CHECKING:
    from ..book.feed import Applied
    from ..book.submission import Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """The book accepted the order. Other events show its trades and what happened to the rest."""

    kind: ClassVar[str] = "accepted"
    sequence: int
    order_id: int
    account: str
    client_order_id: str
    side: str
    price: Decimal | None
    quantity: Decimal


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """The book rejected the command, which changed nothing; ``code`` is stable, ``message`` says what to do."""

    kind: ClassVar[str] = "rejected"
    sequence: int
    account: str
    client_order_id: str
    code: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Trade:
    """A fill at the maker's price. ``side`` is the taker's.

    ``timestamp_ns``: the market's time of the trade, in ns since the Unix epoch: the same everywhere.
    """

    kind: ClassVar[str] = "trade"
    sequence: int
    trade_id: int
    price: Decimal
    quantity: Decimal
    maker_order_id: int
    taker_order_id: int
    maker_account: str
    taker_account: str
    side: str
    timestamp_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class Cancelled:
    """``quantity`` of an order was cancelled, ``open_quantity`` is left.

    ``reason``: requested, unfilled, expired, self_trade.
    """

    kind: ClassVar[str] = "cancelled"
    sequence: int
    order_id: int
    account: str
    side: str
    price: Decimal | None
    quantity: Decimal
    open_quantity: Decimal
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Amended:
    """The order has a new price or open quantity; ``priority_kept`` says whether it kept its place in the queue."""

    kind: ClassVar[str] = "amended"
    sequence: int
    order_id: int
    account: str
    side: str
    price: Decimal
    open_quantity: Decimal
    priority_kept: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Duplicate:
    """The same request was executed before, at ``first_sequence``; that answer stands."""

    kind: ClassVar[str] = "duplicate"
    sequence: int
    first_sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class Configured:
    """The market's rules were set."""

    kind: ClassVar[str] = "configured"
    sequence: int
    rules: MarketRules


@dataclasses.dataclass(frozen=True, slots=True)
class Noted:
    """An operator changed something about the market: ``text`` says what, who, and why."""

    kind: ClassVar[str] = "noted"
    sequence: int
    text: str


MarketEvent = Accepted | Rejected | Trade | Cancelled | Amended | Duplicate | Configured | Noted


def to_event(event: Event, rules: MarketRules) -> MarketEvent:
    """Return the core's event tuple as a value in decimals."""
    price_of, quantity_of = rules.ticks_to_price, rules.lots_to_quantity
    kind = event[0]
    if kind == TRADE:
        _, sequence, trade_id, price, lots, maker, taker, maker_account, taker_account, side, timestamp_ns = event
        return Trade(
            sequence,
            trade_id,
            price_of(price),
            quantity_of(lots),
            maker,
            taker,
            maker_account,
            taker_account,
            side_name(side),
            timestamp_ns,
        )
    if kind == ACCEPTED:
        _, sequence, order_id, account, client_order_id, side, price, lots = event
        limit = price_of(price) if price is not None else None
        return Accepted(sequence, order_id, account, client_order_id, side_name(side), limit, quantity_of(lots))
    if kind == REJECTED:
        _, sequence, account, client_order_id, code = event
        return Rejected(sequence, account, client_order_id, code, MESSAGES[code])
    if kind == CANCELLED:
        _, sequence, order_id, account, side, price, lots, open_lots, reason = event
        limit = price_of(price) if price is not None else None
        lots_out, lots_open = quantity_of(lots), quantity_of(open_lots)
        return Cancelled(sequence, order_id, account, side_name(side), limit, lots_out, lots_open, reason)
    if kind == AMENDED:
        _, sequence, order_id, account, side, price, open_lots, kept = event
        return Amended(sequence, order_id, account, side_name(side), price_of(price), quantity_of(open_lots), kept)
    if kind == DUPLICATE:
        return Duplicate(event[1], event[2])
    if kind == NOTED:
        return Noted(event[1], event[2])
    if kind == CONFIGURED:
        return Configured(event[1], MarketRules.from_tuple(event[2]))
    raise InvariantBroken(f"unknown event {event!r}")


def side_name(side: int) -> str:
    """Return ``"buy"`` or ``"sell"``."""
    return Side(side).name.lower()


class OrderResult:
    """The exchange's answer to one command. ``status`` is one of

    ``resting`` (all or part of it is in the book), ``filled``, ``cancelled`` (nothing of it is left), ``amended``,
    ``accepted`` (a cancel-all, even if it found no order; or a kept amend), ``rejected``.
    """

    __slots__ = ("_cancel_all", "_events", "_rules", "duplicate", "market", "sequence", "state_hash", "state_sequence")

    def __init__(
        self,
        market: str,
        sequence: int,
        events: Sequence[Event],
        *,
        duplicate: bool,
        state_sequence: int,
        state_hash: str,
        rules: MarketRules,
        cancel_all: bool,
    ) -> None:
        """``cancel_all``: whether the command was a cancel-all, which its events do not show."""
        self.market = market
        self.sequence = sequence
        """The command's place in the market's total order."""
        self.duplicate = duplicate
        """The command was a retry: this is the first answer, at the first's sequence."""
        self.state_sequence = state_sequence
        """The sequence number of :attr:`state_hash`: the end of the batch in which the command travelled."""
        self.state_hash = state_hash
        self._events = events
        self._rules = rules
        self._cancel_all = cancel_all

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def events(self) -> tuple[MarketEvent, ...]:
        """All events of the command, in order."""
        return tuple([to_event(event, self._rules) for event in self._events])

    @property
    def raw_events(self) -> Sequence[Event]:
        """The same as the core's tuples; see :mod:`openoutcry.actors.book.commands`."""
        return self._events

    @property
    def trades(self) -> tuple[Trade, ...]:
        """The fills that the command caused as taker."""
        return tuple([event for event in self.events if isinstance(event, Trade)])

    @property
    def code(self) -> str | None:
        """Why the command was rejected, or None."""
        for event in self._events:
            if event[0] == REJECTED and event[1] == self.sequence:
                return str(event[REJECTED_CODE])
        return None

    @property
    def message(self) -> str | None:
        """The rejection in words, or None."""
        code = self.code
        return MESSAGES[code] if code is not None else None

    @property
    def order_id(self) -> int | None:
        """The order that the command entered, amended or cancelled; None for a rejection or a cancel-all."""
        if self._cancel_all:
            return None
        for event in self._events:
            if event[0] in (ACCEPTED, AMENDED) or (
                event[0] == CANCELLED and event[CANCELLED_REASON] == CancelReason.REQUESTED
            ):
                return int(event[ORDER_ID])
        return None

    @property
    def cancelled_ids(self) -> tuple[int, ...]:
        """The orders that a cancel or a cancel-all removed from the book, in the order of their events."""
        return tuple(
            [
                event[ORDER_ID]
                for event in self._events
                if event[0] == CANCELLED and event[CANCELLED_REASON] == CancelReason.REQUESTED
            ]
        )

    @property
    def filled_quantity(self) -> Decimal:
        """How much the command traded as taker."""
        return self._rules.lots_to_quantity(sum([event[TRADE_QUANTITY] for event in self._events if event[0] == TRADE]))

    @property
    def status(self) -> str:
        """See the class."""
        if self.code is not None:
            return "rejected"
        if self._cancel_all:
            return "accepted"
        order_id = self.order_id
        for event in self._events:
            if event[0] in (ACCEPTED, AMENDED):
                size = event[ACCEPTED_QUANTITY if event[0] == ACCEPTED else AMENDED_OPEN_QUANTITY]
                gone = sum([e[TRADE_QUANTITY] for e in self._events if e[0] == TRADE and e[TRADE_TAKER_ID] == order_id])
                taken = sum(
                    [e[CANCELLED_QUANTITY] for e in self._events if e[0] == CANCELLED and e[ORDER_ID] == order_id]
                )
                if gone + taken < size:
                    return "amended" if event[0] == AMENDED else "resting"
                return "filled" if gone == size else "cancelled"
        return "cancelled" if any([event[0] == CANCELLED for event in self._events]) else "accepted"

    def __repr__(self) -> str:
        subject = f"cancelled={len(self.cancelled_ids)}" if self._cancel_all else f"order={self.order_id}"
        return (
            f"<OrderResult {self.market} {self.status} {subject} sequence={self.sequence}"
            f"{f' code={self.code}' if self.code else ''}{' duplicate' if self.duplicate else ''}>"
        )


class OrderResults(Sequence[OrderResult]):
    """The answers to a batch: an :class:`OrderResult` for each of its commands, in their order; made when looked at."""

    __slots__ = ("_length", "_market", "_spans")

    def __init__(self, market: str, spans: list[tuple[Outcome, int, tuple[Command, ...]]]) -> None:
        """``spans``: for each request of the batch its outcome, first sequence number and commands."""
        self._market = market
        self._spans = spans
        self._length = sum([len(commands) for _, _, commands in spans])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> OrderResult: ...

    @overload
    def __getitem__(self, at: slice) -> list[OrderResult]: ...

    def __getitem__(self, at: int | slice) -> OrderResult | list[OrderResult]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(self._length))]
        position = at + self._length if at < 0 else at
        if position >= 0:
            for outcome, first, commands in self._spans:
                if position < len(commands):
                    return result_of(self._market, outcome, first + position, commands[position])
                position -= len(commands)
        raise IndexError(f"there are {self._length} results")

    def __iter__(self) -> Iterator[OrderResult]:
        for outcome, first, commands in self._spans:
            events = events_between(outcome.events, first, first + len(commands) - 1)
            start = 0
            for sequence, command in enumerate(commands, first):
                end = start
                while end < len(events) and events[end][1] == sequence:
                    end += 1
                yield _result(self._market, outcome, sequence, command, events[start:end])
                start = end

    def __repr__(self) -> str:
        return f"<{self._length} results of {self._market}>"


def result_of(market: str, outcome: Outcome, sequence: int, command: Command) -> OrderResult:
    """Return the answer to ``command``, at ``sequence``, which is part of ``outcome``."""
    return _result(market, outcome, sequence, command, events_between(outcome.events, sequence, sequence))


def _result(market: str, outcome: Outcome, sequence: int, command: Command, events: list[Event]) -> OrderResult:
    duplicate = bool(events) and events[0][0] == DUPLICATE
    first_sequence = events[0][2] if duplicate else sequence
    return OrderResult(
        market,
        first_sequence,
        outcome.earlier[first_sequence] if duplicate else events,
        duplicate=duplicate,
        state_sequence=outcome.state_sequence,
        state_hash=outcome.state_hash,
        rules=outcome.rules,
        cancel_all=command[0] == CANCEL_ALL,
    )


class OrderRejected(OpenOutcryError):
    """The book rejected the command. ``code`` says why; ``result`` is the whole answer, with its sequence number."""

    def __init__(self, result: OrderResult) -> None:
        code = present(result.code, "an error of a result that is no rejection")
        super().__init__(f"{result.market}: {result.message}", code=code)
        self.result = result


@dataclasses.dataclass(frozen=True, slots=True)
class PriceLevel:
    """One price of one side: the open quantity and the number of orders."""

    price: Decimal
    quantity: Decimal
    orders: int


@dataclasses.dataclass(frozen=True, slots=True)
class OpenOrder:
    """One order in the book, true at sequence ``sequence``."""

    market: str
    sequence: int
    order_id: int
    account: str
    client_order_id: str
    side: str
    price: Decimal
    quantity: Decimal
    filled_quantity: Decimal
    open_quantity: Decimal
    expire_ns: int
    post_only: bool


@dataclasses.dataclass(frozen=True, slots=True)
class BookView:
    """One market's book, true at sequence ``sequence`` with state hash ``state_hash``. Best prices first."""

    market: str
    sequence: int
    state_hash: str
    bids: tuple[PriceLevel, ...]
    asks: tuple[PriceLevel, ...]
    last_trade: Trade | None

    @property
    def best_bid(self) -> PriceLevel | None:
        """The highest bid, or None."""
        return self.bids[0] if self.bids else None

    @property
    def best_ask(self) -> PriceLevel | None:
        """The lowest ask, or None."""
        return self.asks[0] if self.asks else None


@dataclasses.dataclass(frozen=True, slots=True)
class ForcePlan:
    """What forcing a node to lead a market would mean: the state it would continue from, and the possible loss.

    All answers after ``sequence`` are lost. No remaining node knows how many those are; if ``known_committed`` is
    larger, at least the answers up to it.
    """

    market: str
    node: str
    """The id of the node that would lead."""
    sequence: int
    """Where the log on its disk ends."""
    sequence_epoch: int
    """The epoch of the last command there; a log that ends in an earlier epoch than ``epoch`` has missed leaders."""
    known_committed: int
    """Highest sequence number that this node knows to be committed."""
    version: int
    """Version of the market record; grows with every change."""
    epoch: int
    leader: str
    in_sync: tuple[str, ...]
    """The nodes that held every acknowledged command, by the market record: all count as lost."""


class MarketUpdate:
    """What a subscriber receives: all events of sequences ``first_sequence`` to ``sequence``, in order.

    All subscribers of a node are given the same value. It cannot be changed, and its decimals are made once, when
    somebody first looks at :attr:`events`; who is content with :attr:`raw_events` pays nothing for them.
    """

    __slots__ = ("_applied", "_events")
    _converting: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, applied: Applied) -> None:
        self._applied = applied
        self._events: tuple[MarketEvent, ...] | None = None

    @classmethod
    def of(cls, applied: Applied) -> MarketUpdate:
        """Return the value that stands for ``applied``: one for all who ask."""
        made = applied.shared
        if made is None:
            with cls._converting:
                made = applied.shared = applied.shared or cls(applied)
        found: MarketUpdate = made
        return found

    @property
    def market(self) -> str:
        """The market's name."""
        return self._applied.market

    @property
    def first_sequence(self) -> int:
        """The first sequence number whose events are here."""
        return self._applied.first_sequence

    @property
    def sequence(self) -> int:
        """The last one."""
        return self._applied.sequence

    @property
    def timestamp_ns(self) -> int:
        """The time of the last record, in nanoseconds since the Unix epoch."""
        return self._applied.timestamp_ns

    @property
    def state_hash(self) -> str:
        """The state of the book after ``sequence``."""
        return self._applied.state_hash

    @property
    def raw_events(self) -> tuple[Event, ...]:
        """The events as the core's tuples; see :mod:`openoutcry.actors.book.commands`."""
        return self._applied.events

    @property
    def rules(self) -> MarketRules:
        """The market's rules, for the ticks and lots of :attr:`raw_events`."""
        return self._applied.rules

    @property
    def events(self) -> tuple[MarketEvent, ...]:
        """The events in decimals."""
        if self._events is None:
            with self._converting:
                if self._events is None:
                    rules = self._applied.rules
                    self._events = tuple([to_event(event, rules) for event in self._applied.events])
        return self._events

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MarketUpdate) and self._applied == other._applied

    def __hash__(self) -> int:
        return hash((self.market, self.sequence, self.state_hash))

    def __reduce__(self) -> tuple[Any, ...]:
        return MarketUpdate, (dataclasses.replace(self._applied, shared=None),)

    def __repr__(self) -> str:
        of = self._applied
        return f"<MarketUpdate {of.market} {of.first_sequence}..{of.sequence} events={len(of.events)}>"


def to_level(level: DepthLevel, rules: MarketRules) -> PriceLevel:
    """Return a depth level in decimals."""
    price = rules.ticks_to_price(level.price_ticks)
    return PriceLevel(price, rules.lots_to_quantity(level.quantity_lots), level.orders)


def to_book(
    market: str,
    sequence: int,
    state_hash: str,
    last_trade: Event | None,
    rules: MarketRules,
    bids: Iterable[DepthLevel],
    asks: Iterable[DepthLevel],
) -> BookView:
    """Return a book in decimals."""
    buy, sell = [tuple([to_level(level, rules) for level in side]) for side in (bids, asks)]
    last = None if last_trade is None else cast("Trade", to_event(last_trade, rules))
    return BookView(market, sequence, state_hash, buy, sell, last)


def to_open_order(market: str, sequence: int, order: OrderView, rules: MarketRules) -> OpenOrder:
    """Return an open order in decimals."""
    return OpenOrder(
        market,
        sequence,
        order.order_id,
        order.account,
        order.client_order_id,
        side_name(order.side),
        rules.ticks_to_price(order.price_ticks),
        rules.lots_to_quantity(order.quantity_lots),
        rules.lots_to_quantity(order.filled_lots),
        rules.lots_to_quantity(order.open_lots),
        order.expire_ns,
        order.post_only,
    )


def as_json(value: Any) -> Any:
    """Return a view as plain JSON values: decimals as strings, tuples as lists.

    A time, ``NAME_ns``, is a string, since few readers of JSON keep 19 digits, or None for none; ``NAME`` beside it is
    the same in ISO 8601.
    """
    if isinstance(value, OrderResult):
        names = ("market", "status", "order_id", "cancelled_ids", "sequence", "duplicate", "code", "message")
        plain = {name: getattr(value, name) for name in (*names, "filled_quantity")}
        return as_json(
            {**plain, "state_sequence": value.state_sequence, "state_hash": value.state_hash, "events": value.events}
        )
    if isinstance(value, MarketUpdate):
        shown = ("market", "first_sequence", "sequence", "timestamp_ns", "state_hash", "events")
        return as_json({name: getattr(value, name) for name in shown})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = as_json({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        kind = getattr(type(value), "kind", None)
        return {"kind": kind, **named} if kind else named
    if isinstance(value, Decimal):
        return written(value)
    if isinstance(value, float):
        return in_json(value)
    if isinstance(value, Mapping):
        return times_in_json({str(key): as_json(item) for key, item in value.items()})
    if isinstance(value, (list, tuple, OrderResults)):
        return [as_json(item) for item in value]
    return value
