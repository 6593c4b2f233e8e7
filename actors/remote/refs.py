"""What an application holds of an actor at another node: a ref, futures, and the notice of its end."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, overload

import pykka

from ...transport.errors import MessageRefused, RequestTimeout
from ...transport.forks import guard
from ...transport.numerals import written
from .schema import MessageType, type_of
from .wire import TELL

EndReason = Literal["stopped", "failed", "unregistered", "unreachable"]
"""Why an actor ended for its watcher: it stopped; it failed; its node no longer serves it, or is unreachable."""


@dataclasses.dataclass(frozen=True, slots=True)
class Terminated:
    """A node to a watching actor, once: ``ref`` has ended, or can no longer be reached.

    After ``unreachable`` the actor may live on: look it up again when its node is back. One call of ``watch`` causes
    only one such message. Messages on their way to the actor may or may not have arrived.
    """

    ref: RemoteRef | pykka.ActorRef[Any]
    reason: EndReason
    detail: str = ""
    """For people: how it failed, or why the node cannot be reached."""


class _Link(Protocol):
    """The link that leads to an actor."""

    def send(self, ref: RemoteRef, item: tuple[Any, ...], timeout_s: float) -> None:
        """Send a message once the window allows it."""

    def ask(self, ref: RemoteRef, key: str, body: bytes, timeout_s: float) -> RemoteFuture:
        """Send a message that needs an answer."""


class Reaches(Protocol):
    """What a ref needs of its node's :class:`~.actors.RemoteActors`."""

    @property
    def seconds(self) -> Callable[[float | None], float]:
        """Turns a caller's timeout into seconds."""

    def link_to(self, ref: RemoteRef) -> _Link:
        """Return the link over which ``ref`` is reached."""

    def watch(self, ref: RemoteRef, watcher: pykka.ActorRef[Any]) -> None:
        """Notify ``watcher`` of the end of ``ref``."""


class RemoteRef:
    """An actor at some node; made by ``ExchangeNode.actor``. Safe to share between threads.

    Two refs are equal if they stand for one registration: an actor with two names has two.

    A ref stands for one incarnation: once the actor has stopped, all calls raise ActorStopped, even if another actor
    now has its name; look that one up again.
    """

    __slots__ = ("_accepts", "_actors", "actor_id", "name", "node", "node_name")

    def __init__(
        self, actors: Reaches, node: str, node_name: str, name: str, actor_id: int, accepts: dict[str, str]
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
            MessageRefused: the actor does not accept this type, a field does not fit it, or ``message_too_large``.
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
            RemoteFailure: the actor raised an exception from outside this library; this library's are raised unchanged.
            OpenOutcryError: as :meth:`tell`; ActorStopped and Unreachable also when they come while it waits.
        """
        kind = self._kind_of(message)
        body = kind.encode(message)
        seconds = self._actors.seconds(timeout)
        future = self._actors.link_to(self).ask(self, kind.key, body, seconds)
        return future.get() if block else future

    def watch(self, watcher: pykka.ActorRef[Any]) -> None:
        """Notify ``watcher`` once when the actor has ended: see ``ExchangeNode.watch``."""
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
    """The answer to a remote ask, a ``pykka.Future``; it fails with RequestTimeout when the ask's time is over."""

    def __init__(
        self,
        forget: Callable[[], object] | None = None,
        timeout_s: float = math.inf,
        what: str = "",
        *,
        deadline_s: float | None = None,
    ) -> None:
        super().__init__()
        guard(self)
        self._forget = forget
        self._timeout_s = timeout_s
        self._what = what
        self.deadline_s = time.monotonic() + timeout_s if deadline_s is None else deadline_s

    def get(self, *, timeout: float | None = None) -> Any:
        """Return the answer or raise the error received instead.

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
        raise RequestTimeout(
            f"{self._what} did not answer within {written(self._timeout_s)} s; it may yet handle the message"
        )
