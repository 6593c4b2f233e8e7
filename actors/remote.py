"""Remote actors: an actor is served under a name at its node; others tell it, ask it and watch it from elsewhere.

What holds between two nodes:

1. Messages of one sender (a thread, an actor) to one actor are handled in the order in which they were sent.
2. Each is delivered at most once. None is lost while the link lives and the actor does; what was under way when the
   link ended is lost, and whoever watches the actor is told ``Terminated``.
3. Nothing is unbounded: a node may have :data:`WINDOW_SIZE` bytes on their way to one actor, those in its mailbox
   included (a message counts its size and :data:`MESSAGE_OVERHEAD`). Beyond, a sender waits, then gets Overloaded.
4. A message is of a type that the actor accepts, and passes that type's checks here and there; nothing is unpickled.

One life of a link carries :class:`~.messages.Parcel` frames of items: what queued up while the last frame was being
written travels in the next. Who sends an item to an actor for the first time in a life of the link asks to be told of
its end; the end of the link is the end of all that was heard over it.

=======================================  ==========================================================================
item                                     meaning
=======================================  ==========================================================================
``TELL  actor, type, body``              a message
``ASK   actor, type, body, request``     a message that is to be answered
``REPLY request, code, type, body``      the answer; with a code the body is the text of an error
``FIND  request, name``                  who is served under that name? Answered by FOUND, or REPLY with a code
``FOUND request, actor, accepted``       this one, and these are the keys and signatures of what it accepts
``WATCH actor``                          tell me of the actor's end
``GONE  actor, reason, detail``          the actor has ended, or is served no more
``CREDIT actor, bytes``                  so many bytes of your messages have been taken from its mailbox
=======================================  ==========================================================================
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, Literal, TypeVar, cast, overload

import pykka
from pykka._envelope import Envelope

from ..transport.errors import (
    ActorStopped,
    Closed,
    ConfigurationError,
    InvalidRequest,
    MessageRefused,
    OpenOutcryError,
    Overloaded,
    ProtocolError,
    RemoteFailure,
    RequestTimeout,
    UnknownActor,
    Unreachable,
)
from ..transport.log import get_logger
from ._base import TICK, NodeActor, stop_and_join
from .kit import Mailbox, put_always, tell_always
from .messages import (
    ASK,
    CODEC,
    CREDIT,
    FIND,
    FOUND,
    GONE,
    REPLY,
    TELL,
    WATCH,
    ActorFailed,
    Parcel,
    PeerUp,
)
from .schema import MessageType, decode_value, encode_value, type_of

logger = get_logger(__name__)

WINDOW_SIZE: Final = 1024 * 1024
"""Bytes that one node may have on their way to one actor of another; see the module's docstring."""
MESSAGE_OVERHEAD: Final = 256
"""Bytes that each message counts beyond its size: also small ones cost memory."""
PARCEL_SIZE: Final = 64 * 1024
"""Bytes of one frame, give or take one message: what comes after it is not held up for long."""
OUTBOX_SIZE_MAX: Final = 16 * 1024 * 1024
"""Bytes of answers that wait for a slow link; an answer beyond is replaced by the error Overloaded."""
ASKS_MAX: Final = 65_536
"""Most asks of one node to another that are unanswered."""
NAME_LENGTH_MAX: Final = 64
SERVED_MAX: Final = 400
"""Most actors that one node serves: each is announced in the directory."""
GONE_MAX: Final = 4096
"""How many ended actors of a node are remembered."""
EARLY_MAX: Final = 64
"""Most parcels that wait for this side of a link to come up."""
POLL_MS: Final = 50
"""How soon the end of an actor is seen that is no :class:`~.kit.Actor`, in milliseconds."""
SERVICE_PREFIX: Final = "actor/"
"""An actor is announced in the directory as the service ``actor/NAME``."""
DRAIN_S_MAX: Final = 1.0
"""How long a node that closes waits for others to have read what its actors were told to send, in seconds."""
_TEXT_MAX: Final = 500

