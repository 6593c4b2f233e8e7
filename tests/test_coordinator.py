"""The coordinator: one suite for every store, with real processes; then what is particular to the SQLite file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_cluster import EtcdCluster
from openoutcry.transport import etcd as etcd_module
from openoutcry.transport import sqlite as sqlite_module
from openoutcry.transport.coordinator import MARKS_MAX, NODE_ID_IN_USE, Coordinator, DiskMark, MarketRecord
from openoutcry.transport.errors import (
    Closed,
    ConfigurationError,
    InvariantBroken,
    StorageError,
    Unavailable,
    present,
)
from openoutcry.transport.etcd import open_etcd
from openoutcry.transport.sqlite import SqliteCoordinator

MARKET = "BTC-USD"
NODES = ("n1", "n2", "n3")
OPERATION_S_MAX = 5.0
CHILD_S_MAX = 60.0

OPENERS = {
    "sqlite": "openoutcry.transport.sqlite:SqliteCoordinator",
    "etcd": "openoutcry.transport.etcd:open_etcd",
}

CHILD = """
import importlib, json, sys
from openoutcry.transport.errors import Unavailable
module, name = sys.argv[1].split(":")
make, location, me, count = getattr(importlib.import_module(module), name), sys.argv[2], sys.argv[3], int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
"""

SWAPPER = """
store = make(location)
won, seen, busy = [], 0, 0
while len(won) < count:
    try:
        record = store.read("BTC-USD")
        assert record.version >= seen, f"read version {record.version} after {seen}"
        seen = record.version
        nodes = ("n1", "n2", "n3")
        leader = nodes[record.epoch % 3]
        record = store.swap(record, epoch=record.epoch + 1, leader=leader, in_sync=nodes)
    except Unavailable:
        busy += 1
        continue
    if record is not None:
        seen = record.version
        won.append(seen)
        print(seen, flush=True)
print(json.dumps({"won": won, "busy": busy}), flush=True)
store.close()
"""

CREATOR = """
found = []
for number in range(count):
    store = make(f"{location}-{number}")
    record = store.create("BTC-USD", me, [me, "zz"])
    again = store.read("BTC-USD")
    found.append([store.coordinator_id, record.leader, list(record.in_sync), record.version, record == again])
    store.close()
