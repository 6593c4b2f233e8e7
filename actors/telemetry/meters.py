"""What a node counts about itself while it works: plain numbers, each with one writer, read at any time. No I/O.

Actors count per batch, not per order, and without a lock: a reader may see a sum that is a moment older than its
count. :mod:`.metrics` has their meaning and the names under which they are published.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from ..book.meters import MarketMeters
from ..leadership.coordination import StoreMeters
from ..peers.meters import LinkMeters


@dataclasses.dataclass(slots=True)
class NodeMeters:
    """What is counted about one node."""

    markets: dict[str, MarketMeters] = dataclasses.field(default_factory=dict)
    """By market."""
    links: dict[str, LinkMeters] = dataclasses.field(default_factory=dict)
    """By the other node's id; kept while that node is known."""
    restarts: Counter[str] = dataclasses.field(default_factory=Counter)
    """Actors that failed and were restarted, by their class. Written by the supervisor."""
    store: StoreMeters = dataclasses.field(default_factory=StoreMeters)
    """The calls to the coordinator. Written by the CoordinatorActor."""
