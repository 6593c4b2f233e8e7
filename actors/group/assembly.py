"""NodeGroup: starts, supervises and stops the actors of one node.

Start: data directory locked, coordinator opened, the inbox opened, a BookActor for each market recovered from disk, the
node announced. :meth:`NodeGroup.close` undoes that in the opposite order, and leaves no thread or socket behind.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pykka

from ...transport.coordinator import Coordinator, MarketRecord
from ...transport.errors import Closed, ConfigurationError, OpenOutcryError, RequestTimeout
from ...transport.etcd import is_etcd
from ...transport.files import os_errors_as
from ...transport.identity import check_addresses
from ...transport.log import get_logger
from ...transport.rendezvous import Rendezvous
from ...transport.sockets import Inbox, checked_address, is_wildcard
from ..book.actor import BookActor
from ..book.journal import FolderLock
from ..book.messages import Received
from ..book.meters import MarketMeters
from ..book.rules import MarketRules
from ..book.shell import Setup
from ..book.snapshotter import SnapshotActor
from ..book.submission import Submissions
from ..book.wire import MARKET_CODEC, Ack, Append, Forward, Join, Lead, Refused, Resign
from ..kit.node_actor import ActorFailed, stop_and_join, tell, tell_or_handle
from ..kit.supervision import Supervise
from ..leadership.balance import Move
from ..leadership.catalogue import MarketsActor
from ..leadership.coordination import CoordinatorActor, holder_of, open_coordinator, take_lease
from ..leadership.messages import LookSoon, StoreQuery, StoreStatus
from ..market.border import Requester, checked_timeout
from ..market.handle import Host
from ..peers.links import Links
from ..peers.messages import PeerDown
from ..peers.wire import NO_COORDINATOR, Hello
from ..remote.actors import RemoteActors
from ..remote.wire import Parcel
from ..settings import LISTEN_DEFAULT, NodeOptions, with_tls
from ..telemetry.meters import NodeMeters
from ..telemetry.status import NodeStatus
from .codec import CODEC
from .directory import Directory
from .folder import NodeFolder
from .leading import Leading
from .markets import Markets
from .supervisor import NodeSupervisor

if TYPE_CHECKING:
    from ...transport.certificates import Identity

logger = get_logger(__name__)

RECORDS_S: Final = 5.0
"""Most seconds to wait for the coordinator when all records are read."""
STORE_STATUS_S: Final = 0.5
"""Most seconds that a node's status waits for the coordinator; then it says so."""
ENDS_SOON_S: Final = 30 * 86_400.0
"""Warn at start if the certificate expires within this many seconds."""
STATUS_S_MAX: Final = 2.0
"""Most seconds that a node's status waits for a market."""
FAILURES_MAX: Final = 20
"""How many failures a node remembers; older ones are in the log only."""


