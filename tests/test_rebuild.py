"""A coordinator's store that was lost is made anew from the nodes' disks, and nothing answered goes with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from openoutcry.actors import ConfigurationError, MarketRules, StorageError
from openoutcry.actors.cli import main
from openoutcry.actors.leadership.coordination import open_coordinator
from openoutcry.actors.tools.rebuild import carry_out, plan

MARKET, OTHER = "BTC-USD", "A/B"
RULES = {MARKET: MarketRules(), OTHER: MarketRules(tick_size="0.5")}


class Lost:
    """Three nodes that have traded and stand still: one went early. Their coordinator's store is gone."""

    def __init__(self, exchange: Any) -> None:
        self.net = net = exchange(nodes=3, markets=RULES)
        self.folders = [node.data_dir for node in net]
        self.stale = net[2].node_id
        self.early = net[0].submit_order(MARKET, "buy", "9", "1")
        for market in RULES:
            net.wait_same_sequence(market)
        net[2].close()
        self.last = {market: [net[0].submit_order(market, "buy", "10", "1") for _ in range(5)][-1] for market in RULES}
        self.hashes = {market: net[0].position(market) for market in RULES}
        net[0].close()
        net[1].close()
        self.store: Path = net[0].data_dir.parent / "coordinator.sqlite"
        self.store.unlink()


@pytest.fixture
def lost(exchange: Any) -> Lost:
    return Lost(exchange)


def rebuild(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["coordinator", "rebuild", *map(str, arguments)])


def test_nodes_whose_coordinator_is_lost_go_on_from_a_store_made_of_two_disks_and_the_third_joins(lost: Lost) -> None:
    net = lost.net
    with pytest.raises(ConfigurationError, match=f"logs of {OTHER}, {MARKET}.*coordinator rebuild") as caught:
        net.restart(0)
    assert caught.value.code == "coordinator_missing"
    assert not lost.store.exists(), "a store was begun anew"
    done = rebuild(*lost.folders[1:], "--coordinator", lost.store, "--yes")
    assert done.exit_code == 0, done.output
    assert f"{lost.stale}" in done.output
    again = rebuild(*lost.folders[1:], "--coordinator", lost.store, "--yes")
    assert again.exit_code == 0, "after an error it may be done again"
    net.restart(1, wait=False)
    net[1].wait_ready()
    for market in RULES:
        assert net[1].get_order(market, lost.last[market].order_id) is not None
        net[1].submit_order(market, "sell", "10", "1")
    assert net[1].get_order(MARKET, lost.early.order_id) is not None
    for index in (0, 2):
        net.restart(index, wait=False)
    for market in RULES:
        net[1].wait_in_sync(market, 3)
        net.wait_same_sequence(market)
        net.assert_same_hash(market)


def test_the_log_that_reaches_furthest_leads_whatever_the_order_of_the_disks(lost: Lost) -> None:
    for folders in (lost.folders, lost.folders[::-1]):
        plans = plan(folders)
        assert [each.market for each in plans] == sorted(RULES)
        for each in plans:
            assert each.leader.node != lost.stale
            assert (each.leader.sequence, each.leader.state_hash) >= lost.hashes[each.market]
            assert each.epoch > max(holder.epoch for holder in (each.leader, *each.others))
    (stale,) = [each for each in plan([lost.folders[2]]) if each.market == MARKET]
    assert stale.leader.node == lost.stale


def test_a_damaged_disk_is_not_used_and_is_refused_if_it_is_the_only_one(lost: Lost) -> None:
    log = next((lost.folders[0] / "markets" / MARKET).glob("*.log"))
    log.write_bytes(log.read_bytes()[:100] + b"\xff" + log.read_bytes()[101:])
    (each,) = [each for each in plan(lost.folders) if each.market == MARKET]
    (damaged,) = [holder for holder in each.others if holder.unfit]
    assert "byte" in str(damaged.unfit)
    with pytest.raises(StorageError, match="no disk holds a log to go on from") as caught:
        plan(lost.folders[:1])
    assert caught.value.code == "corrupt"


def test_a_store_that_has_other_records_is_left_as_it_is(lost: Lost) -> None:
    plans = plan(lost.folders)
    store = open_coordinator(lost.store)
    try:
        others = store.create(MARKET, "somebody.1", ("somebody.1",))
        with pytest.raises(ConfigurationError, match="has a record of market BTC-USD already") as caught:
            carry_out(store, plans)
        assert caught.value.code == "market_listed"
        assert store.read_all() == (others,)
    finally:
        store.close()


def test_a_disk_given_twice_a_running_node_and_a_non_disk_are_refused(lost: Lost, tmp_path: Path) -> None:
    store = tmp_path / "new.sqlite"
    copy = tmp_path / "copy"
    shutil.copytree(lost.folders[0], copy)
    assert "are both the disk of" in rebuild(copy, lost.folders[0], "--coordinator", store, "--yes").output
    assert "not_a_data_dir" in rebuild(tmp_path, "--coordinator", store, "--yes").output
    refused = rebuild(lost.folders[0], "--coordinator", store)
    assert "Aborted" in refused.output
    assert not store.exists()
    rebuild(*lost.folders, "--coordinator", lost.store, "--yes")
    lost.net.restart(0, wait=False)
    assert "data_dir_in_use" in rebuild(lost.folders[0], "--coordinator", store, "--yes").output
