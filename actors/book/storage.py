"""Storage: one replica's folder: the log, its snapshots, and the marks about their state.

It opens, recovers, marks and puts aside; the :class:`~.writer.JournalWriter` writes the log itself.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...transport.errors import OpenOutcryError, ProtocolError, StorageError, copied
from ...transport.log import PROGRESS_S
from ..kit.backoff import Backoff
from .disk import DiskState, keep_disk, read_disk
from .journal import Journal, put_aside
from .orderbook import BROKEN, OrderBook
from .record import EMPTY
from .replica import Replica
from .snapshots import Snapshots, sync_folder, write_durably
from .starts import next_start
from .writer import LACKING

LOGGED: Final = "=logged"
"""Suffix to the name of a market's folder: this file shows that there was a log, so that its loss is noticed."""
REPAIRING: Final = "repairing"
"""Name of the file that marks a replica under repair; it says what was wrong."""
KEEP_RETRY_S: Final = 0.1
"""Seconds before a disk state that could not be written is tried again; doubled with each further failure."""
KEEP_RETRY_S_MAX: Final = 5.0
"""Most seconds before it is tried again."""
SCARCE: Final = LACKING | {errno.ENOSPC, errno.EDQUOT}
"""Errors of a disk or process that lacks something for a while."""
_DIR: Final = re.compile(r"\bDIR\b(\.\.\.)?")


class Opened(NamedTuple):
    """The findings in the folder."""

    journal: Journal
    snapshots: Snapshots
    book: OrderBook
    replica: Replica
    snapshot_sequence: int
    """Sequence number of the newest snapshot; 0: there is none."""


