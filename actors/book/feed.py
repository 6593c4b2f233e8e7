"""Applied batches, in order, from a BookActor to the watchers of its market. Values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ...transport.errors import OpenOutcryError
from .commands import Event
from .rules import MarketRules


@dataclasses.dataclass(frozen=True, slots=True)
class Applied:
    """What a watcher gets: the events of sequences ``first_sequence`` to ``sequence``, and the state after them."""

    market: str
    first_sequence: int
    sequence: int
    timestamp_ns: int
    state_hash: str
    events: tuple[Event, ...]
    rules: MarketRules


Watcher = Callable[[Applied | OpenOutcryError | None], bool]
"""Called on the BookActor's thread with every applied batch; must not block. Returning False ends the watch.

None: this node installed the leader's snapshot, so events are missing. An error: why the replica has stopped, or the
watcher's own exception. In each case the watch has ended.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Watch:
    """The API to a BookActor (ask): call ``watcher`` from sequence ``after`` on; None = from now on.

    Answers the sequence number from which it watches, or raises InvalidRequest if ``after`` is too long ago.
    """

    watcher: Watcher
    after: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Unwatch:
    """The API to a BookActor: stop calling ``watcher``."""

    watcher: Watcher