print(json.dumps(found), flush=True)
"""


@dataclasses.dataclass
class Store:
    """One kind of store at one place: opened here, in other processes, or made unreachable for a while."""

    kind: str
    location: str
    cluster: EtcdCluster | None = None
    children: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list)

    def open(self) -> Coordinator:
        return SqliteCoordinator(self.location) if self.kind == "sqlite" else open_etcd(self.location)

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        if self.cluster is not None:
            with self.cluster.stopped():
                yield
            return
        other = sqlite3.connect(self.location, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.close()

    def start_child(self, source: str, *, me: str = "n1", count: int = 1) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD + source, OPENERS[self.kind], self.location, me, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def end_children(self) -> None:
        for child in self.children:
            child.kill()
            if child.stdout is not None and not child.stdout.closed:
                child.communicate(timeout=CHILD_S_MAX)


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def result_of(child: subprocess.Popen[str]) -> Any:
    out, err = child.communicate(timeout=CHILD_S_MAX)
    assert child.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        store = Store("sqlite", str(tmp_path / "coordinator"))
    else:
        cluster = request.getfixturevalue("cluster")
        store = Store("etcd", cluster.address(f"tests/{uuid.uuid4()}"), cluster)
    yield store
    store.end_children()


@pytest.fixture
def opened(store: Store) -> Iterator[Callable[[], Coordinator]]:
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(store.open()))


@pytest.fixture
def coordinator(opened: Callable[[], Coordinator]) -> Coordinator:
    return opened()


@pytest.fixture
def record(coordinator: Coordinator) -> MarketRecord:
    return coordinator.create(MARKET, "n1", NODES)


def test_record_is_as_created_and_seen_by_another_connection(
    coordinator: Coordinator, opened: Callable[[], Coordinator]
) -> None:
    assert coordinator.read(MARKET) is None
    assert coordinator.read_all() == ()
    created = coordinator.create(MARKET, "n2", ["n3", "n2", "n1", "n2"])
    assert created == MarketRecord(MARKET, version=1, epoch=1, leader="n2", in_sync=NODES)
    other = opened()
    assert other.read(MARKET) == created
    assert other.coordinator_id == coordinator.coordinator_id


def test_create_of_an_existing_market_changes_nothing(coordinator: Coordinator, record: MarketRecord) -> None:
    assert coordinator.create(MARKET, "n9", ["n9"]) == record
    assert coordinator.read(MARKET) == record


def test_markets_are_independent_and_read_all_sorts_them(coordinator: Coordinator) -> None:
    records = [coordinator.create(market, "n1", ["n1"]) for market in ("ZEC-€", "ÅGE", "ADA-USD", "it's; --")]
    swapped = coordinator.swap(records[2], epoch=1, leader="n1", in_sync=["n1", "n2"])
    assert swapped is not None
    records[2] = swapped
    assert coordinator.read_all() == tuple(sorted(records, key=lambda record: record.market))


def test_swap_replaces_the_record_and_counts_the_version(coordinator: Coordinator, record: MarketRecord) -> None:
    second = coordinator.swap(record, epoch=1, leader="n1", in_sync=["n1", "n2"])
    assert second == MarketRecord(MARKET, version=2, epoch=1, leader="n1", in_sync=("n1", "n2"))
    third = coordinator.swap(second, epoch=2, leader="n2", in_sync=["n2"])
    assert third == MarketRecord(MARKET, version=3, epoch=2, leader="n2", in_sync=("n2",))
    fourth = coordinator.swap(third, epoch=3, leader="n2", in_sync=["n2"])
    assert fourth == MarketRecord(MARKET, version=4, epoch=3, leader="n2", in_sync=("n2",))
    assert coordinator.read(MARKET) == fourth


def test_a_leader_that_yields_says_so_until_the_next_swap(coordinator: Coordinator, record: MarketRecord) -> None:
    yielding = coordinator.swap(record, epoch=1, leader="n1", in_sync=["n1", "n2"], yielding=True)
    assert yielding is not None
    assert coordinator.read(MARKET) == yielding
    assert yielding.yielding
    taken = coordinator.swap(yielding, epoch=2, leader="n2", in_sync=["n2"])
    assert taken == coordinator.read(MARKET) == MarketRecord(MARKET, 3, 2, "n2", ("n2",))


def test_forced_swap_makes_any_node_lead_alone_and_is_remembered(
    coordinator: Coordinator, record: MarketRecord
) -> None:
    forced = coordinator.swap(record, epoch=2, leader="n9", in_sync=["n9"], force=True)
    assert forced == MarketRecord(MARKET, version=2, epoch=2, leader="n9", in_sync=("n9",), forced=2)
    assert coordinator.swap(record, epoch=2, leader="n8", in_sync=["n8"], force=True) is None, (
        "it compares all the same"
    )
    grown = coordinator.swap(forced, epoch=2, leader="n9", in_sync=["n8", "n9"])
    assert grown is not None
    later = coordinator.swap(grown, epoch=3, leader="n8", in_sync=["n8"])
    assert later == coordinator.read(MARKET) == MarketRecord(MARKET, 4, 3, "n8", ("n8",), forced=2)


@pytest.mark.parametrize(("epoch", "in_sync"), [(1, ["n9"]), (2, ["n1", "n9"]), (2, ["n1"])])
def test_forced_leader_begins_an_epoch_and_begins_it_alone(
    coordinator: Coordinator, record: MarketRecord, epoch: int, in_sync: list[str]
) -> None:
    with pytest.raises(InvariantBroken):
        coordinator.swap(record, epoch=epoch, leader="n9", in_sync=in_sync, force=True)
    assert coordinator.read(MARKET) == record


def test_stale_swap_is_refused_and_changes_nothing(coordinator: Coordinator, record: MarketRecord) -> None:
    current = coordinator.swap(record, epoch=2, leader="n2", in_sync=NODES)
    assert current is not None
    assert coordinator.swap(record, epoch=2, leader="n3", in_sync=NODES) is None
    assert coordinator.swap(record, epoch=9, leader="n1", in_sync=["n1"]) is None
    assert coordinator.read(MARKET) == current


@pytest.mark.parametrize("change", [{"epoch": 2}, {"leader": "n2"}, {"in_sync": ("n1", "n2")}, {"market": "NONE"}])
def test_swap_compares_the_content_and_not_only_the_version(
    coordinator: Coordinator, record: MarketRecord, change: dict[str, Any]
) -> None:
    wrong = dataclasses.replace(record, **change)
    assert coordinator.swap(wrong, epoch=5, leader="n1", in_sync=["n1"]) is None
    assert coordinator.read(MARKET) == record


@pytest.mark.parametrize(
    ("epoch", "leader", "in_sync"),
    [
        pytest.param(1, "n1", ["n1"], id="epoch falls"),
        pytest.param(2, "n2", ["n1", "n2"], id="leader changes without a new epoch"),
        pytest.param(3, "n2", ["n1"], id="leader not in sync"),
        pytest.param(2, "n1", [], id="nobody in sync"),
        pytest.param(3, "n9", ["n9", "n1"], id="new leader was not in sync"),
        pytest.param(3, "", ["", "n1"], id="name is empty"),
        pytest.param(2, "n1", ["n1", "n" * 256], id="name is too long"),
    ],
)
def test_invalid_swap_is_refused_and_changes_nothing(
    coordinator: Coordinator, record: MarketRecord, epoch: int, leader: str, in_sync: list[str]
) -> None:
    current = coordinator.swap(record, epoch=2, leader="n1", in_sync=NODES)
    assert current is not None
    with pytest.raises(InvariantBroken):
        coordinator.swap(current, epoch=epoch, leader=leader, in_sync=in_sync)
    assert coordinator.read(MARKET) == current


def test_invalid_create_is_refused(coordinator: Coordinator) -> None:
    with pytest.raises(InvariantBroken, match="not in sync"):
        coordinator.create(MARKET, "n1", ["n2"])
    assert coordinator.read(MARKET) is None


def test_closed_coordinator_says_so_and_the_store_stays(store: Store) -> None:
    coordinator = store.open()
    record = coordinator.create(MARKET, "n1", NODES)
    coordinator.close()
    coordinator.close()
    with pytest.raises(Closed):
        coordinator.read(MARKET)
    with contextlib.closing(store.open()) as again:
        assert again.read(MARKET) == record
        assert again.coordinator_id == coordinator.coordinator_id


def test_coordinator_works_in_another_thread_than_the_one_that_made_it(
    coordinator: Coordinator, record: MarketRecord
) -> None:
    found: list[MarketRecord | None] = []
    thread = threading.Thread(target=lambda: found.append(coordinator.read(MARKET)))
    thread.start()
    thread.join()
    assert found == [record]


@pytest.mark.slow
def test_concurrent_swaps_of_four_processes_lose_no_update(
    store: Store, coordinator: Coordinator, record: MarketRecord
) -> None:
    each = 40
    children = [store.start_child(SWAPPER, count=each) for _ in range(4)]
    for child in children:
        go(child)
    results = [result_of(child) for child in children]
    won = [version for result in results for version in result["won"]]
    final = coordinator.read(MARKET)
    assert final is not None
    assert len(set(won)) == len(won) == 4 * each
    # Where etcd has to elect a leader, on a busy machine, a swap may be done and not answered.
    unknown = sum([result["busy"] for result in results]) if store.kind == "etcd" else 0
    assert set(won) <= set(range(2, final.version + 1))
    assert 0 <= final.version - 1 - len(won) <= unknown
    assert final.epoch == final.version


@pytest.mark.slow
def test_create_is_a_race_with_one_winner_even_on_a_new_store(store: Store) -> None:
    count = 15
    names = ["n1", "n2", "n3", "n4"]
    children = [store.start_child(CREATOR, me=name, count=count) for name in names]
    for child in children:
        go(child)
    for views in zip(*[result_of(child) for child in children], strict=True):
        assert all(view == views[0] for view in views), "all see one store and one record"
        _, leader, in_sync, version, read_back_is_equal = views[0]
        assert leader in names
        assert in_sync == [leader, "zz"]
        assert version == 1
        assert read_back_is_equal


def found_and_swapped(coordinator: Coordinator, *, tries: int) -> MarketRecord:
    """Return what the store holds, having swapped it.

    With etcd one try may not do: what a killed process had sent can still be on its way, and a busy machine elects.
    """
    first = None
    for _ in range(tries):
        with contextlib.suppress(Unavailable):
            found = coordinator.read(MARKET)
            assert found is not None
            first = first or found
            if coordinator.swap(found, epoch=found.epoch + 1, leader=found.leader, in_sync=found.in_sync) is not None:
                return first
    raise AssertionError(f"not swapped in {tries} tries")


@pytest.mark.slow
def test_kill_in_the_middle_of_swaps_leaves_a_usable_store_with_all_acknowledged_swaps(
    store: Store, coordinator: Coordinator, record: MarketRecord
) -> None:
    for round_number in range(8):
        child = store.start_child(SWAPPER, count=1_000_000)
        go(child)
        assert child.stdout is not None
        for _ in range(1 + round_number % 3):
            acknowledged = int(child.stdout.readline())
        time.sleep(0.0007 * round_number)
        child.kill()
        acknowledged = max([acknowledged, *map(int, child.communicate(timeout=CHILD_S_MAX)[0].split())])
        began_s = time.monotonic()
        found = found_and_swapped(coordinator, tries=1 if store.kind == "sqlite" else 3)
        assert found.version in (acknowledged, acknowledged + 1)
        assert found.epoch == found.version
        assert time.monotonic() - began_s < 2 * OPERATION_S_MAX


@pytest.mark.slow
def test_unreachable_store_is_reported_in_bounded_time_and_used_again_afterwards(
    store: Store, coordinator: Coordinator, record: MarketRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_MS", 500)
    monkeypatch.setattr(etcd_module, "OPERATION_S", 1.0)
    operations: list[Callable[[], object]] = [
        lambda: coordinator.read(MARKET),
        lambda: coordinator.swap(record, epoch=2, leader="n1", in_sync=NODES),
    ]
    with store.unreachable():
        for operation in operations:
            began_s = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                operation()
            assert caught.value.code == "coordinator_unavailable"
            assert time.monotonic() - began_s < OPERATION_S_MAX
    assert coordinator.read(MARKET) == record
    assert coordinator.swap(record, epoch=2, leader="n1", in_sync=NODES) is not None


# What follows is particular to the SQLite file.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordinator.sqlite"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_MS", 150)


@pytest.fixture
def at_path(path: Path) -> Iterator[SqliteCoordinator]:
    with contextlib.closing(SqliteCoordinator(path)) as coordinator:
        yield coordinator


def execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("content", [b"hi", b"not a database\n" * 500], ids=["short", "long"])
def test_file_that_is_not_sqlite_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is not a SQLite database"):
        SqliteCoordinator(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_database_of_another_program_is_refused_and_left_alone(path: Path, mode: str) -> None:
    execute(path, f"PRAGMA journal_mode = {mode}", "CREATE TABLE customers (name TEXT)")
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match="of another program"):
        SqliteCoordinator(path)
    assert path.read_bytes() == content


def test_unknown_schema_version_is_refused(path: Path) -> None:
    SqliteCoordinator(path).close()
    execute(path, "PRAGMA user_version = 7")
    with pytest.raises(ConfigurationError, match="has version 7 of the coordinator's schema"):
        SqliteCoordinator(path)


@pytest.mark.parametrize("name", ["", "missing/coordinator.sqlite"], ids=["a folder", "no folder"])
def test_path_that_cannot_be_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot open the coordinator file"):
        SqliteCoordinator(tmp_path / name)


def test_any_file_name_and_an_empty_file_will_do(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20é.sqlite"
    path.touch()
    SqliteCoordinator(path).close()
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_creator_that_comes_second_uses_the_store_of_the_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(SqliteCoordinator(path)) as first:
        record = first.create(MARKET, "n1", NODES)
    looks = iter([True])
    is_empty = sqlite_module._is_empty
    monkeypatch.setattr(sqlite_module, "_is_empty", lambda connection: next(looks, None) or is_empty(connection))
    with contextlib.closing(SqliteCoordinator(path)) as second:
        assert next(looks, None) is None, "the first look was made, and found an empty file"
        assert second.coordinator_id == first.coordinator_id
        assert second.read(MARKET) == record


@pytest.mark.slow
def test_locked_file_cannot_be_opened_in_bounded_time(path: Path, impatient: None) -> None:
    SqliteCoordinator(path).close()
    with Store("sqlite", str(path)).unreachable(), pytest.raises(Unavailable) as caught:
        SqliteCoordinator(path)
    assert caught.value.code == "coordinator_unavailable"


@pytest.mark.slow
def test_reader_that_blocks_a_commit_blocks_no_later_read(path: Path, impatient: None) -> None:
    with contextlib.closing(SqliteCoordinator(path)) as coordinator:
        record = coordinator.create(MARKET, "n1", NODES)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM market").fetchall()
            with pytest.raises(Unavailable):
                coordinator.swap(record, epoch=2, leader="n1", in_sync=NODES)
            assert coordinator.read(MARKET) == record
        assert coordinator.swap(record, epoch=2, leader="n1", in_sync=NODES) is not None


@pytest.mark.slow
def test_use_by_two_threads_at_once_is_refused(path: Path, impatient: None) -> None:
    with contextlib.closing(SqliteCoordinator(path)) as coordinator:
        outcomes: list[BaseException] = []

        def read() -> None:
            try:
                coordinator.read(MARKET)
            except (Unavailable, InvariantBroken) as error:
                outcomes.append(error)

        with Store("sqlite", str(path)).unreachable():
            threads = [threading.Thread(target=read) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvariantBroken", "Unavailable"]


def test_a_deleted_file_is_not_recreated_under_a_running_coordinator(path: Path, at_path: SqliteCoordinator) -> None:
    kept = path.rename(path.with_suffix(".kept"))
    for _ in range(2):
        with pytest.raises(Unavailable, match="is gone"):
            at_path.create(MARKET, "n1", NODES)
    assert not path.exists()
    kept.rename(path)
    assert at_path.create(MARKET, "n1", NODES).version == 1


def test_replaced_file_is_refused_for_good(path: Path, at_path: SqliteCoordinator) -> None:
    path.rename(path.with_suffix(".kept"))
    SqliteCoordinator(path).close()
    for _ in range(2):
        with pytest.raises(StorageError, match="was replaced while in use"):
            at_path.create(MARKET, "n1", NODES)


def test_store_of_another_id_under_the_same_inode_is_refused(path: Path, at_path: SqliteCoordinator) -> None:
    execute(path, "UPDATE store SET coordinator_id = 'another'")
    with pytest.raises(InvariantBroken):
        at_path.create(MARKET, "n1", ["n2"])
    at_path._disconnect()
    with pytest.raises(StorageError, match="another"):
        at_path.create(MARKET, "n1", NODES)


@pytest.mark.parametrize("in_sync", ['["n2", "n1"]', '["n2"]', "{", "[1]", "7"])
def test_impossible_record_is_refused(path: Path, at_path: SqliteCoordinator, in_sync: str) -> None:
    at_path.create(MARKET, "n1", NODES)
    execute(path, f"UPDATE market SET in_sync = '{in_sync}'")
    with pytest.raises(StorageError, match="wrong record"):
        at_path.read(MARKET)


def test_damaged_page_is_reported_as_damage(path: Path) -> None:
    SqliteCoordinator(path).close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StorageError, match="cannot be trusted"):
        SqliteCoordinator(path)


def test_file_is_synced_beyond_full_and_kept_out_of_wal(path: Path, at_path: SqliteCoordinator) -> None:
    connection = at_path._connection
    assert connection is not None
    assert connection.execute("PRAGMA synchronous").fetchone() == (3,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    at_path.close()
    execute(path, "PRAGMA journal_mode = WAL")
    with contextlib.closing(SqliteCoordinator(path)) as again:
        again.create(MARKET, "n1", NODES)
        assert not path.with_name(path.name + "-wal").exists()


HOLDER = """
store = make(location)
store.renew(me, holder="disk", ttl_ms=count)
print("held", flush=True)
sys.stdin.read()
"""


def lapses(coordinator: Coordinator, node: str, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not coordinator.lapsed(node):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
def test_a_lease_is_held_while_renewed_and_expires_when_it_is_not(coordinator: Coordinator) -> None:
    assert coordinator.lapsed("n1"), "a node that never had one"
    for _ in range(5):
        began_s = time.monotonic()
        coordinator.renew("n1", holder="disk", ttl_ms=300)
        assert not coordinator.lapsed("n1") or time.monotonic() - began_s > 0.3, "it is renewed"
        time.sleep(0.1)
    assert lapses(coordinator, "n1", within_s=5)


def test_a_released_lease_expires_at_once(coordinator: Coordinator) -> None:
    coordinator.renew("n1", holder="disk", ttl_ms=600_000)
    coordinator.renew("n2", holder="disk", ttl_ms=600_000)
    coordinator.release("n1")
    assert coordinator.lapsed("n1")
    assert not coordinator.lapsed("n2")


@pytest.mark.slow
def test_a_lease_belongs_to_one_data_directory_until_it_expires(
    coordinator: Coordinator, opened: Callable[[], Coordinator]
) -> None:
    """A copy beside the original waits in vain; the next process with the same directory waits for nothing."""
    copy, successor = opened(), opened()
    coordinator.renew("n1", holder="original", ttl_ms=1_000)
    with pytest.raises(Unavailable, match="copy of the other") as refused:
        copy.renew("n1", holder="copy", ttl_ms=1_000)
    assert refused.value.code == NODE_ID_IN_USE
    copy.release("n1")
    assert not coordinator.lapsed("n1"), "only its holder gives it up"
    successor.renew("n1", holder="original", ttl_ms=1_000)
    assert lapses(coordinator, "n1", within_s=10)
    copy.renew("n1", holder="copy", ttl_ms=60_000)
    for former in (coordinator, successor):
        with pytest.raises(Unavailable) as refused:
            former.renew("n1", holder="original", ttl_ms=1_000)
        assert refused.value.code == NODE_ID_IN_USE
        former.release("n1")
    assert not coordinator.lapsed("n1")


def test_a_swap_takes_effect_only_while_the_disks_are_of_the_lives_that_it_names(
    coordinator: Coordinator, record: MarketRecord
) -> None:
    def adds(expected: MarketRecord, node: str, life: str) -> MarketRecord | None:
        in_sync = [*expected.in_sync, node]
        return coordinator.swap(expected, epoch=1, leader="n1", in_sync=in_sync, lives={node: life})

    assert adds(record, "a/b", "first") is None, "a node that has reported no disk has no life"
    added = adds(record, "a/b", "")
    assert added is not None
    coordinator.renew("n8", holder="original", ttl_ms=60_000)
    for number, life in enumerate(("first", "second"), 1):
        coordinator.mark("n8", {MARKET: DiskMark(number, life, 0, 0), "another": DiskMark(9, "first", 9, 9)})
    assert adds(added, "n8", "first") is None, "the life whose log had caught up has ended"
    assert adds(added, "n8", "") is None
    assert coordinator.read(MARKET) == added
    coordinator.mark("n8", {MARKET: DiskMark(2, "second", 1, 7)})
    assert adds(added, "n8", "second") == coordinator.read(MARKET)
    assert "n8" in present(coordinator.read(MARKET), "it was created").in_sync


def test_marks_of_disks_are_kept_per_market_and_only_the_lease_holder_writes_them(
    coordinator: Coordinator, opened: Callable[[], Coordinator]
) -> None:
    odd = "a/b€;%", "n/1"
    mark = DiskMark(1, "life", 2, 3)
    with pytest.raises(Unavailable):
        coordinator.mark("n1", {MARKET: mark})
    coordinator.renew("n1", holder="original", ttl_ms=60_000)
    coordinator.mark(
        "n1", {f"{MARKET}{number}": mark for number in range(2 * MARKS_MAX)} | {MARKET: mark, odd[0]: mark}
    )
    coordinator.renew(odd[1], holder="original", ttl_ms=60_000)
    coordinator.mark(odd[1], {odd[0]: mark})
    again = DiskMark(2, "next", 4, 5)
    coordinator.mark("n1", {MARKET: again})
    other = opened()
    assert other.marks(MARKET) == {"n1": again}
    assert other.marks(odd[0]) == {"n1": mark, odd[1]: mark}
    assert other.marks(f"{MARKET}7") == {"n1": mark}
    assert other.marks("a") == {}
    other.renew("n1", holder="original", ttl_ms=60_000)
    with pytest.raises(Unavailable) as refused:
        coordinator.mark("n1", {MARKET: mark})
    assert refused.value.code == NODE_ID_IN_USE
    assert other.marks(MARKET) == {"n1": again}


@pytest.mark.slow
def test_the_lease_of_a_killed_process_expires_and_that_of_a_stopped_one_only_in_time(
    store: Store, coordinator: Coordinator
) -> None:
    # A store on the same machine sees long before that time that the process is gone; etcd cannot.
    ttl_ms = 600_000 if store.kind == "sqlite" else 2_000
    child = store.start_child(HOLDER, me="n1", count=ttl_ms)
    go(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    child.send_signal(signal.SIGSTOP)
    assert not coordinator.lapsed("n1")
    child.kill()  # the parent has not waited for it: even a zombie is dead
    assert lapses(coordinator, "n1", within_s=5)
