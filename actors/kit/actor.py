"""What Pykka leaves to its users: bounded mailboxes, timers that are messages, and to be told when an actor ends.

:class:`Actor` is a ``pykka.ThreadingActor`` and is used like one. The life of an actor of this kind:

1. ``Actor.start(…)`` makes it; its thread runs ``on_start``. If that fails, ``on_failure`` runs, as for a message.
2. Messages are handled in the order in which they were put into the mailbox; a mailbox that is full refuses.
3. It is stopped, or fails by an exception in ``on_receive``: ``on_stop`` or ``on_failure`` runs, its timers end.
4. What is left in the mailbox, or comes later, is answered by ``pykka.ActorDeadError`` if it was asked, else dropped.
5. Whoever called :meth:`Mailbox.on_end` is told, once, by what it failed; None if it was stopped.

Nothing here knows of nodes or markets.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol, cast

import pykka
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from ...transport.errors import InvalidRequest, Overloaded, quoted
from ...transport.files import refusal
from ...transport.forks import guard
from ...transport.log import get_logger
from ...transport.numerals import written

logger = get_logger(__name__)

MAILBOX_SIZE_MAX: Final = 10_000
"""How many messages wait for an :class:`Actor` at most, unless its class says otherwise."""
DELAY_S_MAX: Final = 366 * 86_400.0
"""Longest delay or interval of a timer, in seconds."""

Ended = Callable[[BaseException | None], None]
"""Called when an actor has ended, with what it failed by; None if it was stopped."""


# -- timers ---------------------------------------------------------------------------------------------------------


class Timer:
    """A message that its actor will be told by a clock: once, or again and again. Made by :meth:`Actor.tell_after`.

    At most one message of a timer waits or is being handled: while the actor is busy with one, further ones are left
    out rather than piled up. Once :meth:`cancel` has returned on the actor's own thread, no message of it comes any
    more, not even one that waited in the mailbox already.
    """

    __slots__ = ("_mailbox", "cancelled", "due_s", "interval_s", "message", "pending")

    def __init__(self, mailbox: Mailbox, message: object, due_s: float, interval_s: float | None) -> None:
        self._mailbox = mailbox
        self.message = message
        self.due_s = due_s
        """When it is due (next), on its clock."""
        self.interval_s = interval_s
        """Seconds between two messages; None = it comes once."""
        self.cancelled = False
        self.pending = False
        """Whether a message of it waits in the mailbox, or is being handled."""

    def __repr__(self) -> str:
        often = "once" if self.interval_s is None else f"every {written(self.interval_s)} s"
        return f"<Timer {often}: {self.message!r:.80}{' (cancelled)' if self.cancelled else ''}>"

    def cancel(self) -> None:
        """Tell the message no more. Idempotent."""
        self.cancelled = True
        self._mailbox.timers.discard(self)

    def fire(self, now_s: float) -> bool:
        """Put the message into the mailbox, on a clock's thread; return whether it is due again, at ``due_s``."""
        if self.cancelled:
            return False
        if not self.pending:
            self.pending = True
            self._mailbox.put_always(Envelope(self))
        if self.interval_s is None:
            return False
        self.due_s = max(self.due_s + self.interval_s, now_s)
        return True


class Clock(Protocol):
    """Tells actors the time and fires their timers; :class:`~..testing.FakeClock` is one that a test moves by hand."""

    def now_s(self) -> float:
        """Return the time in seconds; only differences mean something."""

    def start(self, timer: Timer) -> None:
        """Fire ``timer`` when it is due, until it is cancelled."""


