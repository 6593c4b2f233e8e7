"""Remote actors: a node serves an actor under a name; actors elsewhere tell it, ask it and watch it.

What holds between two nodes:

1. Messages of one sender (a thread, an actor) to one actor are handled in the order in which they were sent.
2. Each is delivered at most once. None is lost while both the link and the actor live. When the link ends, messages on
   their way are lost, and those who watch the actor receive ``Terminated``.
3. Nothing is unbounded: a node may have :data:`~.link.WINDOW_SIZE` bytes on their way to one actor, those in
   its mailbox included (a message counts its size and :data:`~.link.MESSAGE_OVERHEAD`). Beyond, a sender waits,
   then gets Overloaded; a node that exceeds its share anyway loses the link.
4. A message has a type that the actor accepts, and passes that type's checks on both sides; nothing is unpickled.

One life of a link carries :class:`~.wire.Parcel` frames of items: items that queue up while one frame is written travel
in the next. The first item to an actor in a life of the link also watches that actor. The end of the link ends all
remote actors that were reached over it.

========================================  ==========================================================================
item                                      meaning
========================================  ==========================================================================
``TELL  actor, type, body``               a message
``ASK   actor, type, body, request``      a message that needs an answer
``REPLY request, code, type, body``       the answer; with a code the body is the text of an error
``FIND  request, name``                   which actor is served under that name? Answered by FOUND, or REPLY with a code
``FOUND request, actor, name, accepted``  this one, and these are the keys and signatures of what it accepts
``WATCH actor``                           notify me when the actor ends
``GONE  actor, reason, detail``           the actor has ended, or is no longer served
``CREDIT actor, bytes``                   the actor has taken this many bytes of your messages
========================================  ==========================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, cast

import pykka

from ...transport.codec import NAME_LENGTH_MAX
from ...transport.errors import (
    Closed,
    ConfigurationError,
    InvalidRequest,
    OpenOutcryError,
    ProtocolError,
    RequestTimeout,
    Unavailable,
    UnknownActor,
    Unreachable,
    quoted,
)
from ...transport.forks import guard
from ...transport.log import get_logger
from ...transport.plain import fault_of
from ..kit.actor import Mailbox, tell_always
from ..kit.node_actor import TICK, ActorFailed, NodeActor, stop_and_join
from ..peers.messages import PeerUp
from .link import (
    ASKS_MAX,
    MESSAGE_OVERHEAD,
    OUTBOX_SIZE_MAX,
    WINDOW_SIZE,
    RemoteLink,
    Served,
    add_living,
    reason_of,
    size_of,
    tell_end,
)
from .refs import RemoteRef, Terminated
from .schema import type_of
from .wire import Parcel

logger = get_logger(__name__)

SERVED_MAX: Final = 400
"""Most actors that one node serves: each is announced in the directory."""
EARLY_SIZE_MAX: Final = 8 * 1024 * 1024
"""Most bytes of parcels that wait for this side of a link to come up, counted like messages."""
POLL_MS: Final = 50
"""Milliseconds until the end of an actor that is not an :class:`~..kit.actor.Actor` is noticed."""
SERVICE_PREFIX: Final = "actor/"
"""An actor is announced in the directory as the service ``actor/NAME``."""
DRAIN_S_MAX: Final = 1.0
"""Seconds that a closing node waits for others to read the last messages of its actors."""


class _LocalWatch:
    """An actor of this process that another one in it watches."""

    __slots__ = ("_actors", "_watcher", "ref")

    def __init__(self, actors: RemoteActors, ref: pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        self._actors = actors
        self.ref = ref
        self._watcher = watcher

    def ended(self, error: BaseException | None) -> None:
        """Notify the watcher, on the thread of the actor that has ended."""
        if self._actors.take_watch(self):
            tell_end(self._watcher, Terminated(self.ref, *reason_of(error)))


@dataclasses.dataclass(frozen=True, slots=True)
class _Off:
    """To the watchman: do not call ``ended`` any more."""

    urn: str
    ended: Callable[[BaseException | None], None]


@dataclasses.dataclass(slots=True)
class _Early:
    """Parcels of a life of a link that this side does not yet know about."""

    session: int
    size: int = 0
    """In bytes, see :data:`EARLY_SIZE_MAX`."""
    parcels: list[Parcel] = dataclasses.field(default_factory=list)


class _Watchman(NodeActor):
    """Notices the end of actors that do not report it themselves. Started with the first of them."""

    tick_ms: ClassVar[int] = POLL_MS

    def __init__(self, report: Callable[[ActorFailed], None]) -> None:
        super().__init__(report=report)
        self._watched: dict[str, tuple[pykka.ActorRef[Any], list[Callable[[BaseException | None], None]]]] = {}

    def on_receive(self, message: Any) -> None:
        if message is TICK:
            for urn in [urn for urn, (ref, _) in self._watched.items() if not ref.is_alive()]:
                for ended in self._watched.pop(urn)[1]:
                    ended(None)
        elif isinstance(message, _Off):
            _, waiting = self._watched.get(message.urn, (None, []))
            with contextlib.suppress(ValueError):
                waiting.remove(message.ended)
            if not waiting:
                self._watched.pop(message.urn, None)
        else:
            ref, ended = message
            self._watched.setdefault(ref.actor_urn, (ref, []))[1].append(ended)


class RemoteActors:
    """What one node serves to others, and its links to theirs. All methods may be called from any thread."""

    def __init__(
        self,
        node: str,
        name: str,
        *,
        timeout_s: Callable[[float | None], float],
        announce: Callable[[str, bool], None],
        report: Callable[[ActorFailed], None],
    ) -> None:
        """``timeout_s`` checks a timeout and fills in the default; ``announce(service, whether)`` must not block."""
        self.node = node
        self.name = name
        guard(self)
        self.seconds = timeout_s
        self.refused = 0
        """Messages from other nodes with an unknown type, or that did not fit it, since the start."""
        self._announce = announce
        self._report = report
        self._lock = threading.Condition()
        """Innermost lock: links may hold their locks when they call here, so call no link while holding this one."""
        self._receiving = threading.Lock()
        self._actor_ids = itertools.count(time.time_ns())  # never those of an earlier life of this node
        self._names: dict[str, Served] = {}
        self._served: dict[int, Served] = {}
        self._own = RemoteLink(self, None, node, name)
        self._links: dict[str, RemoteLink] = {node: self._own}
        self._early: dict[str, _Early] = {}
        self._local_watches: dict[str, list[tuple[_LocalWatch, pykka.ActorRef[Any]]]] = {}
        self._watchman: pykka.ActorRef[_Watchman] | None = None
        self._closed = False

    # Serving.

    def queues(self) -> dict[str, tuple[int, int]]:
        """Return the fullest queue of each kind over all links, with its bound: bytes, asks and bytes."""
        with self._lock:
            links = list(self._links.values()) or [self._own]
        depths = [link.depths() for link in links]
        outbox, asks, window = [max(found) for found in zip(*depths, strict=True)]
        return {
            "remote_outbox_bytes": (outbox, OUTBOX_SIZE_MAX),
            "remote_asks": (asks, ASKS_MAX),
            "remote_window_bytes": (window, WINDOW_SIZE),
        }

    def register(self, name: str, ref: pykka.ActorRef[Any], accepts: Iterable[type]) -> None:
        """See ``ExchangeNode.register``."""
        _checked_name(name)
        _checked_ref(ref, "an actor to register")
        if isinstance(accepts, type) or not isinstance(accepts, Iterable):
            raise InvalidRequest(f"accepts is a list of message classes, not {quoted(accepts, 80)}")
        kinds = {(kind := type_of(accepted)).key: kind for accepted in accepts}
        with self._lock:
            self._check_open()
            old = self._names.get(name)
            if old is not None and old.ref.is_alive():
                raise ConfigurationError(f"{name!r} is registered already: {old.ref}", code="actor_registered")
            if len(self._served) >= SERVED_MAX:
                raise ConfigurationError(f"{SERVED_MAX} actors are registered already")
            served = Served(name, next(self._actor_ids), ref, kinds)
            self._names[name] = self._served[served.actor_id] = served
            self._announce(SERVICE_PREFIX + name, True)
        served.retire = lambda error: self._retire(served, *reason_of(error))
        self._on_end(ref, served.retire)

    def unregister(self, name: str) -> bool:
        """See ``ExchangeNode.unregister``."""
        _checked_name(name)
        with self._lock:
            served = self._names.get(name)
        if served is not None:
            self._retire(served, "unregistered", "")
        return served is not None

    def _retire(self, served: Served, reason: str, detail: str) -> None:
        with self._lock:
            if self._served.pop(served.actor_id, None) is None:
                return
            if self._names.get(served.name) is served:
                del self._names[served.name]
                if not self._closed:
                    self._announce(SERVICE_PREFIX + served.name, False)
            served.ended = (reason, detail)
            watching, served.watching = served.watching, set()
        self._off_end(served.ref, served.retire)
        for link in watching:
            link.gone(served, reason, detail)

    @property
    def names(self) -> list[str]:
        """The names under which actors are served."""
        with self._lock:
            return sorted(self._names)

    def served(self, actor: int) -> Served | None:
        """Return the actor of that id if it is served."""
        return self._served.get(actor)

    def named(self, name: str, link: RemoteLink) -> Served | None:
        """Return the actor served under ``name``, and notify ``link`` of its end."""
        with self._lock:
            served = self._names.get(name)
            if served is None or not served.ref.is_alive():
                return None
            served.watching.add(link)
            return served

    def watched(self, actor: int, link: RemoteLink) -> None:
        """Notify ``link`` when the actor ends, or now if it is not served."""
        with self._lock:
            served = self._served.get(actor)
            if served is not None:
                served.watching.add(link)
                return
        link.gone(Served("", actor, cast("Any", None), {}), "stopped", "")

    # Reaching others.

    def find(self, address: str, timeout_s: float, lookup: Callable[[str, float], Iterable[str]]) -> RemoteRef:
        """Return the actor at ``name@node``, or, for a bare name, one that ``lookup(service, seconds)`` finds.

        Of the nodes found, linked ones come first; each gets an equal share of the remaining time.
        """
        name, at, node = address.partition("@") if isinstance(address, str) else (address, "", "")
        _checked_name(name)
        deadline_s = time.monotonic() + timeout_s
        if at:
            return self._find_at(name, self._link(node, deadline_s), deadline_s)
        if name in self._names:
            return self._find_at(name, self._own, deadline_s)
        last: OpenOutcryError = UnknownActor(f"no node of the directory has registered an actor {name!r}")
        nodes = lookup(SERVICE_PREFIX + name, max(0.0, deadline_s - time.monotonic()))
        nodes = sorted(nodes, key=lambda node: node not in self._links)
        for tried, node in enumerate(nodes):
            now_s = time.monotonic()
            share_s = now_s + (deadline_s - now_s) / (len(nodes) - tried)
            try:
                return self._find_at(name, self._link(node, share_s), share_s)
            except (Unreachable, UnknownActor, RequestTimeout) as error:
                last = error  # it is announced there, but has ended, or cannot be reached from here
        raise last

    def wait(self, address: str, timeout_s: float, lookup: Callable[[str, float], Iterable[str]]) -> RemoteRef:
        """Return the actor as :meth:`find` does, once it is there; after ``timeout_s`` raise the last error."""
        deadline_s = time.monotonic() + timeout_s
        last: Unavailable | None = None
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            try:
                return self.find(address, min(left_s, 1.0), lookup)
            except RequestTimeout as error:
                last = last or error  # the other errors say more
            except Unavailable as error:
                last = error
            if time.monotonic() >= deadline_s:
                raise last
            time.sleep(0.005)

    def _find_at(self, name: str, link: RemoteLink, deadline_s: float) -> RemoteRef:
        found = link.find(name, max(0.0, deadline_s - time.monotonic())).get()
        return cast("RemoteRef", found)

    def _link(self, node: str, deadline_s: float) -> RemoteLink:
        """Return the link to a node, given by its id or its name, as soon as it is up."""

        def known() -> list[RemoteLink]:
            if self._closed:
                raise Closed(f"node {self.name} is closed")
            exact = self._links.get(node)
            return [exact] if exact is not None else [link for link in self._links.values() if link.name == node]

        with self._lock:
            self._lock.wait_for(known, max(0.0, deadline_s - time.monotonic()))
            found = known()
            names = ", ".join(sorted([link.name for link in self._links.values()]))
        if not found:
            raise Unreachable(f"node {self.name} has no link to a node {node!r:.80}; it has links to: {names}")
        if len(found) > 1:
            ids = ", ".join(sorted([link.node for link in found]))
            raise InvalidRequest(f"{len(found)} nodes are called {node!r}; say which: {ids}", code="ambiguous_node")
        return found[0]

    def link_to(self, ref: RemoteRef) -> RemoteLink:
        """Return the link over which ``ref`` is reached.

        Raises:
            Unreachable: there is none.
        """
        link = self._links.get(ref.node)
        if link is None:
            self._check_open()
            raise Unreachable(f"{ref!r}: there is no link to its node now")
        return link

    def watch(self, ref: RemoteRef | pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        """See ``ExchangeNode.watch``."""
        _checked_ref(watcher, "a watcher")
        if isinstance(ref, RemoteRef):
            try:
                link = self.link_to(ref)
            except OpenOutcryError as error:
                tell_end(watcher, Terminated(ref, "unreachable", error.message))
            else:
                link.watch(ref, watcher)
            return
        _checked_ref(ref, "an actor to watch")
        watch = _LocalWatch(self, ref, watcher)
        with self._lock:
            entries = self._local_watches.setdefault(ref.actor_urn, [])
            dropped = add_living(entries, (watch, watcher))
        for old, _ in dropped:
            self._off_end(ref, old.ended)
        self._on_end(ref, watch.ended)

    def unwatch(self, ref: RemoteRef | pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        """See ``ExchangeNode.unwatch``."""
        _checked_ref(watcher, "a watcher")
        if isinstance(ref, RemoteRef):
            link = self._links.get(ref.node)
            if link is not None:
                link.unwatch(ref, watcher)
        else:
            _checked_ref(ref, "an actor that is watched")
            with self._lock:
                entries = self._local_watches.get(ref.actor_urn, [])
                mine = [watch for watch, told in entries if told.actor_urn == watcher.actor_urn]
            for watch in mine:
                if self.take_watch(watch):
                    self._off_end(ref, watch.ended)

    def take_watch(self, watch: _LocalWatch) -> bool:
        """Remove a local watch; return whether it still existed, so that the watcher is notified once."""
        with self._lock:
            urn = watch.ref.actor_urn
            before = self._local_watches.get(urn, [])
            after = [entry for entry in before if entry[0] is not watch]
            if after:
                self._local_watches[urn] = after
            else:
                self._local_watches.pop(urn, None)
            return len(after) < len(before)

    def _on_end(self, ref: pykka.ActorRef[Any], ended: Callable[[BaseException | None], None]) -> None:
        inbox = ref.actor_inbox
        if isinstance(inbox, Mailbox):
            inbox.on_end(ended)
            return
        with self._lock:
            self._check_open()
            if self._watchman is None:
                self._watchman = cast("Any", _Watchman.start(self._report))
            watchman = self._watchman
        tell_always(watchman, (ref, ended))

    def _off_end(self, ref: pykka.ActorRef[Any], ended: Callable[[BaseException | None], None]) -> None:
        inbox = ref.actor_inbox
        if isinstance(inbox, Mailbox):
            inbox.off_end(ended)
        elif self._watchman is not None:
            tell_always(self._watchman, _Off(ref.actor_urn, ended))

    # Links.

    def link_up(self, up: PeerUp) -> None:
        """A link has come up; on its PeerActor's thread."""
        with self._receiving:
            link = RemoteLink(self, up, up.node, up.name)
            with self._lock:
                if self._closed:
                    return
                self._links[up.node] = link
                self._lock.notify_all()
            early = self._early.pop(up.node, None)
            if early is not None and early.session == up.link.their_session:
                try:
                    for parcel in early.parcels:
                        link.receive(parcel.items)
                except ProtocolError as error:  # ends the link, as later, but not the PeerActor
                    up.link.reset(error.message)

    def link_down(self, node: str) -> None:
        """A link has ended; on its PeerActor's thread."""
        with self._receiving, self._lock:
            link = self._links.pop(node, None)
            for served in self._served.values():
                served.watching.discard(cast("RemoteLink", link))
        if link is not None:
            link.close(Unreachable(f"the link to node {link.name} has ended; what was under way to it may be lost"))

    def receive(self, node: str, parcel: Parcel) -> None:
        """A frame has come; on the inbox's reader thread."""
        with self._receiving:
            link = self._links.get(node)
            if link is not None and link.accepts_parcels_of(parcel.session):
                link.receive(parcel.items)
                return
            # It belongs to a life that has ended, or to one that this side does not know yet: its hello is on the way.
            early = self._early.get(node)
            if early is None or early.session != parcel.session:
                early = self._early[node] = _Early(parcel.session)
            early.size += MESSAGE_OVERHEAD + sum([size_of(item) for item in parcel.items])
            if early.size > EARLY_SIZE_MAX:
                del self._early[node]
                raise ProtocolError(f"more than {EARLY_SIZE_MAX} bytes before the link is up")
            early.parcels.append(parcel)

    def forget(self, node: str) -> None:
        """A node was forgotten."""
        with self._receiving:
            self._early.pop(node, None)

    def close(self) -> None:
        """End all links after sending what was told before; the served actors live on. Idempotent."""
        deadline_s = time.monotonic() + DRAIN_S_MAX
        with self._lock:
            used = [link for link in self._links.values() if link.used and not self._closed]
        for link in used:
            link.drain(deadline_s)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
            self._lock.notify_all()
            watchman = self._watchman
        for link in links:
            link.close(Closed(f"node {self.name} is closed"))
        if watchman is not None:
            stop_and_join(watchman, timeout_s=5)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"node {self.name} is closed")


def ended_by(ref: pykka.ActorRef[Any], timeout_s: float) -> Terminated:
    """Return how a stopped actor of this process ended; waits until its ``on_stop`` is done."""
    found: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    if isinstance(ref.actor_inbox, Mailbox):
        ref.actor_inbox.on_end(found.put)
        with contextlib.suppress(queue.Empty):
            return Terminated(ref, *reason_of(found.get(timeout=timeout_s)))
    return Terminated(ref, "stopped")


def _checked_ref(ref: object, what: str) -> None:
    if not isinstance(ref, pykka.ActorRef):
        raise InvalidRequest(f"{what} is given by its pykka.ActorRef, not {quoted(ref, 80)}", code="invalid_actor_ref")


def _checked_name(name: str) -> None:
    sound = type(name) is str and 1 <= len(name) <= NAME_LENGTH_MAX and "@" not in name
    if not sound or fault_of(name):
        raise InvalidRequest(
            f"an actor's name has 1 to {NAME_LENGTH_MAX} characters that can be seen, none of them '@', not "
            f"{quoted(name, 80)}{f': {fault_of(name)}' if sound else ''}",
            code="invalid_actor_name",
        )
