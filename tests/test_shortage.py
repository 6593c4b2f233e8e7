"""What is not the log never stops a market: no descriptors, no room, no memory, no threads, no rights."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pykka
import pytest
from openoutcry.actors import ExchangeNode, MarketRules, RequestTimeout, StorageError, Unavailable
from openoutcry.actors.book import imaging, orderbook, snapshots
from openoutcry.actors.book.actor import BookActor
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.group import markets as node_markets
from openoutcry.actors.kit.backoff import Backoff
from openoutcry.actors.market.condition import condition
from openoutcry.actors.telemetry.health import REQUESTS_MAX, healthz, readyz
from openoutcry.actors.telemetry.metrics import NodeCollector

MARKET = "BTC-USD"
OTHER = "ETH-USD"
RULES = MarketRules()


def until(condition: Callable[[], Any], what: str, within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """No descriptor is free in this process; one that it closes can be used again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def trade(node: ExchangeNode, count: int, market: str = MARKET) -> None:
    node.submit_many(market, [node.order(market, "buy", "1", "1") for _ in range(count)])


def status(node: ExchangeNode, market: str = MARKET) -> dict[str, Any]:
    return node.status().markets[market].to_dict()


@pytest.fixture(autouse=True)
def retried_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imaging, "SNAPSHOT_RETRY_S", 0.05)


def test_a_pause_doubles_up_to_its_bound_and_ends_with_a_success() -> None:
    backoff = Backoff(1.0, 5.0)
    assert backoff.is_due(0.0)
    assert [backoff.failed(10.0) for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    assert not backoff.is_due(14.9)
    assert backoff.is_due(15.0)
    assert backoff.succeeded()
    assert not backoff.succeeded()
    assert backoff.failed(0.0) == 1.0


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_args: object, **_kwargs: object) -> Any:
        raise error

    return fail


_fsync = os.fsync


def full_for_snapshots(fd: int) -> None:
    if os.readlink(f"/proc/self/fd/{fd}").endswith(".snap.new"):
        raise OSError(errno.ENOSPC, "No space left on device")
    _fsync(fd)


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no descriptor, in fact": lambda _: None,
    "no room": lambda patch: patch.setattr(os, "fsync", full_for_snapshots),
    "no rights": lambda patch: patch.setattr(snapshots.Snapshots, "scratch", lambda *_: Path("/proc/no/snapshot")),
    "the folder is removed": lambda patch: patch.setattr(Path, "mkdir", raising(OSError(errno.EROFS, "no"))),
    "no memory in the image": lambda patch: patch.setattr(orderbook.Sweep, "step", raising(MemoryError())),
    "no memory in a piece": lambda patch: patch.setattr(orderbook.BookImage, "pieces", Unpacked.pieces),
    "renaming fails": lambda patch: patch.setattr(Path, "replace", raising(OSError(errno.EIO, "no"))),
    "pruning fails": lambda patch: patch.setattr(Journal, "_header_of", raising(OSError(errno.EMFILE, "no files"))),
}


class Unpacked:
    """An image of a book that cannot be packed."""

    def pieces(self) -> Iterator[bytes]:
        yield b"begun"
        raise MemoryError


@pytest.mark.parametrize("what", BREAKS)
def test_a_failed_snapshot_is_logged_and_retried_and_the_market_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several segments, so that there is something to prune, and the log needs descriptors too.
    opened = Journal.__init__
    monkeypatch.setattr(Journal, "__init__", lambda self, folder: opened(self, folder, segment_size=4096))
    with ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path, snapshot_every=50) as node:
        node.wait_ready()
        with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
            if what == "no descriptor, in fact":
                trade(node, 10)
                stack.enter_context(no_descriptors())
            BREAKS[what](patch)
            if what == "the folder is removed":
                shutil.rmtree(tmp_path / "markets" / MARKET / "snapshots")
            for _ in range(4):
                trade(node, 60)
            until(lambda: status(node)["snapshot_error"], "the failure is in the status")
            failed = node.meters.markets[MARKET].snapshots_failed
            until(lambda: node.meters.markets[MARKET].snapshots_failed > failed, "it is tried again, though idle")
            trade(node, 60)
            assert status(node)["ready"]
            assert status(node)["error"] is None
        # No order follows: what failed is tried again all the same, and succeeds.
        until(lambda: status(node)["snapshot_error"] is None, "it succeeds once it can")
        last = node.meters.markets[MARKET].snapshot
        assert last is not None
        assert node.sequence(MARKET) - 60 <= last[0], "of the book as it was when it was tried again"
        until(lambda: not list((tmp_path / "markets" / MARKET / "snapshots").glob("*.new")), "no other is under way")
        before = node.position(MARKET)
    monkeypatch.undo()
    with ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path) as node:
        node.wait_ready()
        trade(node, 1)
        assert node.sequence(MARKET) > before[0]
        assert len(node.all_orders(MARKET)) >= 300


def conditions(node: ExchangeNode) -> dict[str, str]:
    return {market: condition(found, node.node_id)[0] for market, found in node.status().markets.items()}


@pytest.fixture
def opened_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_markets, "OPEN_RETRY_S", 0.05)


