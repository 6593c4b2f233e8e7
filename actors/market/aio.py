"""A market for an asyncio event loop: calls are awaited, and answered in batches. Never blocks the loop.

An awaited order costs no thread: the market's BookActor wakes the loop once for all orders that are answered together.
So thousands may be in flight, and many small callers are faster here than on threads.

Cancelling a waiting task does not cancel its order, which may have been executed. Give it a
``client_order_id``, and a retry gets the same answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, cast

import pykka
from pykka._envelope import Envelope

from ...transport.errors import InvalidRequest, OpenOutcryError, RequestTimeout, Unavailable
from ...transport.forks import guard
from ...transport.numerals import written
from ..book.commands import Command, Side
from ..book.messages import Query
from ..book.record import COMMANDS_MAX
from ..book.rules import DecimalLike, MarketRules
from ..book.submission import Request, Submissions
from ..kit.actor import put_always
from . import queries
from .border import (
    OrderOptions,
    RequestOptions,
    cancel_all_command,
    checked_count,
    checked_order_id,
    checked_timeout,
)
from .handle import READY_LOOK_S, Market, partly_sent
from .subscription import Subscription
from .views import BookView, MarketUpdate, OpenOrder, OrderResult, OrderResults, Trade

if TYPE_CHECKING:
    from ..book.shell import Shell

TURN_S: Final = 0.005
"""Seconds for which a subscription is read before the loop's other tasks get a turn."""
_LOOK_S: Final = 1.0
"""Seconds between two checks for unanswered requests."""

_T = TypeVar("_T")


class _Awaited(Request):
    """A request that a task of an event loop waits for."""

    __slots__ = ("future",)

    future: asyncio.Future[None]


class MarketLoop:
    """The event loop of some handles: the futures of its tasks, and the way answers reach them."""

    def __init__(self) -> None:
        """Use the running event loop.

        Raises:
            InvalidRequest: no event loop runs (code ``no_event_loop``).
        """
        guard(self)
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InvalidRequest(
                "an AsyncNode is made in the event loop that uses it: within a coroutine that asyncio.run() runs",
                code="no_event_loop",
            ) from None
        self.waiting: set[_Awaited] = set()
        """The requests that have no answer yet."""
        self._looking: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """Raise InvalidRequest, codes ``other_event_loop`` and ``no_event_loop``, unless this loop is running."""
        _check_loop(self.loop, "AsyncNode", "make another of the same node")

    async def send(self, submissions: Submissions, commands: tuple[Command, ...], deadline_s: float) -> _Awaited:
        """Hand commands to the BookActor; wait only for room. The request's future is done when answered."""
        request = _Awaited(commands, int(deadline_s * 1e9), self._tell)
        request.future = self.loop.create_future()
        self.waiting.add(request)
        try:
            if not submissions.put_nowait(request):
                await self._stand_by(submissions, request)
        except BaseException:
            self.waiting.discard(request)
            raise
        if self._looking is None:
            self._looking = self.loop.call_later(_LOOK_S, self._look)
        return request

    async def _stand_by(self, submissions: Submissions, request: Request) -> None:
        """Wait until there is room for a request and the BookActor has it; raises Overloaded at its deadline."""
        entered = self.loop.create_future()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: it is sent anyway
                self.loop.call_soon_threadsafe(_done, entered)

        submissions.stand_by(request, tell)
        late = self.loop.call_later(request.deadline_ns / 1e9 - time.monotonic(), _done, entered)
        try:
            await entered
        finally:
            late.cancel()
            withdrawn = submissions.withdraw(request)
        if withdrawn:
            raise submissions.overloaded()

    def _tell(self, requests: list[Request]) -> None:
        """Receive answers, on the BookActor's thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._finish, cast("list[_Awaited]", requests))

    def _finish(self, requests: Iterable[_Awaited]) -> None:
        waiting = self.waiting
        for request in requests:
            waiting.discard(request)
            if not request.future.done():  # otherwise its task was cancelled
                request.future.set_result(None)

    def _look(self) -> None:
        """Fail requests that a stuck BookActor has not answered; otherwise it fails them itself at their deadlines."""
        now_s = time.monotonic()
        self._finish([request for request in self.waiting if request.given_up_s <= now_s])
        self._looking = self.loop.call_later(_LOOK_S, self._look) if self.waiting else None

    async def ask(self, market: Market, message: object, timeout: float) -> Any:
        """Ask the market's BookActor; raises as :meth:`Market.read`."""
        ref, host = market.ref, market._host
        answer = _Answer(self.loop)
        if not put_always(ref, Envelope(message, answer)):
            raise host.gone(ref.actor_class.__name__)
        late = self.loop.call_later(timeout, answer.give, None, pykka.Timeout())
        try:
            return await answer.future
        except pykka.ActorDeadError:
            raise host.gone(ref.actor_class.__name__) from None
        except pykka.Timeout:
            raise host.late(timeout) from None
        finally:
            late.cancel()


