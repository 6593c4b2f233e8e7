"""What is counted about links: plain numbers, each with one writer, read at any time. No I/O."""

from __future__ import annotations

import dataclasses

from .clocks import ClockMeter


@dataclasses.dataclass(slots=True)
class LinkMeters:
    """Frames and bytes over the links to and from one other node, without the hellos that keep a link up."""

    frames_in: int = 0
    bytes_in: int = 0
    """Written by the inbox's reader, as is ``frames_in``."""
    received_s: float = 0.0
    """When the last frame came, of any kind; on the monotonic clock. Written by the inbox's reader."""
    frames_out: int = 0
    bytes_out: int = 0
    """Written under the lock of the link, as is ``frames_out``."""
    ups: int = 0
    """How often the link came up. Written by the PeerActor."""
    clock: ClockMeter = dataclasses.field(default_factory=ClockMeter)
    """How far the other node's wall clock is from ours. Written by the inbox's reader."""
    ping: tuple[int, int] = (0, 0)
    """The other node's last ping, and when it came here: monotonic nanoseconds. Written by the inbox's reader."""
