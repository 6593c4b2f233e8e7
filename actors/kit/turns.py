"""Turns: another thread may handle a message for an actor that is idle, in place of waking the actor's own thread.

A hand-over between threads costs more than a small message: a wake-up, and a wait for the interpreter. Where a thread
that has nothing else to do receives a message for an idle actor, it takes the actor's turn, handles the message itself,
and gives the turn back. One thread at a time has the turn, the actor's own whenever it handles a message, so the actor
still handles one message at a time, in the order in which they came.
"""

from __future__ import annotations

import contextlib
import queue
import time
from _thread import allocate_lock
from collections import deque
from typing import Any

from pykka._envelope import Envelope


class TurnQueue:
    """A queue with one consumer that has the *turn*, except while it waits in :meth:`get`.

    Any thread may take the turn meanwhile, if nothing waits in the queue: see :meth:`take_turn`. The consumer has it
    from the start.
    """

    def __init__(self) -> None:
        self._items: deque[Envelope[Any]] = deque()
        self._turn = allocate_lock()
        self._turn.acquire()
        self._bell = allocate_lock()
        self._bell.acquire()
        self._asleep = False
        self._until_s = float("inf")
        """When the consumer that waits wakes by itself, on the clock of ``time.monotonic``."""

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add an envelope at the end."""
        self._items.append(envelope)
        if self._asleep:
            self._ring()

    def _ring(self) -> None:
        self._asleep = False
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def get(self, *, timeout: float | None = None) -> Envelope[Any]:
        """Remove and return the first envelope; only the consumer calls this.

        Raises:
            queue.Empty: there is none for ``timeout`` seconds, or :meth:`wake_by` wants the consumer to look earlier.
        """
        if not self._items:
            self._sleep(timeout)
        return self.get_nowait()

    def _sleep(self, timeout: float | None) -> None:
        """Wait, without the turn, for an envelope, a ring of the bell, or the timeout."""
        self._until_s = float("inf") if timeout is None else time.monotonic() + timeout
        self._turn.release()
        self._asleep = True
        if not self._items:  # what is put from now on rings the bell
            self._bell.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        self._asleep = False
        self._turn.acquire()

    def get_nowait(self) -> Envelope[Any]:
        """Remove and return the first envelope; raise ``queue.Empty`` if there is none."""
        try:
            return self._items.popleft()
        except IndexError:
            raise queue.Empty from None

    def empty(self) -> bool:
        """Return whether no envelope waits."""
        return not self._items

    def qsize(self) -> int:
        """Return how many envelopes wait."""
        return len(self._items)

    # -- other threads ------------------------------------------------------------------------------------------

    def take_turn(self) -> bool:
        """Take the turn if the consumer waits, nobody else has it, and nothing is in the queue; return whether.

        :meth:`give_back` must follow.
        """
        if not self._asleep or not self._turn.acquire(blocking=False):
            return False
        if self._asleep and not self._items:
            return True
        self._turn.release()
        return False

    def give_back(self, first: Envelope[Any] | None = None) -> None:
        """End a turn that was taken; the consumer handles ``first`` before anything that was put meanwhile."""
        if first is not None:
            self._items.appendleft(first)
        self._turn.release()
        if first is not None:
            self._ring()

    def wake_by(self, at_s: float) -> None:
        """While a turn is taken: let the consumer look by ``at_s``, on the clock of ``time.monotonic``."""
        if at_s < self._until_s:
            self._ring()
