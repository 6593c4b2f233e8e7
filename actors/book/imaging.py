"""Imaging: when to take, keep and offer a snapshot of one market's book, and when to retry after a failure.

A failure here stops nothing: the log is whole; only recovery, or catching up of a distant follower, takes longer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import pykka

from ...transport.errors import Closed, OpenOutcryError, Unavailable
from ..kit.backoff import Backoff
from .copying import Done
from .messages import KeepSnapshot, SnapshotFailed, SnapshotTaken, TakeSnapshot
from .meters import MarketMeters
from .orderbook import BookImage
from .record import Tail
from .writer import JournalWriter

SNAPSHOT_RETRY_S: Final = 1.0
"""Seconds after a snapshot that failed before another is tried; doubled with each further failure."""
SNAPSHOT_RETRY_S_MAX: Final = 300.0
"""Most seconds before a snapshot is retried."""
SNAPSHOT_S_MAX: Final = 300.0
"""Seconds after which a running snapshot counts as lost, and another may begin."""


class Imaging:
    """The snapshots of one replica's book. Owned by the BookActor."""

    def __init__(
        self,
        *,
        reply_to: pykka.ActorRef[Any],
        tell_snapshotter: Callable[[TakeSnapshot], bool],
        want: Callable[[Done], None],
        tail: Callable[[], Tail],
        writer: JournalWriter,
        every: int,
        last: int,
        meters: MarketMeters,
        log: Any,
    ) -> None:
        """``every``: commands between snapshots; ``last``: the sequence number of the last one.

        ``want`` calls its argument with a copy of the book, which is at ``tail()`` then.
        """
        self._reply_to = reply_to
        self._tell_snapshotter = tell_snapshotter
        self._want = want
        self._tail = tail
        self._writer = writer
        self._every = every
        self._last = last
        self._meters = meters
        self._log = log
        self._book_number = 0
        """The number of its actor's current book: snapshots of earlier books are discarded."""
        self._backoff = {keep: Backoff(SNAPSHOT_RETRY_S, SNAPSHOT_RETRY_S_MAX) for keep in (True, False)}
        self._taken_s: dict[bool, float] = {}
        """Start times of running snapshots: to keep (True), to offer (False)."""
        self.error: str | None = None
        """Why the last attempt to take, keep or fetch a snapshot failed, until one succeeds."""

    def keep_if_due(self, sequence: int, *, only_again: bool = False) -> None:
        """Take and keep a snapshot if enough was applied, or (also with ``only_again``) if one failed."""
        again = bool(self._backoff[True].failures)
        due = again or (not only_again and sequence - self._last >= self._every)
        if due and self.take(keep=True):
            self._last = sequence

    def take(self, *, keep: bool) -> bool:
        """Start a snapshot of the book; return whether it started.

        It does not start while another runs, or soon after a failure.
        """
        now_s = time.monotonic()
        if now_s - self._taken_s.get(keep, -SNAPSHOT_S_MAX) < SNAPSHOT_S_MAX or not self._backoff[keep].is_due(now_s):
            return False
        self._taken_s[keep] = now_s
        number = self._book_number
        self._want(lambda image: self._encode(image, number, keep=keep))
        return True

    def _encode(self, image: BookImage | OpenOutcryError, number: int, *, keep: bool) -> None:
        """Have a copy of the book with this ``number`` encoded, unless it was replaced, or is about to be."""
        if number != self._book_number or isinstance(image, Closed):
            self._taken_s.pop(keep, None)
            return
        if isinstance(image, BookImage):
            tail = self._tail()
            scratch = self._writer.snapshots.scratch(tail) if keep else None
            if self._tell_snapshotter(TakeSnapshot(self._reply_to, number, tail, image, scratch)):
                return
            image = Unavailable("what takes snapshots has failed, and is started again", code="out_of_resources")
        self._taken_s.pop(keep, None)
        self._failed(image, keep=keep)

    def on_taken(self, taken: SnapshotTaken) -> KeepSnapshot | None:
        """A snapshot was taken: return the message to the JournalActor, if it should be kept."""
        keep = taken.scratch is not None
        self._taken_s.pop(keep, None)
        if taken.scratch is None:
            if self.is_current(taken):
                self.succeeded(keep=False)
            return None
        if self.is_current(taken):
            return KeepSnapshot(taken.tail, taken.scratch, taken.size)
        with contextlib.suppress(OSError):  # otherwise the next start removes it
            taken.scratch.unlink(missing_ok=True)
        return None

    def is_current(self, taken: SnapshotTaken) -> bool:
        """Whether a snapshot belongs to the current book."""
        return taken.number == self._book_number

    def on_failed(self, message: SnapshotFailed) -> None:
        """A snapshot was not taken."""
        self._taken_s.pop(message.keep, None)
        self._failed(message.error, keep=message.keep)

    def on_not_stored(self, error: OpenOutcryError) -> None:
        """A snapshot was taken, but not kept."""
        self._failed(error, keep=True)

    def _failed(self, error: OpenOutcryError, *, keep: bool) -> None:
        self.note_failure(error, self._backoff[keep].failed(time.monotonic()))

    def note_failure(self, error: OpenOutcryError, retry_s: float) -> None:
        """A snapshot was not taken, kept or fetched; retry in ``retry_s`` seconds."""
        self._meters.snapshots_failed += 1
        self.error = str(error)
        self._log.warning("snapshot_failed", retry_s=retry_s, error=error)

    def succeeded(self, *, keep: bool) -> None:
        """A snapshot was taken, and kept if required."""
        if self._backoff[keep].succeeded():
            self._log.info("snapshot_taken_again")
        self.error = None

    def book_leaves(self) -> None:
        """The book is about to be replaced: a running snapshot will be discarded."""
        self._book_number += 1

    def on_another_book(self, sequence: int) -> None:
        """The book was replaced by one at ``sequence``."""
        self._book_number += 1
        self._last = sequence
