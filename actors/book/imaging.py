"""Imaging: when a snapshot of one market's book is taken, kept, offered, and tried again after a failure.

What fails here stops nothing: the log is whole, and only recovery, or a follower that is far behind, takes longer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import pykka

from ...transport.errors import OpenOutcryError, Unavailable
from ...transport.files import refusal
from ..kit.backoff import Backoff
from .messages import KeepSnapshot, SnapshotFailed, SnapshotTaken, TakeSnapshot
from .meters import MarketMeters
from .orderbook import OrderBook
from .record import Tail
from .writer import JournalWriter

SNAPSHOT_RETRY_S: Final = 1.0
"""Seconds after a snapshot that failed before another is tried; doubled with each further failure."""
SNAPSHOT_RETRY_S_MAX: Final = 300.0
"""Most seconds before a snapshot is tried again."""
SNAPSHOT_S_MAX: Final = 300.0
"""Seconds after which a snapshot that is being taken counts as lost, and another may be begun."""


class Imaging:
    """The snapshots of one replica's book. The BookActor's."""

    def __init__(
        self,
        *,
        reply_to: pykka.ActorRef[Any],
        tell_snapshotter: Callable[[TakeSnapshot], bool],
        writer: JournalWriter,
        every: int,
        last: int,
        meters: MarketMeters,
        log: Any,
    ) -> None:
        """``every``: commands after which the book is written to disk whole; ``last``: where that was done last."""
        self._reply_to = reply_to
        self._tell_snapshotter = tell_snapshotter
        self._writer = writer
        self._every = every
        self._last = last
        self._meters = meters
        self._log = log
        self._book_number = 0
        """Which book of its actor this is: snapshots of former ones have nowhere to go."""
        self._backoff = {keep: Backoff(SNAPSHOT_RETRY_S, SNAPSHOT_RETRY_S_MAX) for keep in (True, False)}
        self._taken_s: dict[bool, float] = {}
        """Since when a snapshot is being taken: to keep (True), to offer (False)."""
        self.error: str | None = None
        """Why the last attempt to take, keep or fetch a snapshot failed, until one succeeds."""

    def keep_if_due(self, book: OrderBook, tail: Tail, *, only_again: bool = False) -> None:
        """Have a snapshot taken and kept when enough has been applied, or (also ``only_again``) one has failed."""
        again = bool(self._backoff[True].failures)
        due = again or (not only_again and book.sequence - self._last >= self._every)
        if due and self.take(book, tail, keep=True):
            self._last = book.sequence

    def take(self, book: OrderBook, tail: Tail, *, keep: bool) -> bool:
        """Have a snapshot taken of ``book``, which is at ``tail``; return whether.

        Not while one is being taken, or a moment after one has failed.
        """
        now_s = time.monotonic()
        if now_s - self._taken_s.get(keep, -SNAPSHOT_S_MAX) < SNAPSHOT_S_MAX or not self._backoff[keep].is_due(now_s):
            return False
        scratch = self._writer.snapshots.scratch(tail) if keep else None
        try:
            image = book.image()
        except MemoryError as error:
            self._failed(refusal(error, "no image of the book can be made"), keep=keep)
            return False
        if not self._tell_snapshotter(TakeSnapshot(self._reply_to, self._book_number, tail, image, scratch)):
            ended = Unavailable("what takes snapshots has failed, and is started again", code="out_of_resources")
            self._failed(ended, keep=keep)
            return False
        self._taken_s[keep] = now_s
        return True

    def on_taken(self, taken: SnapshotTaken) -> KeepSnapshot | None:
        """A snapshot has been taken: return what the JournalActor is to be told, if it is to be kept."""
        keep = taken.scratch is not None
        self._taken_s.pop(keep, None)
        if taken.scratch is None:
            if self.is_current(taken):
                self.succeeded(keep=False)
            return None
        if self.is_current(taken):
            return KeepSnapshot(taken.tail, taken.scratch, taken.size)
        with contextlib.suppress(OSError):  # else it goes at the next start
            taken.scratch.unlink(missing_ok=True)
        return None

    def is_current(self, taken: SnapshotTaken) -> bool:
        """Whether a snapshot is of the book that is here now."""
        return taken.number == self._book_number

    def on_failed(self, message: SnapshotFailed) -> None:
        """A snapshot was not taken."""
        self._taken_s.pop(message.keep, None)
        self._failed(message.error, keep=message.keep)

    def on_not_stored(self, error: OpenOutcryError) -> None:
        """A snapshot was taken, and not kept."""
        self._failed(error, keep=True)

    def _failed(self, error: OpenOutcryError, *, keep: bool) -> None:
        self.note_failure(error, self._backoff[keep].failed(time.monotonic()))

    def note_failure(self, error: OpenOutcryError, retry_s: float) -> None:
        """A snapshot was not taken, kept or fetched; it is tried again in ``retry_s`` seconds."""
        self._meters.snapshots_failed += 1
        self.error = str(error)
        self._log.warning("snapshot_failed", retry_s=retry_s, error=error)

    def succeeded(self, *, keep: bool) -> None:
        """A snapshot was taken, and kept if it was to be."""
        if self._backoff[keep].succeeded():
            self._log.info("snapshot_taken_again")
        self.error = None

    def book_leaves(self) -> None:
        """The book is about to be another one: a snapshot that is being taken has nowhere to go."""
        self._book_number += 1

    def on_another_book(self, sequence: int) -> None:
        """The book is another one from now on, at ``sequence``."""
        self._book_number += 1
        self._last = sequence