Reason = Literal["stopped", "failed", "unregistered", "unreachable"]
"""Why an actor is heard no more: it was stopped; it failed; its node serves it no more; its node cannot be reached."""
_REASONS: Final = ("stopped", "failed", "unregistered")
Item = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Terminated:
    """A node to a watching actor, once: ``ref`` is heard no more.

    After ``unreachable`` the actor may live on: look it up again when its node is back. It is never told twice for one
    call of ``watch``, and nothing of what was under way to the actor is known to have arrived.
    """

    ref: RemoteRef | pykka.ActorRef[Any]
    reason: Reason
    detail: str = ""
    """For people: by what it failed, or why the node cannot be reached."""


class RemoteRef:
    """An actor at some node; made by ``ExchangeNode.actor``. Safe to share between threads.

    Two are equal if they stand for one registration: an actor that is served under two names has two.

    It stands for one incarnation: once the actor has stopped, all calls raise ActorStopped, also when another serves
    under its name; look that one up anew.
    """

    __slots__ = ("_accepts", "_actors", "actor_id", "name", "node", "node_name")

    def __init__(
        self, actors: RemoteActors, node: str, node_name: str, name: str, actor_id: int, accepts: dict[str, str]
    ) -> None:
        self._actors = actors
        self._accepts = accepts
        self.node = node
        """The id of its node."""
        self.node_name = node_name
        self.name = name
        self.actor_id = actor_id

    @property
    def address(self) -> str:
        """``name@node-id``, from which any node of the same directory can look it up."""
        return f"{self.name}@{self.node}"

    @property
    def accepts(self) -> tuple[str, ...]:
        """The keys (``name/version``) of the messages that it accepts."""
        return tuple(self._accepts)

    def __repr__(self) -> str:
        return f"<RemoteRef {self.name}@{self.node_name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteRef) and (self.node, self.actor_id) == (other.node, other.actor_id)

    def __hash__(self) -> int:
        return hash((self.node, self.actor_id))

    def tell(self, message: object, *, timeout: float | None = None) -> None:
        """Send ``message``. At most once: returning does not say that it has arrived, or will.

        Blocks only while the window is full, for ``timeout`` seconds (default: the node's); with 0 not at all.

        Raises:
            MessageRefused: not of a type that the actor accepts, or not as the type says; ``message_too_large``.
            ActorStopped: the actor has ended, as far as is known here.
            Unreachable: there is no link to its node.
            Overloaded: the actor does not keep up; the message was not sent.
        """
        kind = self._kind_of(message)
        body = kind.encode(message)
        self._actors.link_to(self).send(self, (TELL, self.actor_id, kind.key, body), self._actors.seconds(timeout))

    @overload
    def ask(self, message: object, *, timeout: float | None = None, block: Literal[True] = True) -> Any: ...
    @overload
    def ask(self, message: object, *, timeout: float | None = None, block: Literal[False]) -> RemoteFuture: ...
    def ask(self, message: object, *, timeout: float | None = None, block: bool = True) -> Any:
        """Send ``message`` and return what the actor answers, or with ``block=False`` its :class:`RemoteFuture`.

        An answer is a registered message, None, a bool, an int, a float, a string, bytes, or a tuple of these (a list
        arrives as one).

        Raises:
            RequestTimeout: no answer within ``timeout`` seconds (default: the node's); it may have been handled.
            RemoteFailure: the actor raised an exception that is none of this library's; those are raised here as such.
            OpenOutcryError: as :meth:`tell`; ActorStopped and Unreachable also when they come while it waits.
        """
        kind = self._kind_of(message)
        body = kind.encode(message)
        seconds = self._actors.seconds(timeout)
        future = self._actors.link_to(self).ask(self, kind.key, body, seconds)
        return future.get() if block else future

    def watch(self, watcher: pykka.ActorRef[Any]) -> None:
        """Have ``watcher`` told once when the actor is heard no more: see ``ExchangeNode.watch``."""
        self._actors.watch(self, watcher)

    def _kind_of(self, message: object) -> MessageType:
        kind = type_of(message)
        signature = self._accepts.get(kind.key)
        if signature is None:
            accepted = ", ".join(self._accepts) or "nothing"
            raise MessageRefused(f"{self!r} does not accept {kind.key}; it accepts: {accepted}")
        if signature != kind.signature:
            raise MessageRefused(
                f"{kind.key} has other fields at {self.node_name}: a changed message needs a new version"
            )
        return kind


