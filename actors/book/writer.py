"""JournalActor: the one thread that writes, syncs and reads a market's journal. Decides nothing.

Messages: Persist, CutLog, PutLogAside, ReadLog, KeepSnapshot (from its BookActor); answers Persisted, LogPutAside,
LogRead, SnapshotKept, JournalFailed. What has queued up while one write was being synced goes into the next write
together: group commit without a timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import pykka

from ...transport.errors import StorageError
from .._base import NodeActor, tell
from ..messages import (
    TAILS_MAX,
    ActorFailed,
    CutLog,
    JournalFailed,
    KeepSnapshot,
    LogPutAside,
    LogRead,
    Persist,
    Persisted,
    PutLogAside,
    ReadLog,
    SnapshotKept,
)
from ..meters import MarketMeters
from .journal import Journal, put_aside
from .snapshots import Snapshots

READ_SIZE_MAX: Final = 512 * 1024
"""Most bytes of record bodies read for a follower at a time."""


class JournalActor(NodeActor):
    """Owns a :class:`~.journal.Journal` and the snapshots beside it; both were opened by its BookActor."""

    def __init__(
        self,
        *,
        journal: Journal,
        snapshots: Snapshots,
        book: pykka.ActorRef[Any],
        meters: MarketMeters,
        report: Callable[[ActorFailed], None],
    ) -> None:
        super().__init__(report=report)
        self._journal = journal
        self._snapshots = snapshots
        self._book = book
        self._meters = meters
        self._waiting: list[Any] = []
        self._generation = 0
        self._committed = 0

    def on_receive(self, message: Any) -> None:
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
                self._journal.cut(message.sequence)
            elif isinstance(message, PutLogAside):
                self._begin_anew()
            elif isinstance(message, ReadLog):
                tell(self._book, self._read(message))
            elif isinstance(message, KeepSnapshot):
                oldest = self._snapshots.write(message.tail, message.book)
                self._meters.snapshot = message.tail.sequence, len(message.book), time.time()
                if message.reset:
                    self._journal.reset(message.tail)
                    tell(self._book, SnapshotKept(message.tail))
                else:
                    self._journal.prune(oldest)
        except StorageError as error:
            tell(self._book, JournalFailed(error))

    def _begin_anew(self) -> None:
        """Put the log and its snapshots aside, whole, and open empty ones in their place."""
        folder = self._journal.folder
        self._journal.close()
        try:
            aside = put_aside(folder, "diverged")
        except OSError as error:
            raise StorageError(f"{folder} could not be put aside: {error}; the replica stops") from error
        self._journal = Journal(folder)
        self._snapshots = Snapshots(folder / "snapshots")
        self._meters.snapshot = self._snapshots.last()
        tell(self._book, LogPutAside(str(aside)))

    def _write(self) -> None:
        if self._waiting:
            records, self._waiting = self._waiting, []
            began_s = time.perf_counter()
            self._journal.append(records, committed=self._committed)
            self._meters.sync_s.observe(time.perf_counter() - began_s)
            tell(self._book, Persisted(self._generation, records[-1].last_sequence))

    def _read(self, message: ReadLog) -> LogRead:
        """Read records for a follower; or, if its tail is not in this log, what it can tell from where they part."""
        journal, after = self._journal, message.after
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
        self._journal.close()
        if self.failed_by is not None:
            tell(self._book, JournalFailed(StorageError(f"the journal's thread failed: {self.failed_by!r}")))
