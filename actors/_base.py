"""What every actor of a node has in common: a quick inbox, ticks, and a failure that is reported, never silent."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final

import pykka
from pykka._envelope import Envelope

from ..transport.log import get_logger
from .messages import ActorFailed

logger = get_logger(__name__)


class Tick:
    """The inbox to its actor: at least ``tick_ms`` have passed since the last one."""


TICK: Final = Tick()


class TickingInbox:
    """A ``SimpleQueue`` (several times quicker than Pykka's ``Queue``) that hands out a tick when one is due.

    Ticks are made when the actor asks for its next message, so they cannot pile up in front of a slow actor.
    """

    def __init__(self, tick_ms: int) -> None:
        self._queue: queue.SimpleQueue[Envelope[Any]] = queue.SimpleQueue()
        self._tick_s = tick_ms / 1000
        self._next = time.monotonic() + self._tick_s
        self.put = self._queue.put
        self.empty = self._queue.empty
        self.qsize = self._queue.qsize
        if not tick_ms:
            self.get = self._queue.get  # type: ignore[method-assign]

    def get(self, block: bool = True, timeout: float | None = None) -> Envelope[Any]:
        """Return the next message or, when due, a tick."""
        del block, timeout
        wait = self._next - time.monotonic()
        if wait > 0:
            try:
                return self._queue.get(timeout=wait)
            except queue.Empty:
                pass
        self._next = time.monotonic() + self._tick_s
        return Envelope(TICK)


class NodeActor(pykka.ThreadingActor):
    """Base of a node's actors. Messages are told; :meth:`on_receive` handles one; an exception ends the actor.

    Threads are daemons so that a forgotten node cannot keep a process alive; ``ExchangeNode.close`` stops them in order
    and joins them, at interpreter exit if nobody did before.
    """

    tick_ms: ClassVar[int] = 0
    """How often the actor receives :data:`TICK`, in milliseconds; 0 = never."""

    def __init__(self, *, report: Callable[[ActorFailed], None]) -> None:
        super().__init__()
        self._report = report
        self.failed_by: BaseException | None = None
        """What ended the actor, if it was not stopped; set before :meth:`on_stop`."""

    def _start_actor_loop(self) -> None:
        thread = threading.Thread(target=self._run_loop, name=str(self), daemon=True)
        _threads[self.actor_urn] = thread
        thread.start()

    def _run_loop(self) -> None:
        try:
            self._actor_loop()
        finally:
            _threads.pop(self.actor_urn, None)

    def _actor_loop_setup(self) -> None:
        # Pykka's own ends the actor too, but tells nobody.
        try:
            self.on_start()
        except Exception as error:
            self._handle_failure(*sys.exc_info())
            self.on_failure(type(error), error, error.__traceback__)

    def _create_actor_inbox(self) -> Any:  # type: ignore[override]
        return TickingInbox(self.tick_ms)

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give up what the actor owns (:meth:`on_stop`), and report to the node, which decides what is restarted."""
        del exception_type, traceback
        error = exception_value or RuntimeError("unknown failure")
        self.failed_by = error
        try:
            self.on_stop()
        except Exception:
            logger.exception("actor_failed_ending", actor=self)
        self._report(ActorFailed(str(self), error))

    def _actor_loop_teardown(self) -> None:
        unhandled = []
        while not self.actor_inbox.empty():
            unhandled.append(self.actor_inbox.get())
        for envelope in unhandled:
            self.on_unhandled(envelope.message)
            self.actor_inbox.put(envelope)
        super()._actor_loop_teardown()  # answers those who asked

    def on_unhandled(self, message: Any) -> None:
        """Give up a message that came after the actor's end; does nothing by default."""

    @property
    def idle(self) -> bool:
        """Whether no message waits: the moment to send what was held back to travel with something else."""
        return bool(self.actor_inbox.empty())


def stop_and_join(ref: pykka.ActorRef[Any], *, timeout_s: float) -> bool:
    """Stop an actor after what it has been told so far and join its thread; return whether ``timeout_s`` sufficed."""
    thread = _threads.get(ref.actor_urn)
    with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
        ref.stop(timeout=timeout_s)
    if thread is not None:
        thread.join(timeout_s)
        if thread.is_alive():
            logger.error("actor_stuck", actor=ref, seconds=timeout_s)
            return False
    return True


def tell(ref: pykka.ActorRef[Any], message: object) -> bool:
    """Tell ``ref``; return False, without an error, if it has stopped."""
    try:
        ref.tell(message)
    except pykka.ActorDeadError:
        return False
    return True


_threads: Final[dict[str, threading.Thread]] = {}
