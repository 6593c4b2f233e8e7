"""SnapshotActor: encodes books, one after the other, while their markets go on. One per node; keeps nothing.

Messages: TakeSnapshot (from a BookActor); answers SnapshotTaken or SnapshotFailed. It works in
pieces and pauses between them: an order waits for a piece, not for a book.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ...transport.errors import InvariantBroken, OpenOutcryError
from ...transport.files import refusal
from ..kit.node_actor import ActorFailed, NodeActor, tell
from .messages import SnapshotFailed, SnapshotTaken, TakeSnapshot
from .snapshots import write_scratch

PAUSE_S: Final = 0.0001
"""Seconds to pause after a piece, so that other threads can run."""
HURRY: Final = 8
"""Pieces between two pauses if a replica without state waits for the snapshot."""


class _Abandoned(Exception):
    """The node ends."""


class SnapshotActor(NodeActor):
    """Takes the snapshots of all markets of a node."""

    def __init__(self, *, abandon: threading.Event, report: Callable[[ActorFailed], None]) -> None:
        """``abandon``: set when the node ends; unfinished snapshots are then dropped."""
        super().__init__(report=report)
        self._abandon = abandon

    def on_receive(self, message: Any) -> None:
        if not isinstance(message, TakeSnapshot):
            raise InvariantBroken(f"SnapshotActor does not understand {type(message).__name__}")
        tail, scratch = message.tail, message.scratch
        data = b""
        try:
            if scratch is None:
                data = b"".join(self._paced(message.image.pieces(), HURRY))
                size = len(data)
            else:
                size = write_scratch(scratch, tail, self._paced(message.image.pieces(), 1))
        except _Abandoned:
            return
        except Exception as error:  # memory, descriptors, space: the log does not need this snapshot
            what = f"cannot take a snapshot at sequence {tail.sequence}"
            failed = error if isinstance(error, OpenOutcryError) else refusal(error, what)
            tell(message.reply_to, SnapshotFailed(message.number, scratch is not None, failed))
            return
        tell(message.reply_to, SnapshotTaken(message.number, tail, scratch, size, data))

    def _paced(self, pieces: Iterable[bytes], at_a_time: int) -> Iterator[bytes]:
        for number, piece in enumerate(pieces, 1):
            yield piece
            if number % at_a_time == 0:
                time.sleep(PAUSE_S)
                if self._abandon.is_set():
                    raise _Abandoned
