"""Market: the one door to a market, with all its calls. Decides nothing; owns no thread.

It checks prices, quantities and names once; the commands that pass fit the log. The BookActor's thread answers a
question to the replica, at one sequence number. Values are those of :mod:`.views`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, cast

import pykka

from ...transport.errors import (
    Closed,
    ConfigurationError,
    InvalidRequest,
    OpenOutcryError,
    RequestTimeout,
    StorageError,
    Unavailable,
    copied,
    quoted,
)
from ...transport.forks import guard
from ...transport.numerals import written
from ..book.commands import Command, Side
from ..book.feed import Unwatch, Watch
from ..book.messages import CopyBook, Query
from ..book.meters import MarketMeters
from ..book.orderbook import BookImage
from ..book.record import COMMANDS_MAX
from ..book.rules import DecimalLike, MarketRules, difference
from ..book.status import MarketStatus, unanswered
from ..book.submission import Request, Submissions
from ..kit.node_actor import TickingInbox, tell
from . import queries
from .border import (
    OrderOptions,
    Requester,
    RequestOptions,
    amend_command,
    cancel_all_command,
    cancel_command,
    checked,
    checked_count,
    checked_order_id,
    checked_timeout,
    known,
    submit_command,
)
from .condition import condition
from .subscription import Subscription
from .views import BookView, MarketUpdate, OpenOrder, OrderRejected, OrderResult, OrderResults, Trade, result_of

if TYPE_CHECKING:
    from ..book.actor import BookActor
    from ..book.shell import Shell

UNANSWERED_MAX: Final = 65_536
"""Most unanswered commands of one market at a node; further submitters wait, then get Overloaded."""
READY_LOOK_S: Final = 0.005
"""Seconds between two checks of an awaited condition."""

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What a Market needs of its node."""

    node_id: str
    requester: Requester
    """Its name is the name of the node."""
    timeout_s: float
    """The default bound of every call."""
    is_closed: Callable[[], bool]
    failures: Callable[[], Sequence[str]]
    """The failures at the node, a line each."""
    hindrances: Callable[[], list[str]]
    """Reasons why the node may not reach a leader: the coordinator, the directory."""
    denied: Callable[[Sequence[str]], OpenOutcryError | None] | None
    """Return the error if the node may not act for one of these accounts; None: it may act for all."""

    def deadline_s(self, timeout: float | None) -> float:
        """Return the deadline of a call that may take ``timeout`` seconds; None: the node's default."""
        return time.monotonic() + (self.timeout_s if timeout is None else checked_timeout(timeout))

    def closed(self) -> Closed:
        """Return the error of every call after the node was closed."""
        return Closed(f"node {self.requester.name} is closed")

    def gone(self, what: str) -> OpenOutcryError:
        """Return the error of a question to ``what``, an actor that no longer runs."""
        if self.is_closed():
            return self.closed()
        failures = "; ".join(self.failures()) or "see the log"
        return StorageError(f"{what} of node {self.requester.name} has failed: {failures}")

    def late(self, timeout: float) -> RequestTimeout:
        """Return the error of a question that was not answered within ``timeout`` seconds."""
        return RequestTimeout(
            f"node {self.requester.name} did not answer within {written(timeout)} s: it is overloaded"
        )

    def ask(self, ref: pykka.ActorRef[Any], message: object, timeout: float) -> Any:
        """Ask an actor of the node, for ``timeout`` seconds at most.

        Raises:
            RequestTimeout: it did not answer in time.
            Closed, StorageError: it does not run.
        """
        try:
            return ref.ask(message, timeout=timeout)
        except pykka.ActorDeadError:
            raise self.gone(str(ref.actor_class.__name__)) from None
        except pykka.Timeout:
            raise self.late(timeout) from None


