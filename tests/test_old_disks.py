"""Disks that are not what the coordinator believes: copies beside the original, and old copies that come back."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.testing import eventually
from openoutcry.actors.testkit.processes import NodeProcess
from openoutcry.actors.tools.rebuild import carry_out, plan
from openoutcry.transport.errors import ConfigurationError, StorageError, Unavailable
from openoutcry.transport.rendezvous import Rendezvous
from openoutcry.transport.sqlite import SqliteCoordinator

MARKET = "X"
RULES = MarketRules(tick_size="1", lot_size="1")


def start(folder: Path, name: str, **options: Any) -> ExchangeNode:
    options = {"markets": {MARKET: RULES}, "data_dir": folder / name, "balance": False, **options}
    return ExchangeNode(name, coordinator=folder / "c.sqlite", **options)


def test_a_copy_of_a_data_directory_beside_the_original_is_refused(tmp_path: Path) -> None:
    with start(tmp_path, "a") as original:
        original.wait_ready()
        first = original.submit_order(MARKET, "buy", "10", "1").sequence
        shutil.copytree(original.data_dir, tmp_path / "copy")
        began_s = time.monotonic()
        with pytest.raises(ConfigurationError, match="copy of the other") as refused:
            start(tmp_path, "a", data_dir=tmp_path / "copy", lease_ms=500)
        assert refused.value.code == "node_id_in_use"
        assert time.monotonic() - began_s < 10
        assert original.submit_order(MARKET, "buy", "11", "1").sequence == first + 1


def small_segments() -> None:
    """In a node's process: segments of the log that are soon full, so that an old one is removed."""
    defaults: dict[str, Any] = Journal.__init__.__kwdefaults__  # type: ignore[misc]
    defaults["segment_size"] = 4096


