"""LogWork: what one replica has to have done with its log, by its JournalActor."""

from __future__ import annotations

import time
from typing import Any, Final, assert_never

import pykka

from ...transport.errors import present
from ..kit.backoff import Backoff
from ..kit.node_actor import tell
from .imaging import Imaging
from .messages import BeginLogAt, CutLog, KeepSnapshot, LogNotRead, Persist, PutLogAside, ReadLog
from .replica import CutJournal, KeepFetched, PersistRecords, PutAside, ReadJournal
from .transfer import Fetched
from .writer import JournalWriter

READ_RETRY_S: Final = 0.1
"""Seconds before a read of the log that lacked descriptors is retried; doubled with each further failure."""
READ_RETRY_S_MAX: Final = 5.0
"""Most seconds before such a read is retried."""


class LogWork:
    """The work on one replica's log. Owned by the BookActor."""

    def __init__(self, *, writer: JournalWriter, journal: pykka.ActorRef[Any], imaging: Imaging, log: Any) -> None:
        self.writer = writer
        self.journal = journal
        self._imaging = imaging
        self._log = log
        self._backoff = Backoff(READ_RETRY_S, READ_RETRY_S_MAX)
        self._not_read: list[ReadLog] = []
        """Reads of the log for followers that failed and will be retried."""

    def persist(self, effect: PersistRecords, committed: int) -> None:
        """Let the JournalActor append records: it answers when they are durable."""
        self._hand(Persist(effect.generation, effect.records, committed))

    def carry_out(
        self, effect: ReadJournal | CutJournal | PutAside | KeepFetched, fetched: Fetched[Any] | None
    ) -> None:
        """Have it done; ``fetched``: the state that is kept by a :class:`KeepFetched`."""
        match effect:
            case ReadJournal():
                self._hand(ReadLog(effect.node, effect.after, effect.expected, effect.token))
            case CutJournal():
                self._hand(CutLog(effect.sequence))
            case PutAside():
                self._log.critical("log_outlived", reason=effect.reason)
                self._imaging.book_leaves()
                self._hand(PutLogAside())
            case KeepFetched():
                state = present(fetched, "a state is kept before it was fetched")
                self._imaging.book_leaves()
                self._hand(BeginLogAt(effect.tail, bytes(state.data)))
            case _:
                assert_never(effect)

    def keep(self, snapshot: KeepSnapshot) -> None:
        """Have a snapshot kept beside the log."""
        self._hand(snapshot)

    def on_read(self) -> None:
        """A read for a follower succeeded."""
        self._backoff.succeeded()

    def on_not_read(self, message: LogNotRead) -> None:
        """A read for a follower lacked descriptors or memory: :meth:`read_again` later."""
        if not self._backoff.failures:
            self._log.warning("log_not_read", peer=message.read.node, error=message.error)
        self._backoff.failed(time.monotonic())
        self._not_read.append(message.read)

    def read_again(self, now_s: float) -> None:
        """Retry the reads that failed, if they are due."""
        if self._not_read and self._backoff.is_due(now_s):
            reads, self._not_read = self._not_read, []
            for read in reads:
                self._hand(read)

    def _hand(self, message: Any) -> None:
        """Send a message to the JournalActor; only it may use the log until that is done."""
        self.writer.handed += 1
        tell(self.journal, message)
