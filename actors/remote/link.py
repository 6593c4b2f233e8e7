"""One life of the link between the actors of two nodes: windows, asks, watches, and the parcels that carry them.

:mod:`.actors` describes its guarantees and the items that travel.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

import pykka
from pykka._envelope import Envelope

from ...transport.errors import (
    ActorStopped,
    InvalidRequest,
    MessageRefused,
    OpenOutcryError,
    Overloaded,
    ProtocolError,
    RemoteFailure,
    RequestTimeout,
    UnknownActor,
    Unreachable,
    copied,
    present,
    text_of,
)
from ...transport.log import get_logger
from ..kit.actor import put_always, tell_always
from ..peers.messages import PeerUp
from .refs import EndReason, Reaches, RemoteFuture, RemoteRef, Terminated
from .schema import MessageType, decode_value, encode_value
from .wire import ASK, CREDIT, FIND, FOUND, GONE, PARCEL_CODEC, REPLY, TELL, WATCH, Parcel

logger = get_logger(__name__)

WINDOW_SIZE: Final = 1024 * 1024
"""Most bytes that one node may have on their way to one actor of another; then its senders wait."""
MESSAGE_OVERHEAD: Final = 256
"""Bytes that each message counts beyond its size: small ones cost memory too."""
PARCEL_SIZE: Final = 64 * 1024
"""Most bytes of one frame, give or take one message, so that later messages do not wait long."""
OUTBOX_SIZE_MAX: Final = 16 * 1024 * 1024
"""Most bytes of answers that wait for a slow link; a further answer is replaced by the error Overloaded.

A node that keeps asking, and does not even read twice as much, loses the link.
"""
ASKS_MAX: Final = 65_536
"""Most unanswered asks from one node to another; a further ask waits, then gets Overloaded."""
GONE_MAX: Final = 4096
"""Most ended actors of a node that are remembered."""
_TEXT_MAX: Final = 500
_ANSWERS: Final = (REPLY, FOUND, GONE)
"""Kinds of items that the other side causes; messages of this side's own senders have their windows."""
_REASONS: Final = ("stopped", "failed", "unregistered")
Item = tuple[Any, ...]


# -- what is served here --------------------------------------------------------------------------------------------


class Served:
    """An actor of this node that others can reach."""

    __slots__ = ("accepts", "actor_id", "ended", "name", "ref", "retire", "watching")

    def __init__(self, name: str, actor_id: int, ref: pykka.ActorRef[Any], accepts: dict[str, MessageType]) -> None:
        self.name = name
        self.actor_id = actor_id
        self.ref = ref
        self.accepts = accepts
        self.watching: set[RemoteLink] = set()
        self.ended: tuple[str, str] | None = None
        """Reason and detail once the node no longer serves it."""
        self.retire: Callable[[BaseException | None], None] = lambda _: None
        """Called when the actor ends."""


class _Delivery(Envelope[Any]):
    """An envelope from another node: when the actor takes the message out, its sender's window opens again."""

    __slots__ = ("_cost", "_link", "_message", "_served")

    def __init__(self, message: Any, reply_to: Any, served: Served, link: RemoteLink, cost: int) -> None:
        self._message = message
        self.reply_to = reply_to
        self._served = served
        self._link = link
        self._cost = cost

    @property
    def message(self) -> Any:
        if self._cost:
            cost, self._cost = self._cost, 0
            self._link.credit(self._served.actor_id, cost)
        return self._message


class _Answer(pykka.Future[Any]):
    """Where Pykka puts the answer to a remote ask: on its way, from the actor's own thread."""

    def __init__(self, link: RemoteLink, request: int) -> None:
        self._link = link
        self._request = request

    def set(self, value: Any = None) -> None:
        try:
            key, body = encode_value(value)
        except OpenOutcryError as error:
            self._link.refuse(self._request, "reply_refused", error.message)
        else:
            self._link.reply((REPLY, self._request, "", key, body))

    def set_exception(self, exc_info: Any = None) -> None:
        error = (exc_info or sys.exc_info())[1]
        if isinstance(error, pykka.ActorDeadError):
            self._link.refuse(
                self._request, ActorStopped.default_code, "the actor stopped before it handled the message"
            )
        elif isinstance(error, OpenOutcryError):
            self._link.refuse(self._request, error.code, error.message)
        else:
            self._link.refuse(self._request, RemoteFailure.default_code, text_of(error))


