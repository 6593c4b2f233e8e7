"""A node inside an asyncio application: orders that are awaited, market data by ``async for``.

Run it: python examples/asyncio_app.py
"""

from __future__ import annotations

import asyncio

from openoutcry.actors import AsyncNode, AsyncSubscription, ExchangeNode, MarketRules, Trade

MARKET = "ACME"
RULES = MarketRules(tick_size="0.05", lot_size="1")


async def tape(stream: AsyncSubscription, wanted: int) -> list[Trade]:
    """Return the next ``wanted`` trades."""
    trades: list[Trade] = []
    async with stream:
        async for update in stream:
            trades += [event for event in update.events if isinstance(event, Trade)]
            if len(trades) >= wanted:
                break
    return trades


async def main() -> None:
    """Let two traders meet while another task reads the tape."""
    started = await asyncio.to_thread(ExchangeNode, "app", markets={MARKET: RULES})
    async with AsyncNode(started) as node:
        await node.wait_ready()
        reader = asyncio.create_task(tape(await node.subscribe(MARKET), wanted=4))
        prices = ("20.10", "20.05")
        offers = await asyncio.gather(
            *[node.submit_order(MARKET, "sell", price, 10, account="maker") for price in prices]
        )
        print(f"{len(offers)} offers rest, submitted together")
        bought = [await node.submit_order(MARKET, "buy", "20.10", lots, account="taker") for lots in (4, 7, 3)]
        print(f"bought {sum(order.filled_quantity for order in bought)} in {len(bought)} orders")
        for trade in await asyncio.wait_for(reader, 10):
            print(f"tape: {trade.quantity} at {trade.price}")


if __name__ == "__main__":
    asyncio.run(main())
