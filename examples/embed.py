"""A node inside another application: submit orders, follow the market data, read the book.

Run it: python examples/embed.py
"""

from __future__ import annotations

import queue

from openoutcry.actors import ExchangeNode, MarketRules, MarketUpdate, OrderRejected, Trade

MARKET = "ACME"
RULES = MarketRules(tick_size="0.05", lot_size="1", quantity_max_lots=1000)


def main() -> None:
    """Trade a little with oneself."""
    updates: queue.Queue[MarketUpdate] = queue.Queue()
    # Without a directory and a data_dir the node stands alone, and its journal is gone when it is closed.
    with ExchangeNode("desk", markets={MARKET: RULES}) as node:
        node.wait_ready()
        node.subscribe(MARKET, updates)

        # One at a time: each answer comes when the order is durable and executed.
        ask = node.submit_order(MARKET, "sell", "20.10", "300", account="maker")
        buy = node.submit_order(MARKET, "buy", "20.10", "120", account="taker")
        print(f"order {ask.order_id} rests; order {buy.order_id} is {buy.status} for {buy.filled_quantity}")

        # Many at a time, for speed: one batch, one answer each, a rejection is an answer like any other.
        bids = [node.order(MARKET, "buy", price, 50, account="maker") for price in ("20.00", "19.95", "19.90")]
        results = node.submit_many(MARKET, bids)
        print(f"{len(results)} bids: {', '.join(result.status for result in results)}")

        # What the market does not allow is an error with a stable code.
        try:
            node.submit_order(MARKET, "buy", "20.00", "5000", account="taker")
        except OrderRejected as error:
            print(f"refused: {error} ({error.code})")

        # What the subscriber got: everything, in order, without gaps.
        sequence = 0
        while sequence < node.sequence(MARKET):
            update = updates.get(timeout=5)
            sequence = update.sequence
            for event in update.events:
                words = f"{event.quantity} at {event.price}" if isinstance(event, Trade) else ""
                print(f"  event {event.sequence}: {event.kind} {words}".rstrip())

        book = node.get_order_book(MARKET)
        for level in (*book.bids, *book.asks):
            print(f"  {level.quantity} in {level.orders} orders at {level.price}")


if __name__ == "__main__":
    main()