# -- one life of a link ---------------------------------------------------------------------------------------------


class _Actors(Reaches, Protocol):
    """What a link needs of its node's :class:`~.actors.RemoteActors`."""

    name: str
    refused: int

    @property
    def names(self) -> list[str]:
        """The names under which actors are served."""

    def served(self, actor: int) -> Served | None:
        """Return the actor of that id if it is served."""

    def named(self, name: str, link: RemoteLink) -> Served | None:
        """Return the actor that is served under ``name``, and tell ``link`` of its end."""

    def watched(self, actor: int, link: RemoteLink) -> None:
        """Tell ``link`` of the actor's end, now if it is not served."""


class RemoteLink:
    """One life of the link to a node: items to be sent, callers that wait for answers, and windows."""

    def __init__(self, actors: _Actors, up: PeerUp | None, node: str, name: str) -> None:
        """``up`` None: the link of a node to itself."""
        self._actors = actors
        self._link = None if up is None else up.link
        self.node = node
        self.name = name
        self._changed = threading.Condition()
        self._closed: OpenOutcryError | None = None
        self._waiting: collections.deque[Item] = collections.deque()
        self._waiting_size = self._answers_size = 0
        self._scheduled = False
        self._requests = itertools.count(1)
        self._asks: dict[int, tuple[RemoteFuture, int | str]] = {}
        """The caller that waits for an answer, and its request: an ask of an actor, or a search for a name."""
        self._sweep_at = 1024
        self._under_way: dict[int, int] = {}
        self._gone: dict[int, tuple[EndReason, str]] = {}
        self._watchers: dict[int, list[tuple[RemoteRef, pykka.ActorRef[Any]]]] = {}
        self._received: dict[int, int] = {}
        """Bytes of messages received for each actor. Only the receiving thread changes it: it needs no lock."""
        self._taken_out: dict[int, int] = {}
        """How many of these bytes the actor has taken from its mailbox.

        The sender counts at least the rest as in flight.
        """
        self._owed: dict[int, int] = {}

    # What this node's senders do.

    def send(self, ref: RemoteRef, item: Item, timeout_s: float) -> None:
        """Add a TELL once the window allows it."""
        cost = len(item[3]) + MESSAGE_OVERHEAD
        with self._changed:
            self._enter(ref, cost, timeout_s)
            self._under_way[ref.actor_id] += cost
            self._put(item)

    def ask(self, ref: RemoteRef, key: str, body: bytes, timeout_s: float) -> RemoteFuture:
        """Add an ASK once the window allows it."""
        deadline_s = time.monotonic() + timeout_s
        cost = len(body) + MESSAGE_OVERHEAD
        with self._changed:
            self._enter(ref, cost, timeout_s)
            future, request = self._expect(ref.actor_id, timeout_s, deadline_s, repr(ref))
            self._under_way[ref.actor_id] += cost  # only now nothing can refuse it any more
            self._put((ASK, ref.actor_id, key, body, request), at_once=True)
        return future

    def find(self, name: str, timeout_s: float) -> RemoteFuture:
        """Ask which actor is served under ``name``; the answer is a :class:`RemoteRef`."""
        with self._changed:
            self._check_open()
            future, request = self._expect(name, timeout_s, time.monotonic() + timeout_s, f"node {self.name}")
            self._put((FIND, request, name), at_once=True)
        return future

    def watch(self, ref: RemoteRef, watcher: pykka.ActorRef[Any]) -> None:
        """Notify ``watcher`` when ``ref`` ends, or now if it is known to have ended."""
        with self._changed:
            if self._closed is None and ref.actor_id not in self._gone:
                self._follow(ref.actor_id)
                add_living(self._watchers[ref.actor_id], (ref, watcher))
                return
            reason, detail = self._gone.get(ref.actor_id, ("unreachable", str(self._closed)))
        tell_end(watcher, Terminated(ref, reason, detail))

    def unwatch(self, ref: RemoteRef, watcher: pykka.ActorRef[Any]) -> None:
        """Undo a :meth:`watch`."""
        with self._changed:
            watchers = self._watchers.get(ref.actor_id, [])
            watchers[:] = [entry for entry in watchers if entry[1].actor_urn != watcher.actor_urn]

    @property
    def used(self) -> bool:
        """Whether this side has told, asked or watched an actor of the other side."""
        return bool(self._watchers)

    def depths(self) -> tuple[int, int, int]:
        """Return the bytes that wait to be sent, the number of unanswered asks, and the bytes of the fullest window."""
        with self._changed:
            return self._waiting_size, len(self._asks), max(self._under_way.values(), default=0)

    def drain(self, deadline_s: float) -> None:
        """Wait until the other side has read everything sent before, since nng's sockets do not linger."""
        with contextlib.suppress(OpenOutcryError):
            self.find("-", max(0.0, deadline_s - time.monotonic())).get()

    def _enter(self, ref: RemoteRef, cost: int, timeout_s: float) -> None:
        """Wait until the window has room for ``cost`` bytes."""
        actor = ref.actor_id

        def decided() -> bool:
            return (
                self._closed is not None or actor in self._gone or self._under_way.get(actor, 0) + cost <= WINDOW_SIZE
            )

        if not decided() and not (timeout_s and self._changed.wait_for(decided, timeout_s)):
            raise Overloaded(
                f"{ref!r} does not keep up: {self._under_way[actor]} bytes of this node's messages wait for it; this "
                "one was not sent",
                code="window_full",
            )
        self._check_open()
        if actor in self._gone:
            reason, detail = self._gone[actor]
            raise ActorStopped(f"{ref!r} can no longer be reached: {reason}{': ' if detail else ''}{detail}")
        self._follow(actor)

    def _follow(self, actor: int) -> None:
        """Watch the actor for this life of the link."""
        if actor not in self._watchers:
            self._watchers[actor] = []
            self._under_way[actor] = 0
            self._put((WATCH, actor))

    def _expect(self, asked: int | str, timeout_s: float, deadline_s: float, what: str) -> tuple[RemoteFuture, int]:
        if len(self._asks) >= self._sweep_at:
            now_s = time.monotonic()
            self._asks = {n: ask for n, ask in self._asks.items() if ask[0].deadline_s > now_s}
            self._sweep_at = min(max(1024, 2 * len(self._asks)), ASKS_MAX)
            if len(self._asks) >= ASKS_MAX:
                raise Overloaded(f"{ASKS_MAX} asks to node {self.name} are unanswered; wait for answers")
        request = next(self._requests)
        future = RemoteFuture(lambda: self._take_ask(request), timeout_s, what, deadline_s=deadline_s)
        self._asks[request] = (future, asked)
        return future, request

    def _take_ask(self, request: int, answers: Callable[[int | str], bool] = lambda _: True) -> RemoteFuture | None:
        """Return the future of an ask that still waits; the caller then settles it.

        Raises:
            ProtocolError: the request is not one that this item answers; the link then ends, which notifies the asker.
        """
        with self._changed:
            found = self._asks.get(request)
            if found is None:
                return None
            future, asked = found
            if not answers(asked):
                what = f"an ask of actor {asked}" if isinstance(asked, int) else f"a search for actor {asked!r}"
                raise ProtocolError(f"an answer that cannot be one to {what}")
            del self._asks[request]
            return future

    def _check_open(self) -> None:
        if self._closed is not None:
            raise copied(self._closed)

    # What this node's actors do.

    def credit(self, actor: int, cost: int) -> None:
        """An actor has taken a message out; notify the sender with the next frame, or when enough bytes add up."""
        with self._changed:
            if actor not in self._received:
                return  # the other side knows of its end
            self._taken_out[actor] = self._taken_out.get(actor, 0) + cost
            self._owed[actor] = owed = self._owed.get(actor, 0) + cost
            if owed >= WINDOW_SIZE // 4:
                self._put_credit()

    def reply(self, item: Item) -> None:
        """Add the answer to an ask."""
        with self._changed:
            if self._answers_size + len(item[4]) > OUTBOX_SIZE_MAX:
                text = f"{self._answers_size} bytes of answers wait for the link already"
                item = (REPLY, item[1], Overloaded.default_code, "", text.encode())
            self._put(item, at_once=True)

    def refuse(self, request: int, code: str, text: str) -> None:
        """Answer an ask with an error."""
        self.reply((REPLY, request, _sendable(code)[:64], "", _sendable(text).encode()))

    def gone(self, served: Served, reason: str, detail: str) -> None:
        """Notify the other side that an actor can no longer be reached."""
        with self._changed:
            for counts in (self._received, self._taken_out, self._owed):
                counts.pop(served.actor_id, None)
            self._put((GONE, served.actor_id, reason, _sendable(detail)))

    # Sending.

    def _put(self, item: Item, *, at_once: bool = False) -> None:
        """Add an item. An item that somebody waits for travels at once; others wait until the link has room."""
        if self._closed is not None:
            return
        self._waiting.append(item)
        self._waiting_size += (size := size_of(item))
        if item[0] in _ANSWERS:
            self._answers_size += size
            bound = 2 * OUTBOX_SIZE_MAX
            if self._link is not None and self._answers_size - size <= bound < self._answers_size:
                self._link.reset(f"{self._answers_size} bytes of answers wait to be taken")
        if self._scheduled:
            return
        if self._link is None:
            self._scheduled = True
            try:
                while self._waiting:
                    self.receive(self._taken())
            finally:  # an exception here costs those items, but not later ones
                self._scheduled = False
        else:
            if at_once and not self._link.busy and (frame := self._encoded(self._gathered())):
                self._link.send(frame)
            self._schedule()  # behind that frame, which it must not overtake

    def _put_credit(self) -> None:
        owed, self._owed = self._owed, {}
        for actor, cost in owed.items():
            self._put((CREDIT, actor, cost))

    def _schedule(self) -> None:
        """Let the link take the waiting items when its turn comes."""
        link = present(self._link, "items are scheduled without a link")
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            link.send_next(self._next_frame)

    def _gathered(self) -> tuple[Item, ...]:
        """Take the next items to send, with the credits that are owed."""
        if self._owed:
            self._scheduled = True  # they wait with the rest
            self._put_credit()
        return self._taken()

    def _taken(self) -> tuple[Item, ...]:
        """Take the first waiting items, about as many as fit into one frame."""
        items, size = [], 0
        while self._waiting and size < PARCEL_SIZE:
            item = self._waiting.popleft()
            items.append(item)
            size += (cost := size_of(item))
            if item[0] in _ANSWERS:
                self._answers_size -= cost
        self._waiting_size -= size
        return tuple(items)

    def _next_frame(self) -> bytes | None:
        """Return the next frame, and make sure that another follows; None if nothing waits."""
        with self._changed:
            items = self._gathered()
            self._schedule()
        return self._encoded(items)

    def _encoded(self, items: tuple[Item, ...]) -> bytes | None:
        """Return the frame of ``items`` without those that cannot be encoded: the link serves others too."""
        link = present(self._link, "items are encoded without a link")
        if not items:
            return None
        try:
            return PARCEL_CODEC.encode(Parcel(link.session, items))
        except ProtocolError as error:
            if len(items) > 1:
                return self._encoded(tuple([item for item in items if self._encoded((item,))]))
            logger.error("item_not_sent", peer=self.name, item=items[0][0], error=error.message)
            return None

    # Receiving.

    def accepts_parcels_of(self, session: int) -> bool:
        """Whether what the peer has sent in its ``session`` belongs to this life."""
        return self._link is not None and self._link.their_session == session

    def receive(self, items: Iterable[Item]) -> None:
        """Handle what the other side has sent, in order; never blocks.

        Raises:
            ProtocolError: an item that makes no sense.
        """
        for item in items:
            kind = item[0]
            if kind == TELL:
                self._deliver(item[1], item[2], item[3], None)
            elif kind == ASK:
                self._deliver(item[1], item[2], item[3], _Answer(self, item[4]))
            elif kind == REPLY:
                self._answer(item)
            elif kind == CREDIT:
                self._credited(item[1], item[2])
            elif kind == WATCH:
                self._actors.watched(item[1], self)
            elif kind == GONE:
                self._ended(item[1], item[2], item[3])
            elif kind == FIND:
                self._find(item[1], item[2])
            else:
                self._found(item)

    def _deliver(self, actor: int, key: str, body: bytes, answer: _Answer | None) -> None:
        cost = len(body) + MESSAGE_OVERHEAD
        served = self._actors.served(actor)
        if served is None:
            if answer is not None:
                answer.set_exception((None, pykka.ActorDeadError(), None))
            return  # a GONE has notified its sender, or is about to
        received = self._received.get(actor, 0) + cost
        if (waiting := received - self._taken_out.get(actor, 0)) > WINDOW_SIZE:
            raise ProtocolError(f"{waiting} bytes wait for actor {served.name!r}; a window has {WINDOW_SIZE}")
        self._received[actor] = received
        kind = served.accepts.get(key)
        try:
            if kind is None:
                raise ProtocolError(f"actor {served.name!r} does not accept {key:.80}")
            message = kind.decode(body)
        except ProtocolError as error:
            # The sender's own checks let it pass: another version of this library, or worse. An asker gets the error.
            logger.warning("message_refused", peer=self.name, actor=served.name, type=key, error=error.message)
            self._actors.refused += 1
            self.credit(actor, cost)
            if answer is not None:
                self.refuse(answer._request, MessageRefused.default_code, error.message)
            return
        try:
            taken = put_always(served.ref, _Delivery(message, answer, served, self, cost))
        except Exception as error:  # from an application's own inbox: it must not affect the other items of the parcel
            logger.exception("inbox_failed", peer=self.name, actor=served.name)
            self.credit(actor, cost)
            if answer is not None:
                self.refuse(answer._request, RemoteFailure.default_code, text_of(error))
            return
        if not taken and answer is not None:
            answer.set_exception((None, pykka.ActorDeadError(), None))

    def _answer(self, item: Item) -> None:
        _, request, code, key, body = item
        future = self._take_ask(request, lambda asked: bool(code) or isinstance(asked, int))
        if future is None:
            return  # the asker has given up
        if code:
            future.set_exception(_as_exc_info(_error_of(code, body.decode(errors="replace"), self.name)))
            return
        try:
            value = decode_value(key, body)
        except ProtocolError as error:
            refused = MessageRefused(f"the answer of node {self.name}: {error.message}", code="reply_refused")
            future.set_exception(_as_exc_info(refused))
        else:
            future.set(value)

    def _credited(self, actor: int, cost: int) -> None:
        with self._changed:
            under_way = self._under_way.get(actor)
            if under_way is None:
                return
            if cost > under_way:
                raise ProtocolError(f"credit for {cost} bytes where {under_way} are under way")
            self._under_way[actor] = under_way - cost
            self._changed.notify_all()

    def _ended(self, actor: int, reason: Any, detail: str) -> None:
        if reason not in _REASONS:
            raise ProtocolError(f"an actor has ended for an unknown reason: {reason!r:.40}")
        with self._changed:
            watchers = self._watchers.pop(actor, None)
            if watchers is None:
                return
            self._under_way.pop(actor, None)
            if len(self._gone) >= GONE_MAX:
                del self._gone[next(iter(self._gone))]
            self._gone[actor] = (reason, detail)
            futures = [self._asks.pop(n)[0] for n, (_, asked) in list(self._asks.items()) if asked == actor]
            self._changed.notify_all()
        error = ActorStopped(f"the actor can no longer be reached: {reason}; whether it handled the message is unknown")
        for future in futures:
            future.set_exception(_as_exc_info(copied(error)))
        for ref, watcher in watchers:
            tell_end(watcher, Terminated(ref, reason, detail))

    def _find(self, request: int, name: str) -> None:
        served = self._actors.named(name, self)
        if served is None:
            known = ", ".join(self._actors.names[:20]) or "none"
            text = f"no actor {name!r:.80} is registered at node {self._actors.name}; there are: {known}"
            self.refuse(request, UnknownActor.default_code, text)
        else:
            accepts = tuple([(key, kind.signature) for key, kind in served.accepts.items()])
            with self._changed:
                self._put((FOUND, request, served.actor_id, name, accepts), at_once=True)
            if (ended := served.ended) is not None:
                self.gone(served, *ended)  # the other side ignored a GONE that came before FOUND

    def _found(self, item: Item) -> None:
        _, request, actor, name, accepts = item
        with self._changed:
            future = self._take_ask(request, lambda asked: asked == name)
            if future is None:
                return  # the searcher has given up
            if actor not in self._watchers:  # finding an actor also watches it
                self._watchers[actor] = []
                self._under_way[actor] = 0
        future.set(RemoteRef(self._actors, self.node, self.name, name, actor, dict(accepts)))

    def close(self, error: OpenOutcryError) -> None:
        """End this life: notify everyone who waits; afterwards nothing is sent or received over it."""
        with self._changed:
            if self._closed is not None:
                return
            self._closed = error
            self._waiting.clear()
            self._waiting_size = self._answers_size = 0
            self._owed.clear()
            futures = [future for future, _ in self._asks.values()]
            self._asks.clear()
            watchers = [entry for entries in self._watchers.values() for entry in entries]
            self._watchers.clear()
            self._changed.notify_all()
        for future in futures:
            future.set_exception(_as_exc_info(copied(error)))
        for ref, watcher in watchers:
            tell_end(watcher, Terminated(ref, "unreachable", error.message))


