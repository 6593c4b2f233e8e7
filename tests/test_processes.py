"""What is promised when nodes are processes that trade at once, and that are killed in the middle of it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from openoutcry.actors.testing import eventually
from processes import MARKET, RULES, Market, NodeProcess, market

SEEDS = int(os.environ.get("OPENOUTCRY_PROCESS_SEEDS", "2"))
HOLD_S = 3.0


def assert_acknowledged_once(net: Market, acked: dict[str, list[tuple[str, int]]]) -> None:
    """Every acknowledged command is in every log, at the sequence number of its answer, and executed once."""
    logs = {name: net.logged(name) for name in net.nodes}
    common = min([len(log) for log in logs.values()])
    first, *others = logs.values()
    for other in others:
        assert first[:common] == other[:common], "the logs differ"
    for name, log in logs.items():
        where = {(c[1], c[2]): sequence for sequence, c in reversed(log) if c[2]}
        for account, answers in acked.items():
            for client_order_id, sequence in answers:
                assert where.get((account, client_order_id)) == sequence, f"{name} lost {account}/{client_order_id}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_three_processes_that_submit_crossing_orders_at_once_agree_on_everything(tmp_path: Path, seed: int) -> None:
    names = ("ann", "bob", "cat")
    with market(tmp_path) as net:
        nodes = net.start(*names)
        net.wait_in_sync()
        for node in nodes:
            node.trade(seed, 2000)
        for node in nodes:
            node.wait_traded()
        sequence, _ = net.settle()
        books = [node.call("all_orders", MARKET) for node in nodes]
        trades = [node.call("trades", MARKET, 100_000) for node in nodes]
        assert books[0] == books[1] == books[2]
        assert trades[0] == trades[1] == trades[2]
        assert len(trades[0]) > 1000, "the orders were meant to cross"
        assert {t.maker_account for t in trades[0]} == set(names), "all were meant to trade with each other"
        counts = Counter([number for node in nodes for _, number in node.acked])
        assert len(counts) == 6000, "every order was acknowledged"
        assert max(counts.values()) == 1, "no two at one place"
        assert sequence >= 6000
        bought = sum([t.quantity for t in trades[0]])
        submitted = {o.order_id: o for o in books[0]}
        assert all([o.filled_quantity + o.open_quantity == o.quantity for o in submitted.values()])
        assert bought > 0
    assert_acknowledged_once(net, {node.name: node.acked for node in nodes})


def test_nothing_acknowledged_is_missing_after_kill_9_of_all_nodes_in_full_flow(tmp_path: Path) -> None:
    names = ("ann", "bob", "cat")
    acked: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    with market(tmp_path) as net:
        for life in range(2):
            nodes = net.start(*names)
            net.wait_in_sync()
            for node in nodes:
                node.trade(life, 100_000)
            for node in nodes:
                node.wait_acked(1000)
            for node in nodes:
                node.kill()
                acked[node.name] += node.acked
        nodes = net.start(*names)
        net.wait_in_sync()
        sequence, _ = net.settle()
        assert sequence >= max([number for answers in acked.values() for _, number in answers])
    assert sum([len(answers) for answers in acked.values()]) >= 6000
    assert_acknowledged_once(net, acked)


def test_the_leader_goes_on_when_a_follower_is_killed_and_takes_it_back(tmp_path: Path) -> None:
    with market(tmp_path) as net:
        (ann,) = net.start("ann")
        (bob,) = net.start("bob")
        net.wait_in_sync()
        ann.trade(1, 20_000)
        ann.wait_acked(1000)
        bob.kill()
        ann.wait_acked(10_000)
        net.start("bob")
        ann.wait_traded()
        eventually(
            lambda: len(ann.call("status")["markets"][MARKET]["in_sync"]) == 2, "the killed follower is in sync again"
        )
        net.settle()
    assert len(ann.acked) == 20_000
    assert_acknowledged_once(net, {"ann": ann.acked})


def test_another_takes_over_when_the_leader_is_killed_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acked: dict[str, list[tuple[str, int]]] = {}
    with market(tmp_path) as net:
        nodes = {"ann": net.start("ann")[0]}
        nodes |= {node.name: node for node in net.start("bob", "cat")}
        net.wait_in_sync()
        for node in nodes.values():
            node.trade(1, 30_000)
        nodes["ann"].wait_acked(1000)
        nodes["ann"].kill()
        acked["ann"] = nodes["ann"].acked
        for name in ("bob", "cat"):
            nodes[name].wait_acked(len(nodes[name].acked) + 2000)
        net.start("ann")
        for name in ("bob", "cat"):
            nodes[name].wait_traded()
            acked[name] = nodes[name].acked
        eventually(lambda: len(nodes["bob"].call("status")["markets"][MARKET]["in_sync"]) == 3, "all are in sync again")
        net.settle()
    assert len(acked["bob"]) == len(acked["cat"]) == 30_000
    assert_acknowledged_once(net, acked)


def test_leaders_spread_anew_after_kill_9_of_a_node_and_its_return_and_nothing_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    markets = dict.fromkeys((MARKET, "M1", "M2", "M3", "M4", "M5"), RULES)

    def led(*nodes: NodeProcess) -> list[int]:
        found = [[market["role"] for market in node.call("status")["markets"].values()] for node in nodes]
        return sorted([roles.count("leading") for roles in found])

    with market(tmp_path, markets=markets, hold_s=HOLD_S) as net:
        ann, bob, cat = net.start("ann", "bob", "cat")
        net.wait_in_sync()
        eventually(lambda: led(ann, bob, cat) == [2, 2, 2], "each of the three leads two markets")
        for node in (bob, cat):
            node.trade(1, 20_000)
            node.wait_acked(1000)
        ann.kill()
        for node in (bob, cat):
            node.wait_traded()
        eventually(lambda: led(bob, cat) == [3, 3], "the two that are left lead three each")
        (ann,) = net.start("ann")
        # Markets that were handed over just before stay where they are for HOLD_S, here shorter than 30 s.
        eventually(lambda: led(ann, bob, cat) == [2, 2, 2], "the one that is back leads two again", within=HOLD_S + 30)
        for name in markets:
            last = max([node.call("sequence", name) for node in (ann, bob, cat)])
            for node in (ann, bob, cat):
                node.call("wait_sequence", name, last)
            assert len({node.call("position", name) for node in (ann, bob, cat)}) == 1, f"{name}: the nodes disagree"
    assert len(bob.acked) == len(cat.acked) == 20_000
    assert_acknowledged_once(net, {"bob": bob.acked, "cat": cat.acked})
