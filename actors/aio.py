"""AsyncNode: a node's calls for an asyncio event loop: awaited, and answered by the batch. Never blocks the loop.

An order that is awaited costs no thread: the market's BookActor wakes the loop once for all orders that are answered
together. So thousands may be under way at a time, and many small callers are quicker here than on threads.

A task that is cancelled while it waits takes nothing back: its order may have been executed. Give it a
``client_order_id``, and a retry gets the same answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Final, TypedDict, TypeVar, Unpack, cast

import pykka
from pykka._envelope import Envelope

from ..transport.errors import InvalidRequest, OpenOutcryError, RequestTimeout, Unavailable
from ..transport.forks import guard
from ..transport.numerals import written
from .book.actor import BookActor
from .book.commands import CANCEL_ALL, Command, OrderType, SelfTradePrevention, Side, TimeInForce
from .book.messages import Query
from .book.record import COMMANDS_MAX
from .book.rules import DecimalLike
from .book.submission import Request, Submissions
from .kit.actor import put_always
from .market import queries
from .market.border import ExpiryLike, checked, checked_count, checked_market, checked_order_id, checked_timeout
from .market.subscription import Subscription
from .market.views import BookView, MarketUpdate, OpenOrder, OrderRejected, OrderResult, OrderResults, Trade, result_of
from .node import READY_LOOK_S, ExchangeNode, partly_sent

TURN_S: Final = 0.005
"""How long a subscription is read while updates wait before the loop's other tasks have a turn, in seconds."""
_LOOK_S: Final = 1.0
"""How often requests are looked for that nobody answers, in seconds."""

_T = TypeVar("_T")


class OrderOptions(TypedDict, total=False):
    """What else an order may say; see :meth:`ExchangeNode.submit_order`."""

    order_type: str | OrderType
    time_in_force: str | TimeInForce | None
    expire_ns: ExpiryLike
    self_trade_prevention: str | SelfTradePrevention
    account: str | None
    client_order_id: str | None


class _Awaited(Request):
    """A request that a task of an event loop waits for."""

    __slots__ = ("future",)

    future: asyncio.Future[None]


