"""A market-making bot: an actor that keeps a bid and an offer in a market, and moves them against what it has traded.

Run it: python examples/market_maker.py        Its test: pytest examples/test_market_maker.py
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pykka
from openoutcry.actors import Actor, ExchangeNode, MarketRules, MarketUpdate, OpenOutcryError, Subscription, Trade
from openoutcry.actors.kit.actor import tell

MARKET = "ACME"
RULES = MarketRules(tick_size="0.01", lot_size="1")


@dataclass(frozen=True, slots=True)
class Quoted:
    """The bot to whoever it reports to: these are its prices from now on."""

    bid: Decimal
    offer: Decimal
    inventory: Decimal
    """What it has bought less what it has sold."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """A timer to the bot: see whether both quotes are still in the book."""


class MarketMaker(Actor):
    """Quotes ``size`` on both sides of ``fair``; each unit that it owns makes it quote ``skew`` lower, to be rid of it.

    It talks to its node only: orders in, market data out. Trades arrive as messages, like all it hears.
    """

    def __init__(
        self,
        node: ExchangeNode,
        market: str,
        *,
        fair: Decimal,
        half_spread: Decimal = Decimal("0.10"),
        size: int = 5,
        skew: Decimal = Decimal("0.01"),
        refresh_s: float = 1.0,
        report_to: pykka.ActorRef[Any] | None = None,
    ) -> None:
        super().__init__()
        self._node = node
        self._market = market
        self._account = f"maker-{node.name}"
        self._fair = fair
        self._half_spread = half_spread
        self._size = size
        self._skew = skew
        self._refresh_s = refresh_s
        self._report_to = report_to
        self._inventory = Decimal(0)
        self._sequence: int | None = None
        """Up to where it has taken the market's events into account."""
        self._subscription: Subscription | None = None

    def on_start(self) -> None:
        self._follow()
        self.tell_every(self._refresh_s, Refresh())
        self._quote()

    def on_receive(self, message: Any) -> None:
        if isinstance(message, MarketUpdate):
            if self._sequence is not None and message.sequence <= self._sequence:
                return  # it waited in the mailbox, and came once more after a new subscription
            self._sequence = message.sequence
            change = sum((self._change(event) for event in message.events if isinstance(event, Trade)), Decimal(0))
            if change:
                self._inventory += change
                self._quote()
        elif isinstance(message, Refresh):
            if self._subscription is None or self._subscription.ended:
                self._follow()
            if len(self._node.open_orders(self._market, self._account)) < 2:
                self._quote()

    def on_stop(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
        try:
            self._node.cancel_all(self._market, account=self._account)
        except OpenOutcryError as error:
            print(f"its quotes are left in the book: {error}")

    def _follow(self) -> None:
        """Subscribe, or go on where the last subscription was cut: the inventory is right only without a gap.

        If those events are not held any more, the bot fails: quotes from a wrong inventory would be worse.
        """
        ref = self.actor_ref
        # From the thread that delivers, every update becomes a message; one too many would cut the subscription.
        self._subscription = self._node.subscribe(
            self._market, lambda update: tell(ref, update) and None, after=self._sequence
        )
        if self._sequence is None:
            self._sequence = self._subscription.last_sequence

    def _change(self, trade: Trade) -> Decimal:
        """Return what a trade adds to the inventory; ``trade.side`` is the taker's."""
        if trade.maker_account != self._account:
            return Decimal(0)
        return trade.quantity if trade.side == "sell" else -trade.quantity

    def _quote(self) -> None:
        """Replace both quotes: what is left of the old ones goes first, so that the bot never trades with itself."""
        node, market, account = self._node, self._market, self._account
        middle = self._fair - self._skew * self._inventory
        bid, offer = middle - self._half_spread, middle + self._half_spread
        try:
            node.cancel_all(market, account=account)
            both = {"buy": bid, "sell": offer}
            options: Any = {"order_type": "post_only", "account": account}
            node.submit_many(
                market, [node.order(market, side, price, self._size, **options) for side, price in both.items()]
            )
        except OpenOutcryError as error:
            print(f"not quoted: {error}")  # the next Refresh tries again
            return
        if self._report_to is not None:
            tell(self._report_to, Quoted(bid, offer, self._inventory))


class Printer(Actor):
    """Prints the bot's quotes, and passes them on to the main program."""

    def __init__(self, quotes: queue.Queue[Quoted]) -> None:
        super().__init__()
        self._quotes = quotes

    def on_receive(self, message: Any) -> None:
        print(f"  quotes {message.bid} / {message.offer}, owns {message.inventory}")
        self._quotes.put(message)


def main() -> None:
    """Let a customer trade with the bot."""
    quotes: queue.Queue[Quoted] = queue.Queue()
    with ExchangeNode("desk", markets={MARKET: RULES}) as node:
        node.wait_ready()
        printer = Printer.start(quotes)
        bot = MarketMaker.start(node, MARKET, fair=Decimal("20.00"), report_to=printer)
        quote = quotes.get(timeout=10)
        for side, quantity in (("buy", 5), ("buy", 3), ("sell", 5)):
            price = quote.offer if side == "buy" else quote.bid
            order = node.submit_order(MARKET, side, price, quantity, account="customer", time_in_force="ioc")
            print(f"customer: {side} {order.filled_quantity} at {price}")
            quote = quotes.get(timeout=10)
        bot.stop()
        book = node.get_order_book(MARKET)
        print(f"the bot has stopped; {len(book.bids) + len(book.asks)} price levels are left in the book")
        printer.stop()


if __name__ == "__main__":
    main()
