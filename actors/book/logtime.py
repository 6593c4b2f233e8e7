"""The log's time: the leader's time stamps, and the vote that keeps a wrong clock out of the log. Pure.

A log's time never runs backwards (except by an operator's command) and advances while records are made. It follows the
wall clock of the leader's machine as long as both advance at the pace of a monotonic clock. If they part by more than a
bound, one of them has jumped, and the clocks vote: this machine's, those of the linked nodes, and the log itself. The
log wins a tie.

==========================  ===========================================================================================
the clocks say              the next record's time
==========================  ===========================================================================================
the wall clock is right     the wall clock's; if the log is ahead of it, the log goes on at half the pace until then
another clock is right      that one's, in the same way
the log is right            goes on from the last record by the time that has passed since: the wall clock has jumped
==========================  ===========================================================================================
"""

from __future__ import annotations

from typing import Final

from ..peers.clocks import ALONE, STORE, Clocks, Offset, differ

PACE: Final = 2
"""Seconds that one second of the log takes while the log is ahead of the time."""
CREEP: Final = 1000
"""The expected log time follows the wall clock by at most one second in this many: many small steps are a jump."""


class LogTime:
    """One replica's knowledge of its market's log time, and the time of the next record."""

    def __init__(self, bound_ns: int) -> None:
        """``bound_ns``: how far a clock may differ from the expected log time before it counts as off."""
        self._bound_ns = bound_ns
        self._ahead_ns: int | None = None
        """How far the log's time is ahead of the monotonic clock; None before a record was seen as it was made."""
        self._at_ns = 0
        """When the last record was made, on the monotonic clock."""
        self._stamp_ns = 0
        """The time of that record. The log may have gone on since by records that were not seen as they were made."""
        self._sound = False
        """Whether the log's last time stamp agreed with the clocks: only then it has a vote."""
        self.jumped_ns = 0
        """How far the wall clock was ahead when the log last went on without it; 0: the log follows the clock."""

    def seen(self, leader: str, timestamp_ns: int, wall_ns: int, now_ns: int, clocks: Clocks) -> None:
        """A follower: a record arrived from ``leader`` as it was made, or was on its way for a while.

        A record behind its leader's clock says nothing: it was delayed, or its leader goes on without its clock.
        """
        theirs = clocks.at(wall_ns - now_ns, self._bound_ns).offsets.get(leader)
        if theirs is None or wall_ns + theirs.offset_ns - timestamp_ns > self._bound_ns + theirs.error_ns:
            return
        ahead_ns = timestamp_ns - now_ns
        if self._ahead_ns is not None and ahead_ns < self._ahead_ns:
            ahead_ns = max(ahead_ns, self._ahead_ns - max(0, now_ns - self._at_ns) // PACE)  # no leader is slower
        self._ahead_ns, self._at_ns, self._stamp_ns, self._sound = ahead_ns, now_ns, timestamp_ns, True

    def forget(self) -> None:
        """The log's time was set, or the log was replaced: forget what was known about it."""
        self._ahead_ns, self._sound, self.jumped_ns = None, False, 0

    def offset_ns(self, last_ns: int, wall_ns: int, now_ns: int, clocks: Clocks = ALONE) -> int:
        """Return how far the log, whose last record is of ``last_ns``, is ahead of the time that most clocks agree on.

        0 if it is behind and no record was seen as it was made: then there may have been none for long.
        """
        time_ns = wall_ns + clocks.at(wall_ns - now_ns, self._bound_ns).agreed_ns
        if self._ahead_ns is None:
            return max(0, last_ns - time_ns)
        return max(last_ns, now_ns + self._ahead_ns) - time_ns

    def next_ns(self, last_ns: int, wall_ns: int, now_ns: int, clocks: Clocks = ALONE) -> int:
        """Return the time of a record that is made now, after one of ``last_ns``. Changes nothing."""
        target_ns, _ = self._target(wall_ns, now_ns, clocks)
        if target_ns >= last_ns:
            return target_ns
        if self._ahead_ns is None:
            return last_ns
        return max(last_ns, min(last_ns, self._stamp_ns) + max(0, now_ns - self._at_ns) // PACE)

    def stamp(self, last_ns: int, wall_ns: int, now_ns: int, clocks: Clocks = ALONE) -> int:
        """Return the time of the record that is made now, as :meth:`next_ns`, and continue from there."""
        target_ns, self.jumped_ns = self._target(wall_ns, now_ns, clocks)
        stamp_ns = self.next_ns(last_ns, wall_ns, now_ns, clocks)
        before_ns, ahead_ns = self._ahead_ns, stamp_ns - now_ns
        with_clock = self._sound and stamp_ns == target_ns
        if with_clock and before_ns is not None and abs(ahead_ns - before_ns) <= self._bound_ns:
            creep_ns = max(0, now_ns - self._at_ns) // CREEP
            ahead_ns = min(max(ahead_ns, before_ns - creep_ns), before_ns + creep_ns)
        self._ahead_ns, self._at_ns, self._stamp_ns = ahead_ns, now_ns, stamp_ns
        self._sound = stamp_ns - target_ns <= self._bound_ns
        return stamp_ns

    def _target(self, wall_ns: int, now_ns: int, clocks: Clocks) -> tuple[int, int]:
        """Return the time by the vote of the clocks, and how far the wall clock jumped if it lost."""
        clocks = clocks.at(wall_ns - now_ns, self._bound_ns)
        log_ns = None if self._ahead_ns is None or not self._sound else now_ns + self._ahead_ns
        if log_ns is None or abs(wall_ns - log_ns) <= self._bound_ns:
            return wall_ns + clocks.agreed_ns, 0
        log, ours = Offset(log_ns - wall_ns, 0), Offset(0, 0)
        voters = [log, ours, *[each for node, each in clocks.offsets.items() if node != STORE]]
        votes = [sum([not differ(each, other, self._bound_ns) for other in voters]) for each in voters]
        winner = voters[votes.index(max(votes))]
        return wall_ns + winner.offset_ns, -winner.offset_ns if winner is log else 0
