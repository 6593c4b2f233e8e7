"""AsyncNode: a node's calls for an asyncio event loop: awaited, and answered in batches. Never blocks the loop.

:mod:`.market.aio` does everything that concerns one market.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Unpack

from ..transport.forks import guard
from .book.commands import Command, Side
from .book.rules import DecimalLike
from .market.aio import AsyncMarket, AsyncSubscription, MarketLoop
from .market.border import OrderOptions, RequestOptions, checked_timeout
from .market.views import BookView, OpenOrder, OrderResult, OrderResults, Trade
from .node import ExchangeNode


class AsyncNode:
    """The calls of ``node``, which the application starts and closes, for the event loop that runs when it is made.

    It has the calls for orders, with the names, arguments, results and errors of :class:`ExchangeNode`. Run other calls
    of the node by ``asyncio.to_thread``.

    In another event loop (such as that of a second ``asyncio.run``) every call but :meth:`close` raises
    InvalidRequest, code ``other_event_loop``, before anything is sent: make another AsyncNode of the same node there.

    As a context manager it closes the node, on another thread::

        async with AsyncNode(await asyncio.to_thread(ExchangeNode, "alice", markets={"ACME": rules})) as node:
            await node.wait_ready()
            order = await node.submit_order("ACME", "buy", "20.10", 4)
    """

    def __init__(self, node: ExchangeNode) -> None:
        """Make it in the event loop that will use it.

        Raises:
            InvalidRequest: no event loop runs (code ``no_event_loop``).
        """
        self.node = node
        guard(self)
        self._loop = MarketLoop()

    async def __aenter__(self) -> AsyncNode:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the node; unanswered calls fail with Closed. Idempotent."""
        await asyncio.to_thread(self.node.close)

    @property
    def unanswered(self) -> int:
        """How many requests of this loop wait for their answers."""
        return len(self._loop.waiting)

    def market(self, name: str) -> AsyncMarket:
        """Return a market that the node has joined; see :meth:`ExchangeNode.market`."""
        self._loop.check()
        return AsyncMarket(self.node.market(name), self._loop)

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until commands of every market can be sent; see :meth:`ExchangeNode.wait_ready`."""
        self._loop.check()
        deadline_s = time.monotonic() + checked_timeout(timeout)
        for market in self.node.markets:
            await self.market(market).wait_ready_until(deadline_s, timeout)

    # -- commands -----------------------------------------------------------------------------------------------

    async def submit_order(
        self,
        market: str,
        side: str | Side,
        price: DecimalLike | None,
        quantity: DecimalLike,
        *,
        timeout: float | None = None,
        **options: Unpack[OrderOptions],
    ) -> OrderResult:
        """Submit an order and wait until it is durable and executed; see :meth:`ExchangeNode.submit_order`."""
        return await self.market(market).submit(side, price, quantity, timeout=timeout, **options)

    async def cancel_order(
        self, market: str, order_id: int, *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> OrderResult:
        """Cancel the open quantity of an order; see :meth:`ExchangeNode.cancel_order`."""
        return await self.market(market).cancel(order_id, timeout=timeout, **options)

    async def cancel_all(
        self, market: str, *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> OrderResult:
        """Cancel every open order of an account; see :meth:`ExchangeNode.cancel_all`."""
        return await self.market(market).cancel_all(timeout=timeout, **options)

    async def amend_order(
        self,
        market: str,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> OrderResult:
        """Give an order a new price, a new open quantity, or both; see :meth:`ExchangeNode.amend_order`."""
        return await self.market(market).amend(order_id, price=price, quantity=quantity, timeout=timeout, **options)

    async def submit_many(
        self, market: str, commands: Iterable[Command], *, timeout: float | None = None
    ) -> OrderResults:
        """Send commands made by ``node.order``, ``node.cancel`` and ``node.amend`` as one batch.

        See :meth:`ExchangeNode.submit_many`.
        """
        return await self.market(market).submit_many(commands, timeout=timeout)

    # -- queries ------------------------------------------------------------------------------------------------

    async def get_order_book(self, market: str, depth: int | None = None) -> BookView:
        """Return the best ``depth`` price levels of each side (all, by default), as this node's replica has them."""
        return await self.market(market).book(depth)

    async def get_order(self, market: str, order_id: int) -> OpenOrder | None:
        """Return an open order, or None if it is not in the book (filled, cancelled, never there)."""
        return await self.market(market).order(order_id)

    async def open_orders(self, market: str, account: str | None = None) -> list[OpenOrder]:
        """Return an account's open orders (default: the node's own), oldest first."""
        return await self.market(market).open_orders(account)

    async def trades(self, market: str, limit: int = 100) -> list[Trade]:
        """Return the last trades, newest first; older ones than ``dedupe_window`` commands are in the journal only."""
        return await self.market(market).trades(limit)

    async def position(self, market: str) -> tuple[int, str]:
        """Return sequence number and state hash, of one moment."""
        return await self.market(market).position()

    # -- market data --------------------------------------------------------------------------------------------

    async def subscribe(
        self, market: str, *, after: int | None = None, queue_size_max: int = 10_000
    ) -> AsyncSubscription:
        """Receive every event of a market, in order: iterate over the result by ``async for``.

        See :meth:`ExchangeNode.subscribe`.
        """
        return await self.market(market).subscribe(after=after, queue_size_max=queue_size_max)


__all__ = ["AsyncNode"]
