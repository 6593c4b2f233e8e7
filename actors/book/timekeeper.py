"""Timekeeper: the times of one market's records at this node, and the reports if they differ from the clocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...transport.errors import Unavailable
from ..kit.uptime import uptime_ns
from ..peers.clocks import Clocks
from .logtime import LogTime
from .replica import PersistRecords


class Timekeeper:
    """Owns the :class:`LogTime` of a replica, and reads this machine's clocks for it. Owned by the BookActor."""

    def __init__(
        self, market: str, *, clock_ns: Callable[[], int], bound_ns: int, clocks: Callable[[], Clocks], log: Any
    ) -> None:
        """``clocks``: this machine's clock among those of others; ``bound_ns``: how far the log's time may be off."""
        self._market = market
        self.clock_ns = clock_ns
        self._bound_ns = bound_ns
        self.clocks = clocks
        self._log = log
        self._time = LogTime(bound_ns)
        self._off_told = self._jump_told = False

    def stamp(self, last_ns: int) -> int:
        """Return the time of the record that is made now, after one of ``last_ns``."""
        return self._time.stamp(last_ns, self.clock_ns(), uptime_ns(), self.clocks())

    def next_ns(self, last_ns: int) -> int:
        """Return the time of a record that would be made now."""
        return self._time.next_ns(last_ns, self.clock_ns(), uptime_ns(), self.clocks())

    def off_ns(self, last_ns: int) -> int:
        """Return how far the log's time is ahead of what most clocks say, if that is beyond the bound; else 0."""
        if not last_ns:
            return 0
        off_ns = self._time.offset_ns(last_ns, self.clock_ns(), uptime_ns(), self.clocks())
        return off_ns if abs(off_ns) > self._bound_ns else 0

    def say(self, last_ns: int, *, leads: bool, sequence: int) -> None:
        """Log once when the log's time becomes wrong, or right again, and when the wall clock has jumped."""
        off_ns = self.off_ns(last_ns)
        if bool(off_ns) != self._off_told:
            self._off_told = bool(off_ns)
            log = self._log.error if off_ns else self._log.info
            log("log_time_off" if off_ns else "log_time_right", ahead_s=round(off_ns / 1e9, 3))
        jumped_ns = self._time.jumped_ns if leads else 0
        if jumped_ns and not self._jump_told:
            self._log.error("clock_jump_refused", jumped_s=round(jumped_ns / 1e9, 3), sequence=sequence)
        self._jump_told = bool(jumped_ns)

    def seen(self, leader: str, effects: Sequence[object]) -> None:
        """Follower: a record that its leader sends to all arrived as it was made."""
        if effects and isinstance(effects[0], PersistRecords):
            stamp_ns = effects[0].records[-1].timestamp_ns
            self._time.seen(leader, stamp_ns, self.clock_ns(), uptime_ns(), self.clocks())

    def forget(self) -> None:
        """The log's time was set, or the log was replaced: forget what was known about it."""
        self._time.forget()

    def correct(self, last_ns: int) -> int:
        """An operator declares this machine's clock right, and the log's time wrong: return the clock's time.

        Raises:
            Unavailable: this clock differs from most (code ``clock_off``), or the log's time is right (``not_needed``).
        """
        clocks = self.clocks()
        if clocks.off:
            raise Unavailable(
                f"market {self._market}: this machine's clock differs from most of its peers' by "
                f"{clocks.agreed_ns / 1e9:+.3f} s: set the clock first",
                code="clock_off",
            )
        if not self.off_ns(last_ns):
            raise Unavailable(
                f"market {self._market}: its time agrees with this machine's clock within the bound, "
                f"{self._bound_ns // 10**6} ms",
                code="not_needed",
            )
        self.forget()
        return self.clock_ns()