class RemoteFuture(pykka.ThreadingFuture[Any]):
    """The answer to a remote ask, as any ``pykka.Future``; it fails by RequestTimeout when the ask's time is over."""

    def __init__(
        self,
        forget: Callable[[], object] | None = None,
        timeout_s: float = math.inf,
        what: str = "",
        *,
        deadline_s: float | None = None,
    ) -> None:
        super().__init__()
        self._forget = forget
        self._timeout_s = timeout_s
        self._what = what
        self.deadline_s = time.monotonic() + timeout_s if deadline_s is None else deadline_s

    def get(self, *, timeout: float | None = None) -> Any:
        """Return the answer or raise what came instead of it.

        Raises:
            pykka.Timeout: ``timeout`` seconds are over, but the ask's own are not.
            RequestTimeout: the ask's time is over.
        """
        left_s = self.deadline_s - time.monotonic()
        wait_s = left_s if timeout is None else min(timeout, left_s)
        try:
            return super().get(timeout=None if wait_s == math.inf else max(0.0, wait_s))
        except pykka.Timeout:
            if time.monotonic() < self.deadline_s:
                raise
        if self._forget is not None:
            self._forget()
        raise RequestTimeout(f"{self._what} did not answer within {self._timeout_s:g} s; it may yet handle the message")


# -- what is served here --------------------------------------------------------------------------------------------


class _Served:
    """An actor of this node that others can reach."""

    __slots__ = ("accepts", "actor_id", "ended", "name", "ref", "retire", "watching")

    def __init__(self, name: str, actor_id: int, ref: pykka.ActorRef[Any], accepts: dict[str, MessageType]) -> None:
        self.name = name
        self.actor_id = actor_id
        self.ref = ref
        self.accepts = accepts
        self.watching: set[_Link] = set()
        self.ended: tuple[str, str] | None = None
        """Reason and detail once it is served no more."""
        self.retire: Callable[[BaseException | None], None] = lambda _: None
        """What waits for the actor's end."""


class _Delivery(Envelope[Any]):
    """An envelope from another node: its sender's window opens again when the actor takes the message out."""

    __slots__ = ("_cost", "_link", "_message", "_served")

    def __init__(self, message: Any, reply_to: Any, served: _Served, link: _Link, cost: int) -> None:
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

    def __init__(self, link: _Link, request: int) -> None:
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
            self._link.refuse(self._request, RemoteFailure.default_code, _text_of(error))


# -- one life of a link ---------------------------------------------------------------------------------------------