class NodeGroup:
    """The actors of one node, and their shared objects. :class:`~..node.ExchangeNode` is its public face."""

    def __init__(self, name: str, options: NodeOptions, identity: Identity | None) -> None:
        """Start nothing yet."""
        self.name = name
        self.options = options
        self.identity = identity
        self.requester = Requester(name)
        self.meters = NodeMeters()
        self.closed = False
        """The node accepts no more calls."""
        self.failures: list[str] = []
        """The last ``FAILURES_MAX`` failures, a line each."""
        self.directory_address: str | None = None
        self.ending = threading.Event()
        """Set when the hand-over has ended: then do not wait for an unreachable coordinator."""
        self.undo = contextlib.ExitStack()
        self._hurry = threading.Event()
        self._abandoned = threading.Event()
        self._catalogue: pykka.ActorRef[MarketsActor] | None = None

    # -- start --------------------------------------------------------------------------------------------------

    def start(self, markets: Mapping[str, MarketRules | None]) -> None:
        """Start the node with these markets and their rules; :attr:`undo` collects the steps to undo."""
        options, undo = self.options, self.undo
        self._actors_only = options["coordinator"] is None and not markets and not options["join_all"]
        self._lock_folder()
        listed = self._open_coordinator()
        self._open_inbox()
        self._make_host()
        self._link()
        self.supervisor = NodeSupervisor.start(self.links, self._note_failure)
        undo.callback(stop_and_join, self.supervisor, timeout_s=10)
        undo.callback(self._stop_snapshots)
        self._supervise("SnapshotActor", self._start_snapshotter)
        self._serve_directory()
        undo.callback(self.markets.stop)
        self.markets.start(markets, listed=listed, observe=options["observe"])
        undo.callback(self.markets.close_subscriptions)
        undo.callback(self.links.close)
        self.inbox.start()
        undo.callback(self.directory.stop)
        if self.directory.rendezvous:
            self._supervise("DiscoveryActor", self.start_discovery)
        undo.callback(self._stop_catalogue)
        self._supervise("MarketsActor", self._start_catalogue)
        undo.callback(self.remote.close)

    def _lock_folder(self) -> None:
        data_dir = self.options["data_dir"]
        if data_dir is None:
            with os_errors_as("cannot make a temporary folder; give the node a data_dir"):
                data_dir = tempfile.mkdtemp(prefix="openoutcry-")
            self.undo.callback(shutil.rmtree, data_dir, ignore_errors=True)
        self.data_dir = Path(data_dir)
        with os_errors_as(f"the data directory {self.data_dir} cannot be used"):
            lock = FolderLock(self.data_dir)
        self.undo.callback(lock.release)
        self.folder = NodeFolder(self.data_dir, self.name)
        self.node_id = self.folder.node_id

    def _open_coordinator(self) -> list[str]:
        """Open the coordinator and take the node's lease; return the markets to join that it lists."""
        coordinator = self.options["coordinator"]
        if coordinator is None or isinstance(coordinator, (str, Path)):
            address = coordinator or self.data_dir / "coordinator.sqlite"
            self._check_store(address)
            coordinator = open_coordinator(address)
        holder, lease_ms = holder_of(self.data_dir), self.options["lease_ms"]
        try:
            self.coordinator_id = coordinator.coordinator_id
            take_lease(coordinator, self.node_id, holder=holder, lease_ms=lease_ms)
            listed = [record.market for record in coordinator.read_all()] if self.options["join_all"] else []
        except BaseException:
            coordinator.close()
            raise
        self.coordinator = self._start_coordinator(coordinator, holder, lease_ms)
        self.undo.callback(stop_and_join, self.coordinator, timeout_s=10)
        return listed

    def _start_coordinator(
        self, coordinator: Coordinator, holder: str, lease_ms: int
    ) -> pykka.ActorRef[CoordinatorActor]:
        return CoordinatorActor.start(
            coordinator=coordinator,
            node=self.node_id,
            holder=holder,
            lease_ms=lease_ms,
            report=self._report,
            meters=self.meters.store,
            ending=self.ending,
        )

    def _check_store(self, address: str | Path) -> None:
        """Create a missing store, unless the node has logs: then its store is elsewhere, or lost."""
        if is_etcd(str(address)) or Path(address).exists():
            return
        if logged := self.folder.logged():
            raise ConfigurationError(
                f"node {self.name} has logs of {', '.join(logged)}, but there is no coordinator's store {address}: "
                "give the right path, or restore the file; if it is lost, `openoutcry coordinator rebuild` makes "
                "another from the nodes' disks",
                code="coordinator_missing",
            )

    def _open_inbox(self) -> None:
        options = self.options
        listen = options["listen"] or (with_tls(LISTEN_DEFAULT) if self.identity else LISTEN_DEFAULT)
        advertise, serve_directory = options["advertise"], options["serve_directory"]
        self._rendezvous = [address for address in options["directory"] if address != serve_directory]
        given = [address for address in (listen, advertise, serve_directory, *self._rendezvous) if address]
        check_addresses(given, self.identity)
        if is_wildcard(advertise or listen):
            raise ConfigurationError(
                f"{advertise or listen} is every address of this machine, and none that others can dial: give with "
                "advertise the one where they reach this node, as in tcp://10.0.0.5:7500"
            )
        checked_address(listen, to_listen=True)
        self.inbox = Inbox(
            listen,
            on_frame=self._receive,
            on_pipe_removed=self._pipe_removed,
            name=self.name,
            identity=self.identity,
        )
        self.undo.callback(self.inbox.close)
        self.address = checked_address(advertise) if advertise else self.inbox.address

    def _make_host(self) -> None:
        self.host = Host(
            self.node_id,
            self.requester,
            self.options["timeout"],
            is_closed=lambda: self.closed,
            failures=lambda: self.failures,
            hindrances=self._hindrances,
            denied=self._denied if self.identity is not None else None,
        )

    def _link(self) -> None:
        """Create the links to other nodes, and what depends on them."""
        options, host = self.options, self.host
        shared = NO_COORDINATOR if self._actors_only else self.coordinator_id
        self.remote = RemoteActors(
            self.node_id,
            name=self.name,
            timeout_s=lambda timeout: host.timeout_s if timeout is None else checked_timeout(timeout),
            announce=self._announce_actor,
            report=self._report,
        )
        self.links = Links(
            Hello(self.node_id, self.name, self.address, shared, 1, 0, self.node_id),
            meters=self.meters.links,
            remote=self.remote,
            codec=CODEC,
            hand_on=self._hand_on,
            counting_restarts=self._counting_restarts,
            report=self._report,
            identity=self.identity,
            certified=self.inbox.certified,
            clock_bound_ms=options["clock_bound_ms"],
            store_clock=self.meters.store.clock,
        )
        if self.identity is not None and self.identity.seconds_left < ENDS_SOON_S:
            logger.warning("certificate_ends_soon", node=self.node_id, ends=self.identity.member.ends)
        self.leading = Leading(host, self.coordinator, self.links.id_of)
        self.markets = Markets(
            host,
            self.folder,
            meters=self.meters.markets,
            start_book=self._start_book,
            links=self.links,
            records=self.records,
            actors_only=self._actors_only,
        )

    def _serve_directory(self) -> None:
        """Start a rendezvous, if asked to, and the node's side of the directory."""
        address, identity = self.options["serve_directory"], self.identity
        if address is not None:
            server = Rendezvous(address, peers=self._rendezvous, identity=identity)
            server.start()
            self.undo.callback(server.close)
            self.directory_address = server.address
            self._rendezvous = [server.address, *self._rendezvous]
        self.directory = Directory(
            self.host,
            self.address,
            rendezvous=self._rendezvous,
            ttl_ms=self.options["ttl_ms"],
            joins_all=self.options["join_all"],
            identity=identity,
            report=self._report,
        )

    # -- actors -------------------------------------------------------------------------------------------------

    def _start_book(
        self, market: str, *, rules: MarketRules | None, submissions: Submissions, meters: MarketMeters, observer: bool
    ) -> pykka.ActorRef[BookActor]:
        setup = Setup(
            market=market,
            node=self.node_id,
            rules=rules,
            submissions=submissions,
            folder=self.folder.of_market(market),
            coordinator=self.coordinator,
            store=self.coordinator_id,
            take_snapshot=lambda message: tell(self._snapshotter, message),
            min_in_sync=self.options["min_in_sync"],
            clock_bound_ms=self.options["clock_bound_ms"],
            clocks=self.links.clocks,
            snapshot_every=self.options["snapshot_every"],
            observer=observer,
            meters=meters,
            member_of=self.links.members.get if self.identity is not None else None,
        )
        return BookActor.start(setup, report=self._report)

    def _start_snapshotter(self) -> pykka.ActorRef[SnapshotActor]:
        self._snapshotter = SnapshotActor.start(abandon=self._abandoned, report=self._report)
        return self._snapshotter

    def _stop_snapshots(self) -> None:
        self._abandoned.set()
        stop_and_join(self._snapshotter, timeout_s=10)

    def start_discovery(self) -> pykka.ActorRef[Any]:
        """Start the DiscoveryActor; the supervisor does."""
        self.links.discovery_begins()
        return self.directory.start(lambda message: tell(self.supervisor, message))

    def _start_catalogue(self) -> pykka.ActorRef[MarketsActor]:
        self._catalogue = MarketsActor.start(
            node=self.node_id,
            read_all=self.records,
            alive=self._alive,
            join=self.markets.join if self.options["join_all"] else None,
            hand_over=self._even_out if self.options["balance"] else None,
            open_again=self.markets.open_again,
            report=self._report,
        )
        return self._catalogue

    def _stop_catalogue(self) -> None:
        if self._catalogue is not None:
            stop_and_join(self._catalogue, timeout_s=10)

    def _supervise(self, kind: str, start: Callable[[], pykka.ActorRef[Any]]) -> None:
        self.host.ask(self.supervisor, Supervise(kind, self._counting_restarts(kind, start)), self.host.timeout_s)

    def _counting_restarts(
        self, kind: str, start: Callable[[], pykka.ActorRef[Any]]
    ) -> Callable[[], pykka.ActorRef[Any]]:
        """Return ``start`` for a supervisor, which logs and counts each call after the first: a restart."""
        started = False

        def start_and_count() -> pykka.ActorRef[Any]:
            nonlocal started
            if self.closed:
                raise Closed(f"node {self.name} is closed")
            ref = start()
            if started:
                logger.error("actor_restarted", actor=kind, node=self.node_id)
                self.meters.restarts[kind] += 1
            started = True
            return ref

        return start_and_count

    def _report(self, failed: ActorFailed) -> None:
        if not self.closed:
            tell(self.supervisor, failed)

    def _note_failure(self, failed: ActorFailed) -> None:
        self.failures = [*self.failures, f"{failed.who}: {failed.error!r}"][-FAILURES_MAX:]
        if self.closed:
            return
        for node in self.links.dead():
            self.links.tell_all(PeerDown(node))

    # -- messages of other nodes --------------------------------------------------------------------------------

    def _receive(self, pipe_id: int, frame: bytes) -> None:
        self.links.receive(pipe_id, frame, self.supervisor)

    def _hand_on(self, sender: str, message: Any) -> None:
        """Pass on a message from a linked node, on the inbox's reader thread."""
        if isinstance(message, Parcel):
            self.remote.receive(sender, message)
            return
        book = self.markets.books.get(message.market)
        if book is not None:
            # Where nothing else has come, this thread may as well do the work of an order.
            quick = self.inbox.waited and isinstance(message, Append | Ack | Forward | Refused)
            alive = (tell_or_handle if quick else tell)(book, Received(sender, message))
            if not alive and isinstance(message, Lead | Join | Append | Ack | Forward):
                self._say_failed(sender, message.market, message.epoch)
        elif self.options["join_all"] and self._catalogue is not None and isinstance(message, Lead):
            tell(self._catalogue, LookSoon())  # perhaps a market that was created a moment ago

    def _say_failed(self, sender: str, market: str, epoch: int) -> None:
        """Tell ``sender`` that the market's BookActor has failed: it should not wait for it as leader or follower."""
        if not self.closed and (link := self.links.up.get(sender)) is not None:
            link.link.send(MARKET_CODEC.encode(Resign(market, epoch)))

    def _pipe_removed(self, pipe_id: int) -> None:
        self.links.pipe_removed(pipe_id)

    def _announce_actor(self, service: str, whether: bool) -> None:
        self.directory.announce_actor(service, whether)

    # -- questions ----------------------------------------------------------------------------------------------

    def records(self) -> tuple[MarketRecord, ...]:
        """Return the coordinator's records: one for each market of the exchange."""
        query = StoreQuery(lambda store: store.read_all())
        found = self.host.ask(self.coordinator, query, min(self.host.timeout_s, RECORDS_S))
        return cast("tuple[MarketRecord, ...]", found)

    def store_error(self) -> str | None:
        """Return what is wrong with the coordinator, None if it answered the last request."""
        try:
            return cast("str | None", self.host.ask(self.coordinator, StoreStatus(), STORE_STATUS_S))
        except RequestTimeout:
            return f"the coordinator has not answered for {STORE_STATUS_S} s"

    def _denied(self, accounts: Sequence[str]) -> OpenOutcryError | None:
        return None if self.identity is None else self.identity.member.denied(accounts)

    def _hindrances(self) -> list[str]:
        """Return why this node may not reach a market's leader."""
        reasons, rendezvous = [], self.directory.rendezvous
        if (store := self.meters.store.error) is not None:
            reasons.append(f"the coordinator cannot be used: {store}")
        if strangers := self.links.strangers():
            reasons.append(f"{', '.join(strangers)} in the directory: another coordinator, so another exchange")
        elif rendezvous and not self.links.linked():
            reasons.append(f"no other node is linked to this one through the directory {', '.join(rendezvous)}")
        return reasons

    def _alive(self) -> set[str]:
        """Return the live nodes that may get markets: none whose clock is off, while another's is right."""
        clocks, linked = self.links.clocks(), self.links.linked()
        right = {node for node in linked if node in clocks.right or node not in clocks.offsets}
        return right if clocks.off and right else {self.node_id, *(right or linked)}

    def _even_out(self, move: Move) -> None:
        self.leading.even_out(self.markets.find(move.market), move)

    def status(self) -> NodeStatus:
        """Return the state of the node, its links and markets."""
        return NodeStatus(
            self.name,
            self.node_id,
            self.address,
            self.identity.member.as_json() if self.identity is not None else None,
            self.directory.rendezvous,
            self.coordinator_id,
            self.store_error(),
            self.links.clocks().as_json(),
            self.links.known(),
            self.inbox.frames_refused,
            tuple(self.failures),
            tuple(self.remote.names),
            self.remote.refused,
            self.markets.statuses(min(self.host.timeout_s, STATUS_S_MAX)),
        )

    def dead_actors(self, *, books: bool = True) -> list[str]:
        """Return a line for each failed actor that does not run; without ``books``, only for shared ones."""
        replicas = list(self.markets.books.values()) if books else []
        actors: list[pykka.ActorRef[Any]] = [*replicas, self.coordinator, self.supervisor]
        why = "; ".join(self.failures) or "see the log"
        return [f"{ref.actor_class.__name__} does not run: {why}" for ref in actors if not ref.is_alive()]

    # -- end ----------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Cut short what :meth:`close` waits for."""
        self._hurry.set()

    def abandon(self) -> None:
        """Undo a start that has failed."""
        self.closed = True
        self.ending.set()
        self.undo.close()

    def close(self) -> None:
        """Hand over what the node leads, then stop everything."""
        if self.meters.store.error is None:  # otherwise nobody can take over the markets that this node leads
            self.leading.hand_over(list(self.markets.books.values()), self._hurry)
        self.ending.set()
        with self.markets.opening:
            self.closed = True
        self.markets.retire()
        self.undo.close()
