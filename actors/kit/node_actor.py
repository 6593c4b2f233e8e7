"""What every actor of a node has in common: ticks, and a failure that is reported, never silent."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final, cast

import pykka
from pykka._envelope import Envelope

from ...transport.log import get_logger
from .actor import Actor, Mailbox, stop_and_join, tell
from .turns import TurnQueue

__all__ = ["TICK", "NodeActor", "Tick", "TickingInbox", "stop_and_join", "tell", "tell_or_handle"]

logger = get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ActorFailed:
    """Any actor to the node: ``who`` has failed with ``error`` and has ended."""

    who: str
    error: BaseException


class Tick:
    """The inbox to its actor: at least ``tick_ms`` have passed since the last one."""


TICK: Final = Tick()


class Quiet:
    """The inbox to its actor: no message has arrived for the requested time, see :meth:`TickingInbox.linger`."""


QUIET: Final = Quiet()


TURN_S_MAX: Final = 0.025
"""Seconds for a message that another thread handles in an actor's turn; if one took longer, the actor lends none for
:data:`LEND_AGAIN_S`."""
LEND_AGAIN_S: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Raised:
    """A thread that had an actor's turn to the actor: a message made it raise this."""

    error: BaseException


class TickingInbox(Mailbox):
    """A mailbox that hands out a tick when one is due.

    The mailbox makes a tick when the actor takes its next message, so ticks cannot pile up in front of a slow actor.
    An interval without one follows a tick that took longer than ``tick_ms``, so that the actor receives messages, too.
    """

    def __init__(self, name: str, size_max: int, tick_ms: int, handle: Callable[[Any], Any]) -> None:
        """``handle``: what the actor does with a message."""
        self._turns = TurnQueue()
        super().__init__(name, size_max, self._turns)
        self._handle = handle
        self._lends_from_s = -math.inf
        self._tick_s = tick_ms / 1000
        self._next = time.monotonic() + self._tick_s if tick_ms else math.inf
        self._ticked = False
        self._quiet_s = math.inf

    def linger(self, seconds: float) -> None:
        """Hand out :data:`QUIET` if no message arrives for this long after the current message or a tick."""
        self._quiet_s = time.monotonic() + seconds
        if threading.get_ident() != self._owner:
            self._turns.wake_by(self._quiet_s)

    def get(self) -> Envelope[Any]:
        """Return the next message or, when due, a tick."""
        while True:
            now_s = time.monotonic()
            if self._ticked:
                self._ticked = False
                if self._next <= now_s:
                    self._next = now_s + self._tick_s
            if self._next <= now_s:
                self._next, self._ticked = now_s + self._tick_s, True
                return Envelope(TICK)
            if self._quiet_s <= now_s and self.empty():
                self._quiet_s = math.inf
                return Envelope(QUIET)
            due_s = min(self._next, self._quiet_s)
            with contextlib.suppress(queue.Empty):
                envelope = self._unwrapped(None if due_s == math.inf else max(0.0, due_s - now_s))
                self._quiet_s = math.inf
                return envelope

    def lend_turn(self, message: object) -> bool:
        """Handle ``message`` on the calling thread, if the actor is idle; return whether that was done.

        The actor's thread raises what its handling raises. After a message that took long, no turn is lent for
        :data:`LEND_AGAIN_S`: the calling thread has others to serve.
        """
        if (began_s := time.monotonic()) < self._lends_from_s or not self._turns.take_turn():
            return False
        self._quiet_s = math.inf
        first = None
        try:
            self._handle(message)
        except BaseException as error:
            first = Envelope[Any](Raised(error))
        finally:
            if (ended_s := time.monotonic()) - began_s > TURN_S_MAX:
                self._lends_from_s = ended_s + LEND_AGAIN_S
            self._turns.give_back(first)
        return True


class NodeActor(Actor):
    """Base of a node's actors. Messages are told; :meth:`on_receive` handles one; an exception ends the actor.

    Their mailboxes have no bound of their own: messages are bounded where they enter the node.
    ``ExchangeNode.close`` stops them in order and joins them, at interpreter exit if nobody did before.
    """

    mailbox_size_max: ClassVar[int] = 0
    tick_ms: ClassVar[int] = 0
    """How often the actor receives :data:`TICK`, in milliseconds; 0 = never."""

    def __init__(self, *, report: Callable[[ActorFailed], None]) -> None:
        super().__init__()
        self._report = report

    def _create_actor_inbox(self) -> Any:  # type: ignore[override]
        return TickingInbox(str(self), self.mailbox_size_max, self.tick_ms, self._handle_receive)

    def _handle_receive(self, message: Any) -> Any:
        if type(message) is Raised:
            raise message.error
        return super()._handle_receive(message)

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release what the actor owns (:meth:`on_stop`), and report to the node, which decides what to restart."""
        del exception_type, traceback
        error = exception_value or RuntimeError("unknown failure")
        try:
            self.on_stop()
        except Exception:
            logger.exception("actor_failed_ending", actor=self)
        self._report(ActorFailed(str(self), error))

    def on_not_started(self) -> None:
        """Release what the actor owns."""
        self.on_stop()

    @property
    def idle(self) -> bool:
        """Whether no message waits: the moment to send what was held back to travel together."""
        return bool(self.actor_inbox.empty())

    def linger(self, seconds: float) -> None:
        """Receive :data:`QUIET` if no message arrives for ``seconds`` after the current one."""
        cast("TickingInbox", self.actor_inbox).linger(seconds)


def tell_or_handle(ref: pykka.ActorRef[Any], message: object) -> bool:
    """As :func:`tell`, but if the :class:`NodeActor` is idle, handle ``message`` on this thread, as the actor would.

    Only for a thread of ours that has nothing to do meanwhile, and holds no lock.
    """
    return cast("TickingInbox", ref.actor_inbox).lend_turn(message) or tell(ref, message)
