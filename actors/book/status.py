"""MarketStatus: the state of one market's replica at a node, for operators. A value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MarketStatus:
    """The state of one market at one node.

    If a replica does not answer, only ``market``, ``role`` and ``error`` are known: ``answered`` is False, the other
    fields have their defaults, and :meth:`to_dict` leaves them out.
    """

    market: str
    role: str
    """``leading``, ``following``, ``claiming`` or ``stopped``, reported by the replica; ``cannot_open`` or
    ``unresponsive`` if it does not answer."""
    ready: bool = False
    """Commands can be sent from here, and the market has rules."""
    epoch: int = 0
    """Grows by one whenever the leader changes."""
    leader: str | None = None
    """The id of the leader, as far as known here."""
    in_sync: tuple[str, ...] = ()
    """The ids of the nodes that hold every acknowledged command."""
    min_in_sync: int = 0
    """The number of them that a command needs."""
    present: int = 0
    """Leader: the number of them that it can reach."""
    resigned: bool = False
    """It leads, and waits until another takes over."""
    yields: bool = False
    """It leads but cannot commit, and lets another lead."""
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
    """The folder of a log that differed from the exchange's."""
    trouble: str | None = None
    error: str | None = None
    """Why it cannot be used until a person acts, or None."""
    snapshot_error: str | None = None
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    answered: bool = True

    def __getitem__(self, field: str) -> Any:
        """Return a field by its name, as ``status["role"]``.

        Raises:
            KeyError: there is no such field.
        """
        if field not in self.__slots__:
            raise KeyError(field)
        return getattr(self, field)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        if not self.answered:
            return {"market": self.market, "role": self.role, "ready": False, "error": self.error}
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del found["answered"]
        return found | {"in_sync": list(self.in_sync), "followers": dict(self.followers)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> MarketStatus:
        """Return the status from which :meth:`to_dict` was made."""
        known = {field.name for field in dataclasses.fields(cls)} - {"answered"}
        values = {name: value for name, value in found.items() if name in known}
        return cls(**values | {"answered": "applied" in found, "in_sync": tuple(found.get("in_sync", ()))})


def unanswered(market: str, role: str, error: str) -> MarketStatus:
    """Return the status of a market whose replica does not answer."""
    return MarketStatus(market=market, role=role, error=error, answered=False)