class _Link:
    """One life of the link to a node: what waits to be sent, who waits for answers, whose windows are how full."""

    def __init__(self, actors: RemoteActors, up: PeerUp | None, node: str, name: str) -> None:
        """``up`` None: the link of a node to itself."""
        self._actors = actors
        self._link = None if up is None else up.link
        self.node = node
        self.name = name
        self._changed = threading.Condition()
        self._closed: OpenOutcryError | None = None
        self._waiting: collections.deque[Item] = collections.deque()
        self._waiting_size = 0
        self._scheduled = False
        self._requests = itertools.count(1)
        self._asks: dict[int, tuple[RemoteFuture, int]] = {}
        self._sweep_at = 1024
        self._under_way: dict[int, int] = {}
        self._gone: dict[int, tuple[Reason, str]] = {}
        self._watchers: dict[int, list[tuple[RemoteRef, pykka.ActorRef[Any]]]] = {}
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
            self._under_way[ref.actor_id] += cost  # once nothing can refuse it any more
            self._put((ASK, ref.actor_id, key, body, request), at_once=True)
        return future

    def find(self, name: str, timeout_s: float) -> RemoteFuture:
        """Ask who is served under ``name``; the answer is a :class:`RemoteRef`."""
        with self._changed:
            self._check_open()
            future, request = self._expect(0, timeout_s, time.monotonic() + timeout_s, f"node {self.name}")
            self._put((FIND, request, name), at_once=True)
        return future

    def watch(self, ref: RemoteRef, watcher: pykka.ActorRef[Any]) -> None:
        """Have ``watcher`` told of the end of ``ref``, now if it is known to have come."""
        with self._changed:
            if self._closed is None and ref.actor_id not in self._gone:
                self._follow(ref.actor_id)
                _add_living(self._watchers[ref.actor_id], (ref, watcher))
                return
            reason, detail = self._gone.get(ref.actor_id, ("unreachable", str(self._closed)))
        _tell_end(watcher, Terminated(ref, reason, detail))

    def unwatch(self, ref: RemoteRef, watcher: pykka.ActorRef[Any]) -> None:
        """Take a :meth:`watch` back."""
        with self._changed:
            watchers = self._watchers.get(ref.actor_id, [])
            watchers[:] = [entry for entry in watchers if entry[1].actor_urn != watcher.actor_urn]

    @property
    def used(self) -> bool:
        """Whether an actor of the other side was told, asked or watched."""
        return bool(self._watchers)

    def depths(self) -> tuple[int, int, int]:
        """Return what waits to be sent, in bytes, the asks without an answer, and the bytes of the fullest window."""
        with self._changed:
            return self._waiting_size, len(self._asks), max(self._under_way.values(), default=0)

    def drain(self, deadline_s: float) -> None:
        """Wait until the other side has read what was sent before: it answers in order. nng's sockets do not linger."""
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
            raise ActorStopped(f"{ref!r} is heard no more: {reason}{': ' if detail else ''}{detail}")
        self._follow(actor)

    def _follow(self, actor: int) -> None:
        """Be told of the actor's end, in this life of the link."""
        if actor not in self._watchers:
            self._watchers[actor] = []
            self._under_way[actor] = 0
            self._put((WATCH, actor))

    def _expect(self, actor: int, timeout_s: float, deadline_s: float, what: str) -> tuple[RemoteFuture, int]:
        if len(self._asks) >= self._sweep_at:
            now_s = time.monotonic()
            self._asks = {n: ask for n, ask in self._asks.items() if ask[0].deadline_s > now_s}
            self._sweep_at = min(max(1024, 2 * len(self._asks)), ASKS_MAX)
            if len(self._asks) >= ASKS_MAX:
                raise Overloaded(f"{ASKS_MAX} asks to node {self.name} are unanswered; wait for answers")
        request = next(self._requests)
        future = RemoteFuture(lambda: self._take_ask(request), timeout_s, what, deadline_s=deadline_s)
        self._asks[request] = (future, actor)
        return future, request

    def _take_ask(self, request: int) -> RemoteFuture | None:
        """Return the future of an ask that is still waited for, which the caller then settles."""
        with self._changed:
            return self._asks.pop(request, (None, 0))[0]

    def _check_open(self) -> None:
        if self._closed is not None:
            raise _anew(self._closed)

    # What this node's actors do.

    def credit(self, actor: int, cost: int) -> None:
        """An actor has taken a message out; its sender is told with whatever travels next, or when it adds up."""
        with self._changed:
            self._owed[actor] = owed = self._owed.get(actor, 0) + cost
            if owed >= WINDOW_SIZE // 4:
                self._put_credit()

    def reply(self, item: Item) -> None:
        """Add the answer to an ask."""
        with self._changed:
            if self._waiting_size + len(item[4]) > OUTBOX_SIZE_MAX:
                text = f"{self._waiting_size} bytes of answers wait for the link already"
                item = (REPLY, item[1], Overloaded.default_code, "", text.encode())
            self._put(item, at_once=True)

    def refuse(self, request: int, code: str, text: str) -> None:
        """Answer an ask with an error."""
        self.reply((REPLY, request, _sendable(code)[:64], "", _sendable(text).encode()))

    def gone(self, served: _Served, reason: str, detail: str) -> None:
        """Tell the other side that an actor is heard no more."""
        with self._changed:
            self._owed.pop(served.actor_id, None)
            self._put((GONE, served.actor_id, reason, _sendable(detail)))

    # Sending.

    def _put(self, item: Item, *, at_once: bool = False) -> None:
        """Add an item; one that somebody waits for travels at once, others with what comes until the link has room."""
        if self._closed is not None:
            return
        self._waiting.append(item)
        self._waiting_size += _size(item)
        if self._scheduled:
            return
        if self._link is None:
            self._scheduled = True
            while self._waiting:
                self.hear(self._taken())
            self._scheduled = False
        elif at_once and (frame := self._next_frame()):
            self._link.send(frame)
        else:
            self._scheduled = True
            self._link.send_next(self._next_frame)

    def _put_credit(self) -> None:
        owed, self._owed = self._owed, {}
        for actor, cost in owed.items():
            self._put((CREDIT, actor, cost))

    def _taken(self) -> tuple[Item, ...]:
        """Take out what travels next."""
        items, size = [], 0
        while self._waiting and size < PARCEL_SIZE:
            item = self._waiting.popleft()
            items.append(item)
            size += _size(item)
        self._waiting_size -= size
        return tuple(items)

    def _next_frame(self) -> bytes | None:
        """Return the next frame, and see to it that the one after it follows; None if nothing waits."""
        assert self._link is not None
        with self._changed:
            self._scheduled = True  # for what is put below
            if self._owed:
                self._put_credit()
            items = self._taken()
            self._scheduled = bool(self._waiting)
            if self._waiting:
                self._link.send_next(self._next_frame)
        return self._encoded(items) if items else None

    def _encoded(self, items: tuple[Item, ...]) -> bytes | None:
        """Return the frame of ``items`` without those that cannot be encoded: the link serves others too."""
        assert self._link is not None
        try:
            return CODEC.encode(Parcel(self._link.session, items))
        except ProtocolError as error:
            if len(items) > 1:
                good = [item for item in items if self._encoded((item,))]
                return self._encoded(tuple(good)) if good else None
            logger.error("item_not_sent", peer=self.name, item=items[0][0], error=error.message)
            return None

    # Hearing.

    def accepts_parcels_of(self, session: int) -> bool:
        """Whether what the peer has sent in its ``session`` belongs to this life."""
        return self._link is not None and self._link.their_session == session

    def hear(self, items: Iterable[Item]) -> None:
        """Handle what the other side has sent, in order; never blocks.

        Raises:
            ProtocolError: an item that the other side cannot have meant.
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
            return  # who sent it has been told, or is being told, by GONE
        kind = served.accepts.get(key)
        try:
            if kind is None:
                raise ProtocolError(f"actor {served.name!r} does not accept {key:.80}")
            message = kind.decode(body)
        except ProtocolError as error:
            # The sender's own checks let it pass: another version of this library, or worse. It hears if it asked.
            logger.warning("message_refused", peer=self.name, actor=served.name, type=key, error=error.message)
            self._actors.refused += 1
            self.credit(actor, cost)
            if answer is not None:
                self.refuse(answer._request, MessageRefused.default_code, error.message)
            return
        if not put_always(served.ref, _Delivery(message, answer, served, self, cost)) and answer is not None:
            answer.set_exception((None, pykka.ActorDeadError(), None))

    def _answer(self, item: Item) -> None:
        _, request, code, key, body = item
        future = self._take_ask(request)
        if future is None:
            return  # who asked has given up
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
        error = ActorStopped(f"the actor is heard no more: {reason}; whether it handled the message is unknown")
        for future in futures:
            future.set_exception(_as_exc_info(_anew(error)))
        for ref, watcher in watchers:
            _tell_end(watcher, Terminated(ref, reason, detail))

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
                self.gone(served, *ended)  # a GONE that came before FOUND meant nothing to the other side

    def _found(self, item: Item) -> None:
        _, request, actor, name, accepts = item
        with self._changed:
            future = self._take_ask(request)
            if actor not in self._watchers:  # being found is being watched
                self._watchers[actor] = []
                self._under_way[actor] = 0
        if future is not None:
            future.set(RemoteRef(self._actors, self.node, self.name, name, actor, dict(accepts)))

    def close(self, error: OpenOutcryError) -> None:
        """End this life: whoever waits is told, and nothing is sent or heard over it any more."""
        with self._changed:
            if self._closed is not None:
                return
            self._closed = error
            self._waiting.clear()
            self._waiting_size = 0
            self._owed.clear()
            futures = [future for future, _ in self._asks.values()]
            self._asks.clear()
            watchers = [entry for entries in self._watchers.values() for entry in entries]
            self._watchers.clear()
            self._changed.notify_all()
        for future in futures:
            future.set_exception(_as_exc_info(_anew(error)))
        for ref, watcher in watchers:
            _tell_end(watcher, Terminated(ref, "unreachable", error.message))


# -- a node's part --------------------------------------------------------------------------------------------------


class _LocalWatch:
    """An actor of this process that another of it watches."""

    __slots__ = ("_actors", "_watcher", "ref")

    def __init__(self, actors: RemoteActors, ref: pykka.ActorRef[Any], watcher: pykka.ActorRef[Any]) -> None:
        self._actors = actors
        self.ref = ref
        self._watcher = watcher

    def ended(self, error: BaseException | None) -> None:
        """Tell the watcher, on the thread of the actor that has ended."""
        if self._actors.take_watch(self):
            _tell_end(self._watcher, Terminated(self.ref, *_reason_of(error)))


@dataclasses.dataclass(frozen=True, slots=True)
class _Off:
    """To the watchman: call ``ended`` no more."""

    urn: str
    ended: Callable[[BaseException | None], None]


class _Watchman(NodeActor):
    """Sees the end of actors that tell nobody of it themselves. Started with the first of them."""

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
        """``timeout_s`` checks a time-out and fills in the default; ``announce(service, whether)`` must not block."""
        self.node = node
        self.name = name
        self.seconds = timeout_s
        self.refused = 0
        """Messages of other nodes that were of no type, or not as their type says, since the start."""
        self._announce = announce
        self._report = report
        self._lock = threading.Condition()
        self._hearing = threading.Lock()
        self._actor_ids = itertools.count(time.time_ns())  # never those of an earlier life of this node
        self._names: dict[str, _Served] = {}
        self._served: dict[int, _Served] = {}
        self._own = _Link(self, None, node, name)
        self._links: dict[str, _Link] = {node: self._own}
        self._early: dict[str, tuple[int, list[Parcel]]] = {}
        self._local_watches: dict[str, list[tuple[_LocalWatch, pykka.ActorRef[Any]]]] = {}
        self._watchman: pykka.ActorRef[_Watchman] | None = None
        self._closed = False

    # Serving.

    def queues(self) -> dict[str, tuple[int, int]]:
        """Return the fullest of the links' queues by their names, with their bounds: bytes, asks and bytes."""
        with self._lock:
            depths = [link.depths() for link in self._links.values()]
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
            raise InvalidRequest(f"accepts is a list of message classes, not {accepts!r:.80}")
        kinds = {(kind := type_of(accepted)).key: kind for accepted in accepts}
        with self._lock:
            self._check_open()
            old = self._names.get(name)
            if old is not None and old.ref.is_alive():
                raise ConfigurationError(f"{name!r} is registered already: {old.ref}", code="actor_registered")
            if len(self._served) >= SERVED_MAX:
                raise ConfigurationError(f"{SERVED_MAX} actors are registered already")
            served = _Served(name, next(self._actor_ids), ref, kinds)
            self._names[name] = self._served[served.actor_id] = served
            self._announce(SERVICE_PREFIX + name, True)
        served.retire = lambda error: self._retire(served, *_reason_of(error))
        self._on_end(ref, served.retire)

    def unregister(self, name: str) -> bool:
        """See ``ExchangeNode.unregister``."""
        with self._lock:
            served = self._names.get(name)
        if served is not None:
            self._retire(served, "unregistered", "")
        return served is not None

    def _retire(self, served: _Served, reason: str, detail: str) -> None:
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

    def served(self, actor: int) -> _Served | None:
        """Return the actor of that id if it is served."""
        return self._served.get(actor)

    def named(self, name: str, link: _Link) -> _Served | None:
        """Return the actor that is served under ``name``, and tell ``link`` of its end."""
        with self._lock:
            served = self._names.get(name)
            if served is None or not served.ref.is_alive():
                return None
            served.watching.add(link)
            return served

    def watched(self, actor: int, link: _Link) -> None:
        """Tell ``link`` of the actor's end, now if it is not served."""
        with self._lock:
            served = self._served.get(actor)
            if served is not None:
                served.watching.add(link)
                return
        link.gone(_Served("", actor, cast("Any", None), {}), "stopped", "")

    # Reaching others.

    def find(self, address: str, timeout_s: float, lookup: Callable[[str, float], Iterable[str]]) -> RemoteRef:
        """Return the actor at ``name@node``, or, for a bare name, one that ``lookup(service, seconds)`` finds."""
        name, at, node = address.partition("@") if isinstance(address, str) else (address, "", "")
        _checked_name(name)
        deadline_s = time.monotonic() + timeout_s
        if at:
            return self._find_at(name, self._link(node, deadline_s), deadline_s)
        if name in self._names:
            return self._find_at(name, self._own, deadline_s)
        last: OpenOutcryError = UnknownActor(f"no node of the directory has registered an actor {name!r}")
        for found in lookup(SERVICE_PREFIX + name, max(0.0, deadline_s - time.monotonic())):
            try:
                return self._find_at(name, self._link(found, deadline_s), deadline_s)
            except (Unreachable, UnknownActor, RequestTimeout) as error:
                last = error  # it is announced there, but has gone, or cannot be reached from here
        raise last

    def _find_at(self, name: str, link: _Link, deadline_s: float) -> RemoteRef:
        found = link.find(name, max(0.0, deadline_s - time.monotonic())).get()
        return cast("RemoteRef", found)

    def _link(self, node: str, deadline_s: float) -> _Link:
        """Return the link to a node, given by its id or its name, as soon as it is up."""

        def known() -> list[_Link]:
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

    def link_to(self, ref: RemoteRef) -> _Link:
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
                _tell_end(watcher, Terminated(ref, "unreachable", error.message))
            else:
                link.watch(ref, watcher)
            return
        _checked_ref(ref, "an actor to watch")
        watch = _LocalWatch(self, ref, watcher)
        with self._lock:
            entries = self._local_watches.setdefault(ref.actor_urn, [])
            dropped = _add_living(entries, (watch, watcher))
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
        """Take a local watch out; return whether it was there still, so that it is told once."""
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
        with self._hearing:
            link = _Link(self, up, up.node, up.name)
            with self._lock:
                if self._closed:
                    return
                self._links[up.node] = link
                self._lock.notify_all()
            session, parcels = self._early.pop(up.node, (0, []))
            if session == up.link.their_session:
                for parcel in parcels:
                    link.hear(parcel.items)

    def link_down(self, node: str) -> None:
        """A link has ended; on its PeerActor's thread."""
        with self._hearing, self._lock:
            link = self._links.pop(node, None)
            for served in self._served.values():
                served.watching.discard(cast("_Link", link))
        if link is not None:
            link.close(Unreachable(f"the link to node {link.name} has ended; what was under way to it may be lost"))

    def hear(self, node: str, parcel: Parcel) -> None:
        """A frame has come; on the inbox's reader thread."""
        with self._hearing:
            link = self._links.get(node)
            if link is not None and link.accepts_parcels_of(parcel.session):
                link.hear(parcel.items)
                return
            # Of a life that has ended, or of one that this side does not know to have begun: its hello is on the way.
            session, parcels = self._early.get(node, (0, []))
            if session != parcel.session:
                parcels = []
            if len(parcels) >= EARLY_MAX:
                raise ProtocolError(f"{EARLY_MAX} parcels before the link is up")
            self._early[node] = (parcel.session, [*parcels, parcel])

    def forget(self, node: str) -> None:
        """A node is known no more."""
        with self._hearing:
            self._early.pop(node, None)

    def close(self) -> None:
        """End all links, with what was told before; the actors that were served live on. Idempotent."""
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
    """Return how an actor of this process, that has stopped, has ended; waits for the last of its ``on_stop``."""
    found: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    if isinstance(ref.actor_inbox, Mailbox):
        ref.actor_inbox.on_end(found.put)
        with contextlib.suppress(queue.Empty):
            return Terminated(ref, *_reason_of(found.get(timeout=timeout_s)))
    return Terminated(ref, "stopped")