class SystemClock:
    """The clock of the machine (``time.monotonic``): one thread for all timers of the process, made by the first."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have no timers, and no thread yet: as in a forked child, where those of the parent do not run."""
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._clean_at = 1024
        self._thread: threading.Thread | None = None

    def now_s(self) -> float:
        """See :class:`Clock`."""
        return time.monotonic()

    def start(self, timer: Timer) -> None:
        """See :class:`Clock`."""
        with self._changed:
            self._push(timer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="openoutcry-timers", daemon=True)
                self._thread.start()
            if self._due[0][2] is timer:
                self._changed.notify()

    def _push(self, timer: Timer) -> None:
        if len(self._due) >= self._clean_at:  # the cancelled ones would else stay until they were due
            self._due = [entry for entry in self._due if not entry[2].cancelled]
            heapq.heapify(self._due)
            self._clean_at = max(1024, 2 * len(self._due))
        heapq.heappush(self._due, (timer.due_s, next(self._numbers), timer))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                timer = heapq.heappop(self._due)[2]
            if timer.fire(time.monotonic()):
                with self._changed:
                    self._push(timer)


SYSTEM_CLOCK: Final = SystemClock()
_clocks: Final[list[Clock]] = [SYSTEM_CLOCK]


def use_clock(clock: Clock | None) -> None:
    """Give ``clock`` to every :class:`Actor` that is made from now on; None: the system's again. For tests."""
    _clocks[1:] = [] if clock is None else [clock]


# -- mailboxes ------------------------------------------------------------------------------------------------------


class Mailbox:
    """An actor's inbox: bounded, a ``SimpleQueue`` within (several times quicker than Pykka's ``Queue``).

    The policy: when ``size_max`` messages wait, a tell or ask from another thread raises Overloaded in its sender, who
    was not heard (a few threads that put at one moment may exceed the bound by one each). Never refused are: a request
    to stop, timers, death notices, and what the actor tells itself, which would else block it or be lost.
    """

    def __init__(self, name: str, size_max: int) -> None:
        """``size_max`` 0 = no bound."""
        self._name = name
        guard(self)
        self.size_max = size_max
        self.refused = 0
        """How many messages were refused because the mailbox was full."""
        self.timers: set[Timer] = set()
        self._queue: queue.SimpleQueue[Envelope[Any]] = queue.SimpleQueue()
        self._owner = 0
        self._handling: Timer | None = None
        self._lock = threading.Lock()
        self._watchers: list[Ended] = []
        self._ended = False
        self._error: BaseException | None = None
        self._on_unhandled: Callable[[Any], None] = lambda _: None
        self.empty = self._queue.empty
        self.qsize = self._queue.qsize

    def begin(self) -> None:
        """Note that the calling thread is the actor's."""
        self._owner = threading.get_ident()

    def put(self, envelope: Envelope[Any]) -> None:
        """Add a message.

        Raises:
            Overloaded: the mailbox is full (code ``mailbox_full``).
        """
        if (
            self.size_max
            and self._queue.qsize() >= self.size_max
            and threading.get_ident() != self._owner
            and not isinstance(envelope.message, _ActorStop)
        ):
            self.refused += 1
            raise Overloaded(
                f"{self._name} has {self.size_max} messages to handle already; this one was not taken, send it later",
                code="mailbox_full",
            )
        self.put_always(envelope)

    def put_always(self, envelope: Envelope[Any]) -> None:
        """Add a message that is bounded by other means."""
        self._queue.put(envelope)
        if self._ended:
            self._drain()

    def get(self) -> Envelope[Any]:
        """Return the next message. Called by Pykka's actor loop only: it means that the last one has been handled."""
        return self._unwrapped(None)

    def _unwrapped(self, timeout_s: float | None) -> Envelope[Any]:
        """As :meth:`get`; raises ``queue.Empty`` after ``timeout_s``."""
        if self._handling is not None:
            self._handling.pending = False
            self._handling = None
        while True:
            envelope = self._queue.get(timeout=timeout_s)
            timer = envelope.message
            if type(timer) is not Timer:
                return envelope
            if timer.cancelled:
                timer.pending = False
                continue
            if timer.interval_s is None:
                self.timers.discard(timer)
            self._handling = timer
            return Envelope(timer.message)

    def on_end(self, ended: Ended) -> None:
        """Call ``ended`` once when the actor has ended, on its thread, or now if it has. It may only hand over."""
        with self._lock:
            if not self._ended:
                self._watchers.append(ended)
                return
        ended(self._error)

    def off_end(self, ended: Ended) -> None:
        """Take :meth:`on_end` back, of the same function; a call may be under way already."""
        with self._lock, contextlib.suppress(ValueError):
            self._watchers.remove(ended)

    def end(self, error: BaseException | None, on_unhandled: Callable[[Any], None]) -> None:
        """Give up what waits and what still comes, and tell those who watch. Called by the actor at its end."""
        self._error = error
        self._on_unhandled = on_unhandled
        for timer in list(self.timers):
            timer.cancel()
        if self._handling is not None:
            self._handling.pending = False
        with self._lock:
            self._ended = True
            watchers, self._watchers = self._watchers, []
        try:
            self._drain()
        finally:
            for ended in watchers:
                try:
                    ended(error)
                except Exception:
                    logger.exception("watcher_failed", actor=self._name)

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                envelope = self._queue.get_nowait()
                message, reply_to = envelope.message, envelope.reply_to
                if isinstance(message, Timer):
                    message.pending = False
                elif not isinstance(message, _ActorStop):
                    try:
                        self._on_unhandled(message)
                    except Exception:  # it is not to cost the others their answer, nor who watches its notice
                        logger.exception("unhandled_failed", actor=self._name)
                    if reply_to is not None:
                        dead = pykka.ActorDeadError(f"{self._name} stopped before handling the message")
                        reply_to.set_exception((pykka.ActorDeadError, dead, None))
                elif reply_to is not None:
                    reply_to.set(None)


