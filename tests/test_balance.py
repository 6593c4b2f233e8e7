"""Leaders spread evenly over the nodes: the plan."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openoutcry.actors.leadership.balance import Move, plan
from openoutcry.transport.coordinator import MarketRecord

NODES = ("a", "b", "c", "d", "e")


def record(market: str, leader: str, *others: str) -> MarketRecord:
    return MarketRecord(market, 1, 1, leader, tuple(sorted({leader, *others})))


@st.composite
def exchanges(draw: Any, markets_max: int, nodes_max: int) -> tuple[list[MarketRecord], tuple[str, ...]]:
    nodes = NODES[: draw(st.integers(1, nodes_max))]
    in_sync = st.sets(st.sampled_from(nodes), min_size=1).map(sorted)
    members = draw(st.lists(in_sync, max_size=markets_max))
    leaders = [draw(st.sampled_from(names)) for names in members]
    records = [
        record(f"m{at:02}", leader, *names) for at, (leader, names) in enumerate(zip(leaders, members, strict=True))
    ]
    return records, tuple(draw(st.sets(st.sampled_from(nodes), min_size=1).map(sorted)))


def loads(records: list[MarketRecord], alive: tuple[str, ...]) -> list[int]:
    leaders = Counter(found.leader for found in records)
    return [leaders[node] for node in alive]


def made(records: list[MarketRecord], move: Move) -> list[MarketRecord]:
    """Return ``records`` after ``move``; the coordinator would refuse any that is not from leader to member."""
    (moved,) = [found for found in records if found.market == move.market]
    assert moved.leader == move.source != move.target
    assert move.target in moved.in_sync
    return [record(found.market, move.target, *found.in_sync) if found is moved else found for found in records]


def squares(values: list[int]) -> int:
    return sum(value * value for value in values)


@given(exchanges(markets_max=6, nodes_max=4))
def test_a_plan_spreads_leaders_as_evenly_as_the_in_sync_sets_allow(case: Any) -> None:
    records, alive = case
    choices = [
        [name for name in found.in_sync if name in alive] if found.leader in alive else [found.leader]
        for found in records
    ]
    best = min(squares([Counter(choice)[node] for node in alive]) for choice in itertools.product(*choices))
    for move in plan(records, alive=alive):
        assert move.target in alive
        records = made(records, move)
    assert squares(loads(records, alive)) == best
    assert plan(records, alive=alive) == []


@settings(deadline=None)
@given(exchanges(markets_max=24, nodes_max=5), st.randoms(use_true_random=False))
def test_nodes_that_each_make_their_own_moves_in_any_order_end_even_after_few(case: Any, chance: random.Random) -> None:
    records, alive = case
    aim = records
    for move in plan(records, alive=alive):
        aim = made(aim, move)
    moves = 0
    while plan(records, alive=alive):
        seen = records  # some act on what has changed since they looked
        for node in chance.sample(alive, len(alive)):
            if chance.random() < 0.5:
                seen = records
            mine = [move for move in plan(seen, alive=alive) if move.source == node]
            led = {found.market for found in records if found.leader == node}
            if mine and mine[0].market in led and chance.random() < 0.8:
                records = made(records, mine[0])
                moves += 1
        assert moves <= 4 * len(records), "it does not settle"
    assert squares(loads(records, alive)) == squares(loads(aim, alive))


def test_where_every_node_is_in_sync_everywhere_loads_differ_by_one_at_most() -> None:
    records = [record(f"m{at:02}", "a", "b", "c") for at in range(32)]
    for move in plan(records, alive=("a", "b", "c")):
        records = made(records, move)
    assert sorted(loads(records, ("a", "b", "c"))) == [10, 11, 11]


def test_nothing_moves_where_loads_differ_by_one() -> None:
    assert plan([record("m", "a", "b")], alive=("a", "b")) == []
    assert plan([record("m", "a", "b"), record("n", "b", "a"), record("o", "a", "b")], alive=("a", "b")) == []
    beyond_reach = ("a", "b", "c")  # c leads two fewer than a, and is in sync nowhere
    assert plan([record("m", "a", "b"), record("n", "a"), record("o", "b", "a")], alive=beyond_reach) == []


def test_held_markets_stay_and_are_counted() -> None:
    records = [record(f"m{at}", "a", "b") for at in range(4)]
    assert [move.market for move in plan(records, alive=("a", "b"), held={"m0", "m1"})] == ["m2", "m3"]
    assert plan(records, alive=("a", "b"), held={"m0", "m1", "m2", "m3"}) == []


def test_markets_without_a_live_leader_and_dead_nodes_take_no_part() -> None:
    records = [*(record(f"m{at}", "a", "b", "c") for at in range(2)), *(record(f"n{at}", "c", "a") for at in range(9))]
    assert plan(records, alive=("a", "b")) == [Move("m0", "a", "b")]
