"""What is counted about links: plain numbers, each with one writer, read at any time. No I/O."""

from __future__ import annotations

import dataclasses

from .clocks import ClockMeter


@dataclasses.dataclass(slots=True)
class LinkMeters:
    """Frames and bytes over the links to and from one other node, without the hellos that keep a link up."""

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
    clock: ClockMeter = dataclasses.field(default_factory=ClockMeter)
    """How far the other node's wall clock is from ours. The inbox' reader's."""
    ping: tuple[int, int] = (0, 0)
    """The other node's last ping, and when it came, on our monotonic clock in nanoseconds. The inbox' reader's."""
