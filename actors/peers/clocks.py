"""How far this machine's wall clock is from those of its peers, and which of them are right. Pure.

Every hello carries its sender's wall clock, and how long ago the sender received ours; half the round trip is the
error. :class:`ClockMeter` keeps the measurements of one peer. :func:`judge` says which clocks are off: those that
differ by more than a bound from more than half of the others. If only two clocks exist and differ, both are off.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

BOUND_MS: Final = 1000
"""How far a clock may be from those of most of its peers, in milliseconds, until it counts as off: the default."""
SAMPLES: Final = 8
"""Number of hellos of which the one with the shortest round trip counts: about 1.6 s, so that a jump shows soon."""
ROUND_TRIP_NS_MAX: Final = 1_000_000_000
"""Nanoseconds beyond which a round trip says nothing about clocks: one of the processes was stopped meanwhile."""
STALE_NS: Final = 5_000_000_000
"""Nanoseconds after which a measurement no longer counts."""
STEP_NS: Final = 10_000_000
"""Nanoseconds that the wall clock may move against the monotonic one between comparisons; more is a jump."""
STORE: Final = "coordinator"
"""Name of the clock of the coordinator's host, if that is another machine."""


class Offset(NamedTuple):
    """A clock is ``offset_ns`` ahead of ours, give or take ``error_ns``."""

    offset_ns: int
    error_ns: int


class ClockMeter:
    """Measurements of one other clock. One writer; read at any time."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=SAMPLES)
        """``(error, offset, when)``, the last ones."""

    def measured(self, theirs_ns: int, *, round_trip_ns: int, now_ns: int, coarse_ns: int = 0) -> None:
        """Take in what the other clock said, read by its host half a round trip before ``now_ns``, monotonic here.

        ``coarse_ns``: the unit in which it is told.
        """
        if 0 <= round_trip_ns <= ROUND_TRIP_NS_MAX:
            error = (round_trip_ns + coarse_ns) // 2
            self._samples.append((error, theirs_ns + error - now_ns, now_ns))

    def ahead(self, now_ns: int) -> Offset | None:
        """Return how far the other clock is ahead of our monotonic one, by the best of the last measurements, if any.

        Of the monotonic one: our wall clock may have jumped since.
        """
        fresh = [sample for sample in tuple(self._samples) if now_ns - sample[2] <= STALE_NS]
        if not fresh:
            return None
        error, offset, _ = min(fresh)
        return Offset(offset, error)


@dataclasses.dataclass(frozen=True, slots=True)
class Clocks:
    """This machine's clock among others."""

    offsets: Mapping[str, Offset] = dataclasses.field(default_factory=dict)
    """How far the clocks of others are ahead of ours, by node; under :data:`STORE` that of the coordinator's host."""
    off: bool = False
    """Whether ours differs from most of the others."""
    right: frozenset[str] = frozenset()
    """The other nodes whose clocks do not differ from more than half of the others, ours among them."""
    agreed_ns: int = 0
    """How far the time that most agree on is ahead of ours, if ours is off; 0 if as many agree with ours."""
    ours_ns: int = 0
    """How far our wall clock was ahead of our monotonic one then."""

    def at(self, ours_ns: int, bound_ns: int) -> Clocks:
        """Return the same now that our wall clock is ``ours_ns`` ahead of the monotonic one: it may have jumped."""
        jumped_ns = ours_ns - self.ours_ns
        if not self.offsets or abs(jumped_ns) < STEP_NS:
            return self
        moved = {node: Offset(each.offset_ns - jumped_ns, each.error_ns) for node, each in self.offsets.items()}
        return judge(moved, bound_ns, ours_ns)

    @property
    def compared(self) -> bool:
        """Whether another node's clock is known, or that of the coordinator's host agrees with ours."""
        return bool(self.offsets.keys() - {STORE}) or (STORE in self.offsets and not self.off)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON would carry it, in seconds."""
        offsets = {node: round(each.offset_ns / 1e9, 6) for node, each in sorted(self.offsets.items())}
        return {"off": self.off, "ahead_s": round(-self.agreed_ns / 1e9, 6), "offsets_s": offsets}


ALONE: Final = Clocks()
"""No other clock is known."""


def differ(one: Offset, other: Offset, bound_ns: int) -> bool:
    """Return whether two clocks differ by more than ``bound_ns`` for certain."""
    return abs(one.offset_ns - other.offset_ns) - one.error_ns - other.error_ns > bound_ns


def judge(offsets: Mapping[str, Offset], bound_ns: int, ours_ns: int = 0) -> Clocks:
    """Return whose clocks are right, by how far each is ahead of ours, and that of our monotonic one by ``ours_ns``.

    The coordinator's host votes only where there is one other node or none: it may be the machine of one of more.
    """
    votes = len(offsets.keys() - {STORE}) < 2
    clocks = {"": Offset(0, 0), **{node: each for node, each in offsets.items() if votes or node != STORE}}
    differing = {
        name: sum([differ(each, other, bound_ns) for other in clocks.values()]) for name, each in clocks.items()
    }
    half = (len(clocks) - 1) / 2
    right = frozenset([name for name, count in differing.items() if name not in ("", STORE) and count <= half])
    off = differing[""] > half
    best = min(differing, key=lambda name: (differing[name], abs(clocks[name].offset_ns)))
    return Clocks(dict(offsets), off, right, clocks[best].offset_ns if off else 0, ours_ns)
