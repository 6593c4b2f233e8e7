"""A remote actor of your own: a price feed in one process, a trading desk in another, and what each hears of the other.

Run it: python examples/price_feed.py
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import threading
from decimal import Decimal
from typing import Any

from openoutcry.actors import Actor, ExchangeNode, OpenOutcryError, RemoteRef, Terminated, message

PATIENCE_S = 20
SYMBOL = "ACME"


# -- what they say to each other: both sides have these classes ---------------------------------------------------


@message("feed.subscribe")
class Subscribe:
    """Desk to feed (ask): tell every price to the actor at ``address``; answers the last price."""

    address: str
    symbol: str


@message("feed.price")
class Price:
    """Feed to desk."""

    symbol: str
    number: int
    value: Decimal


# -- the feed ------------------------------------------------------------------------------------------------------


class PriceFeed(Actor):
    """Makes a price every 10 ms, and forgets subscribers that stop, die or are cut off."""

    def __init__(self, node: ExchangeNode) -> None:
        super().__init__()
        self._node = node
        self._last = Price(SYMBOL, 0, Decimal("20.00"))
        self._subscribers: set[RemoteRef] = set()
        self._chance = random.Random(1)

    def on_start(self) -> None:
        self.tell_every(0.01, "tick")

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, Subscribe):
            subscriber = self._node.actor(message.address)
            self._node.watch(subscriber, self.actor_ref)
            self._subscribers.add(subscriber)
            print(f"feed: {subscriber.address.split('.')[0]} listens", flush=True)
            return self._last
        if isinstance(message, Terminated):
            self._subscribers.discard(message.ref)
            print(f"feed: a listener is {message.reason}", flush=True)
        elif message == "tick":
            step = Decimal(self._chance.randrange(-5, 6)) / 100
            self._last = Price(SYMBOL, self._last.number + 1, self._last.value + step)
            for subscriber in self._subscribers:
                try:
                    subscriber.tell(self._last, timeout=0)  # a feed waits for nobody
                except OpenOutcryError as error:
                    print(f"feed: {error} ({error.code})", flush=True)
        return None


def serve(directory: str) -> None:
    """Be the feed's process, until it is ended."""
    node = ExchangeNode("reuters", directory=directory)
    node.register("feed", PriceFeed.start(node), accepts=[Subscribe])
    threading.Event().wait()


# -- the desk ------------------------------------------------------------------------------------------------------


class Desk(Actor):
    """Collects prices until it has enough, and notes the end of the feed."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self._enough = enough
        self.prices: list[Price] = []
        self.has_enough = threading.Event()
        self.feed_ended = threading.Event()

    def on_receive(self, message: Any) -> None:
        if isinstance(message, Terminated):
            print(f"desk: the feed is {message.reason}", flush=True)
            self.feed_ended.set()
        elif isinstance(message, Price) and len(self.prices) < self._enough:
            self.prices.append(message)
            if len(self.prices) == self._enough:
                self.has_enough.set()


def main() -> int:
    """Be the desk, and start the feed."""
    spawn = multiprocessing.get_context("spawn")
    with ExchangeNode("desk", serve_directory="tcp://127.0.0.1:0") as node:  # no markets: a node for its actors only
        process = spawn.Process(target=serve, args=(node.directory_address,), daemon=True)
        process.start()
        desk = Desk.start(enough=20)
        proxy = desk.proxy()
        node.register("prices", desk, accepts=[Price])
        feed = node.wait_actor("feed@reuters", timeout=PATIENCE_S)
        node.watch(feed, desk)
        last = feed.ask(Subscribe(f"prices@{node.node_id}", SYMBOL), timeout=PATIENCE_S)
        print(f"desk: {last.symbol} was at {last.value}", flush=True)

        enough = proxy.has_enough.get().wait(PATIENCE_S)
        prices = proxy.prices.get()
        numbers = [price.number for price in prices]
        in_order = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        print(f"desk: {len(prices)} prices, {'in order, none missing' if in_order else numbers}", flush=True)

        process.kill()  # kill -9: the desk hears of it
        ended = proxy.feed_ended.get().wait(PATIENCE_S)
        try:
            feed.tell(Subscribe("prices@desk", SYMBOL))
        except OpenOutcryError as error:
            print(f"desk: {error.code}", flush=True)
        desk.stop()
        process.join()
    return 0 if enough and in_order and ended else 1


if __name__ == "__main__":
    sys.exit(main())
