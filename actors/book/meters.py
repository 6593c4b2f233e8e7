"""Counters about one market's replica: plain numbers, each with one writer, read at any time. No I/O."""

from __future__ import annotations

import dataclasses
from collections import Counter

from ..kit.meters import COMMANDS, SECONDS, Histogram


@dataclasses.dataclass(slots=True)
class MarketMeters:
    """Counters about one market's replica."""

    ack_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(SECONDS))
    """From a request's submission at this node to its answer, in seconds. Written by the BookActor."""
    requests_failed: Counter[str] = dataclasses.field(default_factory=Counter)
    """Requests of this node that failed, by the error's code. Written under the lock of the market's submissions."""
    batch: Histogram = dataclasses.field(default_factory=lambda: Histogram(COMMANDS))
    """Commands of each record that this replica made as the leader. Written by the BookActor."""
    rejections: Counter[str] = dataclasses.field(default_factory=Counter)
    """Commands that the book rejected, by their code. Written by the BookActor."""
    snapshots_failed: int = 0
    """Snapshots that could not be taken, kept or offered. Written by the BookActor."""
    subscribers_cut: int = 0
    """Subscribers cut because they were too slow. Written by the BookActor."""
    sync_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(SECONDS))
    """Seconds to write and sync one append to the journal. Written by the JournalActor."""
    snapshot: tuple[int, int, float] | None = None
    """The last snapshot on disk: sequence number, bytes, seconds since the Unix epoch. Written by the JournalActor."""
