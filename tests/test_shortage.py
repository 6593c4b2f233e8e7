"""What is not the log never stops a market: no descriptors, no room, no memory, no threads, no rights."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.book import actor as book_actor
from openoutcry.actors.book import snapshots
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.kit.backoff import Backoff

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
    return dict(node.status()["markets"][market])


@pytest.fixture(autouse=True)
def retried_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_actor, "SNAPSHOT_RETRY_S", 0.05)


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
    "no memory in the image": lambda patch: patch.setattr(OrderBook, "image", raising(MemoryError())),
    "no memory in a piece": lambda patch: patch.setattr(book_actor.OrderBook, "image", lambda _: Unpacked()),
    "renaming fails": lambda patch: patch.setattr(Path, "replace", raising(OSError(errno.EIO, "no"))),
    "pruning fails": lambda patch: patch.setattr(Journal, "_header_of", raising(OSError(errno.EMFILE, "no files"))),
}


class Unpacked:
    """An image of a book that cannot be packed."""

    def pieces(self) -> Iterator[bytes]:
        yield b"begun"
        raise MemoryError


@pytest.mark.parametrize("what", BREAKS)
def test_a_snapshot_that_fails_is_told_and_tried_again_and_the_market_goes_on(
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
        assert last[0] == node.sequence(MARKET)
        assert list((tmp_path / "markets" / MARKET / "snapshots").glob("*.new")) == []
        before = node.position(MARKET)
    monkeypatch.undo()
    with ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path) as node:
        node.wait_ready()
        trade(node, 1)
        assert node.sequence(MARKET) > before[0]
        assert len(node.all_orders(MARKET)) >= 300