def _size(item: Item) -> int:
    return 64 + (len(item[3]) if item[0] in (TELL, ASK) else len(item[4]) if item[0] == REPLY else 0)


def _reason_of(error: BaseException | None) -> tuple[Reason, str]:
    return ("stopped", "") if error is None else ("failed", _text_of(error)[:_TEXT_MAX])


def _text_of(error: BaseException | None) -> str:
    kind = type(error).__qualname__
    try:
        return f"{kind}: {error}"
    except Exception as without:  # an application's ``__str__``
        return f"{kind} (its text raises {type(without).__qualname__})"


def _sendable(text: str) -> str:
    """Return ``text`` short enough to travel, and without lone surrogates: they have no encoding."""
    return text[:_TEXT_MAX].encode(errors="replace").decode()


_Watching = TypeVar("_Watching")


def _add_living(
    entries: list[tuple[_Watching, pykka.ActorRef[Any]]], entry: tuple[_Watching, pykka.ActorRef[Any]]
) -> list[tuple[_Watching, pykka.ActorRef[Any]]]:
    """Add a watcher; drop and return those that have ended, whenever the list would double."""
    dropped = []
    if not len(entries) & (len(entries) - 1):
        dropped = [old for old in entries if not old[1].is_alive()]
        entries[:] = [old for old in entries if old[1].is_alive()]
    entries.append(entry)
    return dropped