# -- actors ---------------------------------------------------------------------------------------------------------


class Actor(pykka.ThreadingActor):
    """A Pykka actor with a bounded :class:`Mailbox`, timers, and an end that others can be told of.

    >>> class Metronome(Actor):
    ...     def on_start(self) -> None:
    ...         self.tell_every(0.001, "tick")
    ...
    ...     def on_receive(self, message: object) -> None:
    ...         self.actor_ref.stop(block=False)
    >>> metronome = Metronome.start()
    >>> metronome.actor_stopped.wait(5)
    True

    Its thread is a daemon: an actor that was forgotten does not keep the process alive, but is cut off without
    ``on_stop`` when that ends. Stop it by ``ref.stop()`` or :func:`stop_and_join`.
    """

    use_daemon_thread: ClassVar[bool] = True
    mailbox_size_max: ClassVar[int] = MAILBOX_SIZE_MAX
    """How many messages may wait; see :class:`Mailbox` for what happens beyond. 0 = no bound."""

    def __init__(self) -> None:
        super().__init__()
        self.clock: Clock = _clocks[-1]
        """The clock of its timers; ``self.clock.now_s()`` tells a time that fits them."""
        self.failed_by: BaseException | None = None
        """What ended the actor, if it was not stopped; set before ``on_failure``. Not an ``on_stop`` that raises."""

    @property
    def mailbox(self) -> Mailbox:
        """The actor's inbox."""
        return cast("Mailbox", self.actor_inbox)

    def tell_after(self, delay_s: float, message: object) -> Timer:
        """Tell this actor ``message`` once, ``delay_s`` seconds from now, unless it has ended or cancels the timer.

        Call it on the actor's own thread, or in ``__init__``.

        Raises:
            InvalidRequest: the delay is no number of seconds from 0 to ``DELAY_S_MAX`` (code ``invalid_delay``).
        """
        return self._start_timer(Timer(self.mailbox, message, self.clock.now_s() + _seconds(delay_s), None))

    def tell_every(self, interval_s: float, message: object) -> Timer:
        """Tell this actor ``message`` every ``interval_s`` seconds, first after one interval, at a fixed rate.

        Those that fall due while one waits or is being handled are left out. As :meth:`tell_after` otherwise; an
        interval of 0 is refused.
        """
        if not _seconds(interval_s):
            raise InvalidRequest("a timer's interval is more than 0 seconds", code="invalid_delay")
        return self._start_timer(Timer(self.mailbox, message, self.clock.now_s() + interval_s, interval_s))

    def _start_timer(self, timer: Timer) -> Timer:
        if not self.actor_stopped.is_set():
            self.mailbox.timers.add(timer)
            self.clock.start(timer)
        return timer

    def _create_actor_inbox(self) -> Any:  # type: ignore[override]
        return Mailbox(str(self), self.mailbox_size_max)

    def _start_actor_loop(self) -> None:
        thread = threading.Thread(target=self._run_loop, name=str(self), daemon=self.use_daemon_thread)
        _threads[self.actor_urn] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread for it
            _threads.pop(self.actor_urn, None)
            pykka.ActorRegistry.unregister(self.actor_ref)
            self.actor_stopped.set()
            self.on_not_started()
            self.mailbox.end(error, self.on_unhandled)
            raise refusal(error, f"{type(self).__name__} cannot be started") from error

    def _run_loop(self) -> None:
        self.mailbox.begin()
        try:
            self._actor_loop()
        finally:
            try:
                self.mailbox.end(self.failed_by, self.on_unhandled)
            finally:
                _threads.pop(self.actor_urn, None)

    def _actor_loop_setup(self) -> None:
        # Pykka's own ends the actor too, but tells nobody.
        try:
            self.on_start()
        except Exception as error:
            self._handle_failure(*sys.exc_info())
            self.on_failure(type(error), error, error.__traceback__)

    def _actor_loop_teardown(self) -> None:
        """Leave the rest to :meth:`Mailbox.end`."""

    def on_not_started(self) -> None:
        """Give up what ``__init__`` has opened: the system has no thread for this actor. Does nothing by default."""

    def on_unhandled(self, message: Any) -> None:
        """Give up a message that came too late, at the actor's end or after it, then on its sender's thread.

        Does nothing by default; who asked is answered anyway.
        """

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.failed_by is None and not self.actor_stopped.is_set():  # else it was stopped, whatever on_stop does
            self.failed_by = exception_value
        super()._handle_failure(exception_type, exception_value, traceback)


