"""Which market leaders should change nodes, so that each node leads about as many as any other. Pure.

:func:`plan` is a function of the coordinator's records and of the live nodes: nodes that see the same make the same
plan, and each carries out its own part. Owns no state, knows no clock; :mod:`.catalogue` acts on it.

A node's load is the number of markets that it leads. A move takes a market from its leader to another member of its
in-sync set, and belongs to a path from a node to one that leads at least two markets fewer. So each path lowers the
sum of the squares of the loads, nothing moves where loads differ by one, and no market goes back and forth.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Iterable
from typing import Final

from ...transport.coordinator import MarketRecord

PLAN_MAX: Final = 32
"""Most moves of one plan; further moves follow in the next plan."""


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """Hand ``market`` over, from its leader ``source`` to ``target``, a member of its in-sync set; node ids."""

    market: str
    source: str
    target: str


def plan(records: Iterable[MarketRecord], *, alive: Collection[str], held: Collection[str] = ()) -> list[Move]:
    """Return the moves that even out how many markets each node leads: at most ``PLAN_MAX``, to be made in this order.

    Args:
        records: the coordinator's records, all of one moment.
        alive: ids of the live nodes; others neither get markets nor count.
        held: markets that stay where they are; they count.

    Any of the moves may be left out or delayed: no move makes the spread worse permanently, and the next plan is
    shorter. A market may move more than once; then each move starts where the last ended.
    """
    leads: dict[str, dict[str, MarketRecord]] = {node: {} for node in sorted(alive)}
    load = dict.fromkeys(leads, 0)
    for record in sorted(records, key=lambda record: record.market):
        if record.leader in leads:
            load[record.leader] += 1
            if record.market not in held:
                leads[record.leader][record.market] = record
    moves: list[Move] = []
    while path := _path(leads, load):
        for source, target in path:
            market = next(name for name, record in leads[source].items() if target in record.in_sync)
            leads[target][market] = leads[source].pop(market)
            moves.append(Move(market, source, target))
        load[path[0][0]] -= 1
        load[path[-1][1]] += 1
        if len(moves) >= PLAN_MAX:
            break
    return moves[:PLAN_MAX]


def _path(leads: dict[str, dict[str, MarketRecord]], load: dict[str, int]) -> list[tuple[str, str]]:
    """Return the steps of a shortest path from a node to one that leads at least two fewer; empty if there is none.

    From the node with the highest load that has such a path, to the one with the lowest load it can reach.
    """
    reach = {node: {member for record in led.values() for member in record.in_sync} for node, led in leads.items()}
    lowest = min(load.values(), default=0)
    for start in sorted(load, key=lambda node: (-load[node], node)):
        if load[start] - lowest < 2:
            return []
        came_from = {start: start}
        waiting = deque([start])
        while waiting:
            node = waiting.popleft()
            for member in sorted(reach[node]):
                if member in load and member not in came_from:
                    came_from[member] = node
                    waiting.append(member)
        end = min(came_from, key=lambda node: load[node])
        if load[start] - load[end] >= 2:
            steps = []
            while end != start:
                steps.append((came_from[end], end))
                end = came_from[end]
            return steps[::-1]
    return []
