"""JournalActor: writes, syncs and reads a market's journal, so that its BookActor need not wait for a disk.

Messages: Persist, CutLog, PutLogAside, ReadLog, KeepSnapshot, BeginLogAt (from its BookActor); answers Persisted,
LogPutAside, LogRead, LogNotRead, SnapshotStored, SnapshotKept, SnapshotNotKept, JournalFailed. Records that queue up
during one sync go into the next write together: group commit without a timer.

If the disk is quick and the BookActor is idle, waiting for a sync costs it less than a hand-over to another thread.
Then the BookActor writes itself: the JournalActor uses the :class:`JournalWriter` only while it has work to do.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pykka

from ...transport.errors import StorageError
from ...transport.files import refusal
from ..kit.node_actor import ActorFailed, NodeActor, tell
from .journal import Journal, put_aside
from .messages import (
    BeginLogAt,
    CutLog,
    JournalFailed,
    KeepSnapshot,
    LogNotRead,
    LogPutAside,
    LogRead,
    Persist,
    Persisted,
    PutLogAside,
    ReadLog,
    SnapshotKept,
    SnapshotNotKept,
    SnapshotStored,
)
from .meters import MarketMeters
from .record import Record, Tail
from .snapshots import NotKept, Snapshots
from .wire import TAILS_MAX

READ_SIZE_MAX: Final = 512 * 1024
"""Most bytes of record bodies read for a follower at once."""


LACKING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that may pass and do not mean a bad disk: a read that fails with one of these is retried."""
QUICK_SYNC_S_MAX: Final = 0.001
"""Seconds for a write and sync; if the last took longer, the BookActor leaves the next one to the JournalActor."""


class JournalWriter:
    """A journal and its snapshots, used by one thread at a time.

    The JournalActor uses it while it has work to do. Otherwise (``handled == handed``) its BookActor may use it.
    """

    def __init__(self, journal: Journal, snapshots: Snapshots, meters: MarketMeters) -> None:
        self.journal = journal
        self.snapshots = snapshots
        self._meters = meters
        self._sync_s = QUICK_SYNC_S_MAX
        self.handed = 0
        """How many messages the BookActor has sent to the JournalActor."""
        self.handled = 0
        """How many of those the JournalActor has finished. Only the JournalActor writes it."""

    @property
    def at_hand(self) -> bool:
        """Whether the BookActor may, and should, append itself."""
        return self.handled == self.handed and self._sync_s < QUICK_SYNC_S_MAX

    def append(self, records: Sequence[Record], committed: int) -> None:
        """Write ``records`` and make them durable.

        Raises:
            StorageError: see :meth:`Journal.append`.
        """
        began_s = time.perf_counter()
        self.journal.append(records, committed=committed)
        self._sync_s = time.perf_counter() - began_s
        self._meters.sync_s.observe(self._sync_s)

    def seal(self) -> None:
        """Mark the log's end, if the BookActor may use the writer now; see :meth:`Journal.seal`.

        Raises:
            StorageError: see there.
        """
        if self.handled == self.handed:
            self.journal.seal()

    def keep(self, tail: Tail, scratch: Path, size: int) -> None:
        """Keep a snapshot that was written aside, and remove files that no recovery needs any more.

        Raises:
            NotKept: the disk refused; the log is whole.
            StorageError: the log is damaged, or has failed before.
        """
        oldest = self.snapshots.adopt(scratch)
        self._meters.snapshot = tail.sequence, size, time.time()
        self.journal.prune(oldest)

    def begin_at(self, tail: Tail, book: bytes) -> None:
        """Keep the leader's state at ``tail``, and start an empty log after it.

        Raises:
            NotKept: the state could not be written; the log is unchanged.
            StorageError: the disk refused.
        """
        self.snapshots.write(tail, book)
        self._meters.snapshot = tail.sequence, len(book), time.time()
        self.journal.reset(tail)

    def begin_empty(self) -> Path:
        """Put the log and its snapshots aside, and open empty ones in their place; return their new folder.

        Raises:
            StorageError: the disk refused.
        """
        folder = self.journal.folder
        self.journal.close()
        try:
            aside = put_aside(folder, "diverged")
        except OSError as error:
            raise StorageError(f"{folder} could not be put aside: {error}; the replica stops") from error
        self.journal = Journal(folder)
        self.snapshots = Snapshots(folder / "snapshots")
        self._meters.snapshot = self.snapshots.last()
        return aside


class JournalActor(NodeActor):
    """Uses the :class:`JournalWriter` that its BookActor opened, from each message of that actor until it is done."""

    def __init__(
        self, *, writer: JournalWriter, book: pykka.ActorRef[Any], report: Callable[[ActorFailed], None]
    ) -> None:
        super().__init__(report=report)
        self._writer = writer
        self._book = book
        self._waiting: list[Record] = []
        self._generation = 0
        self._committed = 0

    def on_receive(self, message: Any) -> None:
        self._handle(message)
        self._writer.handled += 1

    def _handle(self, message: Any) -> None:
        writer = self._writer
        try:
            if isinstance(message, Persist):
                self._waiting.extend(message.records)
                self._generation = message.generation
                self._committed = message.committed
                if self.idle or len(self._waiting) >= 64:
                    self._write()
                return
            self._write()
            if isinstance(message, CutLog):
                writer.journal.cut(message.sequence)
            elif isinstance(message, PutLogAside):
                tell(self._book, LogPutAside(str(writer.begin_empty())))
            elif isinstance(message, ReadLog):
                tell(self._book, self._read(message))
            elif isinstance(message, KeepSnapshot):
                tell(self._book, SnapshotStored(self._kept(message)))
            elif isinstance(message, BeginLogAt):
                self._begin_at(message)
        except StorageError as error:
            tell(self._book, JournalFailed(error))

    def _write(self) -> None:
        if self._waiting:
            records, self._waiting = self._waiting, []
            self._writer.append(records, self._committed)
            tell(self._book, Persisted(self._generation, records[-1].last_sequence))

    def _kept(self, message: KeepSnapshot) -> NotKept | None:
        try:
            self._writer.keep(message.tail, message.scratch, message.size)
        except NotKept as error:
            return error
        return None

    def _begin_at(self, message: BeginLogAt) -> None:
        try:
            self._writer.begin_at(message.tail, message.book)
        except NotKept as error:
            tell(self._book, SnapshotNotKept(error))
        else:
            tell(self._book, SnapshotKept(message.tail))

    def _read(self, message: ReadLog) -> LogRead | LogNotRead:
        """Read records for a follower; or, if its tail is not in this log, ends of records to find the common part."""
        try:
            return self._read_now(message)
        except MemoryError as error:
            return LogNotRead(message, refusal(error, "cannot read the log"))
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in LACKING:
                return LogNotRead(message, error)
            raise

    def _read_now(self, message: ReadLog) -> LogRead:
        journal, after = self._writer.journal, message.after
        tail = journal.tail_at(after)
        chain = tail.chain if tail else None
        bodies: list[bytes] = []
        tails: list[tuple[int, bytes]] = []
        if after >= journal.base.sequence and message.expected not in (None, chain):
            tails = journal.tails(after, count_max=TAILS_MAX, size_max=READ_SIZE_MAX)
        elif chain is not None:
            bodies = journal.bodies(after, size_max=READ_SIZE_MAX)
        return LogRead(message.node, after, message.token, chain, tuple(bodies), tuple(tails), journal.base.sequence)

    def on_stop(self) -> None:
        self._writer.journal.close()
        if self.failed_by is not None:
            tell(self._book, JournalFailed(StorageError(f"the journal's thread failed: {self.failed_by!r}")))
