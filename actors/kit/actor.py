"""What Pykka leaves to its users: bounded mailboxes, timers that are messages, and notices when an actor ends.

:class:`Actor` is a ``pykka.ThreadingActor`` and is used like one. The life of an actor of this kind:

1. ``Actor.start(…)`` creates it; its thread runs ``on_start``. If that fails, ``on_failure`` runs, as for a message.
2. It handles messages in the order in which they entered the mailbox; a full mailbox refuses messages.
3. It is stopped, or fails by an exception in ``on_receive``: ``on_stop`` or ``on_failure`` runs, its timers end.
4. Messages that are left in the mailbox, or come later, are discarded; asks among them get ``pykka.ActorDeadError``.
5. The functions given to :meth:`Mailbox.on_end` are called once, with the actor's failure; None if it was stopped.

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
"""Most messages that wait for an :class:`Actor` by default; at the bound, senders get Overloaded."""
DELAY_S_MAX: Final = 366 * 86_400.0
"""Longest delay or interval of a timer, in seconds."""

Ended = Callable[[BaseException | None], None]
"""Called when an actor has ended, with its failure; None if it was stopped."""


# -- timers ---------------------------------------------------------------------------------------------------------


class Timer:
    """A message that a clock sends to its actor, once or repeatedly. Made by :meth:`Actor.tell_after`.

    At most one message of a timer waits or is being handled: while the actor is busy with one, the timer skips further
    ones. Once :meth:`cancel` has returned on the actor's own thread, no message of the timer arrives any more, not even
    one that already waited in the mailbox.
    """

    __slots__ = ("_mailbox", "cancelled", "due_s", "interval_s", "message", "pending")

    def __init__(self, mailbox: Mailbox, message: object, due_s: float, interval_s: float | None) -> None:
        self._mailbox = mailbox
        self.message = message
        self.due_s = due_s
        """When it is due (next), on its clock."""
        self.interval_s = interval_s
        """Seconds between two messages; None: only one message."""
        self.cancelled = False
        self.pending = False
        """Whether a message of it waits in the mailbox, or is being handled."""

    def __repr__(self) -> str:
        often = "once" if self.interval_s is None else f"every {written(self.interval_s)} s"
        return f"<Timer {often}: {self.message!r:.80}{' (cancelled)' if self.cancelled else ''}>"

    def cancel(self) -> None:
        """Stop sending the message. Idempotent."""
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
        """Start without timers and without a thread, also in a forked child, where those of the parent do not run."""
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
        if len(self._due) >= self._clean_at:  # otherwise the cancelled ones would stay until they are due
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
    """Give ``clock`` to every :class:`Actor` created from now on; None: the system's clock. For tests."""
    _clocks[1:] = [] if clock is None else [clock]


# -- mailboxes ------------------------------------------------------------------------------------------------------


class Envelopes(Protocol):
    """The queue within a :class:`Mailbox`: that much of ``queue.SimpleQueue``."""

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add one at the end."""

    def get(self, *, timeout: float | None) -> Envelope[Any]:
        """Remove and return the first; raise ``queue.Empty`` if there is none for ``timeout`` seconds."""

    def get_nowait(self) -> Envelope[Any]:
        """Remove and return the first; raise ``queue.Empty`` if there is none."""

    def empty(self) -> bool:
        """Return whether there is none."""

    def qsize(self) -> int:
        """Return how many there are."""


class Mailbox:
    """An actor's inbox: bounded, a ``SimpleQueue`` within (several times quicker than Pykka's ``Queue``).

    The policy: while ``size_max`` messages wait, a tell or ask from another thread raises Overloaded in its sender, and
    the message is not sent (a few threads that put at the same moment may exceed the bound by one each). The mailbox
    never refuses a request to stop, timers, death notices, and messages of the actor to itself: those would block it
    or be lost.
    """

    def __init__(self, name: str, size_max: int, envelopes: Envelopes | None = None) -> None:
        """``size_max`` 0 = no bound; ``envelopes``: the queue within, a ``SimpleQueue`` by default."""
        self._name = name
        guard(self)
        self.size_max = size_max
        self.refused = 0
        """How many messages were refused because the mailbox was full."""
        self.timers: set[Timer] = set()
        self._queue: Envelopes = queue.SimpleQueue() if envelopes is None else envelopes
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
        """Add a message past the bound; something else must bound such messages."""
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
        """Call ``ended`` once: on the actor's thread when it ends, or now if it has ended. It must not block."""
        with self._lock:
            if not self._ended:
                self._watchers.append(ended)
                return
        ended(self._error)

    def off_end(self, ended: Ended) -> None:
        """Undo :meth:`on_end` of the same function; a call may already be running."""
        with self._lock, contextlib.suppress(ValueError):
            self._watchers.remove(ended)

    def end(self, error: BaseException | None, on_unhandled: Callable[[Any], None]) -> None:
        """Discard waiting and later messages, and notify the watchers. The actor calls this at its end."""
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
                    except Exception:  # a failure here must not cost the others their answer, nor watchers their notice
                        logger.exception("unhandled_failed", actor=self._name)
                    if reply_to is not None:
                        dead = pykka.ActorDeadError(f"{self._name} stopped before handling the message")
                        reply_to.set_exception((pykka.ActorDeadError, dead, None))
                elif reply_to is not None:
                    reply_to.set(None)