def stop_and_join(ref: pykka.ActorRef[Any], *, timeout_s: float) -> bool:
    """Stop an actor after what it has been told so far and join its thread; return whether ``timeout_s`` sufficed."""
    thread = _threads.get(ref.actor_urn)
    with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
        ref.stop(timeout=timeout_s)
    if thread is not None and thread is not threading.current_thread():
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


def tell_always(ref: pykka.ActorRef[Any], message: object) -> bool:
    """As :func:`tell`, for a message that a full mailbox must not refuse and that is bounded by other means."""
    return put_always(ref, Envelope(message))


def put_always(ref: pykka.ActorRef[Any], envelope: Envelope[Any]) -> bool:
    """Add to the inbox of any Pykka actor, past the bound of a :class:`Mailbox`; return False if it has stopped."""
    if not ref.is_alive():
        return False
    inbox = ref.actor_inbox
    if isinstance(inbox, Mailbox):
        inbox.put_always(envelope)
    else:
        inbox.put(envelope)
    return True


def _seconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= DELAY_S_MAX:
        raise InvalidRequest(
            f"a timer's delay is 0 to {written(DELAY_S_MAX)} seconds, not {quoted(value)}", code="invalid_delay"
        )
    return float(value)


_threads: Final[dict[str, threading.Thread]] = {}


def _forget_parents_actors() -> None:
    """In a forked child no actor of its parent runs; one that it starts does, and its timers."""
    SYSTEM_CLOCK.forget()
    _threads.clear()
    pykka.ActorRegistry._actor_refs_lock = threading.RLock()
    pykka.ActorRegistry._actor_refs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_actors)
