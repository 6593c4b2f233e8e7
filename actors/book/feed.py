"""Applied batches, in order, from a BookActor to the watchers of its market."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from ...transport.errors import OpenOutcryError, Unavailable, copied, quoted
from .commands import Event
from .orderbook import OrderBook
from .rules import MarketRules


@dataclasses.dataclass(slots=True)
class Applied:
    """What a watcher receives: the events of sequences ``first_sequence`` to ``sequence``, and the state after them.

    All watchers receive the same one; only ``shared`` is ever set.
    """

    market: str
    first_sequence: int
    sequence: int
    timestamp_ns: int
    state_hash: str
    events: tuple[Event, ...]
    rules: MarketRules
    shared: Any = dataclasses.field(default=None, compare=False, repr=False)
    """What one of the watchers has made of it for all of them."""


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


class Feed:
    """The watchers of one market at this node. Owned by the BookActor."""

    def __init__(self, market: str, log: Any) -> None:
        self._market = market
        self._log = log
        self._watchers: list[Watcher] = []

    def __len__(self) -> int:
        return len(self._watchers)

    def watch(self, message: Watch, book: OrderBook) -> int:
        """Call ``message.watcher`` from now on, and at once with missed events; return the sequence it watches from.

        Raises:
            Unavailable: the missed events are no longer kept, or lie ahead (code ``too_far_behind``).
        """
        after = book.sequence if message.after is None else message.after
        missed = book.events_after(after)
        if missed is None or after > book.sequence:
            raise Unavailable(
                f"market {self._market}: events after {after} are not held any more (or yet); "
                f"this node is at {book.sequence}: read the book again and subscribe from its sequence",
                code="too_far_behind",
            )
        if after == book.sequence or self._tell(
            message.watcher, self._applied(book, after + 1, book.timestamp_ns, book.state_hash(), missed)
        ):
            self._watchers.append(message.watcher)
        return after

    def unwatch(self, message: Unwatch) -> None:
        """Stop calling ``message.watcher``; equal, not the same: a method is another object each time it is read."""
        self._watchers = [watcher for watcher in self._watchers if watcher != message.watcher]

    def publish(
        self, book: OrderBook, *, first: int, timestamp_ns: int, state_hash: str, events: Iterable[Event]
    ) -> None:
        """Notify the watchers of ``events``, from sequence ``first`` on, which ``book`` has just applied."""
        if self._watchers:
            update = self._applied(book, first, timestamp_ns, state_hash, events)
            self._watchers = [watcher for watcher in self._watchers if self._tell(watcher, update)]

    def end(self, why: OpenOutcryError | None) -> None:
        """End every watch; None: events are missing, because the book was replaced."""
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            self._tell(watcher, None if why is None else copied(why))

    def _applied(
        self, book: OrderBook, first: int, timestamp_ns: int, state_hash: str, events: Iterable[Event]
    ) -> Applied:
        return Applied(self._market, first, book.sequence, timestamp_ns, state_hash, tuple(events), book.rules)

    def _tell(self, watcher: Watcher, news: Applied | OpenOutcryError | None) -> bool:
        """Call a watcher; return whether it continues. Notify and drop a watcher that raises."""
        try:
            return watcher(news)
        except Exception as error:
            self._log.exception("subscriber_failed")
            with contextlib.suppress(Exception):
                watcher(
                    Unavailable(
                        f"market {self._market}: the subscriber raised {quoted(error, 200)} and was cut; subscribe "
                        "again with after=last_sequence",
                        code="subscriber_failed",
                    )
                )
            return False
