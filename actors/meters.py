"""What a node counts about itself while it works: plain numbers, each with one writer, read at any time. No I/O.

Counting is done by the batch, not by the order, and costs no lock: a reader may see a sum that is a moment older than
its count. What they mean to an operator, and under which names they are published, is in :mod:`.metrics`.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of durations, in seconds."""
COMMANDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Upper bounds of batches, in commands."""


class Histogram:
    """How many values were at most each of some bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        """Upper bounds, ascending; beyond the last is infinity."""
        self.counts = [0] * (len(bounds) + 1)
        """Values in each interval, not cumulated."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclasses.dataclass(slots=True)
class MarketMeters:
    """What is counted about one market's replica."""

    ack_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(SECONDS))
    """From a request's submission at this node to its answer, in seconds. The BookActor's."""
    requests_failed: Counter[str] = dataclasses.field(default_factory=Counter)
    """Requests of this node that failed, by the error's code. Under the lock of the market's submissions."""
    batch: Histogram = dataclasses.field(default_factory=lambda: Histogram(COMMANDS))
    """Commands of each record that this replica made as the leader. The BookActor's."""
    rejections: Counter[str] = dataclasses.field(default_factory=Counter)
    """Commands that the book rejected, by their code. The BookActor's."""
    subscribers_cut: int = 0
    """Subscribers that were too slow. The BookActor's."""
    sync_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(SECONDS))
    """Writing and syncing what is appended to the journal at a time, in seconds. The JournalActor's."""
    snapshot: tuple[int, int, float] | None = None
    """The last snapshot on disk: sequence number, bytes, time in seconds since the Unix epoch. The JournalActor's."""


@dataclasses.dataclass(slots=True)
class LinkMeters:
    """What has gone over the links to and from one other node; the hellos that keep a link up are not counted."""

    frames_in: int = 0
    bytes_in: int = 0
    """The inbox' reader's, as ``frames_in``."""
    heard_s: float = 0.0
    """When a frame, a hello or another, last came; on the monotonic clock. The inbox' reader's."""
    frames_out: int = 0
    bytes_out: int = 0
    """Under the lock of the link, as ``frames_out``."""
    ups: int = 0
    """How often the link came up. The PeerActor's."""


@dataclasses.dataclass(slots=True)
class NodeMeters:
    """What is counted about one node."""

    markets: dict[str, MarketMeters] = dataclasses.field(default_factory=dict)
    """By market."""
    links: dict[str, LinkMeters] = dataclasses.field(default_factory=dict)
    """By the other node's id; kept while that node is known."""
    restarts: Counter[str] = dataclasses.field(default_factory=Counter)
    """Actors that failed and were started anew, by their class. The supervisor's."""
    coordinator_s: Histogram = dataclasses.field(default_factory=lambda: Histogram(SECONDS))
    """Questions to the coordinator, answered or not, in seconds. The CoordinatorActor's."""
    coordinator_failures: int = 0
    """Questions to the coordinator that failed. The CoordinatorActor's."""
    coordinator_error: str | None = None
    """Why the lease could not be renewed last time; None: it was. The CoordinatorActor's."""