class Storage:
    """One replica's folder. Owned by the BookActor."""

    def __init__(
        self, folder: Path, *, market: str, node: str, store: str, clock_ns: Callable[[], int], log: Any
    ) -> None:
        """``store`` is the id of the coordinator's store: a disk state for another store does not count.

        Raises:
            StorageError: the folder cannot be read or written.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._market = market
        self._node = node
        self._log = log
        self.damage: str | None = None
        """What was wrong with the log that was put aside, while it is being repaired."""
        self._logged = _logged_sign(folder)
        self._has_logged = self._logged.exists()
        self._started_as = next_start(folder.with_name(f"{folder.name}=starts"), clock_ns())
        self._kept = True
        self._keep_backoff = Backoff(KEEP_RETRY_S, KEEP_RETRY_S_MAX)
        self.state = read_disk(folder, store).begin()
        """The disk state beside the log; it includes this start before the replica does anything."""

    def open(self, *, min_in_sync: int, observer: bool) -> Opened:
        """Open the log and recover the book as far as it is known to be committed; put damaged files aside.

        Raises:
            StorageError: the log cannot be opened.
        """
        try:
            opened = self._open(min_in_sync, observer)
        except StorageError as error:
            if error.code != "corrupt":
                raise
            aside = put_aside(self.folder, "damaged")
            self._log.critical("journal_put_aside", error=error, aside=aside)
            self.mark_repairing(str(error))
            opened = self._open(min_in_sync, observer)
        try:
            keep_disk(self.folder, self.state)
        except StorageError:
            opened.journal.close()
            raise
        return opened

    def _open(self, min_in_sync: int, observer: bool) -> Opened:
        journal = Journal(self.folder)
        try:
            return self._recover(journal, Snapshots(self.folder / "snapshots"), min_in_sync, observer)
        except BaseException:
            journal.close()
            raise

    def _recover(self, journal: Journal, snapshots: Snapshots, min_in_sync: int, observer: bool) -> Opened:
        book, applied = OrderBook(), EMPTY
        kept = snapshots.newest()
        if kept is not None:
            applied, data = kept
            try:
                book = OrderBook.restore(data)
            except ProtocolError as error:
                code = error.code if error.code == "snapshot_version" else "corrupt"
                raise StorageError(f"market {self._market}: {error.message}", code=code) from error
            if applied.sequence > journal.tail.sequence:
                journal.reset(applied)  # the node died between storing a fetched snapshot and restarting the log
        snapshot_sequence = applied.sequence
        if journal.tail_at(applied.sequence) != applied:
            raise StorageError(
                f"market {self._market}: the log begins after {journal.base.sequence} and does not fit the state at "
                f"{applied.sequence}: restore this replica from another node",
                code="corrupt",
            )
        pending = []
        said_s = time.monotonic()
        for record in journal.records(applied):
            if time.monotonic() - said_s >= PROGRESS_S:
                said_s = time.monotonic()
                self._log.info("recovering", sequence=record.first_sequence, of=journal.tail.sequence)
            if record.last_sequence > journal.committed:
                pending.append(record)
                continue
            try:
                book.apply(record.first_sequence, record.timestamp_ns, record.commands)
            except BROKEN as error:
                raise StorageError(
                    f"market {self._market}: the log in {self.folder} is as it was written, but cannot be "
                    f"executed from sequence {record.first_sequence} on: {error or type(error).__name__}; use the "
                    "version of this program that wrote it"
                ) from error
            applied = record.tail
        mark = self.folder / REPAIRING
        if self._has_logged and not applied.sequence and not pending and not mark.exists():
            self._log.critical("log_lost", epoch=0)
            self.mark_repairing("its log was lost")
        self.damage = mark.read_text().strip() if mark.exists() else None
        replica = Replica(
            market=self._market,
            node=self._node,
            applied=applied,
            pending=pending,
            incarnation=self._started_as,
            min_in_sync=min_in_sync,
            observer=observer,
            repairing=self.damage is not None,
            damage=self.damage or "",
            disk=self.state,
        )
        if applied.sequence:
            replica.state_hash = book.state_hash()
            self._log.info("recovered", sequence=applied.sequence)
        return Opened(journal, snapshots, book, replica, snapshot_sequence)

    def note_logged(self) -> None:
        """The log is no longer empty: leave the sign of it, once."""
        if not self._has_logged:
            with contextlib.suppress(OSError):  # retried with the next record, if the disk accepts one
                self._logged.touch()
                sync_folder(self._logged.parent)
                self._has_logged = True

    def mark_repairing(self, why: str) -> None:
        """Mark durably that this replica is being repaired: the mark survives a restart.

        Raises:
            OSError: the disk refused.
        """
        self.damage = why
        write_durably(self.folder / REPAIRING, f"{why}\n".encode())

    def unmark(self) -> None:
        """The repair is over."""
        with contextlib.suppress(OSError):  # it is repaired again after the next start
            (self.folder / REPAIRING).unlink(missing_ok=True)
        self.damage = None

    def keep(self, state: DiskState) -> None:
        """Make the disk state durable: now, or for want of room or descriptors later, by :meth:`keep_again`.

        Nothing waits for it: until it is durable, less tells an old copy of this disk, or of the coordinator.

        Raises:
            StorageError: the disk refused, for another reason.
        """
        self.state = state
        self._kept = False
        self.keep_again(time.monotonic())

    def keep_again(self, now_s: float) -> None:
        """Make the disk state durable if that has failed and is due again.

        Raises:
            StorageError: the disk refused, not for want of room or descriptors.
        """
        if self._kept or not self._keep_backoff.is_due(now_s):
            return
        try:
            keep_disk(self.folder, self.state)
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) not in SCARCE:
                raise
            if not self._keep_backoff.failures:
                self._log.warning("disk_state_not_kept", error=error)
            self._keep_backoff.failed(now_s)
        else:
            self._keep_backoff.succeeded()
            self._kept = True

    def marks_again(self) -> None:
        """The log was moved away together with the marks: write the marks into the new folder.

        Raises:
            StorageError: the disk refused.
            OSError: the disk refused.
        """
        self.keep(self.state)
        if self.damage is not None:
            self.mark_repairing(self.damage)

    def placed(self, error: OpenOutcryError) -> OpenOutcryError:
        """Return ``error`` with DIR, which the pure core wrote, replaced by this node's data directory."""
        folder = shlex.quote(str(self.folder.parent.parent.absolute()))
        return copied(error, _DIR.sub(lambda found: f"{folder} OTHERS..." if found[1] else folder, error.message))


def forget_log(folder: Path) -> None:
    """Remove the log of a replica that was never a member, and the sign that there was one."""
    shutil.rmtree(folder, ignore_errors=True)
    _logged_sign(folder).unlink(missing_ok=True)


def _logged_sign(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{LOGGED}")
