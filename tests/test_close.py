"""How long a node takes to close when its coordinator or its directory does not answer."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pynng
import pytest
from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.leadership.messages import StoreQuery
from openoutcry.transport.errors import Unavailable
from openoutcry.transport.sqlite import SqliteCoordinator

MARKETS = {f"M{number}": MarketRules() for number in range(12)}
CLOSE_S_MAX = 8.0
"""The hand-over, one operation that has begun, and what a loaded machine takes."""


class Away(SqliteCoordinator):
    """A store that can be cut off: each operation then takes as long as one with etcd away, and fails."""

    def __init__(self, path: Path) -> None:
        self.away = threading.Event()
        self.asked = threading.Semaphore(0)
        super().__init__(path)

    def _transaction(self, begin: str) -> Any:
        if self.away.is_set():
            self.asked.release()
            time.sleep(1.0)
            raise Unavailable("cut off", code="coordinator_unavailable")
        return super()._transaction(begin)


@pytest.mark.parametrize("operations", [0, 1, 6], ids=["at_once", "after_one", "after_some_seconds"])
def test_a_node_whose_coordinator_is_away_closes_within_seconds(tmp_path: Path, operations: int) -> None:
    store = Away(tmp_path / "coordinator.sqlite")
    node = ExchangeNode("a", markets=MARKETS, coordinator=store, data_dir=tmp_path / "a")
    node.wait_ready()
    store.away.set()
    for _ in range(operations):
        assert store.asked.acquire(timeout=20)
    for _ in range(40):  # what is asked meanwhile waits in line
        node.group.coordinator.ask(StoreQuery(lambda store: store.read_all()), block=False)
    began_s = time.monotonic()
    node.close()
    assert time.monotonic() - began_s < CLOSE_S_MAX


def test_a_node_whose_coordinator_is_locked_by_another_process_closes_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    node = ExchangeNode("a", markets=MARKETS, coordinator=path, data_dir=tmp_path / "a")
    node.wait_ready()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began_s = time.monotonic()
    node.close()
    assert time.monotonic() - began_s < CLOSE_S_MAX
    other.close()


def test_a_node_whose_directory_is_frozen_goes_on_and_closes_within_seconds() -> None:
    with pynng.Respondent0(listen="tcp://127.0.0.1:0") as frozen:  # it accepts what comes, and answers nothing
        address = str(frozen.listeners[0].url)
        node = ExchangeNode("a", directory=address)
        while node.group.directory.actor is None or not frozen.pipes:
            time.sleep(0.01)
        for _ in range(3):
            with pytest.raises(Unavailable, match="no rendezvous") as caught:
                node.lookup("service", timeout=1.0)
            assert caught.value.code == "directory_unavailable"
            assert node.announce("service", "tcp://127.0.0.1:1") == 0
        began_s = time.monotonic()
        node.close()
        assert time.monotonic() - began_s < CLOSE_S_MAX
