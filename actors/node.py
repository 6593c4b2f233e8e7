"""ExchangeNode: one node of the exchange: the API that programs embed.

A facade: :class:`~.market.handle.Market` does everything that concerns one market; :mod:`.group` starts, supervises and
stops the node's actors.
"""

from __future__ import annotations

import atexit
import gc
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import pykka
import pynng

from ..transport.errors import (
    ConfigurationError,
    OpenOutcryError,
    StorageError,
    quoted,
)
from ..transport.files import refusal
from ..transport.forks import check_nng, guard
from ..transport.identity_file import open_identity
from ..transport.interrupts import uninterrupted
from ..transport.survey import Lookup
from .book.commands import Command, Side
from .book.messages import TimeSet
from .book.rules import DecimalLike, MarketRules
from .group.assembly import NodeGroup
from .group.leading import HAND_OVER_S
from .group.watched import WatchedNode
from .market.border import OrderOptions, RequestOptions, cancel_command, checked_timeout
from .market.handle import Market
from .market.subscription import Subscription
from .market.views import BookView, ForcePlan, MarketUpdate, OpenOrder, OrderResult, OrderResults, Trade
from .peers.wire import checked_node_name
from .remote.refs import RemoteRef
from .settings import NodeOptions, checked_names, checked_options, spelt_out

if TYPE_CHECKING:
    from .telemetry.health import HealthServer

_open_nodes: weakref.WeakSet[ExchangeNode] = weakref.WeakSet()