def size_of(item: Item) -> int:
    """Return about how many bytes an item takes."""
    kind = item[0]
    if kind in (TELL, ASK, GONE):
        return 64 + len(item[3])
    if kind == FOUND:
        return 64 + 64 * len(item[4])
    return 64 + (len(item[4]) if kind == REPLY else 0)


def reason_of(error: BaseException | None) -> tuple[EndReason, str]:
    return ("stopped", "") if error is None else ("failed", text_of(error)[:_TEXT_MAX])


def _sendable(text: str) -> str:
    """Return ``text`` short enough to travel, and without lone surrogates: they have no encoding."""
    return text[:_TEXT_MAX].encode(errors="replace").decode()


_Watching = TypeVar("_Watching")


def add_living(
    entries: list[tuple[_Watching, pykka.ActorRef[Any]]], entry: tuple[_Watching, pykka.ActorRef[Any]]
) -> list[tuple[_Watching, pykka.ActorRef[Any]]]:
    """Add a watcher; drop and return those that have ended, whenever the list would double."""
    dropped = []
    if not len(entries) & (len(entries) - 1):
        dropped = [old for old in entries if not old[1].is_alive()]
        entries[:] = [old for old in entries if old[1].is_alive()]
    entries.append(entry)
    return dropped


def tell_end(watcher: pykka.ActorRef[Any], ended: Terminated) -> None:
    """Notify one watcher; an exception of its inbox must not affect the others or the link's thread."""
    try:
        tell_always(watcher, ended)
    except Exception:
        logger.exception("watcher_failed", actor=ended.ref)


_ERRORS: Final[dict[str, type[OpenOutcryError]]] = {
    kind.default_code: kind
    for kind in (ActorStopped, UnknownActor, Unreachable, Overloaded, RequestTimeout, MessageRefused, InvalidRequest)
}


def _error_of(code: str, text: str, node: str) -> OpenOutcryError:
    """Return the error received instead of an answer: one of this library's by its code, else RemoteFailure."""
    kind = _ERRORS.get(code, RemoteFailure)
    return kind(f"node {node}: {text}", code=code)


def _as_exc_info(error: OpenOutcryError) -> Any:
    return type(error), error, None