class Market:
    """One market, as one node has it: what ``node.market("BTC-USD")`` returns.

    >>> btc = node.market("BTC-USD")  # doctest: +SKIP
    ... order = btc.submit("buy", "100.25", "3")
    ... btc.cancel(order.order_id)

    Any thread may call it. Prices and quantities are str, int or Decimal; times are in seconds unless their name ends
    in ``_ns``; ``timeout`` is the node's by default. Every call raises ``Closed`` once the node is closed,
    ``Unavailable`` (code ``market_not_open``) while this node cannot open the market, and ``StorageError`` if the
    replica has failed. A handle stays valid until the node closes.
    """

    def __init__(self, name: str, host: Host, meters: MarketMeters, refusal: Callable[[], OpenOutcryError]) -> None:
        """``refusal`` returns why the market is not open; see :meth:`open`."""
        self.name = name
        self.proposed: MarketRules | None = None
        """The rules with which this node would open the market; if it has others, :meth:`wait_ready` fails."""
        self.meters = meters
        self._host = host
        self._refusal = refusal
        self._ref: pykka.ActorRef[BookActor] | None = None
        self._submissions: Submissions | None = None
        self._rules: MarketRules | None = None
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()
        guard(self)

    def __repr__(self) -> str:
        return f"<Market {self.name} at node {self._host.requester.name}>"

    # -- the node's side ----------------------------------------------------------------------------------------

    def open(self, book: pykka.ActorRef[BookActor], submissions: Submissions) -> None:
        """Accept calls: the replica runs. The node calls this."""
        self._ref, self._submissions = book, submissions

    def shut(self, refusal: Callable[[], OpenOutcryError]) -> None:
        """Refuse calls from now on with ``refusal``. The node calls this."""
        self._refusal = refusal
        self._ref = self._submissions = None

    @property
    def ref(self) -> pykka.ActorRef[BookActor]:
        """The actor of this node's replica, for the node and for tests: its messages are not a public interface."""
        if self._host.is_closed():
            raise self._host.closed()
        ref = self._ref
        if ref is None:
            raise self._refusal()
        return ref

    @property
    def submissions(self) -> Submissions:
        """The requests between callers here and the replica; like :attr:`ref`, not a public interface."""
        submissions = self._submissions
        if submissions is None:
            raise self._refusal()
        return submissions

    def read(self, question: Callable[[Shell], _T], *, timeout: float | None = None) -> _T:
        """Return ``question(actor)``, asked on the replica's thread. It must only read, return copies, and be quick.

        Raises:
            RequestTimeout: no answer within ``timeout`` seconds.
        """
        bound_s = self._host.timeout_s if timeout is None else checked_timeout(timeout)
        return cast("_T", self._ask(Query(question), bound_s))

    def _ask(self, message: object, timeout: float) -> Any:
        return self._host.ask(self.ref, message, timeout)

    def _copy(self) -> BookImage:
        """Return a copy of the whole book, which the replica makes in slices; raises as :meth:`read`."""
        ref, future = self.ref, Future[BookImage]()
        if not tell(ref, CopyBook(future)):
            raise self._host.gone(ref.actor_class.__name__)
        try:
            return future.result(self._host.timeout_s)
        except FutureTimeoutError:
            raise self._host.late(self._host.timeout_s) from None

    # -- commands -----------------------------------------------------------------------------------------------

    def submit(
        self,
        side: str | Side,
        price: DecimalLike | None,
        quantity: DecimalLike,
        *,
        timeout: float | None = None,
        **options: Unpack[OrderOptions],
    ) -> OrderResult:
        """Submit an order and wait until it is durable on every in-sync replica and executed.

        Args:
            side: ``"buy"`` or ``"sell"``.
            price: the limit; for a market order the worst price it may trade at, or None.
            quantity: how much.
            timeout: seconds to wait.
            options: see :class:`~.border.OrderOptions`.

        Raises:
            InvalidRequest: an argument is malformed; nothing was sent.
            OrderRejected: the book refused the order; ``code`` says why.
            Unavailable: the market cannot be used now; ``RequestTimeout`` and ``Overloaded`` are kinds of it.
        """
        return self._one(self.make_order(side, price, quantity, **options), timeout)

    def cancel(self, order_id: int, *, timeout: float | None = None, **options: Unpack[RequestOptions]) -> OrderResult:
        """Cancel the open quantity of an order. Raises as :meth:`submit`; code ``unknown_order`` if it is not open."""
        return self._one(self.make_cancel(order_id, **options), timeout)

    def cancel_all(self, *, timeout: float | None = None, **options: Unpack[RequestOptions]) -> OrderResult:
        """Cancel every open order of an account: the result's ``cancelled_ids``, perhaps none."""
        return self._one(cancel_all_command(self._host.requester, **options), timeout)

    def amend(
        self,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> OrderResult:
        """Give an order a new price, a new open quantity, or both. It keeps its place only at the same price with a
        quantity that does not grow; otherwise it goes to the end of the queue, and may trade at once.
        """
        return self._one(self.make_amend(order_id, price=price, quantity=quantity, **options), timeout)

    def submit_many(self, commands: Iterable[Command], *, timeout: float | None = None) -> OrderResults:
        """Send commands made by :meth:`make_order`, :meth:`make_cancel` and :meth:`make_amend` as one batch, and wait
        for all answers.

        Rejections are results (``status == "rejected"``), not exceptions. The commands keep their order; commands of
        others may come between chunks of ``COMMANDS_MAX``. Raises as :meth:`submit` does; some of the commands may
        have been executed then, and all may be sent again with the same client order ids.
        """
        return self.submit_many_async(commands, timeout=timeout)()

    def submit_many_async(
        self, commands: Iterable[Command], *, timeout: float | None = None
    ) -> Callable[[], OrderResults]:
        """As :meth:`submit_many`, but return at once; call the returned function to wait for the answers.

        Blocks only while ``UNANSWERED_MAX`` commands are unanswered.
        """
        deadline_s, every = self._batch(commands, timeout)
        requests: list[Request] = []
        for at in range(0, len(every), COMMANDS_MAX):
            part = every[at : at + COMMANDS_MAX]
            try:
                requests.append(self._entrance(part).submit(part, deadline_s))
            except Unavailable as error:
                raise partly_sent(error, at, len(every)) from error
        return lambda: OrderResults(self.name, [(r.wait(), r.first_sequence, r.commands) for r in requests])

    def make_order(
        self, side: str | Side, price: DecimalLike | None, quantity: DecimalLike, **options: Unpack[OrderOptions]
    ) -> Command:
        """Return the command that :meth:`submit` would send, for :meth:`submit_many`."""
        given = known(options, OrderOptions, "an order")
        return submit_command(self.rules, self._host.requester, side, price, quantity, **given)

    def make_cancel(self, order_id: int, **options: Unpack[RequestOptions]) -> Command:
        """Return the command that :meth:`cancel` would send, for :meth:`submit_many`."""
        return cancel_command(self._host.requester, order_id, **options)

    def make_amend(
        self,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        **options: Unpack[RequestOptions],
    ) -> Command:
        """Return the command that :meth:`amend` would send, for :meth:`submit_many`."""
        return amend_command(self.rules, self._host.requester, order_id, price, quantity, **options)

    def _one(self, command: Command, timeout: float | None) -> OrderResult:
        deadline_s = self._host.deadline_s(timeout)
        request = self._entrance((command,)).submit((command,), deadline_s)
        return self._accepted(request.wait(), request, command)

    def _accepted(self, outcome: Any, request: Request, command: Command) -> OrderResult:
        result = result_of(self.name, outcome, request.first_sequence, command)
        if result.code is not None:
            raise OrderRejected(result)
        return result

    def _batch(self, commands: Iterable[Command], timeout: float | None) -> tuple[float, tuple[Command, ...]]:
        """Return the deadline for the answers to a batch, and its checked commands."""
        deadline_s = self._host.deadline_s(timeout)
        _ = self.ref  # report a closed market before errors in the batch
        return deadline_s, checked(commands)

    def _entrance(self, commands: tuple[Command, ...]) -> Submissions:
        """Return the submissions, if the market is open and the node may act for these accounts."""
        host, submissions = self._host, self._submissions
        if submissions is None or host.is_closed():
            raise host.closed() if host.is_closed() else self._refusal()
        if host.denied is not None and (denied := host.denied([each[1] for each in commands])):
            raise denied
        return submissions

    # -- queries ------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> MarketRules:
        """The market's rules.

        Raises:
            Unavailable: the market's log has not reached this node yet (code ``not_ready``; ``not_enough_in_sync``
                if it has no entry because too few replicas are in sync).
        """
        found = self._rules
        return found if found is not None else self._take_rules(self.read(queries.rules))

    def _take_rules(self, found: MarketRules | MarketStatus) -> MarketRules:
        """Store the answer of :func:`~.queries.rules`."""
        if isinstance(found, MarketStatus):
            raise self._not_ready(found, Unavailable)
        self._rules = found
        return found

    def book(self, depth: int | None = None) -> BookView:
        """Return the best ``depth`` price levels of each side (all, by default), as this node's replica has them."""
        depth = None if depth is None else checked_count(depth, "depth")
        view = self.read(queries.order_book(self.name, depth))
        return queries.book_in(self.name, self._copy(), depth) if view is None else view()

    def order(self, order_id: int) -> OpenOrder | None:
        """Return an open order, or None if it is not in the book (filled, cancelled, never there)."""
        return self.read(queries.order(self.name, checked_order_id(order_id)))()

    def open_orders(self, account: str | None = None) -> list[OpenOrder]:
        """Return an account's open orders (default: the node's own), oldest first."""
        account = self._host.requester.account(account)
        view = self.read(queries.open_orders(self.name, account))
        if view is not None:
            return view()
        found = queries.orders_in(self.name, self._copy(), lambda order: order.account == account)
        return sorted(found, key=lambda order: order.order_id)

    def all_orders(self) -> list[OpenOrder]:
        """Return every open order: bids best first, then asks best first, each level in queue order."""
        view = self.read(queries.all_orders(self.name))
        return queries.orders_in(self.name, self._copy(), lambda _: True) if view is None else view()

    def orders_at(self, price: DecimalLike) -> list[OpenOrder]:
        """Return the orders at one price, in queue order."""
        ticks = self.rules.price_to_ticks(price)
        view = self.read(queries.orders_at(self.name, ticks))
        if view is not None:
            return view()
        return queries.orders_in(self.name, self._copy(), lambda order: order.price_ticks == ticks)

    def trades(self, limit: int = 100) -> list[Trade]:
        """Return the last trades, newest first; older ones than ``dedupe_window`` commands are in the journal only."""
        return self.read(queries.trades(checked_count(limit, "limit")))()

    @property
    def sequence(self) -> int:
        """The sequence number up to which this node has applied the market's log."""
        return self.read(queries.sequence)

    @property
    def state_hash(self) -> str:
        """The digest of the market's whole state at this node; see :meth:`position` for its sequence number."""
        return self.position()[1]

    def position(self) -> tuple[int, str]:
        """Return sequence number and state hash, of one moment."""
        return self.read(queries.position)

    def status(self) -> MarketStatus:
        """Return the state of this node's replica; one that does not answer is ``stopped``."""
        try:
            return self.read(queries.status)
        except OpenOutcryError as error:
            return unanswered(self.name, "stopped", str(error))

    def queues(self) -> dict[str, tuple[int, int]]:
        """Return the lengths of the market's queues by name, and the bound of each, 0 without one."""
        submissions, ref = self.submissions, self._ref
        mailbox = cast("TickingInbox", ref.actor_inbox).qsize() if ref is not None else 0
        return {"in_flight": (submissions.in_flight, UNANSWERED_MAX), "book_mailbox": (mailbox, 0)}

    # -- waits --------------------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until commands can be sent from this node, ``timeout`` seconds at most.

        Raises:
            RequestTimeout: no leader can be reached (code ``not_ready``), too few replicas are in sync (code
                ``not_enough_in_sync``), or the market could not be opened (code ``market_not_open``).
            ConfigurationError: the market exists with other rules than this node was given (code ``rules_mismatch``).
            StorageError: the replica has stopped.
        """
        self.wait_ready_until(time.monotonic() + checked_timeout(timeout), timeout)

    def wait_ready_until(self, deadline_s: float, said_s: float) -> None:
        """As :meth:`wait_ready`, until ``deadline_s`` on the monotonic clock; errors name ``said_s`` as the timeout."""
        while self._opens_later(deadline_s, said_s):
            time.sleep(READY_LOOK_S)
        while not self._take_readiness(self.read(queries.readiness, timeout=max(said_s, self._host.timeout_s))):
            if time.monotonic() > deadline_s:
                raise self._not_ready(self.status(), RequestTimeout, f" after {written(said_s)} s")
            time.sleep(READY_LOOK_S)

    def _opens_later(self, deadline_s: float, said_s: float) -> bool:
        """Return whether the market is not open yet; raises at the deadline, or if it never will be."""
        if self._host.is_closed():
            raise self._host.closed()
        if self._ref is not None:
            return False
        refusal = self._refusal()
        if not isinstance(refusal, Unavailable):
            raise refusal
        if time.monotonic() > deadline_s:
            raise RequestTimeout(f"after {written(said_s)} s: {refusal.message}", code=refusal.code)
        return True

    def _take_readiness(self, found: tuple[bool, OpenOutcryError | None, MarketRules]) -> bool:
        """Store the answer of :func:`~.queries.readiness`; return whether commands can be sent."""
        ready, failure, rules = found
        if failure is not None:
            raise copied(failure)
        if not ready:
            return False
        if self.proposed is not None and self.proposed != rules:
            raise ConfigurationError(
                f"market {self.name} exists with other rules than this node was given: "
                f"{difference(rules, self.proposed)}",
                code="rules_mismatch",
                market=self.name,
            )
        self._rules = rules
        return True

    def _not_ready(self, status: MarketStatus, kind: type[Unavailable], waited: str = "") -> Unavailable:
        """Return the error of a market with this ``status`` that cannot be used from this node."""
        state, why = condition(status, self._host.node_id)
        reasons = [why, *self._host.hindrances()]
        code = "not_enough_in_sync" if state == "below_min_in_sync" else "not_ready"
        return kind(f"market {self.name} is not ready{waited}: {'; '.join(reasons)}", code=code)

    def wait_in_sync(self, nodes: int, timeout: float = 30.0) -> None:
        """Wait until ``nodes`` replicas are in sync, as far as this node knows, ``timeout`` seconds at most.

        Raises:
            RequestTimeout: it took too long.
        """
        checked_count(nodes, "nodes")
        self._wait_for(
            lambda: self.read(queries.in_sync_count) >= nodes,
            timeout,
            lambda: f"fewer than {nodes} replicas are in sync: {self.status().to_dict()}",
        )

    def wait_sequence(self, sequence: int, timeout: float = 30.0) -> None:
        """Wait until this node has applied the market's log up to ``sequence``, ``timeout`` seconds at most.

        Raises:
            RequestTimeout: it took too long.
        """
        checked_count(sequence, "sequence")
        self._wait_for(
            lambda: self.sequence >= sequence, timeout, lambda: f"this node is at {self.sequence}, not {sequence}"
        )

    def _wait_for(self, condition: Callable[[], bool], timeout: float, why: Callable[[], str]) -> None:
        deadline_s = time.monotonic() + checked_timeout(timeout)
        while not condition():
            if time.monotonic() > deadline_s:
                raise RequestTimeout(f"after {written(timeout)} s: market {self.name}: {why()}")
            time.sleep(READY_LOOK_S)

    # -- market data --------------------------------------------------------------------------------------------

    def subscribe(
        self,
        to: Callable[[MarketUpdate], None] | Any = None,
        *,
        after: int | None = None,
        queue_size_max: int = 10_000,
        arrived: Callable[[], None] | None = None,
    ) -> Subscription:
        """Receive every event of the market, in order, from the applied log.

        Args:
            to: a callable, called with each :class:`~.views.MarketUpdate` on the subscription's own thread; a
                ``queue.Queue``; or None, to iterate over the subscription itself.
            after: the sequence number after which to begin, for resuming; None = from now on.
            queue_size_max: how many updates may wait. A subscriber that falls further behind is cut: the
                subscription ends without a gap; resume with ``after=subscription.last_sequence``.
            arrived: called when an update arrives, on the delivering thread; it must not block.

        Raises:
            InvalidRequest: ``after`` or ``queue_size_max`` is not a whole number, or the latter is 0; or ``to``
                cannot receive updates (code ``invalid_subscriber``).
            Unavailable: the events after ``after`` are no longer kept (code ``too_far_behind``).
        """
        subscription, watch = self._make_subscription(to, after, queue_size_max, arrived)
        try:
            sequence = self._ask(watch, self._host.timeout_s)
        except BaseException:
            subscription.close()
            raise
        self._begin_subscription(subscription, sequence)
        return subscription

    def _make_subscription(
        self,
        to: Callable[[MarketUpdate], None] | Any,
        after: int | None,
        queue_size_max: int,
        arrived: Callable[[], None] | None,
    ) -> tuple[Subscription, Watch]:
        """Return a subscription, and the question to the replica that begins it; if that fails, close it."""
        ref = self.ref
        after = None if after is None else checked_count(after, "after")
        if to is not None and not callable(to) and not callable(getattr(to, "put", None)):
            raise InvalidRequest(
                f"a subscriber is a function, or a queue to put into, not {quoted(to)}", code="invalid_subscriber"
            )
        subscription = Subscription(
            self.name,
            to,
            queue_size_max=checked_count(queue_size_max, "queue_size_max", at_least=1),
            on_end=lambda watcher: tell(ref, Unwatch(watcher)),
            meters=self.meters,
            arrived=arrived,
        )
        return subscription, Watch(subscription.put_nowait, after)

    def _begin_subscription(self, subscription: Subscription, sequence: int) -> None:
        subscription.begin(sequence)
        with self._lock:
            self._subscriptions = (*[s for s in self._subscriptions if not s.ended], subscription)

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions of this handle, without those that had ended when the last one began."""
        return self._subscriptions


def partly_sent(error: Unavailable, at: int, count: int) -> Unavailable:
    """Return ``error`` of ``count`` commands, with a note about the ``at`` commands sent before it."""
    sent = f" ({at} of {count} commands were sent before; their outcome is unknown)" if at else ""
    return copied(error, f"{error.message}{sent}")


__all__ = ["READY_LOOK_S", "UNANSWERED_MAX", "Host", "Market", "partly_sent"]