def _tell_end(watcher: pykka.ActorRef[Any], ended: Terminated) -> None:
    """Tell one watcher; whatever its inbox raises is not the others' affair, nor that of the link's thread."""
    try:
        tell_always(watcher, ended)
    except Exception:
        logger.exception("watcher_failed", actor=ended.ref)


def _checked_ref(ref: object, what: str) -> None:
    if not isinstance(ref, pykka.ActorRef):
        raise InvalidRequest(f"{what} is given by its pykka.ActorRef, not {ref!r:.80}", code="invalid_actor_ref")


def _checked_name(name: str) -> None:
    if type(name) is not str or not 1 <= len(name) <= NAME_LENGTH_MAX or "@" in name or not name.isprintable():
        raise InvalidRequest(
            f"an actor's name has 1 to {NAME_LENGTH_MAX} printable characters, none of them '@', not {name!r:.80}",
            code="invalid_actor_name",
        )


_ERRORS: Final[dict[str, type[OpenOutcryError]]] = {
    kind.default_code: kind
    for kind in (ActorStopped, UnknownActor, Unreachable, Overloaded, RequestTimeout, MessageRefused, InvalidRequest)
}


def _error_of(code: str, text: str, node: str) -> OpenOutcryError:
    """Return the error that came instead of an answer; one of this library's by its code, else RemoteFailure."""
    kind = _ERRORS.get(code, RemoteFailure)
    return kind(f"node {node}: {text}", code=code)


def _anew(error: OpenOutcryError) -> OpenOutcryError:
    """Return the same error once more: one that several threads raise would mix up their tracebacks."""
    return type(error)(error.message, code=error.code)


def _as_exc_info(error: OpenOutcryError) -> Any:
    return type(error), error, None
