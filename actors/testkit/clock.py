"""A clock that a test moves, for the timers of actors."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

from ...transport.numerals import written
from .waits import HANDLED_S, scaled

if TYPE_CHECKING:
    from ..kit.actor import Timer


class FakeClock:
    """A clock for the timers of :class:`~..kit.actor.Actor` that stands still until the test moves it.

    >>> from openoutcry.actors.kit.actor import Actor, use_clock
    >>> class Countdown(Actor):
    ...     left = 3
    ...
    ...     def on_start(self) -> None:
    ...         self.tell_every(60, "a minute has passed")
    ...
    ...     def on_receive(self, message: object) -> int:
    ...         if message == "a minute has passed":
    ...             self.left -= 1
    ...         return self.left
    >>> clock = FakeClock()
    >>> use_clock(clock)  # the fixture fake_clock does that, and undoes it after the test
    >>> countdown = Countdown.start()
    >>> countdown.ask("how many?", timeout=3)
    3
    >>> clock.advance(120)
    >>> countdown.ask("how many?", timeout=3)
    1
    >>> countdown.stop()
    True
    >>> use_clock(None)

    Only actors created while it is in use follow it; nodes and their links use the machine's clock.
    """

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._now_s = 0.0
        self._timers: list[Timer] = []

    def now_s(self) -> float:
        """Return how far the clock was moved, in seconds."""
        return self._now_s

    def start(self, timer: Timer) -> None:
        """Fire ``timer`` when the clock is moved to its due time."""
        with self._changed:
            self._timers.append(timer)

    def advance(self, seconds: float) -> None:
        """Move the clock, and return once every message that fell due on the way has been handled, one after the other.

        Timers that a handler starts count too if they are due before the end. Do not call this from an actor.

        Raises:
            AssertionError: an actor did not handle a message within 3 s.
            InvalidRequest: ``seconds`` is negative or not a number (code ``invalid_delay``).
        """
        from ...transport.errors import InvalidRequest  # noqa: PLC0415

        __tracebackhide__ = True
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise InvalidRequest(f"a clock is moved by 0 or more seconds, not {seconds!r:.40}", code="invalid_delay")
        end_s = self._now_s + seconds
        while (timer := self._next(end_s)) is not None:
            self._now_s = max(self._now_s, timer.due_s)
            if not timer.fire(self._now_s):
                with self._changed:
                    self._timers.remove(timer)
            deadline_s = time.monotonic() + scaled(HANDLED_S)
            while timer.pending:
                if time.monotonic() > deadline_s:
                    raise AssertionError(
                        f"{timer} was not handled within {written(scaled(HANDLED_S))} s: is its actor stuck?"
                    )
                time.sleep(0)
        self._now_s = end_s

    def _next(self, end_s: float) -> Timer | None:
        with self._changed:
            self._timers = [timer for timer in self._timers if not timer.cancelled]
            due = [timer for timer in self._timers if timer.due_s <= end_s]
        return min(due, key=lambda timer: timer.due_s, default=None)
