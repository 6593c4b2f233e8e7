"""JournalActor: the one thread that writes, syncs and reads a market's journal. Decides nothing.

Messages: Persist, CutLog, ReadLog (from its BookActor); answers Persisted, LogRead, JournalFailed. What has queued up
while one write was being synced goes into the next write together: group commit without a timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pykka

from ...transport.errors import StorageError
from .._base import NodeActor, tell
from ..messages import ActorFailed, CutLog, JournalFailed, LogRead, Persist, Persisted, ReadLog
from .journal import Journal

READ_SIZE_MAX: Final = 512 * 1024
"""Most bytes of record bodies read for a follower at a time."""


class JournalActor(NodeActor):
    """Owns a :class:`~.journal.Journal`, opened by its BookActor, and closes it."""

    def __init__(self, *, journal: Journal, book: pykka.ActorRef[Any], report: Callable[[ActorFailed], None]) -> None:
        super().__init__(report=report)
        self._journal = journal
        self._book = book
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
            elif isinstance(message, ReadLog):
                tail = self._journal.tail_at(message.after)
                bodies = self._journal.bodies(message.after, size_max=READ_SIZE_MAX) if tail else []
                chain = tail.chain if tail else None
                tell(self._book, LogRead(message.node, message.after, message.token, chain, tuple(bodies)))
        except StorageError as error:
            tell(self._book, JournalFailed(error))

    def _write(self) -> None:
        if self._waiting:
            records, self._waiting = self._waiting, []
            self._journal.append(records, committed=self._committed)
            tell(self._book, Persisted(self._generation, records[-1].last_sequence))

    def on_stop(self) -> None:
        self._journal.close()
