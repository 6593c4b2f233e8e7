"""Submissions: the requests between one market's callers and its BookActor, their bound and their answers.

For single orders from many callers, waking threads costs most, so it is done seldom. A queue of requests wakes the
BookActor once. Callers that are answered together wake each other in a chain: all woken at once, they would only queue
for the interpreter (64 callers got twice as many answers a second this way). A caller in an event loop is not woken at
all: its loop wakes once for all callers that are answered together (:mod:`..aio`).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from _thread import allocate_lock
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final

from ...transport.errors import OpenOutcryError, Overloaded, RequestTimeout, copied, present
from .commands import Command, Event
from .messages import SUBMITTED, Submitted
from .meters import MarketMeters
from .requests import MANY
from .rules import MarketRules

STAND_BY_MAX: Final = 65_536
"""Most requests of one market that wait for room at one node; a further caller is refused at once."""
_LATE_S: Final = 1.0
"""Seconds that a caller waits beyond its deadline: the BookActor fails requests at the deadline, unless it is stuck."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The results of commands that were executed together: of one request, and of others."""

    events: list[Event]
    """Of all of them, in order of sequence."""
    earlier: dict[int, tuple[Event, ...]]
    """First answers to commands that turned out to be retries, by the sequence of the first."""
    state_sequence: int
    state_hash: str
    rules: MarketRules


class Request:
    """One request of a caller at this node: some commands that travel together, and one answer for all of them."""

    __slots__ = (
        "_answered",
        "_error",
        "_lock",
        "_next",
        "_outcome",
        "_waiting",
        "commands",
        "deadline_ns",
        "first_sequence",
        "sent_epoch",
        "sent_ever",
        "sent_to",
        "submitted_s",
        "tell",
    )

    def __init__(
        self, commands: tuple[Command, ...], deadline_ns: int, tell: Callable[[list[Request]], None] | None = None
    ) -> None:
        """``deadline_ns``: on the monotonic clock; after it the request fails by :class:`RequestTimeout`.

        ``tell``: called on the BookActor's thread with the answered requests that share this ``tell``; it must not
        block. None: a thread waits.
        """
        self.tell = tell
        self.submitted_s = time.monotonic()
        self.commands = commands
        self.deadline_ns = deadline_ns
        self.first_sequence = 0
        """The sequence number of the first command, once answered."""
        self.sent_to: str | None = None
        """The node that was asked to order it and may still do so. Only the BookActor uses it."""
        self.sent_epoch = 0
        self.sent_ever = False
        self._outcome: Outcome | None = None
        self._error: OpenOutcryError | None = None
        self._answered = False
        self._next: Request | None = None
        self._waiting = False
        self._lock = allocate_lock()
        self._lock.acquire()

    def wait(self) -> Outcome:
        """Wait for the answer.

        Raises:
            OpenOutcryError: the request failed; see ``ExchangeNode.submit_order``.
        """
        left_s = self.given_up_s - time.monotonic()
        self._waiting = True
        try:
            if not self._answered:
                self._lock.acquire(timeout=max(0.0, left_s))
        finally:
            # In this order: the thread that wakes the chain reads these two in the opposite order.
            self._waiting = False
            if self._answered:
                _wake(self._next)
        return self.result()

    def result(self) -> Outcome:
        """Return the answer or raise the error, without waiting."""
        if self._error is not None:
            raise copied(self._error)  # other callers get the same error
        if self._outcome is None:
            raise RequestTimeout("no answer in time: the outcome is unknown; retry with the same client order id")
        return self._outcome

    @property
    def given_up_s(self) -> float:
        """When its caller stops waiting, answered or not; on the monotonic clock."""
        return self.deadline_ns / 1e9 + _LATE_S

    def answer(self, outcome: Outcome) -> None:
        """Set the answer; :meth:`Submissions.release` lets the caller have it."""
        self._outcome = outcome

    def fail(self, error: OpenOutcryError) -> None:
        """Set an error as the answer; :meth:`Submissions.release` lets the caller have it."""
        self._error = error


def _wake(request: Request | None) -> None:
    """Wake the next caller that waits, which will wake the one after it. Waking one twice does no harm."""
    while request is not None:
        try:
            request._lock.release()
        except RuntimeError:
            return  # it was woken before: that thread wakes the callers after it
        if request._waiting:
            return
        request = request._next  # it is not waiting, yet or any more


