"""A node inside an asyncio application: orders that are awaited, market data by ``async for``.

Run it: python examples/asyncio_app.py
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator
from typing import Any

from openoutcry.actors import ExchangeNode, MarketRules, MarketUpdate, OrderResult, Subscription, Trade

MARKET = "ACME"
RULES = MarketRules(tick_size="0.05", lot_size="1")


async def submit(node: ExchangeNode, *order: Any, **options: Any) -> OrderResult:
    """Submit an order without blocking the event loop; raises as ``node.submit_order`` does."""
    return await asyncio.to_thread(node.submit_order, MARKET, *order, **options)


async def subscribe(node: ExchangeNode) -> AsyncGenerator[MarketUpdate, None]:
    """Return the market's updates from now on; a reader that falls too far behind is cut, as any subscriber."""
    return _updates(await asyncio.to_thread(node.subscribe, MARKET))


async def _updates(subscription: Subscription) -> AsyncGenerator[MarketUpdate, None]:
    try:
        while True:
            try:
                # In short waits: a task that is cancelled leaves its thread behind for no longer than that.
                update = await asyncio.to_thread(subscription.get, 0.2)
            except queue.Empty:
                continue
            if update is None:
                return
            yield update
    finally:
        subscription.close()


async def tape(stream: AsyncGenerator[MarketUpdate, None], wanted: int) -> list[Trade]:
    """Return the next ``wanted`` trades."""
    trades: list[Trade] = []
    async with contextlib.aclosing(stream):
        async for update in stream:
            trades += [event for event in update.events if isinstance(event, Trade)]
            if len(trades) >= wanted:
                break
    return trades


async def main() -> None:
    """Let two traders meet while another task reads the tape."""
    with ExchangeNode("app", markets={MARKET: RULES}) as node:
        await asyncio.to_thread(node.wait_ready)
        reader = asyncio.create_task(tape(await subscribe(node), wanted=4))
        prices = ("20.10", "20.05")
        offers = await asyncio.gather(*[submit(node, "sell", price, 10, account="maker") for price in prices])
        print(f"{len(offers)} offers rest, submitted together")
        bought = [await submit(node, "buy", "20.10", quantity, account="taker") for quantity in (4, 7, 3)]
        print(f"bought {sum(order.filled_quantity for order in bought)} in {len(bought)} orders")
        for trade in await asyncio.wait_for(reader, 10):
            print(f"tape: {trade.quantity} at {trade.price}")


if __name__ == "__main__":
    asyncio.run(main())
