"""Subscription: one subscriber's market data: a bounded queue between the BookActor and the reader. Never blocks it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from ...transport.errors import OpenOutcryError, Overloaded, Unavailable, text_of
from ...transport.files import refusal
from ...transport.forks import guard
from ...transport.log import get_logger
from ..book.feed import Applied, Watcher
from ..book.meters import MarketMeters
from .views import MarketUpdate

logger = get_logger(__name__)


CLOSE_S_MAX: Final = 2.0
"""Seconds that :meth:`Subscription.close` waits for a subscriber to accept the delivered updates."""


class _End:
    """Wakes a reader: no further update follows."""


_END: Final = _End()


class Subscription:
    """The receiving end of ``ExchangeNode.subscribe``; iterate over it, or let it call a function or fill a queue.

    It ends when :meth:`close` is called, the node closes, the subscriber falls ``queue_size_max`` updates behind
    (:attr:`error` is then Overloaded), its function or queue raises an exception (Unavailable, code
    ``subscriber_failed``), or the market's replica at this node stops (:attr:`error` says why). It has no gaps: after
    an end, subscribe again with ``after=last_sequence``; the update that made a subscriber fail counts as delivered.
    """

    def __init__(
        self,
        market: str,
        to: Callable[[MarketUpdate], None] | Any,
        *,
        queue_size_max: int,
        on_end: Callable[[Watcher], object],
        meters: MarketMeters | None = None,
        arrived: Callable[[], None] | None = None,
    ) -> None:
        """``arrived`` is called when an update arrives, on the delivering thread; it must not block."""
        self.market = market
        self.error: OpenOutcryError | None = None
        """Why it ended, unless it was closed."""
        self.last_sequence = 0
        """The subscriber has received everything up to this sequence number."""
        guard(self)
        self._on_end = on_end
        self._arrived = arrived
        self._meters = meters or MarketMeters()
        self._size_max = queue_size_max
        self._queue: queue.SimpleQueue[Applied | _End] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._ending = threading.Lock()
        self._thread: threading.Thread | None = None
        if to is not None:
            give: Callable[[MarketUpdate], None] = to if callable(to) else to.put
            self._thread = threading.Thread(
                target=self._deliver, args=(give,), name=f"subscription-{market}", daemon=True
            )

    def begin(self, sequence: int) -> None:
        """Start to deliver; the subscription watches from ``sequence`` on."""
        self.last_sequence = max(self.last_sequence, sequence)
        if self._thread is not None:
            try:
                self._thread.start()
            except RuntimeError as error:  # the system has none
                self._thread = None
                self.close()
                raise refusal(error, f"market {self.market}: the subscription has no thread") from error

    @property
    def ended(self) -> bool:
        """Whether no further update will arrive."""
        return self._ended.is_set()

    def put_nowait(self, update: Applied | OpenOutcryError | None) -> bool:
        """Queue an update, on the BookActor's thread; False ends the watch."""
        if self._ended.is_set():
            return False
        if update is None:
            self._end(
                Overloaded(
                    f"market {self.market}: this node was too far behind and took over the leader's state; events were "
                    "skipped: fetch the book again and subscribe from its sequence",
                    code="too_far_behind",
                )
            )
            return False
        if isinstance(update, OpenOutcryError):
            self._end(update)
            return False
        if self._queue.qsize() >= self._size_max:
            self._meters.subscribers_cut += 1
            logger.warning("subscriber_cut", market=self.market, after=self.last_sequence, waiting=self._size_max)
            self._end(
                Overloaded(
                    f"market {self.market}: the subscriber fell {self._size_max} updates behind and was cut; "
                    f"subscribe again with after=last_sequence"
                )
            )
            return False
        self._put(update)
        return True

    def _put(self, update: Applied | _End) -> None:
        self._queue.put(update)
        if self._arrived is not None:
            self._arrived()

    def get(self, timeout: float | None = None) -> MarketUpdate | None:
        """Return the next update, or None when the subscription has ended.

        Raises:
            queue.Empty: no update arrived within ``timeout`` seconds.
        """
        update = self._queue.get(timeout=timeout)
        if isinstance(update, _End):
            self._queue.put(_END)
            return None
        self.last_sequence = update.sequence
        return MarketUpdate.of(update)

    def __iter__(self) -> Iterator[MarketUpdate]:
        while (update := self.get()) is not None:
            yield update

    def close(self) -> None:
        """End the subscription; queued updates can still be read. Idempotent.

        A delivering thread has ``CLOSE_S_MAX`` to deliver the queued updates. If the subscriber blocks it for longer,
        this call does not wait for it; it ends when the subscriber returns.
        """
        if self._end(None):
            self._on_end(self.put_nowait)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(CLOSE_S_MAX)
            if thread.is_alive():
                logger.error("subscriber_blocked", market=self.market, seconds=CLOSE_S_MAX)

    def _end(self, error: OpenOutcryError | None) -> bool:
        """End because of ``error``; return False, and change nothing, if it has already ended."""
        with self._ending:
            if self._ended.is_set():
                return False
            self.error = error
            self._ended.set()
        self._put(_END)
        return True

    def _deliver(self, give: Callable[[MarketUpdate], None]) -> None:
        for update in self:
            try:
                give(update)
            except Exception as error:
                logger.exception("subscriber_failed", market=self.market, sequence=update.sequence)
                why = f"market {self.market}: the subscriber raised {text_of(error):.200} and was cut"
                if self._end(Unavailable(f"{why}; subscribe again with after=last_sequence", code="subscriber_failed")):
                    self._on_end(self.put_nowait)
                return
