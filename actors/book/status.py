"""MarketStatus: what an operator asks about one market's replica at a node. A value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MarketStatus:
    """The state of one market at one node.

    A replica that gives no answer is known by ``market``, ``role`` and ``error`` only: ``answered`` is False then, the
    other fields have their defaults, and :meth:`to_dict` leaves them out.
    """

    market: str
    role: str
    """``leading``, ``following``, ``claiming`` or ``stopped``, as the replica says; ``cannot_open`` or ``unresponsive``
    if it says nothing."""
    ready: bool = False
    """Commands can be sent from here, and the market has rules."""
    epoch: int = 0
    """Grows by one whenever the leader changes."""
    leader: str | None = None
    """The id of the node that leads, as far as is known here."""
    in_sync: tuple[str, ...] = ()
    """The ids of the nodes that hold every acknowledged command."""
    min_in_sync: int = 0
    """How many of them a command needs."""
    present: int = 0
    """Leader: how many of them can be reached."""
    resigned: bool = False
    """It leads, and waits for another to take over."""
    yields: bool = False
    """It leads, cannot commit, and lets another lead."""
    time_off_s: float = 0.0
    """Seconds that the market's time is ahead of the time most clocks agree on, if beyond the bound."""
    linked: bool = False
    """There is a link to the leader."""
    matched: bool = False
    """Its log agrees with the leader's."""
    known: int = 0
    """Highest sequence number that is known here to be committed."""
    subscribers: int = 0
    outstanding: int = 0
    """Requests that were sent to the leader and are unanswered."""
    appended: int = 0
    durable: int = 0
    committed: int = 0
    applied: int = 0
    state_hash: str = ""
    followers: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Leader: by node id, how far each replica is: ``durable``, ``applied``, ``streaming``, ``in_sync``, …"""
    open_orders: int = 0
    trades: int = 0
    waiting: int = 0
    """Leader: commands that wait to be ordered."""
    recovered: int = 0
    """The sequence number up to which the start found the log on disk."""
    observer: bool = False
    """It follows outside the in-sync set."""
    repairing: str | None = None
    """What is damaged on its disk while it is repaired from a peer."""
    put_aside: str | None = None
    """Where a log lies that did not agree with the exchange's."""
    trouble: str | None = None
    error: str | None = None
    """Why it cannot be used until somebody has acted, or None."""
    snapshot_error: str | None = None
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    answered: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON carries it."""
        if not self.answered:
            return {"market": self.market, "role": self.role, "ready": False, "error": self.error}
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del found["answered"]
        return found | {"in_sync": list(self.in_sync), "followers": dict(self.followers)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> MarketStatus:
        """Return what :meth:`to_dict` was made of."""
        known = {field.name for field in dataclasses.fields(cls)} - {"answered"}
        values = {name: value for name, value in found.items() if name in known}
        return cls(**values | {"answered": "applied" in found, "in_sync": tuple(found.get("in_sync", ()))})


def unanswered(market: str, role: str, error: str) -> MarketStatus:
    """Return the status of a market whose replica does not say how it is."""
    return MarketStatus(market=market, role=role, error=error, answered=False)
