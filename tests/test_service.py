"""A node under a service manager: what it is told and when, signals, long work, and the unit file that starts it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.book import marketlog as book_marketlog
from openoutcry.actors.book import storage as book_storage
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.cli import live
from openoutcry.actors.telemetry.service import ServiceManager
from openoutcry.actors.testing import eventually
from openoutcry.transport.rendezvous import Rendezvous

MARKET = "BTC-USD"
UNIT = Path(__file__).parents[1] / "deploy" / "openoutcry.service"
WITHIN_S = 30.0


class Manager:
    """A service manager: takes what it is told."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(WITHIN_S)
        self.address = address

    def hear(self) -> dict[str, str]:
        return dict([line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines()])

    def hear_until(self, **wanted: str) -> list[dict[str, str]]:
        heard = [self.hear()]
        while not wanted.items() <= heard[-1].items():
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_node_tells_when_it_is_ready_that_it_lives_and_that_it_ends(manager: Manager, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "600000", "OPENOUTCRY_HOME": str(tmp_path)}
    log = tmp_path / "node.log"
    node = subprocess.Popen(
        [sys.executable, "-m", "openoutcry.actors.cli", "node", "--market", MARKET, "--log-file", str(log)],
        env={**os.environ, **environment},
    )
    try:
        before = manager.hear_until(READY="1")
        assert before[0]["STATUS"] == "recovering"
        assert int(before[0]["EXTEND_TIMEOUT_USEC"]) > 10_000_000
        manager.hear_until(WATCHDOG="1", STATUS=f"{MARKET} ready")
        log.rename(tmp_path / "node.log.1")
        node.send_signal(signal.SIGHUP)
        node.send_signal(signal.SIGTERM)
        manager.hear_until(STOPPING="1")
        assert node.wait(WITHIN_S) == 0
        assert "node_closed" in log.read_text(), "the log was opened anew"
    finally:
        node.kill()
        node.wait()


def test_watchdog_is_notified_only_while_the_node_is_healthy(manager: Manager) -> None:
    found = [(True, "well"), (False, "an actor\nhas failed"), (True, "well again")]
    told = ServiceManager({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000"})
    told.begin(lambda: found.pop(0) if len(found) > 1 else found[0])
    assert manager.hear() == {"STATUS": "well", "WATCHDOG": "1"}
    assert manager.hear() == {"STATUS": "an actor has failed"}
    assert manager.hear() == {"STATUS": "well again", "WATCHDOG": "1"}
    told.end()


def test_a_missing_or_foreign_service_manager_causes_no_error(manager: Manager) -> None:
    nobody = ServiceManager({})
    nobody.begin(None)
    assert not nobody.tell(READY=1)
    assert not ServiceManager({"NOTIFY_SOCKET": manager.address + "-gone"}).tell(READY=1)
    assert ServiceManager({"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"}).watchdog_s == 0
    abstract = Manager(f"@openoutcry-test-{os.getpid()}")
    assert ServiceManager({"NOTIFY_SOCKET": abstract.address}).tell(READY=1)
    assert abstract.hear() == {"READY": "1"}
    abstract.close()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_file_is_understood_by_systemd(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/openoutcry/bin/openoutcry", sys.executable))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_node_that_recovers_and_catches_up_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (book_marketlog, book_storage):
        monkeypatch.setattr(module, "PROGRESS_S", 0.0)
    monkeypatch.setattr(book_marketlog, "BATCH_MAX", 1)
    let, append = threading.Event(), Journal.append

    def slow_append(journal: Journal, *args: Any, **options: Any) -> None:
        if "late" in str(journal._folder):
            let.wait(WITHIN_S)
        append(journal, *args, **options)

    def said(event: str) -> list[dict[str, Any]]:
        return [vars(record) for record in caplog.records if getattr(record, "event", "") == event]

    monkeypatch.setattr(Journal, "append", slow_append)
    rules = {MARKET: MarketRules()}
    with caplog.at_level("INFO", "openoutcry"), Rendezvous("tcp://127.0.0.1:0") as rendezvous:
        shared: dict[str, Any] = {"directory": rendezvous.address, "coordinator": tmp_path / "c"}
        for _ in range(2):
            with ExchangeNode("early", markets=rules, data_dir=tmp_path / "early", **shared) as early:
                early.wait_ready()
                for _ in range(5):
                    early.submit_order(MARKET, "buy", "10", "1")
                with ExchangeNode("late", markets=rules, data_dir=tmp_path / "late", **shared):
                    try:
                        eventually(lambda: said("catching_up"), "it says how far it is")
                    finally:
                        let.set()
    assert said("catching_up")[0]["of"] >= 5
    recovering = said("recovering")
    assert recovering[-1]["of"] >= 5
    assert 1 <= recovering[-1]["sequence"] <= recovering[-1]["of"]


def test_long_work_prints_progress_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with live.progress("reading") as advance:
        advance(10, 3000)
    assert capsys.readouterr().err == "", "short work says nothing"
    monkeypatch.setattr(live, "PROGRESS_S", 0.0)
    with live.progress("reading") as advance:
        advance(1000, 3000)
        advance(1000, 3000)
    assert capsys.readouterr().err.splitlines() == ["reading: 1,000 of 3,000", "reading: 2,000 of 3,000"]


def test_node_that_does_not_end_in_time_is_ended_and_says_what_hung(tmp_path: Path) -> None:
    program = """
import threading
from pathlib import Path
from openoutcry.actors.cli.serve import ends_within
from openoutcry.actors.telemetry.logs import LogOutput
ended = threading.Event()
with LogOutput(file=Path("node.log")), ends_within(0.1, ended):
    ended.set()
    threading.Event().wait()
"""
    hung = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=WITHIN_S, check=False)
    assert hung.returncode == 1
    assert "node_stuck" in (tmp_path / "node.log").read_text()
    assert "MainThread" in (tmp_path / "node.log").read_text()


def test_without_the_service_extra_all_works_but_metrics_which_say_what_to_install() -> None:
    program = """
import sys
sys.modules["rich"] = sys.modules["prometheus_client"] = None
from openoutcry.actors import ConfigurationError, ExchangeNode
from openoutcry.actors.cli import live, main
with live.progress("work") as advance:
    advance(1, 1)
live._terminal()
try:
    ExchangeNode("a", metrics="127.0.0.1:0")
except ConfigurationError as error:
    print(error)
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WITHIN_S, check=True)
    assert "pip install prometheus-client" in done.stdout
    assert "demo" in done.stdout
