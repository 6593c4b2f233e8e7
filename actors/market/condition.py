"""The state of a replica in a word and a sentence: for health, metrics, errors and operators. Pure."""

from __future__ import annotations

from typing import Final

from ..book.record import COMMANDS_MAX
from ..book.status import MarketStatus

READY: Final = "ready"
NOT_OPEN: Final = "cannot_open"
"""The role and the state of a market that could not yet be opened."""
Condition = tuple[str, str]
"""A state, and a sentence that explains it."""


def condition(status: MarketStatus, node: str) -> Condition:
    """Return the state of a replica from its status: the first that applies of the states below.

    ==================  =============================================================================
    failed              it has stopped: restart the node, which may need repair
    cannot_open         it could not be opened: descriptors, space, … ran out; the node retries
    unresponsive        it does not answer
    repairing           it is repairing its disk from a peer
    no_leader           nobody leads, or the leader cannot be reached from here
    below_min_in_sync   fewer replicas are in sync than the market needs: commands are refused
    handing_over        it leads, and another is about to
    catching_up         it lacks committed commands
    not_opened          nobody has given the market rules yet
    ready               it can be traded, and read up to date, here
    ==================  =============================================================================
    """
    if status.role == NOT_OPEN:
        return NOT_OPEN, str(status.error)
    if status.error:
        return ("unresponsive" if status.role == "unresponsive" else "failed"), status.error
    if status.repairing:
        return "repairing", str(status.repairing)
    leading = status.role == "leading"
    if status.leader is None:
        return "no_leader", "no leader is known here; has a node opened the market, and does one that holds it run?"
    if not leading and not status.linked:
        return "no_leader", f"its leader, {status.leader}, cannot be reached"
    in_sync, needed = status.present if leading else len(status.in_sync), status.min_in_sync
    if in_sync < needed:
        return "below_min_in_sync", f"{in_sync} replicas are in sync, {needed} needed"
    if leading:
        if status.resigned:
            return "handing_over", "it leads, and waits for another to take over"
    else:
        behind = max(0, status.known - status.durable)
        late = behind > COMMANDS_MAX if status.observer else node not in status.in_sync
        if late or not status.matched:
            return "catching_up", f"it is at sequence {status.applied}, at least {behind} behind"
    if not status.ready:
        return "not_opened", "the market's rules are not in its log yet"
    return READY, f"{status.role} in epoch {status.epoch}"
