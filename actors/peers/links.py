"""Links: which nodes a node knows, which it is linked to, and which node's frames come over which connection.

Touched by the inbox's reader, by PeerActors, by the node's supervisor and by its callers: the state is under one lock.
It passes messages of markets and of remote actors on, without interpreting them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import pykka

from ...transport.codec import Codec
from ...transport.errors import Closed, InvalidRequest, ProtocolError
from ...transport.identity import CERTIFICATE_REFUSED, Member, name_of
from ...transport.log import get_logger
from ..kit.node_actor import ActorFailed, stop_and_join, tell
from ..kit.supervision import RestartPolicy, Supervisor
from ..kit.uptime import uptime_ns
from .clocks import ALONE, BOUND_MS, STORE, ClockMeter, Clocks, Offset, judge
from .messages import HelloReceived, PeerDown, PeerFound, PeerGone, PeerUp, PipeRemoved
from .meters import LinkMeters
from .peer import PeerActor
from .wire import Credentials, Hello, may_link

if TYPE_CHECKING:
    from ...transport.certificates import Identity

logger = get_logger(__name__)

PEERS_MAX: Final = 256
"""Most other nodes that a node keeps links to; the hello of a further node is refused."""
ABSENT_S_MAX: Final = 60.0
"""Seconds without a link after which a node that is not in the directory is forgotten."""
JUDGE_NS: Final = 200_000_000
"""Nanoseconds between comparisons of clocks: as often as hellos arrive."""
LINK_OF: Final = "link to "
"""Prefix of a node's id that makes the supervised name of its PeerActor."""
_POLICY: Final = RestartPolicy(restarts_max=5, window_s=60.0, backoff_min_s=0.1, backoff_max_s=5.0)
"""How a PeerActor is restarted; one that was given up is created again when its node reappears."""

Start = Callable[[], pykka.ActorRef[Any]]


class FollowsLinks(Protocol):
    """Notified of links on the thread that noticed, before the listening actors are."""

    def link_up(self, up: PeerUp) -> None:
        """A link has come up."""

    def link_down(self, node: str) -> None:
        """The link to ``node`` has ended."""

    def forget(self, node: str) -> None:
        """``node`` was forgotten."""