class AsyncNode:
    """The calls of ``node``, which the application starts and closes, for the event loop that runs when it is made.

    The calls that orders are made of are here, under the names that :class:`ExchangeNode` has them by, and with the
    same arguments, results and errors. Whatever else a node does may be called by ``asyncio.to_thread``.

    In another event loop than that (``asyncio.run`` a second time makes one) every call but :meth:`close` raises
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
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InvalidRequest(
                "an AsyncNode is made in the event loop that uses it: within a coroutine that asyncio.run() runs",
                code="no_event_loop",
            ) from None
        self._waiting: set[_Awaited] = set()
        self._looking: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> AsyncNode:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the node; what waits for an answer fails with Closed. Idempotent."""
        await asyncio.to_thread(self.node.close)

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until commands of every market can be sent; see :meth:`ExchangeNode.wait_ready`."""
        self._check_loop()
        node, deadline_s = self.node, time.monotonic() + checked_timeout(timeout)
        for market in node.markets:
            while (closed := node._not_open(market)) is not None:
                if time.monotonic() > deadline_s:
                    raise RequestTimeout(f"after {written(timeout)} s: {closed.message}", code=closed.code)
                await asyncio.sleep(READY_LOOK_S)
            while not node._take_readiness(
                market, await self._ask(market, Query(queries.readiness), max(timeout, node.timeout))
            ):
                if time.monotonic() > deadline_s:
                    status = await self._read(market, BookActor.status)
                    raise node._not_ready(status, RequestTimeout, f" after {written(timeout)} s")
                await asyncio.sleep(READY_LOOK_S)

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
        self._check_loop()
        await self._know(market)
        return await self._one(market, self.node.order(market, side, price, quantity, **options), timeout)

    async def cancel_order(
        self,
        market: str,
        order_id: int,
        *,
        account: str | None = None,
        client_order_id: str | None = None,
        timeout: float | None = None,
    ) -> OrderResult:
        """Cancel what is left of an order; see :meth:`ExchangeNode.cancel_order`."""
        self._check_loop()
        command = self.node.cancel(order_id, account=account, client_order_id=client_order_id)
        return await self._one(market, command, timeout)

    async def cancel_all(
        self,
        market: str,
        *,
        account: str | None = None,
        client_order_id: str | None = None,
        timeout: float | None = None,
    ) -> OrderResult:
        """Cancel every open order of an account; see :meth:`ExchangeNode.cancel_all`."""
        self._check_loop()
        node = self.node
        command = (CANCEL_ALL, node._account(account), node._request_name(client_order_id))
        return await self._one(market, command, timeout)

    async def amend_order(
        self,
        market: str,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        account: str | None = None,
        client_order_id: str | None = None,
        timeout: float | None = None,
    ) -> OrderResult:
        """Give an order a new price, a new open quantity, or both; see :meth:`ExchangeNode.amend_order`."""
        self._check_loop()
        await self._know(market)
        command = self.node.amend(
            market, order_id, price=price, quantity=quantity, account=account, client_order_id=client_order_id
        )
        return await self._one(market, command, timeout)

    async def submit_many(
        self, market: str, commands: Iterable[Command], *, timeout: float | None = None
    ) -> OrderResults:
        """Send commands made by ``node.order``, ``node.cancel`` and ``node.amend`` as one batch.

        See :meth:`ExchangeNode.submit_many`.
        """
        self._check_loop()
        deadline_s = self.node._deadline_s(timeout)
        self.node._book(market)
        every = checked(commands)
        requests: list[_Awaited] = []
        for at in range(0, len(every), COMMANDS_MAX):
            try:
                requests.append(await self._send(market, every[at : at + COMMANDS_MAX], deadline_s))
            except Unavailable as error:
                raise partly_sent(error, at, len(every)) from error
        for request in requests:
            await request.future
        return OrderResults(market, [(r.result(), r.first_sequence, r.commands) for r in requests])

    # -- queries ------------------------------------------------------------------------------------------------

    async def get_order_book(self, market: str, depth: int | None = None) -> BookView:
        """Return the best ``depth`` price levels of each side (all, by default), as this node's replica has them."""
        self._check_loop()
        depth = None if depth is None else checked_count(depth, "depth")
        return await self._read(market, queries.order_book(market, depth))

    async def get_order(self, market: str, order_id: int) -> OpenOrder | None:
        """Return an open order, or None if it is not in the book (filled, cancelled, never there)."""
        self._check_loop()
        return await self._read(market, queries.order(market, checked_order_id(order_id)))

    async def open_orders(self, market: str, account: str | None = None) -> list[OpenOrder]:
        """Return an account's open orders (default: the node's own), oldest first."""
        self._check_loop()
        return await self._read(market, queries.open_orders(market, self.node._account(account)))

    async def trades(self, market: str, limit: int = 100) -> list[Trade]:
        """Return the last trades, newest first; older ones than ``dedupe_window`` commands are in the journal only."""
        self._check_loop()
        return await self._read(market, queries.trades(checked_count(limit, "limit")))

    async def position(self, market: str) -> tuple[int, str]:
        """Return sequence number and state hash, of one moment."""
        self._check_loop()
        return await self._read(market, queries.position)

    # -- market data --------------------------------------------------------------------------------------------

    async def subscribe(
        self, market: str, *, after: int | None = None, queue_size_max: int = 10_000
    ) -> AsyncSubscription:
        """Receive every event of a market, in order: iterate over what is returned by ``async for``.

        See :meth:`ExchangeNode.subscribe`.
        """
        self._check_loop()
        node, made = self.node, AsyncSubscription(self._loop)
        made._subscription, watch = node._make_subscription(market, None, after, queue_size_max, made._poke)
        try:
            sequence = await self._ask(market, watch, node.timeout)
        except BaseException:
            made.close()
            raise
        node._begin_subscription(made._subscription, sequence)
        return made

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_loop(self) -> None:
        _check_loop(self._loop, "AsyncNode", "make another of the same node")

    async def _know(self, market: str) -> None:
        """Have the market's rules at hand: they are asked for once."""
        if checked_market(market) not in self.node._rules:
            self.node._take_rules(market, await self._read(market, queries.rules))

    async def _one(self, market: str, command: Command, timeout: float | None) -> OrderResult:
        request = await self._send(market, (command,), self.node._deadline_s(timeout))
        await request.future
        result = result_of(market, request.result(), request.first_sequence, command)
        if result.code is not None:
            raise OrderRejected(result)
        return result

    async def _send(self, market: str, commands: tuple[Command, ...], deadline_s: float) -> _Awaited:
        """Hand commands to the BookActor, without waiting but for room; the request's future is done when answered."""
        submissions = self.node._entrance(market, commands)
        request = _Awaited(commands, int(deadline_s * 1e9), self._tell)
        request.future = self._loop.create_future()
        self._waiting.add(request)
        try:
            if not submissions.offer(request):
                await self._stand_by(submissions, request)
        except BaseException:
            self._waiting.discard(request)
            raise
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)
        return request

    async def _stand_by(self, submissions: Submissions, request: Request) -> None:
        """Wait until there is room for a request and the BookActor has it; raises Overloaded at its deadline."""
        entered = self._loop.create_future()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: it is sent all the same
                self._loop.call_soon_threadsafe(_done, entered)

        submissions.stand_by(request, tell)
        late = self._loop.call_later(request.deadline_ns / 1e9 - time.monotonic(), _done, entered)
        try:
            await entered
        finally:
            late.cancel()
            withdrawn = submissions.withdraw(request)
        if withdrawn:
            raise submissions.overloaded()

    def _tell(self, requests: list[Request]) -> None:
        """Take answers in, on the BookActor's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._finish, cast("list[_Awaited]", requests))

    def _finish(self, requests: Iterable[_Awaited]) -> None:
        waiting = self._waiting
        for request in requests:
            waiting.discard(request)
            if not request.future.done():  # else its task was cancelled
                request.future.set_result(None)

    def _look(self) -> None:
        """Give up what a BookActor that is stuck has not answered: it fails requests at their deadlines itself."""
        now_s = time.monotonic()
        self._finish([request for request in self._waiting if request.given_up_s <= now_s])
        self._looking = self._loop.call_later(_LOOK_S, self._look) if self._waiting else None

    async def _read(self, market: str, read: Callable[[BookActor], _T]) -> _T:
        return cast("_T", await self._ask(market, Query(read), self.node.timeout))

    async def _ask(self, market: str, message: object, timeout: float) -> Any:
        """Ask the BookActor; raises as the node's own asking does."""
        node, book = self.node, self.node._book(market)
        what, answer = book.actor_class.__name__, _Answer(self._loop)
        if not put_always(book, Envelope(message, answer)):
            raise node._gone(what)
        late = self._loop.call_later(timeout, answer.give, None, pykka.Timeout())
        try:
            return await answer.future
        except pykka.ActorDeadError:
            raise node._gone(what) from None
        except pykka.Timeout:
            raise RequestTimeout(
                f"node {node.name} did not answer within {written(timeout)} s: it is overloaded"
            ) from None
        finally:
            late.cancel()


