"""What every actor of a node has in common: ticks, and a failure that is reported, never silent."""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final, cast

from pykka._envelope import Envelope

from ...transport.log import get_logger
from .actor import Actor, Mailbox, stop_and_join, tell

__all__ = ["TICK", "NodeActor", "Tick", "TickingInbox", "stop_and_join", "tell"]

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


class TickingInbox(Mailbox):
    """A mailbox that hands out a tick when one is due.

    The mailbox makes a tick when the actor takes its next message, so ticks cannot pile up in front of a slow actor.
    """

    def __init__(self, name: str, size_max: int, tick_ms: int) -> None:
        super().__init__(name, size_max)
        self._tick_s = tick_ms / 1000
        self._next = time.monotonic() + self._tick_s
        self._linger_s = 0.0

    def linger(self, seconds: float) -> None:
        """Hand out :data:`QUIET` if no message arrives for this long after the current message or a tick."""
        self._linger_s = seconds

    def get(self) -> Envelope[Any]:
        """Return the next message or, when due, a tick."""
        if not self._tick_s:
            return self._unwrapped(None)
        linger_s, self._linger_s = self._linger_s, 0.0
        wait = self._next - time.monotonic()
        if wait > 0:
            try:
                return self._unwrapped(min(wait, linger_s) if linger_s else wait)
            except queue.Empty:
                if linger_s and linger_s < wait:
                    return Envelope(QUIET)
        self._next = time.monotonic() + self._tick_s
        return Envelope(TICK)


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
        return TickingInbox(str(self), self.mailbox_size_max, self.tick_ms)

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