# -- actors ---------------------------------------------------------------------------------------------------------


class Actor(pykka.ThreadingActor):
    """A Pykka actor with a bounded :class:`Mailbox`, timers, and notices of its end.

    >>> class Metronome(Actor):
    ...     def on_start(self) -> None:
    ...         self.tell_every(0.001, "tick")
    ...
    ...     def on_receive(self, message: object) -> None:
    ...         self.actor_ref.stop(block=False)
    >>> metronome = Metronome.start()
    >>> metronome.actor_stopped.wait(5)
    True

    Its thread is a daemon: a forgotten actor does not keep the process alive, but ends with it without ``on_stop``.
    Stop it by ``ref.stop()`` or :func:`stop_and_join`.
    """

    use_daemon_thread: ClassVar[bool] = True
    mailbox_size_max: ClassVar[int] = MAILBOX_SIZE_MAX
    """Most messages that may wait; beyond, :class:`Mailbox` refuses. 0 = no bound."""

    def __init__(self) -> None:
        super().__init__()
        self.clock: Clock = _clocks[-1]
        """The clock of its timers; ``self.clock.now_s()`` returns its time."""
        self.failed_by: BaseException | None = None
        """The actor's failure, None if it was stopped or only ``on_stop`` failed; set before ``on_failure``."""

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

        It skips messages that are due while one waits or is being handled. Otherwise as :meth:`tell_after`; an
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
        # Pykka's own loop ends the actor too, but notifies nobody.
        try:
            self.on_start()
        except Exception as error:
            self._handle_failure(*sys.exc_info())
            self.on_failure(type(error), error, error.__traceback__)

    def _actor_loop_teardown(self) -> None:
        """Leave the remaining messages to :meth:`Mailbox.end`."""

    def on_not_started(self) -> None:
        """Release what ``__init__`` opened, because the system has no thread for this actor.

        Does nothing by default.
        """

    def on_unhandled(self, message: Any) -> None:
        """Handle a message that came too late. After the actor's end this runs on the sender's thread.

        Does nothing by default; asks are answered anyway.
        """

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if (
            self.failed_by is None and not self.actor_stopped.is_set()
        ):  # otherwise it was stopped, whatever on_stop does
            self.failed_by = exception_value
        super()._handle_failure(exception_type, exception_value, traceback)


def stop_and_join(ref: pykka.ActorRef[Any], *, timeout_s: float) -> bool:
    """Stop an actor after the messages sent so far and join its thread; return whether ``timeout_s`` sufficed."""
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
    """Send ``message`` to ``ref``; return False, without an error, if it has stopped."""
    try:
        ref.tell(message)
    except pykka.ActorDeadError:
        return False
    return True


def tell_always(ref: pykka.ActorRef[Any], message: object) -> bool:
    """As :func:`tell`, for a message that a full mailbox must not refuse; something else must bound such messages."""
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
    """In a forked child no actor of the parent runs; actors that the child starts do, with their timers."""
    SYSTEM_CLOCK.forget()
    _threads.clear()
    pykka.ActorRegistry._actor_refs_lock = threading.RLock()
    pykka.ActorRegistry._actor_refs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_actors)