class Links:
    """The links of one node. Call from any thread, except where a docstring says otherwise."""

    def __init__(
        self,
        me: Hello,
        *,
        meters: dict[str, LinkMeters],
        remote: FollowsLinks,
        codec: Codec[Any],
        hand_on: Callable[[str, Any], None],
        counting_restarts: Callable[[str, Start], Start],
        report: Callable[[ActorFailed], None],
        identity: Identity | None = None,
        certified: Callable[[int], str] = lambda _pipe_id: "",
        clock_bound_ms: int = BOUND_MS,
        store_clock: ClockMeter | None = None,
    ) -> None:
        """Start without peers.

        With an ``identity``, a peer must have the name in its certificate; ``certified(pipe_id)`` returns the name that
        TLS has verified, on the reader's thread.

        ``remote`` is notified of links in addition to the listeners. ``hand_on(node, message)`` takes every message
        of ``node`` except hellos, on the reader's thread; ``codec`` decodes all frames. ``counting_restarts(kind,
        start)`` returns ``start`` with a count of its calls. ``clock_bound_ms``: how far clocks may differ until one
        counts as off; ``store_clock``: what was measured of the coordinator's host.
        """
        self._me = me
        self._joining_all: set[str] = set()
        """Nodes that have announced that they join every market."""
        self._meters = meters
        self._remote = remote
        self._codec = codec
        self._hand_on = hand_on
        self._counting_restarts = counting_restarts
        self._report = report
        self._identity = identity
        self._certified = certified
        self._clock_bound_ns = clock_bound_ms * 1_000_000
        self._store_clock = store_clock or ClockMeter()
        self._clocks = ALONE
        self._judged_ns = 0
        self._credentials: dict[int, Member] = {}
        """The certificate received over a connection to the inbox, by nng's number. The reader's."""
        self._lock = threading.RLock()
        self._closed = False
        self._names: dict[str, str] = {}
        self._listeners: list[pykka.ActorRef[Any]] = []
        self._announced: set[str] = set()
        self._absent_since_s: dict[str, float] = {}
        self._at: dict[str, str] = {}
        """The address of each known node, by its id."""
        self._strangers: dict[str, str] = {}
        """Names of nodes that said hello and use another coordinator, by their ids."""
        self.peers: dict[str, pykka.ActorRef[PeerActor]] = {}
        """The PeerActor of each known node, by its id."""
        self.up: dict[str, PeerUp] = {}
        """The links that are up, by the node's id."""
        self.pipes: dict[int, str] = {}
        """The node that sends over a connection to the inbox, by nng's number. The reader's."""
        self.members: dict[str, Member] = {}
        """The certificates of nodes that said hello, by their ids; empty without an identity."""

    # -- questions ----------------------------------------------------------------------------------------------

    def known(self) -> dict[str, dict[str, Any]]:
        """Return name and state of each known node, by its id, as JSON would carry it."""
        with self._lock:
            return {
                node: {
                    "name": name,
                    "up": node in self.up,
                    "other_coordinator": node in self._strangers,
                    "joins_all": node in self._joining_all,
                }
                for node, name in sorted(self._names.items())
            }

    def strangers(self) -> list[str]:
        """Return the names of known nodes that use another coordinator: they belong to another exchange."""
        with self._lock:
            return sorted(self._strangers.values())

    def linked(self) -> set[str]:
        """Return the ids of the nodes that this one is linked to."""
        with self._lock:
            return set(self.up)

    def id_of(self, node: str) -> str:
        """Return the id of the node, this one or a linked one, whose name or id is ``node``.

        Raises:
            InvalidRequest: there is none (code ``unknown_node``), or several have that name (``ambiguous_node``).
        """
        with self._lock:
            names = {self._me.node: self._me.name, **{link.node: link.name for link in self.up.values()}}
        if node in names:
            return node
        found = [at for at, name in names.items() if name == node]
        if len(found) > 1:
            raise InvalidRequest(
                f"several nodes are called {node!r:.80}: give the id instead, {' or '.join(sorted(found))}; "
                "`openoutcry status` shows which is which",
                code="ambiguous_node",
            )
        if not found:
            listed = ", ".join(sorted([name for at, name in names.items() if at != self._me.node])) or "none"
            raise InvalidRequest(
                f"no node {node!r:.80} is linked to this one; there are: {listed}", code="unknown_node"
            )
        return found[0]

    def dead(self) -> list[str]:
        """Return the ids of the nodes whose PeerActor has failed and does not run."""
        with self._lock:
            return [node for node, peer in self.peers.items() if not peer.is_alive()]

    def clocks(self) -> Clocks:
        """Return this machine's clock among those of the linked nodes, measured a moment ago."""
        now_ns = uptime_ns()
        with self._lock:
            if now_ns - self._judged_ns < JUDGE_NS:
                return self._clocks
            self._judged_ns = now_ns
            meters = {node: found.clock for node in self.up if (found := self._meters.get(node)) is not None}
            meters[STORE] = self._store_clock
            ours_ns = time.time_ns() - now_ns
            ahead = {node: each for node, meter in meters.items() if (each := meter.ahead(now_ns)) is not None}
            offsets = {node: Offset(each.offset_ns - ours_ns, each.error_ns) for node, each in ahead.items()}
            before = self._clocks
            # It counts as right again only well within the bound: no flapping at the bound.
            bound_ns = self._clock_bound_ns * 3 // 4 if before.off else self._clock_bound_ns
            self._clocks = judge(offsets, bound_ns, ours_ns)
            names = dict(self._names)
        if self._clocks.off != before.off:
            apart = {names.get(node, node): round(each.offset_ns / 1e9, 3) for node, each in offsets.items()}
            log = logger.error if self._clocks.off else logger.info
            log("clock_off" if self._clocks.off else "clock_right", node=self._me.node, peers_ahead_s=apart)
        return self._clocks

    # -- notices ------------------------------------------------------------------------------------------------

    def listen(self, ref: pykka.ActorRef[Any]) -> None:
        """Send PeerUp, PeerDown and PeerGone to an actor from now on, and PeerUp now for each link that is up."""
        with self._lock:
            self._listeners.append(ref)
            for link in self.up.values():
                tell(ref, link)

    def ignore(self, ref: pykka.ActorRef[Any]) -> None:
        """Stop notifying an actor."""
        with self._lock:
            self._listeners = [listener for listener in self._listeners if listener is not ref]

    def tell_all(self, message: PeerUp | PeerDown | PeerGone) -> None:
        """Note a change of a link, and notify the listeners."""
        with self._lock:
            if isinstance(message, PeerUp):
                self.up[message.node] = message
            elif isinstance(message, PeerDown):
                self.up.pop(message.node, None)
            listeners = list(self._listeners)
        for ref in listeners:
            tell(ref, message)
        if isinstance(message, PeerUp):
            self._remote.link_up(message)
        elif isinstance(message, PeerDown):
            self._remote.link_down(message.node)

    # -- frames, on the reader's thread ---------------------------------------------------------------------------

    def receive(self, pipe_id: int, frame: bytes, supervisor: pykka.ActorRef[Any]) -> None:
        """Handle one received frame.

        Raises:
            ProtocolError: this frame is not allowed over this connection.
        """
        message = self._codec.decode(frame)
        if isinstance(message, Hello):
            self._introduce(pipe_id, message)
            self._at[message.node] = message.address
            if (meters := self._meters.get(message.node)) is not None:
                meters.received_s = time.monotonic()
                _compare_clocks(message, meters)
            peer = self.peers.get(message.node)
            tell(peer if peer is not None and peer.is_alive() else supervisor, HelloReceived(message, pipe_id))
            return
        if isinstance(message, Credentials):
            self._certify(pipe_id, message)
            return
        sender = self.pipes.get(pipe_id)
        if sender is None:
            raise ProtocolError("a frame before the hello")
        if (meters := self._meters.get(sender)) is not None:
            meters.received_s = time.monotonic()
            meters.frames_in += 1
            meters.bytes_in += len(frame)
        self._hand_on(sender, message)

    def _certify(self, pipe_id: int, credentials: Credentials) -> None:
        """Note the certificate that belongs to a pipe."""
        if self._identity is None:
            raise ProtocolError("a certificate, where nodes have no identities")
        if pipe_id in self._credentials:
            raise ProtocolError("a second certificate")  # checking a certificate takes long compared with other frames
        member = self._identity.verified(credentials.certificate)
        if member.name != self._certified(pipe_id):
            raise ProtocolError(f"the certificate of {member.name} over a link of another", code=CERTIFICATE_REFUSED)
        self._credentials[pipe_id] = member

    def _introduce(self, pipe_id: int, hello: Hello) -> None:
        """Note which node sends over a pipe: it must be another node, of the same exchange."""
        member = self._credentials.get(pipe_id)
        if self._identity is not None:
            if member is None:
                raise ProtocolError("a hello before the certificate")
            if not hello.name == name_of(hello.node) == member.name:
                raise ProtocolError(
                    f"{hello.node} says hello with the certificate of {member.name}", code=CERTIFICATE_REFUSED
                )
        if hello.node == self._me.node:
            if hello.address == self._me.address and hello.to != self._me.node:
                raise ProtocolError(f"this node has dialled itself: {hello.to} is announced at an address of both")
            raise ProtocolError(
                f"{hello.name} at {hello.address} has the id of this node: was its data directory copied from here?",
                code="own_node_id",
            )
        if hello.to != self._me.node:
            raise ProtocolError(
                f"{hello.node} at {hello.address} says hello to {hello.to}, which is not this node, {self._me.node}: "
                "it finds the node that is here now by the directory",
                code="other_addressee",
            )
        if hello.node not in self.peers and len(self.peers) >= PEERS_MAX:
            raise ProtocolError(f"{hello.name} is one node too many: {PEERS_MAX} are known", code="too_many_peers")
        if not may_link(hello.coordinator, self._me.coordinator):
            with self._lock:
                if hello.node in self.peers:
                    self._strangers[hello.node] = hello.name
            return  # its PeerActor reports it; such a node may send only hellos here
        if hello.node in self._strangers:
            with self._lock:
                self._strangers.pop(hello.node, None)
        if self.pipes.setdefault(pipe_id, hello.node) != hello.node:
            raise ProtocolError(f"{hello.node} speaks over the connection of {self.pipes[pipe_id]}")
        if member is not None:
            self.members[hello.node] = member

    def pipe_removed(self, pipe_id: int) -> None:
        """Handle the end of a connection to the inbox."""
        self._credentials.pop(pipe_id, None)
        node = self.pipes.pop(pipe_id, None)
        peer = self.peers.get(node) if node is not None else None
        if peer is not None:
            tell(peer, PipeRemoved(pipe_id))
        elif node is not None:
            self.members.pop(node, None)  # there was no room for it, or it was forgotten already

    # -- nodes that come and go, on the supervisor's thread
    # -------------------------------------------------------------

    def found(self, found: PeerFound, supervisor: Supervisor) -> None:
        """A node is in the directory."""
        if self._identity is not None and found.name != name_of(found.node):
            logger.error("name_refused", node=self._me.node, peer=found.node, peer_name=found.name)
            return
        self._announced.add(found.node)
        (self._joining_all.add if found.joins_all else self._joining_all.discard)(found.node)
        if (peer := self._meet(found, supervisor)) is not None:
            with self._lock:
                if found.node not in self.up:
                    self._at[found.node] = found.address
            tell(peer, found)

    def discovery_begins(self) -> None:
        """The directory is read again from its beginning: nodes that are not found again have left."""
        self._announced.clear()

    def lost(self, node: str, supervisor: Supervisor) -> None:
        """A node has left the directory."""
        self._announced.discard(node)
        self._forget(node, supervisor)

    def greeted(self, message: HelloReceived, supervisor: Supervisor) -> None:
        """A node without a PeerActor has said hello."""
        hello = message.hello
        peer = self._meet(PeerFound(hello.node, hello.name, hello.address), supervisor)
        if peer is not None:
            tell(peer, message)

    def given_up(self, node: str) -> None:
        """A PeerActor has failed too often and was given up."""
        with self._lock:
            self.peers.pop(node, None)

    def forget_absent(self, supervisor: Supervisor) -> None:
        """Forget nodes that were neither announced nor linked for long: nodes come and go, most under new ids.

        Forget at once, announced or not, an unlinked node at whose address another node is linked now: it was replaced,
        such as by a node that came back there with an empty disk. If it says hello, it is known again.
        """
        self.clocks()  # this reports a clock that is off, even if nobody else asks
        now_s = time.monotonic()
        with self._lock:
            taken = {self._at.get(node) for node in self.up}
            replaced = [node for node in self.peers if node not in self.up and self._at.get(node) in taken]
        for node in replaced:
            logger.info("peer_replaced", node=self._me.node, peer=node, address=self._at.get(node))
            self._forget(node, supervisor)
        with self._lock:
            absent = set(self.peers) - set(self.up) - self._announced
        self._absent_since_s = {node: self._absent_since_s.get(node, now_s) for node in absent}
        for node, since_s in self._absent_since_s.items():
            if now_s - since_s > ABSENT_S_MAX:
                self._forget(node, supervisor)

    def _meet(self, found: PeerFound, supervisor: Supervisor) -> pykka.ActorRef[PeerActor] | None:
        """Return the PeerActor of a node that was found or said hello; create it if there is none.

        None if the node may not have one, or if it has failed and waits for its restart.
        """
        with self._lock:
            if self._closed or found.node == self._me.node:
                return None
            peer = self.peers.get(found.node)
            if peer is None and len(self.peers) >= PEERS_MAX:
                logger.error(
                    "peer_refused", node=self._me.node, peer=found.node, address=found.address, known=PEERS_MAX
                )
                return None
            if peer is None:
                start = self._counting_restarts("PeerActor", lambda: self._make_peer(found))
                try:
                    supervisor.supervise(LINK_OF + found.node, start, _POLICY)
                except Closed:
                    return None  # the node ends
            peer = self.peers[found.node]
            return peer if peer.is_alive() else None

    def _make_peer(self, found: PeerFound) -> pykka.ActorRef[PeerActor]:
        peer = PeerActor.start(
            me=self._me,
            node=found.node,
            name=found.name,
            address=found.address,
            tell_all=self.tell_all,
            report=self._report,
            meters=self._meters.setdefault(found.node, LinkMeters()),
            identity=self._identity,
        )
        with self._lock:
            self.peers[found.node] = peer
            self._names[found.node] = found.name
            self._at[found.node] = found.address
        return peer

    def _forget(self, node: str, supervisor: Supervisor) -> None:
        """End a PeerActor unless the link lives on without the directory."""
        with self._lock:
            if node in self.up:
                return
            self.peers.pop(node, None)
            self._names.pop(node, None)
            self._at.pop(node, None)
            self._meters.pop(node, None)
            self._strangers.pop(node, None)
            self.members.pop(node, None)
        self._remote.forget(node)
        supervisor.release(LINK_OF + node)

    def close(self) -> None:
        """Make no new links, and end the existing ones."""
        with self._lock:
            self._closed = True
            peers = list(self.peers.values())
        for peer in peers:
            stop_and_join(peer, timeout_s=5)


def _compare_clocks(hello: Hello, meters: LinkMeters) -> None:
    """Note what a hello says about its sender's clock."""
    now_ns = uptime_ns()
    if hello.pong_ns:
        meters.clock.measured(hello.wall_ns, round_trip_ns=now_ns - hello.pong_ns - hello.held_ns, now_ns=now_ns)
    meters.ping = hello.ping_ns, now_ns