class ExchangeNode(WatchedNode):
    """One node of the exchange.

    >>> with ExchangeNode("alice", markets={"BTC-USD": MarketRules(tick_size="0.01")}) as node:  # doctest: +SKIP
    ...     node.wait_ready()
    ...     btc = node.market("BTC-USD")
    ...     result = btc.submit("buy", "100.25", "3")

    All methods may be called from any thread. Calls to the exchange block for at most ``timeout`` seconds. Methods
    that take a market's name first are short for the same call of :meth:`market`'s result, which documents them.
    """

    @spelt_out
    def __init__(
        self,
        name: str,
        *,
        markets: Mapping[str, MarketRules | None] | Sequence[str] = (),
        **options: Unpack[NodeOptions],
    ) -> None:
        """Start the node; it is announced and recovering when this returns, :meth:`wait_ready` waits until it can
        trade.

        Args:
            name: what people call the node; also the default account of its orders.
            markets: the markets to join, with the rules to open each with if nobody has (None, or a plain list
                of names: join only a market that somebody else opens).
            options: see :class:`~.settings.NodeOptions`.

        Raises:
            ConfigurationError: an address is in use or malformed, the data directory is another node's, or this process
                was forked from one that had nodes (code ``forked``), …
            StorageError: a journal is damaged (code ``corrupt``).
            Unavailable: the coordinator cannot be reached.
        """
        check_nng()
        markets = _checked_markets(markets)
        given = checked_options(options)
        if given["directory"] and given["coordinator"] is None and (markets or given["observe"] or given["join_all"]):
            raise ConfigurationError(
                f"node {name} has markets and a directory, so that others may share them, but no coordinator, which "
                "they have to share too: give all of them the same (or no directory to a node that stands alone)",
                code="no_coordinator",
            )
        self.name = checked_node_name(name)
        identity = open_identity(given["identity"]) if isinstance(given["identity"], (str, Path)) else given["identity"]
        if identity is not None and identity.name != name:
            raise ConfigurationError(
                f"the identity is that of {identity.name}, but the node is to be called {name!r:.80}",
                code="identity",
            )
        self.timeout = given["timeout"]
        """The default bound of every call, in seconds."""
        guard(self)
        self._closing = threading.Lock()
        self._health: HealthServer | None = None
        self.phase = "starting"
        """``starting``, ``running``, ``closing`` or ``closed``."""
        self._group = NodeGroup(name, given, identity)
        try:
            if given["metrics"] is not None:
                self._health = _serve_health(self, given["metrics"])
                self._group.undo.callback(self._health.close)
            self._group.start(markets | dict.fromkeys(given["observe"]))
        except BaseException as error:
            uninterrupted(self._group.abandon)
            if (refused := _not_started(error, name)) is not None:
                raise refused from error
            raise
        self.phase = "running"
        _open_nodes.add(self)

    # -- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> ExchangeNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ExchangeNode {self.name} at {self.address}{' (closed)' if self._group.closed else ''}>"

    def close(self) -> None:
        """Stop the node in order; idempotent, callable from any thread.

        First it hands over the markets it leads, to followers that have everything, for at most ``HAND_OVER_S``.
        Unanswered commands then fail with Closed; their outcome is unknown.

        Ctrl-C cuts the hand-over short, and is raised once the node is closed. A second one is raised at once; the node
        then continues to close, and another call waits for it.
        """
        uninterrupted(self._close, on_interrupt=self._group.hurry)

    def _close(self) -> None:
        with self._closing:
            if self.phase == "closed":
                return
            self.phase = "closing"
            self._group.close()
            self.phase = "closed"
            _open_nodes.discard(self)

    @property
    def group(self) -> NodeGroup:
        """The node's actors, for tests and tools of this package: not a public interface."""
        return self._group

    @property
    def node_id(self) -> str:
        """The id of this node. It belongs to its disk: a wiped data directory is another node."""
        return self._group.node_id

    @property
    def data_dir(self) -> Path:
        """The folder of the node's journals."""
        return self._group.data_dir

    @property
    def address(self) -> str:
        """The address that others dial."""
        return self._group.address

    @property
    def listen_address(self) -> str:
        """Where this node listens, with the port filled in; others dial :attr:`address`."""
        return self._group.inbox.address

    @property
    def directory_address(self) -> str | None:
        """This node's rendezvous address, None if it is not one."""
        return self._group.directory_address

    # -- markets ------------------------------------------------------------------------------------------------

    @property
    def markets(self) -> tuple[str, ...]:
        """The markets this node has joined."""
        return self._group.markets.names

    def market(self, name: str) -> Market:
        """Return one market that this node has joined, with all its calls.

        Raises:
            InvalidRequest: this node has not joined the market (code ``unknown_market``).
            Closed: the node is closed.
        """
        return self._group.markets.find(name)

    def all_markets(self) -> tuple[str, ...]:
        """Return every market of the exchange, joined by this node or not, as the coordinator lists them.

        Raises:
            Unavailable: the coordinator cannot be reached.
        """
        return tuple([record.market for record in self._group.records()])

    def open_market(self, market: str, rules: MarketRules | None = None, *, timeout: float = 30.0) -> None:
        """Join one more market while the node runs, and wait until it can trade; opens it with ``rules`` if nobody has.

        Raises:
            InvalidRequest: ``market`` is not a string, or ``rules`` is not a MarketRules.
            ConfigurationError: the market exists with other rules (code ``rules_mismatch``), or is joined already.
            RequestTimeout: it was not ready in time; the node keeps trying.
        """
        self._group.markets.open_market(market, rules, timeout)

    def create_market(self, market: str, rules: MarketRules, *, timeout: float = 30.0) -> None:
        """Create a market, at any node, for the whole exchange; returns once orders can be submitted here.

        1. This node notes the market on its disk, and joins it. Whichever node enters it first in the coordinator's
           records leads it, and makes ``rules`` the first command of its log: they are the market's from then on.
        2. Every node with ``join_all`` joins it: at once if it runs, else when it starts. The coordinator's records are
           the one list of markets, which no node can lose or change.
        3. Repeated with the same rules, at this or another node, it only joins and waits: repeat it after any
           error. A node that has created a market joins it again whenever it starts.

        Raises:
            InvalidRequest: the name is malformed or reserved (code ``invalid_market``), ``rules`` is not a MarketRules
                (code ``invalid_rules``), or the market exists with others (code ``market_exists``). This node has not
                joined it then, unless two nodes created it at once, or the others were slow to answer.
            RequestTimeout: the market has no leader that can take orders yet (codes ``not_ready``,
                ``not_enough_in_sync``); this node keeps trying.
            ConfigurationError: the node has as many markets as it can (code ``too_many_markets``).
        """
        self._group.markets.create_market(market, rules, timeout)

    def transfer(self, market: str, to: str | None = None, *, timeout: float = HAND_OVER_S) -> None:
        """Give the leadership of a market that this node leads to another node (its name or id; None: any in sync).

        Commands in flight follow. Does nothing if ``to`` is this node.

        Raises:
            InvalidRequest: ``to`` is not a linked node (code ``unknown_node``), or several have that name.
            Unavailable: this node does not lead (code ``not_leader``), or nobody took over in time (code
                ``not_transferred``).
        """
        self._group.leading.transfer(self.market(market), to, timeout)

    def force_plan(self, market: str) -> ForcePlan:
        """Return the state that :meth:`force_leader` would start from, and the known loss. Changes nothing.

        Raises:
            Unavailable: the market needs no force (codes ``already_leading``, ``not_needed``, ``in_sync_reachable``),
                this node cannot lead it (``observer``, ``nothing_here``, ``changing``, ``never_opened``), or the
                coordinator cannot be reached.
        """
        return self._group.leading.force_plan(self.market(market))

    def force_leader(
        self, market: str, *, reason: str, plan: ForcePlan | None = None, timeout: float | None = None
    ) -> int:
        """Lead a market whose whole in-sync set is lost, from what this node holds; return the sequence of the note in
        the log that says so.

        Answered commands beyond that are lost. If a node of the former in-sync set comes back, it puts its log aside
        and joins as new. Make sure that none of them still runs where this node cannot see it.

        Args:
            market: the market's name.
            reason: who does it and why, for the note; 1 to 500 characters.
            plan: the result of :meth:`force_plan` that a person has approved: refused (code ``changing``) if the market
                record or this node's log has changed since.
            timeout: seconds to wait; default the node's.

        Raises:
            Unavailable: as :meth:`force_plan`, or the outcome is unknown (codes ``outcome_unknown``, ``timeout``).
        """
        return self._group.leading.force_leader(self.market(market), reason, plan, timeout)

    def set_time(self, market: str, *, reason: str, timeout: float | None = None) -> TimeSet:
        """Set the time of a market that this node leads to that of this machine's clock; return the time before and
        after.

        Use it if a wrong clock has moved the market's time into the future or the past. It is a command in the log:
        every replica does the same. It changes no order: a good-till-date order keeps its date, and expires at once if
        the new time is past it.

        Args:
            market: the market's name.
            reason: who does it and why, for the log; 1 to 500 characters.
            timeout: seconds to wait; default the node's.

        Raises:
            Unavailable: this node does not lead the market (code ``not_leader``), its clock differs from most of its
                peers' (``clock_off``), or the market's time is right (``not_needed``).
        """
        return self._group.leading.set_time(self.market(market), reason, timeout)

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until commands of every market can be sent from this node; raises as :meth:`Market.wait_ready`."""
        deadline_s = time.monotonic() + checked_timeout(timeout)
        for market in self.markets:
            self.market(market).wait_ready_until(deadline_s, timeout)

    def wait_in_sync(self, market: str, nodes: int, timeout: float = 30.0) -> None:
        """See :meth:`Market.wait_in_sync`."""
        self.market(market).wait_in_sync(nodes, timeout)

    def wait_sequence(self, market: str, sequence: int, timeout: float = 30.0) -> None:
        """See :meth:`Market.wait_sequence`."""
        self.market(market).wait_sequence(sequence, timeout)

    # -- commands -----------------------------------------------------------------------------------------------

    def submit_order(
        self,
        market: str,
        side: str | Side,
        price: DecimalLike | None,
        quantity: DecimalLike,
        *,
        timeout: float | None = None,
        **options: Unpack[OrderOptions],
    ) -> OrderResult:
        """Submit an order and wait until it is durable on every in-sync replica and executed; :meth:`Market.submit`."""
        return self.market(market).submit(side, price, quantity, timeout=timeout, **options)

    def cancel_order(
        self, market: str, order_id: int, *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> OrderResult:
        """Cancel the open quantity of an order; see :meth:`Market.cancel`."""
        return self.market(market).cancel(order_id, timeout=timeout, **options)

    def cancel_all(
        self, market: str, *, timeout: float | None = None, **options: Unpack[RequestOptions]
    ) -> OrderResult:
        """Cancel every open order of an account in a market; see :meth:`Market.cancel_all`."""
        return self.market(market).cancel_all(timeout=timeout, **options)

    def amend_order(
        self,
        market: str,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> OrderResult:
        """Give an order a new price, a new open quantity, or both; see :meth:`Market.amend`."""
        return self.market(market).amend(order_id, price=price, quantity=quantity, timeout=timeout, **options)

    def submit_many(self, market: str, commands: Iterable[Command], *, timeout: float | None = None) -> OrderResults:
        """Send commands made by :meth:`order`, :meth:`cancel` and :meth:`amend` as one batch, and wait for all answers;
        see :meth:`Market.submit_many`.
        """
        return self.market(market).submit_many(commands, timeout=timeout)

    def submit_many_async(
        self, market: str, commands: Iterable[Command], *, timeout: float | None = None
    ) -> Callable[[], OrderResults]:
        """As :meth:`submit_many`, but return at once; see :meth:`Market.submit_many_async`."""
        return self.market(market).submit_many_async(commands, timeout=timeout)

    def order(
        self,
        market: str,
        side: str | Side,
        price: DecimalLike | None,
        quantity: DecimalLike,
        **options: Unpack[OrderOptions],
    ) -> Command:
        """Return the command that :meth:`submit_order` would send, for :meth:`submit_many`."""
        return self.market(market).make_order(side, price, quantity, **options)

    def cancel(self, order_id: int, **options: Unpack[RequestOptions]) -> Command:
        """Return the command that :meth:`cancel_order` would send, for :meth:`submit_many`."""
        return cancel_command(self._group.requester, order_id, **options)

    def amend(
        self,
        market: str,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        **options: Unpack[RequestOptions],
    ) -> Command:
        """Return the command that :meth:`amend_order` would send, for :meth:`submit_many`."""
        return self.market(market).make_amend(order_id, price=price, quantity=quantity, **options)

    # -- queries ------------------------------------------------------------------------------------------------

    def rules(self, market: str) -> MarketRules:
        """Return a market's rules; see :attr:`Market.rules`."""
        return self.market(market).rules

    def get_order_book(self, market: str, depth: int | None = None) -> BookView:
        """Return the best ``depth`` price levels of each side (all, by default), as this node's replica has them."""
        return self.market(market).book(depth)

    def get_order(self, market: str, order_id: int) -> OpenOrder | None:
        """Return an open order, or None if it is not in the book (filled, cancelled, never there)."""
        return self.market(market).order(order_id)

    def open_orders(self, market: str, account: str | None = None) -> list[OpenOrder]:
        """Return an account's open orders (default: the node's own), oldest first."""
        return self.market(market).open_orders(account)

    def all_orders(self, market: str) -> list[OpenOrder]:
        """Return every open order: bids best first, then asks best first, each level in queue order."""
        return self.market(market).all_orders()

    def orders_at(self, market: str, price: DecimalLike) -> list[OpenOrder]:
        """Return the orders at one price, in queue order."""
        return self.market(market).orders_at(price)

    def trades(self, market: str, limit: int = 100) -> list[Trade]:
        """Return the last trades, newest first; older ones than ``dedupe_window`` commands are in the journal only."""
        return self.market(market).trades(limit)

    def sequence(self, market: str) -> int:
        """Return the sequence number up to which this node has applied the market's log."""
        return self.market(market).sequence

    def state_hash(self, market: str) -> str:
        """Return the digest of the market's whole state at this node; see :meth:`position` for its sequence number."""
        return self.market(market).state_hash

    def position(self, market: str) -> tuple[int, str]:
        """Return sequence number and state hash, of one moment."""
        return self.market(market).position()

    def subscribe(
        self,
        market: str,
        to: Callable[[MarketUpdate], None] | Any = None,
        *,
        after: int | None = None,
        queue_size_max: int = 10_000,
    ) -> Subscription:
        """Receive every event of a market, in order, from the applied log; see :meth:`Market.subscribe`."""
        return self.market(market).subscribe(to, after=after, queue_size_max=queue_size_max)

    # -- status; see WatchedNode --------------------------------------------------------------------------------

    @property
    def metrics_address(self) -> str | None:
        """``HOST:PORT`` where metrics and health are served, None if they are not."""
        return self._health.address if self._health is not None else None

    # -- directory ----------------------------------------------------------------------------------------------

    def announce(self, service: str, address: str, metadata: Mapping[str, str] | None = None) -> int:
        """Announce a service of this node in the directory, until :meth:`unannounce` or the node's end.

        Returns how many rendezvous know it now; the node announces it again to rendezvous that come later.
        """
        return self._group.directory.announce(service, address, metadata)

    def unannounce(self, service: str) -> int:
        """Take a service of this node out of the directory; return how many rendezvous have acknowledged."""
        return self._group.directory.unannounce(service)

    def lookup(self, service: str, timeout: float | None = None) -> Lookup:
        """Return who announces ``service``, as soon as all connected rendezvous have answered.

        Raises:
            Unavailable: no rendezvous has answered in time (code ``directory_unavailable``).
        """
        return self._group.directory.lookup(service, timeout)

    # -- remote actors ------------------------------------------------------------------------------------------

    def register(self, name: str, ref: pykka.ActorRef[Any], *, accepts: Iterable[type]) -> None:
        """Serve a Pykka actor under ``name``: others reach it as ``name@node``, and by name through the directory.

        ``accepts``: the message classes (see :func:`~.remote.schema.message`) that others may send it; other
        messages are refused.
        The registration ends with the actor, by :meth:`unregister`, or with the node, which does not stop the actor.

        Raises:
            InvalidRequest: the name is malformed (code ``invalid_actor_name``), ``ref`` is not a
                ``pykka.ActorRef`` (code ``invalid_actor_ref``), or ``accepts`` is not a list.
            MessageRefused: a class of ``accepts`` is not registered as a message.
            ConfigurationError: a living actor has that name (code ``actor_registered``).
        """
        self._group.remote.register(name, ref, accepts)

    def unregister(self, name: str) -> bool:
        """Stop serving the actor of that name; return whether there was one."""
        return self._group.remote.unregister(name)

    def actor(self, address: str, *, timeout: float | None = None) -> RemoteRef:
        """Return the actor at ``"name@node"`` (a node's name or id), or one of that name that the directory knows.

        Waits up to ``timeout`` seconds for the link to its node. If several nodes have the name, linked ones are
        tried first, and each of the others gets a share of the time. The ref stands for the current actor: see
        :class:`~.remote.actors.RemoteRef`.

        Raises:
            UnknownActor: there is none of that name.
            Unreachable: there is no link to the node.
            InvalidRequest: the address is malformed, or several nodes have that name (code ``ambiguous_node``).
        """
        timeout_s = self.timeout if timeout is None else checked_timeout(timeout)
        return self._group.remote.find(address, timeout_s, self._group.directory.nodes_of)

    def wait_actor(self, address: str, *, timeout: float = 30.0) -> RemoteRef:
        """As :meth:`actor`, but wait until its node has started, is linked and has registered it.

        Raises:
            Unavailable: the last error of :meth:`actor`, after ``timeout`` seconds.
        """
        return self._group.remote.wait(address, checked_timeout(timeout), self._group.directory.nodes_of)

    def watch(self, ref: RemoteRef | pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        """Send :class:`~.remote.actors.Terminated` to the actor ``watcher`` once, when ``ref`` has ended.

        That is when it stopped or failed, when its process died, or when the link to its node ended. Actors of this
        process can be watched too, registered or not.

        Raises:
            InvalidRequest: one of the two is not a ref of an actor (code ``invalid_actor_ref``).
        """
        self._group.remote.watch(ref, watcher)

    def unwatch(self, ref: RemoteRef | pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        """Undo :meth:`watch`; a notice may already be on its way."""
        self._group.remote.unwatch(ref, watcher)


def _serve_health(node: ExchangeNode, address: str) -> HealthServer:
    try:
        from .telemetry.health import HealthServer  # noqa: PLC0415 - most nodes do without
        from .telemetry.metrics import NodeCollector  # noqa: PLC0415 - and it is an optional dependency
    except ImportError:
        raise ConfigurationError("metrics need prometheus-client: pip install prometheus-client") from None
    return HealthServer(node, address, NodeCollector(node).text)


def _checked_markets(value: object) -> dict[str, MarketRules | None]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(checked_names("markets", value))
    for market, rules in value.items():
        if not isinstance(market, str) or not (rules is None or isinstance(rules, MarketRules)):
            raise ConfigurationError(
                "markets are a mapping of names to MarketRules (None: another node opens it), not of "
                f"{quoted(market, 80)} to {quoted(rules, 80)}"
            )
    return dict(value)


def _not_started(error: BaseException, name: str) -> OpenOutcryError | None:
    """Return our error for a failed start, None if ``error`` is one already.

    If the path is the cause, a disk error becomes a path error, so that the service manager does not retry for ever.
    """
    if isinstance(error, StorageError):
        if error.code != StorageError.default_code or not isinstance(error.__cause__, OSError):
            return None
        return refusal(error.__cause__, error.message, said=True)
    system = (OSError, RuntimeError, UnicodeError, MemoryError, sqlite3.Error, pynng.NNGException)
    if isinstance(error, OpenOutcryError) or not isinstance(error, system):
        return None
    return refusal(error, f"node {name} cannot start")


def open_nodes() -> list[ExchangeNode]:
    """Return the open nodes of this process, even those that no variable holds any more."""
    return sorted(_open_nodes, key=lambda node: node.node_id)


@atexit.register
def _close_all() -> None:
    for node in open_nodes():
        node.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_nodes.clear)


def spare_gc() -> None:
    """Keep the garbage collector from walking all resting orders repeatedly.

    For a process that only runs nodes, once they are started; ``openoutcry node`` calls it. A node makes few cycles, so
    its objects are freed at once. The collector still runs, but seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


__all__ = ["ExchangeNode", "open_nodes", "spare_gc"]
