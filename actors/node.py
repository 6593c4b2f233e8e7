"""ExchangeNode: starts, supervises and stops one node's group of actors; the API that programs embed.

Start: data directory locked, coordinator opened, a BookActor for each market recovered from disk, the inbox opened,
the node announced. :meth:`ExchangeNode.close` undoes that in the opposite order, and leaves no thread or socket behind.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, Unpack, cast
from urllib.parse import quote, unquote

import pykka
import pynng

from ..transport.codec import NAME_LENGTH_MAX
from ..transport.coordinator import Coordinator, MarketRecord
from ..transport.errors import (
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
from ..transport.etcd import is_etcd
from ..transport.files import read_file, refusal, told
from ..transport.forks import check_nng, guard
from ..transport.identity import check_addresses
from ..transport.identity_file import open_identity
from ..transport.interrupts import uninterrupted
from ..transport.log import get_logger
from ..transport.numerals import written
from ..transport.plain import fault_of
from ..transport.rendezvous import Rendezvous
from ..transport.sockets import Inbox, checked_address, is_wildcard
from ..transport.survey import Lookup, ServiceEntry
from .book.actor import LOGGED, BookActor, forget_log
from .book.commands import (
    CANCEL_ALL,
    NOTE,
    NOTE_SIZE_MAX,
    Command,
    OrderType,
    SelfTradePrevention,
    Side,
    TimeInForce,
    checked_commands,
    is_utf8,
)
from .book.feed import Unwatch, Watch
from .book.journal import FolderLock
from .book.messages import ForceLeader, HandOver, Heard, ProposeRules, Query, Retire, SetTime, TimeSet
from .book.meters import MarketMeters
from .book.record import COMMANDS_MAX, Tail
from .book.rules import DecimalLike, MarketRules, difference
from .book.snapshots import write_durably
from .book.snapshotter import SnapshotActor
from .book.submission import Request, Submissions
from .book.wire import Lead
from .group import CODEC
from .kit.actor import SYSTEM_CLOCK
from .kit.backoff import Backoff
from .kit.node_actor import TICK, ActorFailed, TickingInbox, stop_and_join, tell
from .kit.supervision import Escalation, RestartPolicy, Supervise, Supervisor
from .leadership.balance import Move
from .leadership.catalogue import MarketsActor
from .leadership.coordination import CoordinatorActor, holder_of, open_coordinator, take_lease
from .leadership.messages import LookSoon, StoreQuery, StoreStatus
from .market import queries
from .market.border import (
    TIMEOUT_S_MAX,
    ExpiryLike,
    amend_command,
    cancel_command,
    checked,
    checked_account,
    checked_client_order_id,
    checked_count,
    checked_market,
    checked_node,
    checked_order_id,
    checked_rules,
    checked_service,
    checked_timeout,
    submit_command,
)
from .market.subscription import Subscription
from .market.views import (
    BookView,
    ForcePlan,
    MarketUpdate,
    OpenOrder,
    OrderRejected,
    OrderResult,
    OrderResults,
    Trade,
    result_of,
)
from .peers.clocks import Clocks
from .peers.discovery import JOINS_ALL, NODE_SERVICE, Announce, DiscoveryActor, Find, Unannounce
from .peers.links import LINK_OF, Links
from .peers.messages import HelloReceived, PeerDown, PeerFound, PeerLost
from .peers.wire import NO_COORDINATOR, Hello, checked_node_name
from .remote.actors import RemoteActors
from .remote.refs import RemoteRef
from .remote.wire import Parcel
from .settings import LISTEN_DEFAULT, NodeOptions, checked_names, checked_options, spelt_out, with_tls
from .telemetry.condition import NOT_OPEN, condition
from .telemetry.meters import NodeMeters

if TYPE_CHECKING:
    from .telemetry.health import HealthServer

logger = get_logger(__name__)

HAND_OVER_S: Final = 3.0
"""How long a node that closes waits for others to take over what it leads, in seconds."""
UNANSWERED_MAX: Final = 65_536
"""Most commands of one market that a node may have unanswered; a submitter beyond waits, then gets Overloaded."""

MARKETS_MAX: Final = 1000
"""Most markets of one node: each has two threads, an open file and a journal of 1 MiB at least."""
BALANCE_S: Final = 0.5
"""How long a market may wait for its next leader when leaders are evened out, in seconds; then it stays."""
BALANCE_LAG_MAX: Final = 2 * COMMANDS_MAX
"""Most commands that a follower's disk may be behind the leader's to be handed a market; it takes none on otherwise."""

LOOK_S: Final = 2.0
"""Longest that a market which exists is looked at before it is joined, in seconds."""
RECORDS_S: Final = 5.0
"""Longest that the coordinator is waited for when all records are read, in seconds."""
ENDS_SOON_S: Final = 30 * 86_400.0
"""A certificate that ends sooner after the node's start, in seconds, is told of in the log."""
STATUS_S_MAX: Final = 2.0
"""How long :meth:`ExchangeNode.status` waits for a market, in seconds."""
REASON_LENGTH_MAX: Final = 500
READY_LOOK_S: Final = 0.005
"""How often it is looked whether a market is ready that is waited for, in seconds."""
_FIND_S: Final = 0.5
_KEPT: Final = RestartPolicy(restarts_max=1_000_000, window_s=60.0, backoff_min_s=0.1, backoff_max_s=30.0)
"""How discovery, and what looks after markets, is started again after a failure: never given up."""
_MARKET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/+-]{0,62}[A-Za-z0-9+]|[A-Za-z0-9]")

OPEN_RETRY_S: Final = 1.0
"""Seconds before a market that could not be opened is tried again; doubled with each further failure."""
OPEN_RETRY_S_MAX: Final = 60.0
"""Most seconds before a market that could not be opened is tried again."""

_T = TypeVar("_T")
_open_nodes: weakref.WeakSet[ExchangeNode] = weakref.WeakSet()