class Submissions:
    """The requests of one market at one node: callers put them in, its BookActor takes and answers them."""

    def __init__(self, limit: int, meters: MarketMeters | None = None) -> None:
        """``limit``: commands that may be unanswered. Callers beyond it wait for room, first come first served, until
        their deadlines.
        """
        self._limit = limit
        self._meters = meters or MarketMeters()
        self._queue: deque[Request] = deque()
        self._tell: Callable[[Submitted], object] | None = None
        self._wake_ups = 0
        self.waiting = 0
        """Commands that wait for the BookActor, or a few less."""
        self._closed: OpenOutcryError | None = None
        self._in_flight = 0
        self._standing_by: OrderedDict[Request, Callable[[], object]] = OrderedDict()
        """Requests that wait for room, each with the function to notify. No other request overtakes them."""
        self._lock = threading.Lock()

    def open(self, tell: Callable[[Submitted], object]) -> None:
        """``tell`` reaches the BookActor; called before the first request."""
        self._tell = tell

    @property
    def in_flight(self) -> int:
        """Commands that are unanswered."""
        return self._in_flight

    def submit(self, commands: tuple[Command, ...], deadline_s: float) -> Request:
        """Hand commands to the BookActor; ``deadline_s`` is on the monotonic clock. Any thread.

        Raises:
            Overloaded: too many commands were unanswered until the deadline; nothing was sent.
        """
        request = Request(commands, int(deadline_s * 1e9))
        self.put(request)
        return request

    def put(self, request: Request) -> None:
        """Hand a request to the BookActor; waits, and raises, as :meth:`submit` does."""
        if self.put_nowait(request):
            return
        entered = threading.Event()
        self.stand_by(request, entered.set)
        try:
            entered.wait(max(0.0, request.deadline_ns / 1e9 - time.monotonic()))
        finally:
            withdrawn = self.withdraw(request)
        if withdrawn:
            raise self.overloaded()

    def put_nowait(self, request: Request) -> bool:
        """Hand a request to the BookActor, if there is room and nobody waits for it; return whether. Never waits."""
        count = len(request.commands)
        with self._lock:
            if (self._standing_by or self._in_flight + count > self._limit) and self._closed is None:
                return False
            self._in_flight += count
            self.waiting += count
            self._queue.append(request)
        self._announce()
        return True

    def stand_by(self, request: Request, entered: Callable[[], object]) -> None:
        """Hand a request to the BookActor once there is room, behind those that already wait. Never waits itself.

        ``entered`` is called then, on any thread; it must not block. A caller that stops waiting calls
        :meth:`withdraw`.

        Raises:
            Overloaded: too many wait already.
        """
        with self._lock:
            full = len(self._standing_by) >= STAND_BY_MAX
            if not full:
                self._standing_by[request] = entered
        if full:
            raise self.overloaded()
        self._admit()

    def withdraw(self, request: Request) -> bool:
        """Withdraw a request that waits for room; False: the BookActor already has it."""
        with self._lock:
            withdrawn = self._standing_by.pop(request, None) is not None
        if withdrawn:
            self._admit()  # there may be room for a smaller one behind it
        return withdrawn

    def overloaded(self) -> Overloaded:
        """Return, and count, the error of a request that found no room."""
        with self._lock:
            self._meters.requests_failed[Overloaded.default_code] += 1
        return Overloaded(
            f"{self._in_flight} commands are unanswered already; this request was not sent, wait for answers"
        )

    def _admit(self) -> None:
        """Admit requests that wait for room while there is some; once closed, admit all, and they fail."""
        admitted: list[Callable[[], object]] = []
        with self._lock:
            while self._standing_by:
                request = next(iter(self._standing_by))
                count = len(request.commands)
                if self._in_flight + count > self._limit and self._closed is None:
                    break
                admitted.append(self._standing_by.pop(request))
                self._in_flight += count
                self.waiting += count
                self._queue.append(request)
        if admitted:
            self._announce()
        for entered in admitted:
            entered()

    def _announce(self) -> None:
        """See to it that the BookActor comes for what has been queued up."""
        if self._closed is not None:
            self._fail_queue(self._closed)
        elif not self._wake_ups or (self._wake_ups == 1 and self.waiting >= MANY):
            self._wake_ups += 1
            present(self._tell, "submitted before the BookActor was there")(SUBMITTED)

    @property
    def any(self) -> bool:
        """Whether requests wait to be taken."""
        return bool(self._queue)

    def take(self) -> list[Request]:
        """Return the requests that have come in since. BookActor only; it need not come at once, see :data:`MANY`."""
        self._wake_ups = 0
        with self._lock:
            self.waiting = 0
        return self._drain()

    def release(self, requests: Iterable[Request]) -> None:
        """Let callers have the answers that were set. BookActor only."""
        last: Request | None = None
        first: Request | None = None
        commands = 0
        failed: list[str] = []
        told: dict[Callable[[list[Request]], None], list[Request]] = {}
        now_s, answered = time.monotonic(), self._meters.ack_s.observe
        for request in requests:
            commands += len(request.commands)
            if request._error is None:
                answered(now_s - request.submitted_s)
            else:
                failed.append(request._error.code)
            request._answered = True
            if request.tell is not None:
                told.setdefault(request.tell, []).append(request)
                continue
            if last is None:
                first = request
            else:
                last._next = request
            last = request
        with self._lock:
            self._in_flight -= commands
            if failed:
                self._meters.requests_failed.update(failed)
        _wake(first)
        for tell, those in told.items():
            tell(those)
        if self._standing_by:
            self._admit()

    def close(self, error: OpenOutcryError) -> None:
        """Fail what waits, and all that comes later, by ``error``. Idempotent: the first error stays."""
        with self._lock:
            if self._closed is None:
                self._closed = error
        self._admit()
        self._fail_queue(self._closed)

    def _fail_queue(self, error: OpenOutcryError) -> None:
        taken = self._drain()
        for request in taken:
            request.fail(error)
        self.release(taken)

    def _drain(self) -> list[Request]:
        taken = []
        while True:  # by one of several threads, once it is closed: each may find the queue emptied by another
            try:
                taken.append(self._queue.popleft())
            except IndexError:
                return taken
