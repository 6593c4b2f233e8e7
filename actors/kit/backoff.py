"""When to retry something that failed: after a pause that doubles. Pure: the caller passes the time."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class Backoff:
    """The pauses between the retries of one thing."""

    min_s: float
    """Seconds to wait after the first failure; each further one doubles that."""
    max_s: float
    """Longest pause, in seconds."""
    failures: int = 0
    """How often it has failed since it succeeded last."""
    due_s: float = 0.0
    """When it may be tried again."""

    def failed(self, now_s: float) -> float:
        """Note a failure; return how many seconds to wait."""
        pause_s = min(self.max_s, self.min_s * 2.0 ** min(self.failures, 64))
        self.failures += 1
        self.due_s = now_s + pause_s
        return pause_s

    def succeeded(self) -> bool:
        """Note a success; return whether it had failed before."""
        failed, self.failures, self.due_s = self.failures > 0, 0, 0.0
        return failed

    def is_due(self, now_s: float) -> bool:
        """Return whether it may be tried now."""
        return now_s >= self.due_s