class AsyncMarket:
    """One market, for the event loop in which it was made: what ``async_node.market("BTC-USD")`` returns.

    The calls of :class:`~.handle.Market`, awaited: the same arguments, results and errors. Make commands for
    :meth:`submit_many` with :attr:`market`; that never waits once the rules are known: see :meth:`rules`.
    In another event loop every call raises InvalidRequest, code ``other_event_loop``, before anything is sent.
    """

    def __init__(self, market: Market, loop: MarketLoop) -> None:
        self.market = market
        """The same market for threads: its calls block."""
        self.name = market.name
        self._loop = loop

    def __repr__(self) -> str:
        return f"<AsyncMarket {self.name} at node {self.market._host.requester.name}>"

    # -- commands -----------------------------------------------------------------------------------------------

    async def submit(
        self,
        side: str | Side,
        price: DecimalLike | None,
        quantity: DecimalLike,
        *,
        timeout: float | None = None,
        **options: Unpack[OrderOptions],
    ) -> OrderResult:
        """Submit an order and wait until it is durable and executed; see :meth:`Market.submit`."""
        await self.rules()
        return await self._one(self.market.make_order(side, price, quantity, **options), timeout)

    async def cancel(
        self, order_id: int, *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> OrderResult:
        """Cancel the open quantity of an order; see :meth:`Market.cancel`."""
        self._loop.check()
        return await self._one(self.market.make_cancel(order_id, **options), timeout)

    async def cancel_all(self, *, timeout: float | None = None, **options: Unpack[RequestOptions]) -> OrderResult:
        """Cancel every open order of an account; see :meth:`Market.cancel_all`."""
        self._loop.check()
        return await self._one(cancel_all_command(self.market._host.requester, **options), timeout)

    async def amend(
        self,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> OrderResult:
        """Give an order a new price, a new open quantity, or both; see :meth:`Market.amend`."""
        await self.rules()
        return await self._one(self.market.make_amend(order_id, price=price, quantity=quantity, **options), timeout)

    async def submit_many(self, commands: Iterable[Command], *, timeout: float | None = None) -> OrderResults:
        """Send commands made by :attr:`market` as one batch; see :meth:`Market.submit_many`."""
        self._loop.check()
        deadline_s, every = self.market._batch(commands, timeout)
        requests: list[_Awaited] = []
        for at in range(0, len(every), COMMANDS_MAX):
            try:
                requests.append(await self._send(every[at : at + COMMANDS_MAX], deadline_s))
            except Unavailable as error:
                raise partly_sent(error, at, len(every)) from error
        for request in requests:
            await request.future
        return OrderResults(self.name, [(r.result(), r.first_sequence, r.commands) for r in requests])

    async def _one(self, command: Command, timeout: float | None) -> OrderResult:
        request = await self._send((command,), self.market._host.deadline_s(timeout))
        await request.future
        return self.market._accepted(request.result(), request, command)

    async def _send(self, commands: tuple[Command, ...], deadline_s: float) -> _Awaited:
        return await self._loop.send(self.market._entrance(commands), commands, deadline_s)

    # -- queries ------------------------------------------------------------------------------------------------

    async def rules(self) -> MarketRules:
        """Return the market's rules, which are read once. Raises as :attr:`Market.rules`."""
        self._loop.check()
        known = self.market._rules
        return known if known is not None else self.market._take_rules(await self.read(queries.rules))

    async def book(self, depth: int | None = None) -> BookView:
        """Return the best ``depth`` price levels of each side (all, by default), as this node's replica has them."""
        view = await self.read(queries.order_book(self.name, None if depth is None else checked_count(depth, "depth")))
        return await asyncio.to_thread(self.market.book, depth) if view is None else view()

    async def order(self, order_id: int) -> OpenOrder | None:
        """Return an open order, or None if it is not in the book (filled, cancelled, never there)."""
        return (await self.read(queries.order(self.name, checked_order_id(order_id))))()

    async def open_orders(self, account: str | None = None) -> list[OpenOrder]:
        """Return an account's open orders (default: the node's own), oldest first."""
        view = await self.read(queries.open_orders(self.name, self.market._host.requester.account(account)))
        return await asyncio.to_thread(self.market.open_orders, account) if view is None else view()

    async def trades(self, limit: int = 100) -> list[Trade]:
        """Return the last trades, newest first; older ones than ``dedupe_window`` commands are in the journal only."""
        return (await self.read(queries.trades(checked_count(limit, "limit"))))()

    async def position(self) -> tuple[int, str]:
        """Return sequence number and state hash, of one moment."""
        return await self.read(queries.position)

    async def read(self, question: Callable[[Shell], _T], *, timeout: float | None = None) -> _T:
        """Return ``question(actor)``, asked on the replica's thread; see :meth:`Market.read`."""
        self._loop.check()
        bound_s = self.market._host.timeout_s if timeout is None else checked_timeout(timeout)
        return cast("_T", await self._loop.ask(self.market, Query(question), bound_s))

    # -- waits --------------------------------------------------------------------------------------------------

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until commands can be sent from this node; see :meth:`Market.wait_ready`."""
        await self.wait_ready_until(time.monotonic() + checked_timeout(timeout), timeout)

    async def wait_ready_until(self, deadline_s: float, said_s: float) -> None:
        """As :meth:`wait_ready`, until ``deadline_s`` on the monotonic clock; ``said_s`` is what errors say."""
        self._loop.check()
        market = self.market
        while market._opens_later(deadline_s, said_s):
            await asyncio.sleep(READY_LOOK_S)
        ask_s = max(said_s, market._host.timeout_s)
        while not market._take_readiness(await self.read(queries.readiness, timeout=ask_s)):
            if time.monotonic() > deadline_s:
                status = await self.read(queries.status)
                raise market._not_ready(status, RequestTimeout, f" after {written(said_s)} s")
            await asyncio.sleep(READY_LOOK_S)

    # -- market data --------------------------------------------------------------------------------------------

    async def subscribe(self, *, after: int | None = None, queue_size_max: int = 10_000) -> AsyncSubscription:
        """Receive every event of the market, in order: iterate over the result by ``async for``.

        See :meth:`Market.subscribe`.
        """
        self._loop.check()
        market, made = self.market, AsyncSubscription(self._loop.loop)
        made._subscription, watch = market._make_subscription(None, after, queue_size_max, made._poke)
        try:
            sequence = await self._loop.ask(market, watch, market._host.timeout_s)
        except BaseException:
            made.close()
            raise
        market._begin_subscription(made._subscription, sequence)
        return made


class _Answer(pykka.Future[Any]):
    """Takes the answer to a task's ask from Pykka, on the actor's thread, and passes it to the loop.

    An ending actor answers too. The task waits for :attr:`future`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def set(self, value: Any = None) -> None:
        self._bring(value, None)

    def set_exception(self, exc_info: Any = None) -> None:
        self._bring(None, (exc_info or sys.exc_info())[1])

    def _bring(self, value: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.give, value, error)

    def give(self, value: Any, error: BaseException | None) -> None:
        """Give the answer to the task, on the loop's thread."""
        if self.future.done():
            return  # its task was cancelled, or no longer waits
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)


def _check_loop(loop: asyncio.AbstractEventLoop, what: str, instead: str) -> None:
    """Raise InvalidRequest unless ``loop`` is the running event loop."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        raise InvalidRequest(
            f"this {what} belongs to an event loop of asyncio, and none runs here; nothing was sent. Call it in a "
            "coroutine of that loop, or use the node itself, whose calls block",
            code="no_event_loop",
        ) from None
    if running is not loop:
        raise InvalidRequest(
            f"this {what} belongs to another event loop{' that is closed' if loop.is_closed() else ''}; nothing was "
            f"sent. In this one, {instead}",
            code="other_event_loop",
        )


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():  # otherwise its task was cancelled
        future.set_result(None)


class AsyncSubscription:
    """The receiving end of :meth:`AsyncMarket.subscribe`; iterate over it by ``async for``.

    It ends, and resumes, as a :class:`~.market.subscription.Subscription` does, and has no gaps.
    """

    _subscription: Subscription

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        guard(self)
        self._poked = False
        self._news = asyncio.Event()
        self._turn_s = 0.0
        """When the loop last had a turn, as far as known here."""

    @property
    def error(self) -> OpenOutcryError | None:
        """Why it ended, unless it was closed."""
        return self._subscription.error

    @property
    def last_sequence(self) -> int:
        """The subscriber has received everything up to this sequence number."""
        return self._subscription.last_sequence

    def close(self) -> None:
        """End the subscription; queued updates can still be read. Idempotent."""
        self._subscription.close()

    async def get(self) -> MarketUpdate | None:
        """Return the next update, or None when the subscription has ended. For one task at a time.

        However many updates wait, the loop's other tasks get a turn every ``TURN_S``; a cancelled call takes no update.
        """
        _check_loop(self._loop, "subscription", "subscribe again with after=last_sequence")
        if time.monotonic() - self._turn_s > TURN_S:
            await asyncio.sleep(0)
            self._turn_s = time.monotonic()
        while True:
            try:
                return self._subscription.get(timeout=0)
            except queue.Empty:
                self._news.clear()  # on the loop's thread, like `_wake`: an update after this check sets it again
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
        """An update arrived, on any thread: wake the loop, once for all updates until it is awake."""
        if not self._poked:
            self._poked = True
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._poked = False
        self._news.set()


__all__ = ["AsyncMarket", "AsyncSubscription", "MarketLoop"]