class Exchange:
    """Nodes in processes of their own, with one rendezvous and one store; each is killed, never closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rendezvous = Rendezvous("tcp://127.0.0.1:0")
        self.rendezvous.start()
        self.nodes: dict[str, NodeProcess] = {}

    def start(self, *names: str, **options: Any) -> list[NodeProcess]:
        for name in names:
            given = {
                "markets": {MARKET: RULES},
                "data_dir": self.folder / name,
                "coordinator": self.folder / "c.sqlite",
                "directory": self.rendezvous.address,
                "balance": False,
                **options,
            }
            self.nodes[name] = NodeProcess(name, given, prepare=small_segments)
        return [self.nodes[name] for name in names]

    def kill(self, *names: str) -> None:
        for name in names:
            self.nodes.pop(name).kill()

    def market(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.nodes[name].status().markets[MARKET].to_dict()
        return found

    def close(self) -> None:
        self.kill(*list(self.nodes))
        self.rendezvous.close()


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    exchange = Exchange(tmp_path)
    yield exchange
    exchange.close()


def orders(node: NodeProcess, name: str, count: int) -> int:
    for number in range(count):
        last = node.submit_order(MARKET, "buy", "10", "1", account="ann", client_order_id=f"{name}{number}").sequence
    return last


def held(node: NodeProcess) -> set[str]:
    return {order.client_order_id for order in node.open_orders(MARKET, account="ann")}


def forced(node: NodeProcess) -> bool:
    with contextlib.suppress(Unavailable):
        node.force_leader(MARKET, reason="it holds more")
        return True
    return False


def everything(folder: Path, copy: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)


def only_the_market(folder: Path, copy: Path) -> None:
    everything(folder / "markets" / MARKET, copy / "markets" / MARKET)


def only_the_log(folder: Path, copy: Path) -> None:
    for log in (copy / "markets" / MARKET).glob("*.log"):
        shutil.copy(log, folder / "markets" / MARKET / log.name)


def test_a_log_that_forks_from_before_all_that_its_leader_still_has_is_not_replaced_in_silence(
    exchange: Exchange,
) -> None:
    """Store and one disk are put back; what the other disk holds is older than the log that is kept by then."""
    few: dict[str, Any] = {"snapshot_every": 5}
    for node in exchange.start("a", "b", **few):
        node.wait_ready()
    exchange.nodes["a"].wait_in_sync(MARKET, 2)
    orders(exchange.nodes["a"], "old", 5)
    exchange.nodes["b"].wait_sequence(MARKET, exchange.nodes["a"].sequence(MARKET))
    exchange.kill("a", "b")
    shutil.copytree(exchange.folder / "a", exchange.folder / "copy")
    for node in exchange.start("a", "b", **few):
        node.wait_ready()
    exchange.nodes["a"].wait_in_sync(MARKET, 2)
    new = orders(exchange.nodes["a"], "new", 5)
    exchange.nodes["b"].wait_sequence(MARKET, new)
    exchange.kill("a", "b")
    everything(exchange.folder / "a", exchange.folder / "copy")
    (exchange.folder / "c.sqlite").unlink()
    carry_out(SqliteCoordinator(exchange.folder / "c.sqlite"), plan([exchange.folder / "a"]))
    (a,) = exchange.start("a", **few)
    a.wait_ready()
    orders(a, "other", 40)
    kept = exchange.folder / "a" / "markets" / MARKET
    eventually(lambda: min([int(log.stem) for log in kept.glob("*.log")]) > new, "what b could be compared with went")
    exchange.start("b", **few)
    market = eventually(lambda: (m := exchange.market("b"))["trouble"] and m, "b says that its log is another")
    assert "delete nothing" in market["trouble"].lower()
    assert market["appended"] == new, "it keeps what it has"
    assert exchange.market("a")["role"] != "leading", "who lacks what was answered leads no more by itself"


@pytest.mark.parametrize("restore", [everything, only_the_market, only_the_log])
def test_an_old_copy_of_the_only_disk_leads_nothing_and_says_what_to_compare(
    exchange: Exchange, restore: Callable[[Path, Path], None]
) -> None:
    (node,) = exchange.start("a")
    node.wait_ready()
    orders(node, "old", 5)
    exchange.kill("a")
    shutil.copytree(exchange.folder / "a", exchange.folder / "copy")
    (node,) = exchange.start("a")
    node.wait_ready()
    orders(node, "new", 5)
    exchange.kill("a")
    shutil.copytree(exchange.folder / "a", exchange.folder / "right")
    restore(exchange.folder / "a", exchange.folder / "copy")
    (node,) = exchange.start("a")
    with pytest.raises(StorageError, match=r"older copy.*openoutcry verify.*openoutcry force-leader") as refused:
        node.wait_ready()
    assert refused.value.code == "old_disk"
    with pytest.raises(StorageError, match="older copy"):
        node.submit_order(MARKET, "buy", "10", "1")
    assert exchange.market("a")["role"] == "following"
    exchange.kill("a")
    everything(exchange.folder / "a", exchange.folder / "right")
    (node,) = exchange.start("a")
    node.wait_ready()
    assert {f"{name}{number}" for name in ("old", "new") for number in range(5)} == held(node)


@pytest.mark.parametrize("first", ["old", "whole", "together"])
@pytest.mark.parametrize("life", ["an earlier life", "this life"])
def test_an_old_copy_of_one_disk_of_two_is_repaired_whoever_starts_first(
    exchange: Exchange, first: str, life: str
) -> None:
    for node in exchange.start("a", "b"):
        node.wait_ready()
    exchange.nodes["a"].wait_in_sync(MARKET, 2)
    orders(exchange.nodes["a"], "old", 5)
    if life == "an earlier life":
        exchange.kill("a", "b")
    shutil.copytree(exchange.folder / "a", exchange.folder / "copy")
    if life == "an earlier life":
        for node in exchange.start("a", "b"):
            node.wait_ready()
        exchange.nodes["b"].wait_in_sync(MARKET, 2)
    last = orders(exchange.nodes["b"], "new", 5)
    if life == "this life":
        time.sleep(1.5)  # reports travel with the lease, every third of 2 s
    exchange.kill("a", "b")
    everything(exchange.folder / "a", exchange.folder / "copy")
    order = {"old": ("a", "b"), "whole": ("b", "a"), "together": ("a", "b")}[first]
    exchange.start(order[0])
    if first != "together":
        time.sleep(4)
        assert exchange.market("a")["role"] != "leading" if first == "old" else True
    exchange.start(order[1])
    for node in exchange.nodes.values():
        node.wait_ready()
        node.wait_sequence(MARKET, last)
        assert {f"{name}{number}" for name in ("old", "new") for number in range(5)} == held(node)


def test_a_copy_of_this_life_that_lacks_what_was_not_reported_yet_leads_only_until_it_meets_who_holds_it(
    exchange: Exchange,
) -> None:
    """The window that is left: nobody knows of the last orders but the disk that does not run."""
    silent = {"lease_ms": 120_000}  # so that nothing is reported meanwhile
    for node in exchange.start("a", "b", **silent):
        node.wait_ready()
    exchange.nodes["a"].wait_in_sync(MARKET, 2)
    orders(exchange.nodes["a"], "old", 5)
    shutil.copytree(exchange.folder / "a", exchange.folder / "copy")
    last = orders(exchange.nodes["b"], "new", 5)
    exchange.nodes["b"].wait_sequence(MARKET, last)
    exchange.kill("b", "a")
    everything(exchange.folder / "a", exchange.folder / "copy")
    (old,) = exchange.start("a", **silent)
    old.wait_ready(60)
    orders(old, "fork", 1)
    exchange.start("b", **silent)
    eventually(lambda: exchange.market("a")["error"] and exchange.market("b")["error"], "both say that they differ")
    assert "older copy" in exchange.market("a")["error"]
    assert "delete nothing" in exchange.market("b")["error"]
    assert "wipe" not in exchange.market("b")["error"]
    assert {exchange.market(name)["role"] for name in ("a", "b")} == {"following"}
    exchange.kill("a")
    eventually(lambda: forced(exchange.nodes["b"]), "b leads")
    assert {f"new{number}" for number in range(5)} <= held(exchange.nodes["b"])
    exchange.start("a", **silent)
    exchange.nodes["a"].wait_ready(30)
    assert exchange.market("a")["put_aside"], "what the fork had answered is kept"


def test_an_old_store_is_found_out_by_every_node_that_has_seen_a_newer_one(exchange: Exchange) -> None:
    for node in exchange.start("a", "b"):
        node.wait_ready()
    exchange.nodes["a"].wait_in_sync(MARKET, 2)
    orders(exchange.nodes["a"], "old", 5)
    store = exchange.folder / "c.sqlite"
    shutil.copy(store, exchange.folder / "old.sqlite")
    exchange.kill("b")
    eventually(lambda: exchange.market("a")["in_sync"] == [exchange.market("a")["leader"]], "a is alone")
    last = orders(exchange.nodes["a"], "new", 5)
    exchange.kill("a")
    shutil.copy(exchange.folder / "old.sqlite", store)
    (left,) = exchange.start("b")  # it has left the in-sync set since, and cannot know
    left.wait_ready(30)
    orders(left, "fork", 1)
    exchange.start("a")
    eventually(lambda: exchange.market("a")["error"] and exchange.market("b")["error"], "both are told")
    assert exchange.market("b")["role"] != "leading"
    for name in ("a", "b"):
        assert "older copy" in exchange.market(name)["error"] or "coordinator" in exchange.market(name)["error"]
    assert exchange.market("a")["appended"] == last, "nothing is cut"


def test_a_store_that_is_restored_under_running_nodes_is_found_out(exchange: Exchange) -> None:
    exchange.start("a")[0].wait_ready()
    store = exchange.folder / "c.sqlite"
    before = store.read_bytes()
    exchange.start("b")[0].wait_ready()
    exchange.nodes["a"].wait_in_sync(MARKET, 2)
    with store.open("r+b") as file:  # the same file, as a volume's snapshot would be
        file.write(before)
    eventually(lambda: all(exchange.market(name)["trouble"] for name in "ab"), "both say so")
    for name in "ab":
        assert "openoutcry coordinator rebuild" in exchange.market(name)["trouble"]
    orders(exchange.nodes["a"], "on", 1)