def start_refused(broken: threading.Event, kind: str) -> Callable[[threading.Thread], None]:
    """A system that starts no thread of that name."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if broken.is_set() and kind in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    return refuse


@pytest.mark.parametrize("what", ["no room", "no descriptor", "no thread for the book", "no thread for the journal"])
@pytest.mark.usefixtures("opened_soon")
def test_a_market_that_cannot_be_opened_leaves_the_others_alone_and_is_opened_later(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExchangeNode("a", markets={MARKET: RULES, OTHER: RULES}, data_dir=tmp_path) as node:
        node.wait_ready()
        trade(node, 3, OTHER)
        threads = threading.active_count()
    broken = threading.Event()
    broken.set()
    opened, started = Journal.__init__, BookActor.start
    at_work: list[str] = []

    def no_journal(self: Journal, folder: Path, **options: Any) -> None:
        if broken.is_set() and folder.name == OTHER:
            code = errno.ENOSPC if what == "no room" else errno.EMFILE
            raise OSError(code, os.strerror(code), str(folder))
        opened(self, folder, **options)

    def start_book(*args: Any, **options: Any) -> Any:
        at_work.append(args[0].market)
        return started(*args, **options)

    def refuse(thread: threading.Thread) -> None:
        kind = "BookActor" if "book" in what else "JournalActor"
        if broken.is_set() and kind in thread.name and at_work[-1] == OTHER:
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    start_thread = threading.Thread.start
    if "thread" in what:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        monkeypatch.setattr(BookActor, "start", start_book)
    else:
        monkeypatch.setattr(Journal, "__init__", no_journal)
    with ExchangeNode("a", markets={MARKET: RULES, OTHER: RULES}, data_dir=tmp_path, metrics="127.0.0.1:0") as node:
        with pytest.raises(RequestTimeout, match=f"market {OTHER} could not be opened") as caught:
            node.wait_ready(0.3)
        assert caught.value.code == "market_not_open"
        trade(node, 3)
        assert node.markets == (MARKET, OTHER)
        assert conditions(node) == {MARKET: "ready", OTHER: "cannot_open"}
        assert readyz(node)[0] is False
        assert readyz(node)[1]["markets"][OTHER]["state"] == "cannot_open"
        assert healthz(node)[0], "to restart it would take the other market along"
        assert b"cannot_open" in NodeCollector(node).text()
        for call in (
            lambda: node.submit_order(OTHER, "buy", "1", "1"),
            lambda: node.get_order_book(OTHER),
            lambda: node.subscribe(OTHER),
        ):
            with pytest.raises(Unavailable, match="tried again by itself") as refused:
                call()
            assert refused.value.code == "market_not_open"
        broken.clear()
        node.wait_ready()
        assert len(node.all_orders(OTHER)) == 3
        assert conditions(node) == {MARKET: "ready", OTHER: "ready"}
    until(lambda: threading.active_count() <= threads, "no attempt leaves a thread")
    assert not [ref for ref in pykka.ActorRegistry.get_all() if "Actor" in ref.actor_class.__name__]


def test_a_node_none_of_whose_markets_can_be_opened_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__init__", raising(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StorageError, match="No space left"):
            ExchangeNode("a", markets={MARKET: RULES, OTHER: RULES}, data_dir=tmp_path)
    with ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path) as node:
        node.wait_ready()


def test_a_subscription_without_a_thread_is_refused_and_the_market_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExchangeNode("a", markets={MARKET: RULES}) as node:
        node.wait_ready()
        broken = threading.Event()
        broken.set()
        monkeypatch.setattr(threading.Thread, "start", start_refused(broken, "subscription"))
        with pytest.raises(Unavailable) as caught:
            node.subscribe(MARKET, print)
        assert caught.value.code == "out_of_resources"
        trade(node, 1)
        assert status(node)["subscribers"] == 0


def get(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_metrics_service_recovers_from_missing_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExchangeNode("a", markets={MARKET: RULES}, metrics="127.0.0.1:0") as node:
        node.wait_ready()
        address = node.metrics_address
        assert address is not None
        broken = threading.Event()
        broken.set()
        monkeypatch.setattr(threading.Thread, "start", start_refused(broken, "process_request_thread"))
        for _ in range(REQUESTS_MAX + 1):
            with pytest.raises((ConnectionError, urllib.error.URLError)):
                get(address, "/healthz")
        broken.clear()
        assert get(address, "/healthz") == 200


def test_two_nodes_without_descriptors_trade_and_recover_when_there_are_some(tmp_path: Path) -> None:
    """Everything at once: links, coordinator, metrics, directory and journals of two nodes in a process without any."""
    with (
        ExchangeNode(
            "a",
            markets={MARKET: RULES},
            data_dir=tmp_path / "a",
            coordinator=tmp_path / "c.sqlite",
            serve_directory="tcp://127.0.0.1:0",
            metrics="127.0.0.1:0",
            snapshot_every=20,
        ) as one,
        ExchangeNode(
            "b",
            markets={MARKET: None},
            data_dir=tmp_path / "b",
            coordinator=tmp_path / "c.sqlite",
            directory=str(one.directory_address),
            snapshot_every=20,
        ) as two,
    ):
        one.wait_ready()
        two.wait_ready()
        one.wait_in_sync(MARKET, 2)
        address = one.metrics_address
        assert address is not None
        client = socket.socket()
        with no_descriptors(), client:
            host, port = address.rsplit(":", 1)
            client.connect((host, int(port)))  # taken by the kernel; the service has no descriptor for it
            used_s = time.process_time()
            began_s = time.monotonic()
            for _ in range(30):
                trade(one, 1)
                trade(two, 1)
                time.sleep(0.05)
            busy = (time.process_time() - used_s) / (time.monotonic() - began_s)
            assert busy < 0.8, "nothing spins while no descriptor is free"
        until(lambda: get(address, "/readyz") == 200, "the metrics service answers again")
        until(lambda: one.coordinator_answers() and two.coordinator_answers(), "the coordinator is used again")
        until(lambda: not status(one)["snapshot_error"] and not status(two)["snapshot_error"], "snapshots are taken")
        trade(one, 1)
        one.wait_in_sync(MARKET, 2)
        two.wait_sequence(MARKET, one.sequence(MARKET))
        assert one.state_hash(MARKET) == two.state_hash(MARKET)
        assert one.dead_actors() == two.dead_actors() == []
