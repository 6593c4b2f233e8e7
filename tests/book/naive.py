"""A second order book, written from the documents for clarity alone: what ``orderbook.py`` has to agree with.

All open orders are in one list; whoever wants the best of them sorts it. A fill-or-kill order is tried out on a
copy. Nothing here is fast, lazy or clever, and nothing is shared with the fast book but the numbers and names that
``commands.py`` documents.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator

from openoutcry.actors.book.commands import (
    ACCEPTED,
    AMEND,
    AMENDED,
    CANCEL,
    CANCEL_ALL,
    CANCELLED,
    CLOCK,
    CONFIGURE,
    CONFIGURED,
    DUPLICATE,
    NOTE,
    NOTED,
    REJECTED,
    SUBMIT,
    TRADE,
    CancelReason,
    Command,
    Event,
    OrderType,
    RejectCode,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from openoutcry.actors.book.rules import MarketRules
from openoutcry.transport.codec import INT64_MAX


@dataclasses.dataclass
class NaiveOrder:
    """An order, from its acceptance on and for ever."""

    id: int
    account: str
    client_order_id: str
    side: int
    price: int | None
    quantity: int
    expire_ns: int
    stp: int
    post_only: bool
    queued_at: int
    open: int
    filled: int = 0
    cancelled: int = 0

    def adds_up(self) -> bool:
        return self.quantity == self.filled + self.open + self.cancelled


class NaiveBook:
    """One market. :meth:`execute` is the only way in."""

    def __init__(self, rules: MarketRules | None = None) -> None:
        self.rules = rules
        self.now_ns = 0
        self.sequence = 0
        self.resting: list[NaiveOrder] = []
        self.accepted: list[NaiveOrder] = []
        self.events: list[Event] = []
        self.trade_count = 0
        self.last_trade_price: int | None = None
        self.requests: dict[tuple[str, str], tuple[int, Command]] = {}
        self.forgotten_through = 0

    def execute(self, timestamp_ns: int, command: Command) -> list[Event]:
        """Execute the next command and return its events."""
        self.sequence += 1
        self.now_ns = timestamp_ns
        answered = len(self.events)
        self.lapse()
        self.forget(self.sequence - self.limits.dedupe_window)
        kind, account, client_order_id, *details = command
        first, earlier = self.requests.get((account, client_order_id), (0, None))
        if client_order_id and earlier == command:
            self.tell(DUPLICATE, first)
        elif client_order_id and earlier is not None:
            self.reject(command, RejectCode.CLIENT_ORDER_ID_REUSED)
        else:
            if client_order_id:
                self.requests[account, client_order_id] = (self.sequence, command)
            {
                SUBMIT: self.submit,
                CANCEL: self.cancel,
                CANCEL_ALL: self.cancel_all,
                AMEND: self.amend,
                CLOCK: self.clock,
                CONFIGURE: self.configure,
                NOTE: self.note,
            }[kind](command, *details)
        self.forget(self.sequence - self.limits.dedupe_window)  # again: the window may be narrower now
        return self.events[answered:]

    # -- the commands ------------------------------------------------------------------------------------------

    def submit(
        self,
        command: Command,
        side: int,
        order_type: int,
        price: int | None,
        quantity: int,
        time_in_force: int,
        expire_ns: int,
        stp: int,
    ) -> None:
        account, client_order_id = command[1:3]
        post_only = order_type == OrderType.POST_ONLY
        stays = time_in_force in (TimeInForce.GTC, TimeInForce.GTD)
        is_market = order_type == OrderType.MARKET
        worst = self.worst_price_of_a_market_order(side, price) if is_market else price
        order = NaiveOrder(
            id=self.sequence,
            account=account,
            client_order_id=client_order_id,
            side=side,
            price=price,
            quantity=quantity,
            expire_ns=expire_ns,
            stp=stp,
            post_only=post_only,
            queued_at=self.sequence,
            open=quantity,
        )
        # The first that applies.
        refusals = {
            RejectCode.MARKET_NOT_CONFIGURED: self.rules is None,
            RejectCode.INVALID_TIME_IN_FORCE: (is_market and stays)
            or (post_only and not stays)
            or (time_in_force == TimeInForce.GTD and not expire_ns)
            or (time_in_force != TimeInForce.GTD and expire_ns),
            RejectCode.QUANTITY_TOO_SMALL: quantity < self.limits.quantity_min_lots,
            RejectCode.QUANTITY_TOO_LARGE: quantity > self.limits.quantity_max_lots,
            RejectCode.PRICE_OUT_OF_RANGE: price is not None and self.out_of_range(price),
            RejectCode.PRICE_OUT_OF_BAND: price is not None and self.out_of_band(price),
            RejectCode.ALREADY_EXPIRED: expire_ns and expire_ns <= self.now_ns,
            RejectCode.POST_ONLY_WOULD_TRADE: post_only and self.makers_for(side, worst),
            RejectCode.TOO_MANY_OPEN_ORDERS: stays
            and 0 < self.limits.open_orders_max <= len(self.open_orders(account)),
            RejectCode.FOK_UNFILLABLE: time_in_force == TimeInForce.FOK and not self.would_fill(order, worst),
        }
        for code, applies in refusals.items():
            if applies:
                self.reject(command, code)
                return
        self.tell(ACCEPTED, order.id, account, client_order_id, side, price, quantity)
        self.accepted.append(order)
        self.match(order, worst)
        if order.open and stays:
            self.resting.append(order)
        elif order.open:
            self.take_lots(order, order.open, CancelReason.UNFILLED)

    def cancel(self, command: Command, order_id: int) -> None:
        order = self.open_order(order_id, command[1])
        if order is None:
            self.reject(command, RejectCode.UNKNOWN_ORDER)
        else:
            self.take_lots(order, order.open, CancelReason.REQUESTED)

    def cancel_all(self, command: Command) -> None:
        for order in self.open_orders(command[1]):
            self.take_lots(order, order.open, CancelReason.REQUESTED)

    def amend(self, command: Command, order_id: int, price: int | None, quantity: int | None) -> None:
        order = self.open_order(order_id, command[1])
        if order is None:
            self.reject(command, RejectCode.UNKNOWN_ORDER)
            return
        price = order.price if price is None else price
        quantity = order.open if quantity is None else quantity
        total = order.filled + order.cancelled + quantity
        # The market's limits are asked about what changes only.
        moves, resizes = price != order.price, quantity != order.open
        refusals = {
            RejectCode.QUANTITY_TOO_SMALL: resizes and quantity < self.limits.quantity_min_lots,
            RejectCode.QUANTITY_TOO_LARGE: (resizes and quantity > self.limits.quantity_max_lots) or total > INT64_MAX,
            RejectCode.PRICE_OUT_OF_RANGE: moves and self.out_of_range(price),
            RejectCode.PRICE_OUT_OF_BAND: moves and self.out_of_band(price),
            RejectCode.POST_ONLY_WOULD_TRADE: order.post_only and self.makers_for(order.side, price),
        }
        for code, applies in refusals.items():
            if applies:
                self.reject(command, code)
                return
        keeps_priority = not moves and quantity <= order.open and self.limits.amend_keeps_priority
        self.tell(AMENDED, order.id, order.account, order.side, price, quantity, keeps_priority)
        order.price, order.open, order.quantity = price, quantity, total
        if not keeps_priority:
            self.resting.remove(order)
            order.queued_at = self.sequence
            self.match(order, price)
            if order.open:
                self.resting.append(order)

    def clock(self, _: Command) -> None:
        """Time has passed, and orders have lapsed, before this was called."""

    def configure(self, command: Command, values: tuple[object, ...]) -> None:
        rules = MarketRules.from_tuple(values)
        used = self.rules is not None and (self.resting or self.trade_count)
        if used and (rules.tick_size, rules.lot_size) != (self.limits.tick_size, self.limits.lot_size):
            self.reject(command, RejectCode.UNITS_IN_USE)
            return
        self.rules = rules
        self.tell(CONFIGURED, values)

    def note(self, _: Command, text: str) -> None:
        self.tell(NOTED, text)

    # -- matching ----------------------------------------------------------------------------------------------

    def match(self, taker: NaiveOrder, worst: int | None) -> None:
        while taker.open and (makers := self.makers_for(taker.side, worst)):
            maker = makers[0]
            lots = min(taker.open, maker.open)
            if taker.stp == SelfTradePrevention.NONE or maker.account != taker.account:
                self.trade(maker, taker, lots)
            elif taker.stp == SelfTradePrevention.CANCEL_NEWEST:
                self.take_lots(taker, taker.open, CancelReason.SELF_TRADE)
            elif taker.stp == SelfTradePrevention.CANCEL_OLDEST:
                self.take_lots(maker, maker.open, CancelReason.SELF_TRADE)
            elif taker.stp == SelfTradePrevention.CANCEL_BOTH:
                self.take_lots(maker, maker.open, CancelReason.SELF_TRADE)
                self.take_lots(taker, taker.open, CancelReason.SELF_TRADE)
            else:
                self.take_lots(maker, lots, CancelReason.SELF_TRADE)
                self.take_lots(taker, lots, CancelReason.SELF_TRADE)

    def makers_for(self, side: int, worst: int | None) -> list[NaiveOrder]:
        """The orders that a taker on ``side`` may trade with, in the order in which it has to."""
        return [
            order
            for order in self.queue(1 - side)
            if worst is None or (order.price <= worst if side == Side.BUY else order.price >= worst)
        ]

    def worst_price_of_a_market_order(self, side: int, bound: int | None) -> int | None:
        worse = 1 if side == Side.BUY else -1
        bounds = [] if bound is None else [bound]
        if self.limits.price_band_ticks and (centre := self.centre_of_the_band()) is not None:
            bounds.append(centre + worse * self.limits.price_band_ticks)
        if self.limits.market_protection_ticks and (best := self.best(1 - side)) is not None:
            bounds.append(best + worse * self.limits.market_protection_ticks)
        return min(bounds, key=lambda price: price * worse, default=None)

    def would_fill(self, order: NaiveOrder, worst: int | None) -> bool:
        trial = copy.copy(self)
        trial.resting = [dataclasses.replace(maker) for maker in self.resting]
        trial.events = []
        taker = dataclasses.replace(order)
        trial.match(taker, worst)
        return taker.filled == taker.quantity

    def trade(self, maker: NaiveOrder, taker: NaiveOrder, lots: int) -> None:
        self.trade_count += 1
        self.last_trade_price = maker.price
        for order in (maker, taker):
            order.open -= lots
            order.filled += lots
        self.tell(
            TRADE,
            self.trade_count,
            maker.price,
            lots,
            maker.id,
            taker.id,
            maker.account,
            taker.account,
            taker.side,
            self.now_ns,
        )
        self.resting = [order for order in self.resting if order.open]

    def take_lots(self, order: NaiveOrder, lots: int, reason: str) -> None:
        order.open -= lots
        order.cancelled += lots
        self.tell(CANCELLED, order.id, order.account, order.side, order.price, lots, order.open, reason)
        self.resting = [order for order in self.resting if order.open]

    # -- rules, time and memory --------------------------------------------------------------------------------

    @property
    def limits(self) -> MarketRules:
        return self.rules or MarketRules()

    def out_of_range(self, price: int) -> bool:
        return not self.limits.price_min_ticks <= price <= self.limits.price_max_ticks

    def out_of_band(self, price: int) -> bool:
        centre = self.centre_of_the_band()
        if not self.limits.price_band_ticks or centre is None:
            return False
        return abs(price - centre) > self.limits.price_band_ticks

    def centre_of_the_band(self) -> int | None:
        if self.last_trade_price is not None:
            return self.last_trade_price
        return self.limits.reference_price_ticks or None  # 0: there is none

    def lapse(self) -> None:
        due = [order for order in self.resting if order.expire_ns and order.expire_ns <= self.now_ns]
        for order in sorted(due, key=lambda order: (order.expire_ns, order.id)):
            self.take_lots(order, order.open, CancelReason.EXPIRED)

    def forget(self, through: int) -> None:
        """Forget the requests up to a sequence, for good: a later, wider window does not bring them back."""
        self.forgotten_through = max(self.forgotten_through, through)
        self.requests = {key: found for key, found in self.requests.items() if found[0] > self.forgotten_through}

    def tell(self, kind: int, *details: object) -> None:
        self.events.append((kind, self.sequence, *details))

    def reject(self, command: Command, code: str) -> None:
        self.tell(REJECTED, command[1], command[2], code)

    # -- what can be seen --------------------------------------------------------------------------------------

    def queue(self, side: int) -> list[NaiveOrder]:
        """The open orders of one side, best price first, oldest first at a price."""
        better = -1 if side == Side.BUY else 1
        own = [order for order in self.resting if order.side == side]
        return sorted(own, key=lambda order: (order.price * better, order.queued_at))

    def best(self, side: int) -> int | None:
        return next((order.price for order in self.queue(side)), None)

    def depth(self, side: int) -> list[tuple[int, int, int]]:
        """Price, lots and number of orders of each level, best first."""
        levels: dict[int, list[int]] = {}
        for order in self.queue(side):
            levels.setdefault(order.price, []).append(order.open)
        return [(price, sum(lots), len(lots)) for price, lots in levels.items()]

    def open_orders(self, account: str) -> list[NaiveOrder]:
        return sorted([order for order in self.resting if order.account == account], key=lambda order: order.id)

    def open_order(self, order_id: int, account: str) -> NaiveOrder | None:
        return next((order for order in self.open_orders(account) if order.id == order_id), None)

    def remembered(self) -> Iterator[Event]:
        """The events that are still inside the dedupe window."""
        return (event for event in self.events if event[1] > self.forgotten_through)

    def trades(self) -> list[Event]:
        """All trades still remembered, newest first."""
        return [event for event in reversed(list(self.remembered())) if event[0] == TRADE]


def bought_and_sold(orders: Iterable[NaiveOrder]) -> tuple[int, int]:
    """How many lots the buy orders and the sell orders were filled, over all time."""
    filled = [0, 0]
    for order in orders:
        filled[order.side] += order.filled
    return filled[0], filled[1]