class _Supervisor(Supervisor):
    """Makes PeerActors for the nodes that are found, and starts again what fails. One a node.

    A BookActor that fails is not restarted in place: what it knew is suspect, so its market is stopped and says so;
    restarting the node recovers it from disk. Discovery, links and what looks after markets hold nothing of worth.
    """

    mailbox_size_max: ClassVar[int] = 0  # as of all actors of a node

    def __init__(self, node: ExchangeNode) -> None:
        super().__init__(policy=_KEPT, on_escalation=node._give_up)
        self.clock = SYSTEM_CLOCK
        self._node = node

    def on_start(self) -> None:
        self.tell_every(1.0, TICK)

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the others as they are: a node without its supervisor trades on."""
        del exception_type, traceback
        logger.critical("supervisor_failed", error=exception_value)

    def on_receive(self, message: Any) -> Any:
        links = self._node._links
        if isinstance(message, PeerFound):
            links.found(message, self)
        elif isinstance(message, PeerLost):
            links.lost(message.node, self)
        elif message is TICK:
            links.forget_absent(self)
        elif isinstance(message, HelloReceived):
            links.greeted(message, self)
        elif isinstance(message, ActorFailed):
            self._node._handle_failure(message)
        else:
            return super().on_receive(message)
        return None


@dataclasses.dataclass(slots=True)
class _Unopened:
    """A market that could not be opened."""

    rules: MarketRules | None
    observer: bool
    error: OpenOutcryError = dataclasses.field(default_factory=lambda: Unavailable("it was not tried yet"))
    backoff: Backoff = dataclasses.field(default_factory=lambda: Backoff(OPEN_RETRY_S, OPEN_RETRY_S_MAX))


class ExchangeNode:
    """One node of the exchange.

    >>> with ExchangeNode("alice", markets={"BTC-USD": MarketRules(tick_size="0.01")}) as node:  # doctest: +SKIP
    ...     node.wait_ready()
    ...     result = node.submit_order("BTC-USD", "buy", "100.25", "3")

    All methods may be called from any thread. Those that ask the exchange block for ``timeout`` seconds at most.
    """

    @spelt_out
    def __init__(
        self,
        name: str,
        *,
        markets: Mapping[str, MarketRules | None] | Sequence[str] = (),
        **options: Unpack[NodeOptions],
    ) -> None:
        """Start the node; it is announced and recovering when this returns, :meth:`wait_ready` tells when it can trade.

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
        identity = given["identity"]
        self._identity = open_identity(identity) if isinstance(identity, (str, Path)) else identity
        if self._identity is not None and self._identity.name != name:
            raise ConfigurationError(
                f"the identity is that of {self._identity.name}, but the node is to be called {name!r:.80}",
                code="identity",
            )
        self.timeout = given["timeout"]
        self._options = given
        self._closing = threading.Lock()
        self._hurry = threading.Event()
        guard(self)
        self._request_prefix = f"{uuid.uuid4().hex[:20]}."
        self._request_numbers = itertools.count(1)
        self._closed = False
        self._opening = threading.Lock()
        self._creating = threading.Lock()
        self._proposed: dict[str, MarketRules] = {}
        self._created: dict[str, MarketRules] = {}
        self._books: dict[str, pykka.ActorRef[BookActor]] = {}
        self._unopened: dict[str, _Unopened] = {}
        """Markets of this node that could not be opened, for want of descriptors, room, threads, …"""
        self._submissions: dict[str, Submissions] = {}
        self._rules: dict[str, MarketRules] = {}
        self._subscriptions: list[Subscription] = []
        self._lock = threading.RLock()
        self._failures: list[str] = []
        self._markets: pykka.ActorRef[MarketsActor] | None = None
        self._rendezvous: tuple[str, ...] = ()
        self._discovery: pykka.ActorRef[DiscoveryActor] | None = None
        self._services: dict[str, ServiceEntry] = {}
        self._undo = contextlib.ExitStack()
        self._ending = threading.Event()
        """Set once nothing is handed over any more: a coordinator that does not answer is waited for no longer."""
        self.phase = "starting"
        """``starting``, ``running``, ``closing`` or ``closed``."""
        self.meters = NodeMeters()
        self._health: HealthServer | None = None
        self._abandoned = threading.Event()
        try:
            if given["metrics"] is not None:
                self._serve_health(given["metrics"])
            self._start(markets | dict.fromkeys(given["observe"]), given)
        except BaseException as error:
            self._closed = True
            self._ending.set()
            uninterrupted(self._undo.close)
            if (refused := _not_started(error, name)) is not None:
                raise refused from error
            raise
        self.phase = "running"
        _open_nodes.add(self)

    def _start(self, markets: Mapping[str, MarketRules | None], options: NodeOptions) -> None:
        undo = self._undo
        coordinator, data_dir, lease_ms = options["coordinator"], options["data_dir"], options["lease_ms"]
        advertise, serve_directory = options["advertise"], options["serve_directory"]
        rendezvous = [address for address in options["directory"] if address != serve_directory]
        self._actors_only = coordinator is None and not markets and not options["join_all"]
        if data_dir is None:
            with told("cannot make a temporary folder; give the node a data_dir"):
                data_dir = tempfile.mkdtemp(prefix="openoutcry-")
            undo.callback(shutil.rmtree, data_dir, ignore_errors=True)
        self.data_dir = Path(data_dir)
        with told(f"the data directory {self.data_dir} cannot be used"):
            lock = FolderLock(self.data_dir)
        undo.callback(lock.release)
        self.node_id = _node_id(self.data_dir, self.name)
        if coordinator is None or isinstance(coordinator, (str, Path)):
            address = coordinator or self.data_dir / "coordinator.sqlite"
            self._check_store(address)
            coordinator = open_coordinator(address)
        holder = holder_of(self.data_dir)
        try:
            self._coordinator_id = coordinator.coordinator_id
            take_lease(coordinator, self.node_id, holder=holder, lease_ms=lease_ms)
            listed = [record.market for record in coordinator.read_all()] if options["join_all"] else []
        except BaseException:
            coordinator.close()
            raise
        keeper = CoordinatorActor.start(
            coordinator=coordinator,
            node=self.node_id,
            holder=holder,
            lease_ms=lease_ms,
            report=self._report,
            meters=self.meters.store,
            ending=self._ending,
        )
        undo.callback(stop_and_join, keeper, timeout_s=10)
        self._keeper = keeper
        listen = options["listen"] or (with_tls(LISTEN_DEFAULT) if self._identity else LISTEN_DEFAULT)
        given = [address for address in (listen, advertise, serve_directory, *rendezvous) if address]
        check_addresses(given, self._identity)
        if is_wildcard(advertise or listen):
            raise ConfigurationError(
                f"{advertise or listen} is every address of this machine, and none that others can dial: give with "
                "advertise the one where they reach this node, as in tcp://10.0.0.5:7500"
            )
        checked_address(listen, to_listen=True)
        self._inbox = Inbox(
            listen,
            on_frame=self._hear,
            on_pipe_removed=self._pipe_removed,
            name=self.name,
            identity=self._identity,
        )
        undo.callback(self._inbox.close)
        self.listen_address = self._inbox.address
        """Where this node listens, with the port filled in; :attr:`address` is what others are told to dial."""
        self.address = checked_address(advertise) if advertise else self._inbox.address
        shared = NO_COORDINATOR if self._actors_only else self._coordinator_id
        self._me = Hello(self.node_id, self.name, self.address, shared, 1, 0, self.node_id)
        self._remote = RemoteActors(
            self.node_id,
            name=self.name,
            timeout_s=lambda timeout: self.timeout if timeout is None else checked_timeout(timeout),
            announce=self._announce_actor,
            report=self._report,
        )
        self._links = Links(
            self._me,
            meters=self.meters.links,
            remote=self._remote,
            codec=CODEC,
            hand_on=self._hear_message,
            again=self._again,
            report=self._report,
            identity=self._identity,
            certified=self._inbox.certified,
            clock_bound_ms=self._options["clock_bound_ms"],
            store_clock=self.meters.store.clock,
        )
        if self._identity is not None and self._identity.seconds_left < ENDS_SOON_S:
            logger.warning("certificate_ends_soon", node=self.node_id, ends=self._identity.member.ends)
        self._supervisor = _Supervisor.start(self)
        undo.callback(stop_and_join, self._supervisor, timeout_s=10)
        undo.callback(self._stop_snapshots)
        self._supervise("SnapshotActor", self._make_snapshotter)
        if serve_directory is not None:
            server = Rendezvous(serve_directory, peers=rendezvous, identity=self._identity)
            server.start()
            undo.callback(server.close)
            self.directory_address: str | None = server.address
            rendezvous = [server.address, *rendezvous]
        else:
            self.directory_address = None
        undo.callback(self._stop_books)
        self._proposed = {market: rules for market, rules in markets.items() if rules is not None}
        self._created = _read_created(self.data_dir)
        for market, rules in (dict.fromkeys(listed) | self._created | dict(markets)).items():
            self._check_market(market)
            self._try_to_open(market, rules, observer=market in options["observe"])
        if self._unopened and not self._books:  # then nothing is kept from the others
            raise next(iter(self._unopened.values())).error
        undo.callback(self._close_subscriptions)
        undo.callback(self._links.close)
        self._inbox.start()
        self._rendezvous = tuple(dict.fromkeys(rendezvous))
        undo.callback(self._stop_discovery)
        self._start_discovery()
        undo.callback(self._stop_markets)
        self._start_markets()
        undo.callback(self._remote.close)

    # -- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> ExchangeNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ExchangeNode {self.name} at {self.address}{' (closed)' if self._closed else ''}>"

    def close(self) -> None:
        """Stop the node in order; idempotent, callable from any thread.

        What the node leads it hands over first, to a follower that has everything, for ``HAND_OVER_S`` at most.
        Commands that have no answer by then fail with Closed; their outcome is unknown.

        Ctrl-C cuts the hand-over short, and is raised once the node is closed. A second one is raised at once; the node
        goes on closing then, and another call waits for it.
        """
        uninterrupted(self._close, on_interrupt=self._hurry.set)

    def _close(self) -> None:
        with self._closing:
            if self.phase == "closed":
                return
            self.phase = "closing"
            if self.meters.store.error is None:  # else nobody can take over what this node leads
                self._hand_over()
            self._ending.set()
            with self._opening:
                self._closed = True
            for book in list(self._books.values()):
                tell(book, Retire())
            self._undo.close()
            self.phase = "closed"
            _open_nodes.discard(self)

    def _open_market(self, market: str, rules: MarketRules | None, *, observer: bool) -> None:
        """Join a market; whatever it cannot be opened for is raised."""
        self._check_market(market)
        self._start_book(market, rules, observer=observer)
        self._unopened.pop(market, None)

    def _try_to_open(self, market: str, rules: MarketRules | None, *, observer: bool) -> None:
        """Join a market; if what it needs is not to be had, note that, and leave the others alone: it is tried again.

        ``_opening`` is held, unless the node is starting.
        """
        unopened = self._unopened.get(market) or _Unopened(rules, observer)
        try:
            self._start_book(market, rules, observer=observer)
        except (StorageError, Unavailable, OSError, MemoryError, RuntimeError) as error:
            what = f"market {market} cannot be opened"
            unopened.error = error if isinstance(error, OpenOutcryError) else refusal(error, what)
            retry_s = unopened.backoff.failed(time.monotonic())
            self._unopened[market] = unopened
            logger.error("market_not_opened", node=self.node_id, market=market, retry_s=retry_s, error=unopened.error)
        else:
            if self._unopened.pop(market, None) is not None:
                logger.info("market_opened", node=self.node_id, market=market)

    def _open_again(self) -> None:
        """Try those markets again that could not be opened, if it is time."""
        for market, unopened in list(self._unopened.items()):
            if unopened.backoff.is_due(time.monotonic()):
                with self._opening:
                    if not self._closed and market in self._unopened:
                        self._try_to_open(market, unopened.rules, observer=unopened.observer)

    def _not_open(self, market: str) -> Unavailable | None:
        """Return the error of a market that could not be opened so far; None if it is open, or none of this node's."""
        unopened = self._unopened.get(market)
        if unopened is None:
            return None
        return Unavailable(
            f"market {market} could not be opened at node {self.name} ({unopened.error}); it is tried again by "
            f"itself, the next time in {max(0.0, unopened.backoff.due_s - time.monotonic()):.1f} s",
            code="market_not_open",
        )

    def _check_market(self, market: str) -> None:
        if not isinstance(market, str) or not 1 <= len(market) <= NAME_LENGTH_MAX or market in (".", ".."):
            raise ConfigurationError(f"a market's name has 1 to {NAME_LENGTH_MAX} characters, not {quoted(market, 80)}")
        if fault := fault_of(market):
            raise ConfigurationError(f"{quoted(market, 80)} cannot be a market's name: {fault}")
        if self._actors_only:
            raise ConfigurationError(
                f"node {self.name} was started for actors only; to have markets, give it a coordinator or markets",
                code="no_coordinator",
            )
        self._check_room()

    def _start_book(self, market: str, rules: MarketRules | None, *, observer: bool) -> None:
        meters = self.meters.markets.setdefault(market, MarketMeters())
        submissions = Submissions(UNANSWERED_MAX, meters)
        book = BookActor.start(
            market=market,
            node=self.node_id,
            rules=rules,
            submissions=submissions,
            folder=self._folder(market),
            coordinator=self._keeper,
            store=self._coordinator_id,
            take_snapshot=lambda message: tell(self._snapshotter, message),
            min_in_sync=self._options["min_in_sync"],
            clock_bound_ms=self._options["clock_bound_ms"],
            clocks=self._links.clocks,
            snapshot_every=self._options["snapshot_every"],
            observer=observer,
            report=self._report,
            meters=meters,
            member_of=self._links.members.get if self._identity is not None else None,
        )
        submissions.open(functools.partial(tell, book))
        with self._lock:
            self._submissions[market] = submissions
            self._books[market] = book
        self._links.listen(book)

    def _check_store(self, address: str | Path) -> None:
        """A store that is not there is made, but not by a node that has logs: theirs is somewhere else, or lost."""
        if is_etcd(str(address)) or Path(address).exists():
            return
        logged = sorted([unquote(path.name.removesuffix(LOGGED)) for path in self._folder("").glob(f"*{LOGGED}")])
        if logged:
            raise ConfigurationError(
                f"node {self.name} has logs of {', '.join(logged)}, but there is no coordinator's store {address}: "
                "give the right path, or restore the file; if it is lost, `openoutcry coordinator rebuild` makes "
                "another from the nodes' disks",
                code="coordinator_missing",
            )

    def _folder(self, market: str) -> Path:
        return self.data_dir / "markets" / quote(market, safe="")

    def _look_at(self, market: str) -> MarketRules | None:
        """Return the rules of a market that others hold, from its log: observe it so long, and keep nothing.

        None: they have not come within ``LOOK_S``; perhaps it waits for one more replica to have a log at all. Or the
        node, which joins all markets, has just joined this one by itself: then it is waited for like any other.
        """
        with self._opening:
            if self._closed:
                raise Closed(f"node {self.name} is closed")
            if market in self._books:
                return None
            self._open_market(market, None, observer=True)
        try:
            self._wait_market(market, time.monotonic() + LOOK_S, LOOK_S)
            return self.rules(market)
        except RequestTimeout:
            return None
        finally:
            with self._lock:
                book = self._books.pop(market)
                for found in (self._submissions, self._rules, self.meters.markets):
                    found.pop(market, None)
            self._links.ignore(book)
            stop_and_join(book, timeout_s=10)
            forget_log(self._folder(market))

    def _check_room(self) -> None:
        if len(self._books) >= MARKETS_MAX:
            raise ConfigurationError(
                f"node {self.name} has {MARKETS_MAX} markets, the most that one can", code="too_many_markets"
            )

    def _stop_books(self) -> None:
        for book in list(self._books.values()):
            stop_and_join(book, timeout_s=30)

    def open_market(self, market: str, rules: MarketRules | None = None, *, timeout: float = 30.0) -> None:
        """Join one more market while the node runs, and wait until it can trade; opens it with ``rules`` if nobody has.

        Raises:
            InvalidRequest: ``market`` is no string, or ``rules`` are none.
            ConfigurationError: the market exists with other rules (code ``rules_mismatch``), or is joined already.
            RequestTimeout: it was not ready in time; the node goes on trying.
        """
        checked_market(market)
        rules = None if rules is None else checked_rules(rules)
        deadline_s = time.monotonic() + checked_timeout(timeout)
        with self._opening:
            if self._closed:
                raise Closed(f"node {self.name} is closed")
            if market in self._books:
                raise ConfigurationError(f"node {self.name} has joined market {market} already", code="market_joined")
            self._open_market(market, rules, observer=False)
            if rules is not None:
                self._proposed[market] = rules
        self._wait_market(market, deadline_s, timeout)

    def create_market(self, market: str, rules: MarketRules, *, timeout: float = 30.0) -> None:
        """Create a market, at any node, for the whole exchange; returns once orders can be submitted here.

        1. This node notes the market on its disk, and joins it. Whichever node enters it first in the coordinator's
           records leads it, and makes ``rules`` the first command of its log: they are the market's from then on.
        2. Every node with ``join_all`` joins it: at once if it runs, else when it starts. The coordinator's records are
           the list of markets, so that there is one list, which no node can lose or have otherwise.
        3. Done again, with the same rules, at this or another node, it does nothing but join and wait: it may be
           repeated after any error. A node that has created a market joins it again whenever it starts.

        Raises:
            InvalidRequest: the name is malformed or reserved (code ``invalid_market``), ``rules`` are none (code
                ``invalid_rules``), or the market exists with others (code ``market_exists``). This node has not joined
                it then, unless two nodes created it at once, or the others were slow to answer.
            RequestTimeout: the market has no leader that can take orders yet (codes ``not_ready``,
                ``not_enough_in_sync``); this node goes on.
            ConfigurationError: the node has as many markets as it can (code ``too_many_markets``).
        """
        if type(market) is not str or not _MARKET_NAME.fullmatch(market):
            raise InvalidRequest(
                f"a new market's name has 1 to {NAME_LENGTH_MAX} letters, digits and any of . _ : / + - or blanks "
                f"between, not {quoted(market, 80)}; names that begin with _ are reserved",
                code="invalid_market",
            )
        checked_rules(rules)
        deadline_s = time.monotonic() + checked_timeout(timeout)
        with self._creating:
            if market not in self._books and not self._folder(market).exists() and market in self.all_markets():
                existing = self._look_at(market)
                if existing is not None:
                    self._refuse_other(market, existing, rules)
        with self._opening:
            if self._closed:
                raise Closed(f"node {self.name} is closed")
            found = self._books.get(market)
            if found is None:
                self._check_room()
            if found is None or not self._read(market, lambda actor: actor.book.configured):
                _write_created(self.data_dir, self._created | {market: rules})
                self._created[market] = rules
            if found is None:
                self._open_market(market, rules, observer=False)
            else:
                tell(found, ProposeRules(rules))
        self._wait_market(market, deadline_s, timeout)
        try:
            self._refuse_other(market, self.rules(market), rules)
        except InvalidRequest:
            with self._opening:
                self._created.pop(market, None)
                _write_created(self.data_dir, self._created)
            raise

    def _refuse_other(self, market: str, existing: MarketRules, rules: MarketRules) -> None:
        if existing != rules:
            raise InvalidRequest(
                f"market {market} exists with other rules: {difference(existing, rules)}", code="market_exists"
            )

    def all_markets(self) -> tuple[str, ...]:
        """Return every market of the exchange, joined by this node or not, as the coordinator lists them.

        Raises:
            Unavailable: the coordinator cannot be reached.
        """
        return tuple([record.market for record in self._records()])

    def _records(self) -> tuple[MarketRecord, ...]:
        query = StoreQuery(lambda store: store.read_all())
        found = self._ask_message(self._keeper, query, min(self.timeout, RECORDS_S))
        return cast("tuple[MarketRecord, ...]", found)

    def _join_listed(self, market: str) -> None:
        if market in self._books:
            return
        with self._opening:
            if not self._closed and market not in self._books and market not in self._unopened:
                self._check_market(market)
                self._try_to_open(market, None, observer=False)
                if market in self._books:
                    logger.info("market_joined", node=self.node_id, market=market)

    def _alive(self) -> set[str]:
        """Return the nodes that are there and may be handed markets: none whose clock is off, while any is right."""
        clocks, linked = self._links.clocks(), self._links.linked()
        right = {node for node in linked if node in clocks.right or node not in clocks.offsets}
        return right if clocks.off and right else {self.node_id, *(right or linked)}

    def _even_out(self, move: Move) -> None:
        """Hand one market over, if it is well and the node that is to lead it keeps up: then it pauses for ms."""

        def trouble(actor: BookActor) -> str | None:
            replica = actor.replica
            if not replica.may_propose:
                return "too few replicas are in sync, or it is not led by this node"
            if move.target not in replica.successors():
                return f"{move.target} is not ready to take it"
            behind = replica.durable - cast("int", replica.followers(time.monotonic_ns())[move.target]["durable"])
            return f"{move.target} is {behind} commands behind" if behind > BALANCE_LAG_MAX else None

        if (reason := self._read(move.market, trouble)) is not None:
            raise Unavailable(reason, code="not_transferred")
        self.transfer(move.market, move.target, timeout=BALANCE_S)

    def transfer(self, market: str, to: str | None = None, *, timeout: float = HAND_OVER_S) -> None:
        """Give the leadership of a market that this node leads to another node (its name or id; None: any in sync).

        Commands in flight follow. To this node itself: nothing is to be done.

        Raises:
            InvalidRequest: ``to`` is no node that this one is linked to (code ``unknown_node``), or several.
            Unavailable: this node does not lead (code ``not_leader``), or nobody took over in time (code
                ``not_transferred``).
        """
        book = self._book(market)
        to = None if to is None else checked_node(to)
        checked_timeout(timeout)
        leader = self._read(market, lambda actor: actor.replica.leader)
        if leader != self.node_id:
            raise Unavailable(f"market {market} is led by {leader}, not by this node", code="not_leader")
        to = None if to is None else self._links.id_of(to)
        if to == self.node_id:
            return
        try:
            self._give_leadership(market, book, to, timeout)
        except BaseException:
            tell(book, HandOver(to, give_up=True))  # behind any that is still on its way: the market takes orders again
            raise

    def _give_leadership(self, market: str, book: pykka.ActorRef[BookActor], to: str | None, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._read(market, lambda actor: actor.replica.leader) == self.node_id:
            nobody, late = self._ask_message(book, HandOver(to), timeout), time.monotonic() > deadline
            if nobody or late:
                if self._read(market, lambda actor: actor.replica.leader) != self.node_id:
                    return
                # It leads on meanwhile: who followed a leader that has just changed is in sync again at once.
                self._ask_message(book, HandOver(to, give_up=True), timeout)
            if late:
                raise Unavailable(
                    f"market {market}: nobody took over; are other nodes in sync? This node leads on",
                    code="not_transferred",
                )
            time.sleep(0.02 if nobody else 0.005)

    def force_plan(self, market: str) -> ForcePlan:
        """Return what :meth:`force_leader` would start from, and what is known of what would be lost. Changes nothing.

        Raises:
            Unavailable: the market needs no force (codes ``already_leading``, ``not_needed``, ``in_sync_reachable``),
                this node cannot lead it (``observer``, ``nothing_here``, ``changing``, ``never_opened``), or the
                coordinator cannot be reached.
        """
        return self._force_plan(market)[0]

    def _force_plan(self, market: str) -> tuple[ForcePlan, MarketRecord, frozenset[str]]:
        self._book(market)
        record, alive = self._ask_message(
            self._keeper, StoreQuery(lambda store: _with_leases(store, market)), self.timeout
        )

        def read(actor: BookActor) -> tuple[OpenOutcryError | None, Tail, int]:
            refusal = actor.failure or actor.force_refusal(record, alive)
            return refusal, actor.replica.tail, actor.replica.known_committed

        refusal, tail, committed = self._read(market, read)
        if refusal is not None:
            raise copied(refusal)
        plan = ForcePlan(
            market,
            self.node_id,
            tail.sequence,
            tail.epoch,
            committed,
            record.version,
            record.epoch,
            record.leader,
            record.in_sync,
        )
        return plan, record, alive

    def force_leader(
        self, market: str, *, reason: str, plan: ForcePlan | None = None, timeout: float | None = None
    ) -> int:
        """Lead a market whose whole in-sync set is gone for good, from what this node holds; return the sequence of the
        note in the log that says so.

        What was answered beyond that is lost. A node of the former in-sync set that comes back after all puts its log
        aside and joins as new. Make sure that none of them still runs where this node cannot see it.

        Args:
            market: the market's name.
            reason: who does it and why, for the note; 1 to 500 characters.
            plan: what :meth:`force_plan` returned and somebody has agreed to: refused (code ``changing``) if the
                coordinator's record, or what this node holds, is another by now.
            timeout: seconds to wait; default the node's.

        Raises:
            Unavailable: as :meth:`force_plan`, or the outcome is unknown (codes ``outcome_unknown``, ``timeout``).
        """
        checked_reason(reason)
        deadline_s = self._deadline_s(timeout)
        found, record, alive = self._force_plan(market)
        if plan is not None and plan != found:
            raise Unavailable(f"market {market}: it is not as it was shown: look again", code="changing")
        text = _force_note(found, reason)
        (note,) = checked_commands(((NOTE, "", "", text),), internal=True)
        logger.critical("leader_forced", node=self.node_id, market=market, note=text)
        future: Future[int] = Future()
        if not tell(self._book(market), ForceLeader(record, alive, note, future)):
            raise self._gone(market)
        try:
            return future.result(max(0.0, deadline_s - time.monotonic()))
        except FutureTimeoutError:
            raise RequestTimeout(f"market {market}: the outcome is unknown; see the status of this node") from None

    def set_time(self, market: str, *, reason: str, timeout: float | None = None) -> TimeSet:
        """Set the time of a market that this node leads to that of this machine's clock; return what it was and is.

        For a log whose time a wrong clock has put into the future, or left in the past. It is a command in the log:
        every replica does the same. No order is changed by it: one that is good till a date stays good till that date,
        by the time that holds from now on; one that is due by it lapses at once.

        Args:
            market: the market's name.
            reason: who does it and why, for the log; 1 to 500 characters.
            timeout: seconds to wait; default the node's.

        Raises:
            Unavailable: this node does not lead the market (code ``not_leader``), its clock differs from most of its
                peers' (``clock_off``), or the market's time is right (``not_needed``).
        """
        reason = checked_reason(reason)
        deadline_s = self._deadline_s(timeout)
        timeout = self.timeout if timeout is None else timeout
        found = cast("TimeSet", self._ask_message(self._book(market), SetTime(reason), timeout))
        self.wait_sequence(market, found.sequence, timeout=max(0.0, deadline_s - time.monotonic()))
        return found

    def _hand_over(self) -> None:
        """Hand over what this node leads, one market after the other: each pauses only for its own hand-over."""
        deadline_s = time.monotonic() + HAND_OVER_S
        waiting = deque(self._books.values())
        while waiting and time.monotonic() < deadline_s and not self._hurry.is_set():
            book = waiting.popleft()
            turn_s = min(deadline_s, time.monotonic() + BALANCE_S)
            with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
                while not book.ask(HandOver(), timeout=HAND_OVER_S):
                    if time.monotonic() > turn_s or self._hurry.is_set():
                        waiting.append(book)  # whoever is to take it may need longer: others first
                        break
                    time.sleep(0.005)

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until commands of every market can be sent from this node.

        Raises:
            RequestTimeout: some market has no leader that can be reached (code ``not_ready``) or too few replicas
                (``not_enough_in_sync``), or is not as it is elsewhere yet; it says which, and why.
            ConfigurationError: a market exists with other rules than this node was given (code ``rules_mismatch``).
            StorageError: a market's replica has stopped.
        """
        deadline_s = time.monotonic() + checked_timeout(timeout)
        for market in self.markets:
            self._wait_market(market, deadline_s, timeout)

    def _not_ready(self, status: Mapping[str, Any], kind: type[Unavailable], waited: str = "") -> Unavailable:
        """Return the error of a market that cannot be used from this node, and says ``status`` of itself."""
        state, why = condition(status, self.node_id)
        reasons = [why]
        if (store := self.meters.store.error) is not None:
            reasons.append(f"the coordinator cannot be used: {store}")
        if strangers := self._links.strangers():
            reasons.append(f"{', '.join(strangers)} in the directory: another coordinator, so another exchange")
        elif self._rendezvous and not self._links.linked():
            reasons.append(f"no other node is linked to this one through the directory {', '.join(self._rendezvous)}")
        code = "not_enough_in_sync" if state == "below_min_in_sync" else "not_ready"
        return kind(f"market {status['market']} is not ready{waited}: {'; '.join(reasons)}", code=code)

    def _wait_market(self, market: str, deadline_s: float, timeout: float) -> None:
        """Wait until commands of one market can be sent from this node; raises as :meth:`wait_ready` does."""
        while (closed := self._not_open(market)) is not None:
            if time.monotonic() > deadline_s:
                raise RequestTimeout(f"after {written(timeout)} s: {closed.message}", code=closed.code)
            time.sleep(READY_LOOK_S)
        book = self._book(market)
        while not self._take_readiness(market, self._ask(book, queries.readiness, max(timeout, self.timeout))):
            if time.monotonic() > deadline_s:
                raise self._not_ready(self._status(market), RequestTimeout, f" after {written(timeout)} s")
            time.sleep(READY_LOOK_S)

    def _take_readiness(self, market: str, found: tuple[bool, OpenOutcryError | None, MarketRules]) -> bool:
        """Take in what :func:`~.market.queries.readiness` has answered; return whether commands can be sent."""
        ready, failure, rules = found
        if failure is not None:
            raise copied(failure)
        if not ready:
            return False
        own = self._proposed.get(market)
        if own is not None and own != rules:
            raise ConfigurationError(
                f"market {market} exists with other rules than this node was given: {difference(rules, own)}",
                code="rules_mismatch",
                market=market,
            )
        self._rules[market] = rules
        return True

    # -- commands -----------------------------------------------------------------------------------------------

    def submit_order(
        self,
        market: str,
        side: str | Side,
        price: DecimalLike | None,
        quantity: DecimalLike,
        *,
        order_type: str | OrderType = OrderType.LIMIT,
        time_in_force: str | TimeInForce | None = None,
        expire_ns: ExpiryLike = 0,
        self_trade_prevention: str | SelfTradePrevention = SelfTradePrevention.NONE,
        account: str | None = None,
        client_order_id: str | None = None,
        timeout: float | None = None,
    ) -> OrderResult:
        """Submit an order and wait until it is durable on every in-sync replica and executed.

        Args:
            market: the market's name.
            side: ``"buy"`` or ``"sell"``.
            price: the limit as str, int or Decimal; for a market order its protection bound, or None.
            quantity: how much, as str, int or Decimal.
            order_type: ``"limit"``, ``"market"`` or ``"post_only"``.
            time_in_force: ``"gtc"``, ``"ioc"``, ``"fok"`` or ``"gtd"``; default gtc, for a market order ioc.
            expire_ns: for gtd: when the order lapses, by the market's time: nanoseconds since the Unix epoch, a
                datetime with a time zone, or a timedelta from now (by this machine's clock).
            self_trade_prevention: ``"none"``, ``"cancel_newest"``, ``"cancel_oldest"``, ``"cancel_both"``,
                ``"decrement_and_cancel"``; what happens on meeting an order of the same account.
            account: on whose behalf; default the node's name.
            client_order_id: names the request, for ever within the dedupe window: a retry gets the first answer
                back. Default: a fresh one.
            timeout: seconds to wait; default the node's.

        Raises:
            InvalidRequest: an argument is malformed; nothing was sent.
            OrderRejected: the book refused the order; ``code`` says why.
            Unavailable: the market cannot be used now; ``RequestTimeout`` and ``Overloaded`` are kinds of it.
        """
        command = self.order(
            market,
            side,
            price,
            quantity,
            order_type=order_type,
            time_in_force=time_in_force,
            expire_ns=expire_ns,
            self_trade_prevention=self_trade_prevention,
            account=account,
            client_order_id=client_order_id,
        )
        return self._one(market, command, timeout)

    def cancel_order(
        self,
        market: str,
        order_id: int,
        *,
        account: str | None = None,
        client_order_id: str | None = None,
        timeout: float | None = None,
    ) -> OrderResult:
        """Cancel what is left of an order. Raises as :meth:`submit_order`; code ``unknown_order`` if it is not open."""
        return self._one(market, self.cancel(order_id, account=account, client_order_id=client_order_id), timeout)

    def cancel_all(
        self,
        market: str,
        *,
        account: str | None = None,
        client_order_id: str | None = None,
        timeout: float | None = None,
    ) -> OrderResult:
        """Cancel every open order of an account in a market: the result's ``cancelled_ids``, perhaps none."""
        command = (CANCEL_ALL, self._account(account), self._request_name(client_order_id))
        return self._one(market, command, timeout)

    def amend_order(
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
        """Give an order a new price, a new open quantity, or both. It keeps its place only at the same price with a
        quantity that does not grow; otherwise it queues anew, and may trade at once.
        """
        command = self.amend(
            market, order_id, price=price, quantity=quantity, account=account, client_order_id=client_order_id
        )
        return self._one(market, command, timeout)

    def submit_many(self, market: str, commands: Iterable[Command], *, timeout: float | None = None) -> OrderResults:
        """Send commands made by :meth:`order`, :meth:`cancel` and :meth:`amend` as one batch, and wait for all answers.

        Rejections are results (``status == "rejected"``), not exceptions. The commands keep their order; commands of
        others may come between chunks of ``COMMANDS_MAX``. Raises as :meth:`submit_order` does; some of the commands
        may have been executed then, and all may be sent again with the same client order ids.
        """
        return self.submit_many_async(market, commands, timeout=timeout)()

    def submit_many_async(
        self, market: str, commands: Iterable[Command], *, timeout: float | None = None
    ) -> Callable[[], OrderResults]:
        """Send as :meth:`submit_many` does, but return at once: call what is returned to wait for the answers.

        Blocks only while ``UNANSWERED_MAX`` commands are unanswered.
        """
        deadline_s = self._deadline_s(timeout)
        self._book(market)
        every = checked(commands)
        requests: list[Request] = []
        for at in range(0, len(every), COMMANDS_MAX):
            try:
                requests.append(self._send(market, every[at : at + COMMANDS_MAX], deadline_s))
            except Unavailable as error:
                raise partly_sent(error, at, len(every)) from error

        return lambda: self._results(market, requests)

    def _results(self, market: str, requests: list[Request]) -> OrderResults:
        return OrderResults(market, [(r.wait(), r.first_sequence, r.commands) for r in requests])

    def order(
        self,
        market: str,
        side: str | Side,
        price: DecimalLike | None,
        quantity: DecimalLike,
        *,
        order_type: str | OrderType = OrderType.LIMIT,
        time_in_force: str | TimeInForce | None = None,
        expire_ns: ExpiryLike = 0,
        self_trade_prevention: str | SelfTradePrevention = SelfTradePrevention.NONE,
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> Command:
        """Return the command that :meth:`submit_order` would send, for :meth:`submit_many`."""
        return submit_command(
            self.rules(market),
            self._account(account),
            self._request_name(client_order_id),
            side,
            price,
            quantity,
            order_type,
            time_in_force,
            expire_ns,
            self_trade_prevention,
        )

    def cancel(self, order_id: int, *, account: str | None = None, client_order_id: str | None = None) -> Command:
        """Return the command that :meth:`cancel_order` would send, for :meth:`submit_many`."""
        return cancel_command(self._account(account), self._request_name(client_order_id), order_id)

    def amend(
        self,
        market: str,
        order_id: int,
        *,
        price: DecimalLike | None = None,
        quantity: DecimalLike | None = None,
        account: str | None = None,
        client_order_id: str | None = None,
    ) -> Command:
        """Return the command that :meth:`amend_order` would send, for :meth:`submit_many`."""
        return amend_command(
            self.rules(market),
            self._account(account),
            self._request_name(client_order_id),
            order_id,
            price,
            quantity,
        )

    def _one(self, market: str, command: Command, timeout: float | None) -> OrderResult:
        deadline_s = self._deadline_s(timeout)
        request = self._send(market, (command,), deadline_s)
        result = result_of(market, request.wait(), request.first_sequence, command)
        if result.code is not None:
            raise OrderRejected(result)
        return result

    def _deadline_s(self, timeout: float | None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else checked_timeout(timeout))

    def _send(self, market: str, commands: tuple[Command, ...], deadline_s: float) -> Request:
        return self._entrance(market, commands).submit(commands, deadline_s)

    def _entrance(self, market: str, commands: tuple[Command, ...]) -> Submissions:
        """Return where commands go in, if this node has joined the market, and may act for their accounts."""
        self._book(market)
        if self._identity is not None and (denied := self._identity.member.denied([each[1] for each in commands])):
            raise denied
        return self._submissions[market]

    def _account(self, account: str | None) -> str:
        return self.name if account is None else checked_account(account)

    def _request_name(self, client_order_id: str | None) -> str:
        if client_order_id is None:
            return f"{self._request_prefix}{next(self._request_numbers):x}"
        return checked_client_order_id(client_order_id)

    # -- queries ------------------------------------------------------------------------------------------------

    @property
    def markets(self) -> tuple[str, ...]:
        """The markets this node has joined."""
        return (*self._books, *self._unopened)

    def rules(self, market: str) -> MarketRules:
        """Return a market's rules.

        Raises:
            InvalidRequest: this node has not joined the market (code ``unknown_market``).
            Unavailable: the market's log has not reached this node yet (code ``not_ready``; ``not_enough_in_sync``
                where it has no entry for want of replicas).
        """
        found = self._rules.get(checked_market(market))
        return found if found is not None else self._take_rules(market, self._read(market, queries.rules))

    def _take_rules(self, market: str, found: MarketRules | dict[str, Any]) -> MarketRules:
        """Take in what :func:`~.market.queries.rules` has answered."""
        if isinstance(found, dict):
            raise self._not_ready(found, Unavailable)
        self._rules[market] = found
        return found

    def get_order_book(self, market: str, depth: int | None = None) -> BookView:
        """Return the best ``depth`` price levels of each side (all, by default), as this node's replica has them."""
        return self._read(market, queries.order_book(market, None if depth is None else checked_count(depth, "depth")))

    def get_order(self, market: str, order_id: int) -> OpenOrder | None:
        """Return an open order, or None if it is not in the book (filled, cancelled, never there)."""
        return self._read(market, queries.order(market, checked_order_id(order_id)))

    def open_orders(self, market: str, account: str | None = None) -> list[OpenOrder]:
        """Return an account's open orders (default: the node's own), oldest first."""
        return self._read(market, queries.open_orders(market, self._account(account)))

    def all_orders(self, market: str) -> list[OpenOrder]:
        """Return every open order: bids best first, then asks best first, each level in queue order."""
        return self._read(market, queries.all_orders(market))

    def orders_at(self, market: str, price: DecimalLike) -> list[OpenOrder]:
        """Return the orders at one price, in queue order."""
        return self._read(market, queries.orders_at(market, self.rules(market).price_to_ticks(price)))

    def trades(self, market: str, limit: int = 100) -> list[Trade]:
        """Return the last trades, newest first; older ones than ``dedupe_window`` commands are in the journal only."""
        return self._read(market, queries.trades(checked_count(limit, "limit")))

    def sequence(self, market: str) -> int:
        """Return the sequence number up to which this node has applied the market's log."""
        return self._read(market, lambda actor: actor.book.sequence)

    def state_hash(self, market: str) -> str:
        """Return the digest of the market's whole state at this node; see :meth:`position` for its sequence number."""
        return self.position(market)[1]

    def position(self, market: str) -> tuple[int, str]:
        """Return sequence number and state hash, of one moment."""
        return self._read(market, queries.position)

    def status(self) -> dict[str, Any]:
        """Return the state of the node, its links and markets, as JSON would carry it."""
        return {
            "name": self.name,
            "node_id": self.node_id,
            "address": self.address,
            "identity": self._identity and self._identity.member.as_json(),
            "directory": list(self._rendezvous),
            "coordinator": self._coordinator_id,
            "coordinator_error": self._store_error(),
            "clock": self._links.clocks().as_json(),
            "peers": self._links.known(),
            "frames_refused": self._inbox.frames_refused,
            "failures": list(self._failures),
            "actors": self._remote.names,
            "messages_refused": self._remote.refused,
            "markets": self.market_statuses(min(self.timeout, STATUS_S_MAX)),
        }

    @property
    def clocks(self) -> Clocks:
        """This machine's clock among those of the nodes that this one is linked to."""
        return self._links.clocks()

    def _store_error(self) -> str | None:
        try:
            return cast("str | None", self._ask_message(self._keeper, StoreStatus(), 0.5))
        except RequestTimeout:
            return "the coordinator keeps its caller waiting"

    def _status(self, market: str) -> dict[str, Any]:
        try:
            return self._read(market, lambda actor: actor.status())
        except OpenOutcryError as error:
            return {"market": market, "role": "stopped", "ready": False, "error": str(error)}

    def market_statuses(self, timeout: float) -> dict[str, dict[str, Any]]:
        """Return each market's status, as :meth:`status` has it; who does not answer in time is ``unresponsive``."""
        deadline_s = time.monotonic() + checked_timeout(timeout)
        query = Query(lambda actor: actor.status())
        asked: dict[str, pykka.Future[Any] | None] = {}
        for market, book in list(self._books.items()):
            try:
                asked[market] = book.ask(query, block=False)
            except pykka.ActorDeadError:
                asked[market] = None
        found: dict[str, dict[str, Any]] = {
            market: {"market": market, "role": NOT_OPEN, "ready": False, "error": str(unopened.error)}
            for market, unopened in list(self._unopened.items())
        }
        for market, answer in asked.items():
            role, why = "stopped", str(self._gone(market))
            try:
                if answer is not None:
                    found[market] = answer.get(timeout=max(0.0, deadline_s - time.monotonic()))
                    continue
            except pykka.Timeout:
                role, why = "unresponsive", f"no answer within {written(timeout)} s"
            except pykka.ActorDeadError:
                pass
            found[market] = {"market": market, "role": role, "ready": False, "error": why}
        return found

    def dead_actors(self, *, books: bool = True) -> list[str]:
        """Return what has failed and does not run: one line for each; without ``books``, of what all markets share."""
        with self._lock:
            actors: list[pykka.ActorRef[Any]] = [
                *(self._books.values() if books else ()),
                self._keeper,
                self._supervisor,
            ]
        why = "; ".join(self._failures) or "see the log"
        return [f"{ref.actor_class.__name__} does not run: {why}" for ref in actors if not ref.is_alive()]

    @property
    def certificate_ends_ns(self) -> int | None:
        """When the node's certificate ends, in nanoseconds since the Unix epoch; None without an identity."""
        return None if self._identity is None else self._identity.member.ends_ns

    def links_up(self) -> set[str]:
        """Return the ids of the nodes that this node has a link to."""
        return self._links.linked()

    def queues(self, market: str) -> dict[str, tuple[int, int]]:
        """Return what waits in a market's queues, by their names, and the bound, 0 without one.

        Raises:
            InvalidRequest: this node has not joined the market (code ``unknown_market``).
        """
        with self._lock:
            submissions, book = self._submissions.get(checked_market(market)), self._books.get(market)
        if submissions is None or book is None:
            raise self._not_open(market) or self._unknown(market)
        return {
            "in_flight": (submissions.in_flight, UNANSWERED_MAX),
            "book_mailbox": (cast("TickingInbox", book.actor_inbox).qsize(), 0),
        }

    def remote_queues(self) -> dict[str, tuple[int, int]]:
        """Return what waits on the way to and from remote actors, by queue, and the bound of each."""
        return self._remote.queues()

    @property
    def messages_refused(self) -> int:
        """Messages of remote actors that were of no type, or not as their type says, since the start."""
        return self._remote.refused

    @property
    def frames_refused(self) -> int:
        """Frames that broke the protocol and cost their sender the link, since the start."""
        return self._inbox.frames_refused

    def coordinator_answers(self) -> bool:
        """Return whether the coordinator has answered last time."""
        return self._store_error() is None

    @property
    def metrics_address(self) -> str | None:
        """``HOST:PORT`` where metrics and health are served, None if they are not."""
        return self._health.address if self._health is not None else None

    def _serve_health(self, address: str) -> None:
        try:
            from .telemetry.health import HealthServer  # noqa: PLC0415 - most nodes do without
            from .telemetry.metrics import NodeCollector  # noqa: PLC0415 - and it is an optional dependency
        except ImportError:
            raise ConfigurationError("metrics need prometheus-client: pip install prometheus-client") from None
        self._health = HealthServer(self, address, NodeCollector(self).text)
        self._undo.callback(self._health.close)

    def wait_in_sync(self, market: str, nodes: int, timeout: float = 30.0) -> None:
        """Wait until ``nodes`` replicas of the market are in sync, as far as this node knows.

        Raises:
            RequestTimeout: they were not in time.
        """
        checked_count(nodes, "nodes")
        self._wait_for(
            lambda: self._read(market, lambda actor: len(actor.replica.in_sync)) >= nodes,
            timeout,
            lambda: f"market {market}: fewer than {nodes} replicas are in sync: {self._status(market)}",
        )

    def wait_sequence(self, market: str, sequence: int, timeout: float = 30.0) -> None:
        """Wait until this node has applied the market's log up to ``sequence``.

        Raises:
            RequestTimeout: it had not in time.
        """
        checked_count(sequence, "sequence")
        self._wait_for(
            lambda: self.sequence(market) >= sequence,
            timeout,
            lambda: f"market {market}: this node is at {self.sequence(market)}, not {sequence}",
        )

    def _wait_for(self, condition: Callable[[], bool], timeout: float, why: Callable[[], str]) -> None:
        deadline_s = time.monotonic() + checked_timeout(timeout)
        while not condition():
            if time.monotonic() > deadline_s:
                raise RequestTimeout(f"after {written(timeout)} s: {why()}")
            time.sleep(0.005)

    # -- market data --------------------------------------------------------------------------------------------

    def subscribe(
        self,
        market: str,
        to: Callable[[MarketUpdate], None] | Any = None,
        *,
        after: int | None = None,
        queue_size_max: int = 10_000,
    ) -> Subscription:
        """Receive every event of a market, in order, from the applied log.

        Args:
            market: the market's name.
            to: a callable, called with each :class:`~.market.views.MarketUpdate` on the subscription's own thread; a
                ``queue.Queue``; or None, to iterate over the subscription itself.
            after: the sequence number after which to begin, for resuming; None = from now on.
            queue_size_max: how many updates may wait. A subscriber that falls further behind is cut: it gets no
                gap, but an end, and resumes with ``after=subscription.last_sequence``.

        Raises:
            InvalidRequest: ``after`` or ``queue_size_max`` is no whole number, or the latter 0; or ``to`` can be given
                nothing (code ``invalid_subscriber``).
            Unavailable: the events after ``after`` are not held any more (code ``too_far_behind``).
        """
        return self._subscribe(market, to, after, queue_size_max, None)

    def _subscribe(
        self,
        market: str,
        to: Callable[[MarketUpdate], None] | Any,
        after: int | None,
        queue_size_max: int,
        arrived: Callable[[], None] | None,
    ) -> Subscription:
        subscription, watch = self._make_subscription(market, to, after, queue_size_max, arrived)
        try:
            started = self._ask_message(self._book(market), watch, self.timeout)
        except BaseException:
            subscription.close()
            raise
        self._begin_subscription(subscription, started)
        return subscription

    def _make_subscription(
        self,
        market: str,
        to: Callable[[MarketUpdate], None] | Any,
        after: int | None,
        queue_size_max: int,
        arrived: Callable[[], None] | None,
    ) -> tuple[Subscription, Watch]:
        """Return a subscription, and what its market has to be asked before it begins; if that fails, close it."""
        book = self._book(market)
        after = None if after is None else checked_count(after, "after")
        if to is not None and not callable(to) and not callable(getattr(to, "put", None)):
            raise InvalidRequest(
                f"a subscriber is a function, or a queue to put into, not {quoted(to)}", code="invalid_subscriber"
            )
        subscription = Subscription(
            market,
            to,
            queue_size_max=checked_count(queue_size_max, "queue_size_max", at_least=1),
            on_end=lambda watcher: tell(book, Unwatch(watcher)),
            meters=self.meters.markets[market],
            arrived=arrived,
        )
        return subscription, Watch(subscription.offer, after)

    def _begin_subscription(self, subscription: Subscription, sequence: int) -> None:
        subscription.begin(sequence)
        with self._lock:
            self._subscriptions = [s for s in self._subscriptions if not s.ended] + [subscription]

    # -- directory ----------------------------------------------------------------------------------------------

    def announce(self, service: str, address: str, metadata: Mapping[str, str] | None = None) -> int:
        """Announce a service of this node in the directory, until :meth:`unannounce` or the node's end.

        Returns how many rendezvous know it now; it is announced again by itself where one comes later.
        """
        entry = self._entry(checked_service(service, address, metadata), address, metadata)
        known = cast("int", self._ask_directory(Announce(entry), self.timeout))
        self._services[service] = entry
        return known

    def unannounce(self, service: str) -> int:
        """Take a service of this node out of the directory; return how many rendezvous have acknowledged."""
        self._services.pop(checked_service(service), None)
        return cast("int", self._ask_directory(Unannounce(self._entry(service, "-", None)), self.timeout))

    def lookup(self, service: str, timeout: float | None = None) -> Lookup:
        """Return who announces ``service``, as soon as all connected rendezvous have answered.

        Raises:
            Unavailable: no rendezvous has answered in time (code ``directory_unavailable``).
        """
        checked_service(service)
        deadline_s = self._deadline_s(timeout)
        while True:
            # In short pieces: the actor has this node to announce meanwhile, and to end when it is closed.
            piece_s = min(deadline_s, time.monotonic() + _FIND_S)
            try:
                return cast("Lookup", self._ask_directory(Find(service, piece_s), self.timeout + _FIND_S))
            except Unavailable:
                if time.monotonic() >= deadline_s or self._discovery is None:
                    raise

    def _entry(self, service: str, address: str, metadata: Mapping[str, str] | None) -> ServiceEntry:
        return ServiceEntry(service, self.node_id, address, tuple(sorted((metadata or {}).items())))

    def _ask_directory(self, message: object, timeout: float) -> Any:
        if self._discovery is None:
            raise Unavailable("this node was started without a directory", code="directory_unavailable")
        return self._ask_message(self._discovery, message, timeout)

    # -- remote actors ------------------------------------------------------------------------------------------

    def register(self, name: str, ref: pykka.ActorRef[Any], *, accepts: Iterable[type]) -> None:
        """Serve a Pykka actor under ``name``: others reach it as ``name@node``, and by name through the directory.

        ``accepts``: the message classes (see :func:`~.remote.schema.message`) that others may send it; all
        else is refused.
        The registration ends with the actor, by :meth:`unregister`, or with the node, which does not stop the actor.

        Raises:
            InvalidRequest: the name is malformed (code ``invalid_actor_name``), ``ref`` is no ``pykka.ActorRef``
                (code ``invalid_actor_ref``), or ``accepts`` no list.
            MessageRefused: a class of ``accepts`` is not registered as a message.
            ConfigurationError: a living actor has that name (code ``actor_registered``).
        """
        self._remote.register(name, ref, accepts)

    def unregister(self, name: str) -> bool:
        """Serve the actor of that name no more; return whether there was one."""
        return self._remote.unregister(name)

    def actor(self, address: str, *, timeout: float | None = None) -> RemoteRef:
        """Return the actor at ``"name@node"`` (a node's name or id), or one of that name that the directory knows.

        Waits up to ``timeout`` seconds for the link to its node. Of several nodes that have the name, linked ones are
        tried first, and each of the others gets a share of the time. It is the actor that has the name now: see
        :class:`~.remote.actors.RemoteRef`.

        Raises:
            UnknownActor: there is none of that name.
            Unreachable: there is no link to the node.
            InvalidRequest: the address is malformed, or several nodes have that name (code ``ambiguous_node``).
        """

        def lookup(service: str, seconds: float) -> list[str]:
            return [entry.node for entry in self.lookup(service, min(seconds, TIMEOUT_S_MAX)).entries]

        return self._remote.find(address, self.timeout if timeout is None else checked_timeout(timeout), lookup)

    def wait_actor(self, address: str, *, timeout: float = 30.0) -> RemoteRef:
        """Return what :meth:`actor` does, waiting for it to be there: for its node to start, link and register it.

        Raises:
            Unavailable: the last error of :meth:`actor`, after ``timeout`` seconds.
        """
        deadline_s = time.monotonic() + checked_timeout(timeout)
        last: Unavailable | None = None
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            try:
                return self.actor(address, timeout=min(left_s, 1.0))
            except RequestTimeout as error:
                last = last or error  # what the others say is worth more
            except Unavailable as error:
                last = error
            if time.monotonic() >= deadline_s:
                raise last
            time.sleep(0.005)

    def watch(self, ref: RemoteRef | pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        """Have the actor ``watcher`` told :class:`~.remote.actors.Terminated` once, when ``ref`` is heard no more.

        That is when it has stopped or failed, when its process has died, or when the link to its node has ended. Any
        actor of this process can be watched too, registered or not.

        Raises:
            InvalidRequest: one of the two is no ref of an actor (code ``invalid_actor_ref``).
        """
        self._remote.watch(ref, watcher)

    def unwatch(self, ref: RemoteRef | pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        """Take :meth:`watch` back; a notice may be on its way already."""
        self._remote.unwatch(ref, watcher)

    def _announce_actor(self, service: str, whether: bool) -> None:
        """Announce a registered actor, or take it back, without waiting: discovery sees to it, again and again."""
        if self._discovery is None:
            return
        entry = self._entry(service, self.address, None)
        if whether:
            self._services[service] = entry
        else:
            self._services.pop(service, None)
        # Asked, not told: what it raises then ends the answer that nobody waits for, not the actor.
        self._discovery.ask(Announce(entry) if whether else Unannounce(entry), block=False)

    # -- actors -------------------------------------------------------------------------------------------------

    def _book(self, market: str) -> pykka.ActorRef[BookActor]:
        book = self._books.get(checked_market(market))
        if self._closed:
            raise Closed(f"node {self.name} is closed")
        if book is None:
            raise self._not_open(market) or self._unknown(market)
        return book

    def _unknown(self, market: str) -> InvalidRequest:
        known = ", ".join(sorted(self._books)) or "none"
        return InvalidRequest(
            f"node {self.name} has not joined market {quoted(market, 80)}; it has: {known}", code="unknown_market"
        )

    def _read(self, market: str, read: Callable[[BookActor], _T]) -> _T:
        return self._ask(self._book(market), read, self.timeout)

    def _ask(self, ref: pykka.ActorRef[Any], read: Callable[[BookActor], _T], timeout: float) -> _T:
        return cast("_T", self._ask_message(ref, Query(read), timeout))

    def _ask_message(self, ref: pykka.ActorRef[Any], message: object, timeout: float) -> Any:
        try:
            return ref.ask(message, timeout=timeout)
        except pykka.ActorDeadError:
            raise self._gone(str(ref.actor_class.__name__)) from None
        except pykka.Timeout:
            raise RequestTimeout(
                f"node {self.name} did not answer within {written(timeout)} s: it is overloaded"
            ) from None

    def _gone(self, what: str) -> OpenOutcryError:
        if self._closed:
            return Closed(f"node {self.name} is closed")
        return StorageError(f"{what} of node {self.name} has failed: {'; '.join(self._failures) or 'see the log'}")

    def _report(self, failed: ActorFailed) -> None:
        if not self._closed:
            tell(self._supervisor, failed)

    def _handle_failure(self, failed: ActorFailed) -> None:
        self._failures = [*self._failures, f"{failed.who}: {failed.error!r}"][-20:]
        if self._closed:
            return
        for node in self._links.dead():
            self._links.tell_all(PeerDown(node))

    def _give_up(self, escalation: Escalation) -> None:
        """A child of the supervisor has failed too often; on the supervisor's thread."""
        self._links.given_up(escalation.name.removeprefix(LINK_OF))

    def _again(self, kind: str, start: Callable[[], pykka.ActorRef[Any]]) -> Callable[[], pykka.ActorRef[Any]]:
        """Return how a supervisor starts an actor: ``start``, and from the second time on it is logged and counted."""
        started = False

        def begin() -> pykka.ActorRef[Any]:
            nonlocal started
            if self._closed:
                raise Closed(f"node {self.name} is closed")
            ref = start()
            if started:
                logger.error("actor_restarted", actor=kind, node=self.node_id)
                self.meters.restarts[kind] += 1
            started = True
            return ref

        return begin

    def _supervise(self, kind: str, start: Callable[[], pykka.ActorRef[Any]]) -> None:
        self._ask_message(self._supervisor, Supervise(kind, self._again(kind, start)), self.timeout)

    def _hear(self, pipe_id: int, frame: bytes) -> None:
        self._links.hear(pipe_id, frame, self._supervisor)

    def _pipe_removed(self, pipe_id: int) -> None:
        self._links.pipe_removed(pipe_id)

    def _hear_message(self, sender: str, message: Any) -> None:
        """Hand on what a linked node has sent, on the inbox's reader thread."""
        if isinstance(message, Parcel):
            self._remote.hear(sender, message)
            return
        book = self._books.get(message.market)
        if book is not None:
            tell(book, Heard(sender, message))
        elif self._options["join_all"] and self._markets is not None and isinstance(message, Lead):
            tell(self._markets, LookSoon())  # perhaps a market that was created a moment ago

    def _make_snapshotter(self) -> pykka.ActorRef[SnapshotActor]:
        self._snapshotter = SnapshotActor.start(abandon=self._abandoned, report=self._report)
        return self._snapshotter

    def _stop_snapshots(self) -> None:
        self._abandoned.set()
        stop_and_join(self._snapshotter, timeout_s=10)

    def _start_markets(self) -> None:
        self._supervise("MarketsActor", self._make_markets)

    def _make_markets(self) -> pykka.ActorRef[MarketsActor]:
        self._markets = MarketsActor.start(
            node=self.node_id,
            read_all=self._records,
            alive=self._alive,
            join=self._join_listed if self._options["join_all"] else None,
            hand_over=self._even_out if self._options["balance"] else None,
            open_again=self._open_again,
            report=self._report,
        )
        return self._markets

    def _stop_markets(self) -> None:
        if self._markets is not None:
            stop_and_join(self._markets, timeout_s=10)

    def _start_discovery(self) -> None:
        if self._rendezvous:
            self._supervise("DiscoveryActor", self._make_discovery)

    def _make_discovery(self) -> pykka.ActorRef[DiscoveryActor]:
        self._links.discovery_begins()
        all_joined = {JOINS_ALL: "yes"} if self._options["join_all"] else {}
        self._discovery = DiscoveryActor.start(
            rendezvous=self._rendezvous,
            entry=self._entry(NODE_SERVICE, self.address, {"name": self.name} | all_joined),
            services=tuple(self._services.values()),
            ttl_ms=self._options["ttl_ms"],
            tell_node=lambda message: tell(self._supervisor, message) and None,
            report=self._report,
            identity=self._identity,
        )
        return self._discovery

    def _stop_discovery(self) -> None:
        if self._discovery is not None:
            stop_and_join(self._discovery, timeout_s=5)

    def _close_subscriptions(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()


def checked_reason(value: str) -> str:
    """Return ``value`` if it can say in a log why an operator did something."""
    if type(value) is not str or not 1 <= len(value) <= REASON_LENGTH_MAX or not is_utf8(value):
        raise InvalidRequest(f"the reason is a string of 1 to {REASON_LENGTH_MAX} characters", code="invalid_reason")
    return value


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
    """Return the error of ours for what kept a node from starting, None if it is one that says all.

    A disk's error is one of the path, if the reason is: the service manager is not to try it for ever.
    """
    if isinstance(error, StorageError):
        if error.code != StorageError.default_code or not isinstance(error.__cause__, OSError):
            return None
        return refusal(error.__cause__, error.message, said=True)
    system = (OSError, RuntimeError, UnicodeError, MemoryError, sqlite3.Error, pynng.NNGException)
    if isinstance(error, OpenOutcryError) or not isinstance(error, system):
        return None
    return refusal(error, f"node {name} cannot start")


def _node_id(folder: Path, name: str) -> str:
    """Return the id that stands for this disk: a wiped directory is a new replica, whatever its node is called."""
    path = folder / "node.json"
    stored = _read_json(path)
    if stored is None:
        stored = {"node_id": f"{name}.{uuid.uuid4().hex[:8]}", "name": name}
        _write_json(path, stored)
    if not isinstance(stored, dict) or not all([isinstance(stored.get(key), str) for key in ("node_id", "name")]):
        raise StorageError(f"{path} names no node: restore it from a backup", code="corrupt")
    if stored["name"] != name:
        raise ConfigurationError(
            f"{folder} belongs to node {stored['name']!r}, not {name!r}; give each node its own data directory",
            code="other_data_dir",
        )
    return str(stored["node_id"])


def _read_created(folder: Path) -> dict[str, MarketRules]:
    """Return the markets that were created at the node with this data directory, and the rules given for each."""
    path = folder / "markets.json"
    try:
        return {str(market): MarketRules(**rules) for market, rules in (_read_json(path) or {}).items()}
    except (TypeError, AttributeError, ConfigurationError) as error:
        raise StorageError(f"{path} cannot be read: {error}", code="corrupt") from error


def _write_created(folder: Path, created: Mapping[str, MarketRules]) -> None:
    _write_json(folder / "markets.json", {market: dataclasses.asdict(rules) for market, rules in created.items()})


def _read_json(path: Path) -> Any:
    """Return what a file of a data directory holds, None if there is none."""
    try:
        return json.loads(read_file(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read: {error}", code="corrupt") from error


def _write_json(path: Path, value: object) -> None:
    try:
        write_durably(path, json.dumps(value).encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written, and nothing was changed: {error.strerror}") from error


def partly_sent(error: Unavailable, at: int, count: int) -> Unavailable:
    """Return ``error``, by which ``count`` commands failed when ``at`` had been sent, with word of those."""
    sent = f" ({at} of {count} commands were sent before; their outcome is unknown)" if at else ""
    return copied(error, f"{error.message}{sent}")


def _force_note(plan: ForcePlan, reason: str) -> str:
    """Return what the log says of leadership that is forced; it names as many of the in-sync set as it has room for."""
    for named in range(len(plan.in_sync), -1, -1):
        left_out = len(plan.in_sync) - named
        members = [*plan.in_sync[:named], *([f"{left_out} more"] if left_out else [])]
        text = (
            f"leadership was forced: {plan.node} leads in epoch {plan.epoch + 1} from sequence {plan.sequence} "
            f"(epoch {plan.sequence_epoch}), in place of {plan.leader} and without the in-sync set of epoch "
            f"{plan.epoch}: {', '.join(members)}; what they answered after {plan.sequence} is lost; reason: {reason}"
        )
        if len(text.encode()) <= NOTE_SIZE_MAX:
            break
    return text


def _with_leases(store: Coordinator, market: str) -> tuple[MarketRecord | None, frozenset[str]]:
    """Return a market's record, and those of its in-sync set that hold a lease."""
    record = store.read(market)
    members = record.in_sync if record is not None else ()
    return record, frozenset([member for member in members if not store.lapsed(member)])


def open_nodes() -> list[ExchangeNode]:
    """Return the nodes of this process that have not been closed, also those that no variable holds any more."""
    return sorted(_open_nodes, key=lambda node: node.node_id)


@atexit.register
def _close_all() -> None:
    for node in open_nodes():
        node.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_nodes.clear)


def spare_gc() -> None:
    """Keep the garbage collector from walking all resting orders again and again.

    For a process that is only a node, once its nodes are started; ``openoutcry node`` calls it. A node makes few
    cycles: what it drops is freed at once. The collector still runs, seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


__all__ = ["UNANSWERED_MAX", "ExchangeNode", "open_nodes", "spare_gc"]