class _Answer(pykka.Future[Any]):
    """Where Pykka puts the answer to what a task has asked an actor: on its way to the loop, from the actor's thread.

    An actor that ends answers, too. The task waits for :attr:`future`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def set(self, value: Any = None) -> None:
        self._bring(value, None)

    def set_exception(self, exc_info: Any = None) -> None:
        self._bring(None, (exc_info or sys.exc_info())[1])

    def _bring(self, value: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.give, value, error)

    def give(self, value: Any, error: BaseException | None) -> None:
        """Let the task have the answer, on the loop's thread."""
        if self.future.done():
            return  # its task was cancelled, or waits no longer
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)


def _check_loop(loop: asyncio.AbstractEventLoop, what: str, instead: str) -> None:
    """Raise InvalidRequest unless ``loop`` is the event loop that runs."""
    if asyncio.get_running_loop() is not loop:
        raise InvalidRequest(
            f"this {what} belongs to another event loop{' that is closed' if loop.is_closed() else ''}; nothing was "
            f"sent. In this one, {instead}",
            code="other_event_loop",
        )


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():  # else its task was cancelled
        future.set_result(None)


class AsyncSubscription:
    """The receiving end of :meth:`AsyncNode.subscribe`; iterate over it by ``async for``.

    It ends, and resumes, as a :class:`~.market.subscription.Subscription` does, and has no gaps.
    """

    _subscription: Subscription

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        guard(self)
        self._poked = False
        self._news = asyncio.Event()
        self._turn_s = 0.0
        """When the loop has last had a turn, as far as is known here."""

    @property
    def error(self) -> OpenOutcryError | None:
        """Why it has ended, unless it was closed."""
        return self._subscription.error

    @property
    def last_sequence(self) -> int:
        """The sequence number up to which the subscriber has been given everything."""
        return self._subscription.last_sequence

    def close(self) -> None:
        """End the subscription; what waits can still be read. Idempotent."""
        self._subscription.close()

    async def get(self) -> MarketUpdate | None:
        """Return the next update, or None when the subscription has ended. For one task at a time.

        However many wait, the loop's other tasks have a turn every ``TURN_S``; a call that is cancelled takes nothing.
        """
        _check_loop(self._loop, "subscription", "subscribe again with after=last_sequence")
        if time.monotonic() - self._turn_s > TURN_S:
            await asyncio.sleep(0)
            self._turn_s = time.monotonic()
        while True:
            try:
                return self._subscription.get(timeout=0)
            except queue.Empty:
                self._news.clear()  # on the loop's thread, as `_wake`: what comes after the look sets it again
                await self._news.wait()
                self._turn_s = time.monotonic()

    async def __aiter__(self) -> AsyncIterator[MarketUpdate]:
        while (update := await self.get()) is not None:
            yield update

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self.close()

    def _poke(self) -> None:
        """Something has come in, on whatever thread: wake the loop, once for all that comes until it is awake."""
        if not self._poked:
            self._poked = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._poked = False
        self._news.set()


__all__ = ["AsyncNode", "AsyncSubscription", "OrderOptions"]
