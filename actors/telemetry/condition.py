"""The state of a replica in a word and a sentence: for health, metrics, errors and operators. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..book.record import COMMANDS_MAX

READY: Final = "ready"
NOT_OPEN: Final = "cannot_open"
"""The role and the state of a market that could not yet be opened."""
Condition = tuple[str, str]
"""A state, and a sentence that explains it."""


def condition(market: Mapping[str, Any], node: str) -> Condition:
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
    if market["role"] == NOT_OPEN:
        return NOT_OPEN, market["error"]
    if market.get("error"):
        return ("unresponsive" if market["role"] == "unresponsive" else "failed"), market["error"]
    if market["repairing"]:
        return "repairing", str(market["repairing"])
    leading = market["role"] == "leading"
    if market["leader"] is None:
        return "no_leader", "no leader is known here; has a node opened the market, and does one that holds it run?"
    if not leading and not market["linked"]:
        return "no_leader", f"its leader, {market['leader']}, cannot be reached"
    in_sync, needed = market["present"] if leading else len(market["in_sync"]), market["min_in_sync"]
    if in_sync < needed:
        return "below_min_in_sync", f"{in_sync} replicas are in sync, {needed} needed"
    if leading:
        if market["resigned"]:
            return "handing_over", "it leads, and waits for another to take over"
    else:
        behind = max(0, market["known"] - market["durable"])
        late = behind > COMMANDS_MAX if market["observer"] else node not in market["in_sync"]
        if late or not market["matched"]:
            return "catching_up", f"it is at sequence {market['applied']}, at least {behind} behind"
    if not market["ready"]:
        return "not_opened", "the market's rules are not in its log yet"
    return READY, f"{market['role']} in epoch {market['epoch']}"
