"""A clock that only goes on: what wall clocks and the time of logs are compared with."""

from __future__ import annotations

import time
from typing import Final

_UPTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def uptime_ns() -> int:
    """Return the time since the machine was started; while it slept it counts, where the system tells."""
    return time.clock_gettime_ns(_UPTIME)
