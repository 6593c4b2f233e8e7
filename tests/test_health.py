"""What a node tells machines that watch it: health that is true in every state, metrics that are all listed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import (
    ConfigurationError,
    ExchangeNode,
    MarketRules,
    OpenOutcryError,
    OrderRejected,
    RequestTimeout,
)
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.book.storage import Storage
from openoutcry.actors.cli.serve import _in_words
from openoutcry.actors.peers.discovery import Announce
from openoutcry.actors.telemetry.health import REQUESTS_MAX
from openoutcry.actors.telemetry.logs import LogOutput
from openoutcry.actors.telemetry.metrics import METRICS
from openoutcry.actors.testing import eventually
from openoutcry.transport.certificates import Authority, Identity
from openoutcry.transport.rendezvous import Rendezvous
from prometheus_client.parser import text_string_to_metric_families

MARKET = "BTC-USD"
ANY_PORT = "127.0.0.1:0"
DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana-dashboard.json"


def get(address: str | None, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def health(address: str | None) -> tuple[int, int, str]:
    """Return the codes of /healthz and /readyz, and the market's state, or the node's where no market is told."""
    alive, _ = get(address, "/healthz")
    ready, body = get(address, "/readyz")
    found = json.loads(body)
    return alive, ready, found["markets"][MARKET]["state"] if found["markets"] else found["state"]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def samples(node: ExchangeNode) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return what a node publishes: by metric, by labels but ``node``."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(get(node.metrics_address, "/metrics")[1]):
        for sample in family.samples:
            labels = tuple(sorted([(key, value) for key, value in sample.labels.items() if key != "node"]))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_node_that_recovers_is_alive_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    let, recover = threading.Event(), Storage.open
    monkeypatch.setattr(Storage, "open", lambda *args, **named: (let.wait(30), recover(*args, **named))[1])
    address = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(1) as starting:
        started = starting.submit(ExchangeNode, "a", markets={MARKET: MarketRules()}, metrics=address)
        try:
            eventually(lambda: _listens(address), "the node serves its health while it starts")
            assert health(address) == (200, 503, "starting")
        finally:
            let.set()
        with started.result() as node:
            node.wait_ready()
            assert health(address) == (200, 200, "ready")


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as tried:
        return tried.connect_ex((host, int(port))) == 0


def test_node_that_closes_is_not_ready_and_then_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    node = ExchangeNode("a", markets={MARKET: MarketRules()}, metrics=ANY_PORT)
    address = node.metrics_address
    assert address is not None
    node.wait_ready()
    seen = []
    monkeypatch.setattr(node.group.leading, "hand_over", lambda *_: seen.append(health(address)))
    node.close()
    assert seen == [(200, 503, "closing")]
    assert not _listens(address)


def test_follower_that_catches_up_is_not_ready_before_it_is_in_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let, append = threading.Event(), Journal.append

    def slow_append(journal: Journal, *args: Any, **options: Any) -> None:
        if "late" in str(journal._folder):
            let.wait(30)
        append(journal, *args, **options)

    monkeypatch.setattr(Journal, "append", slow_append)
    with Rendezvous("tcp://127.0.0.1:0") as rendezvous:
        shared: dict[str, Any] = {"directory": rendezvous.address, "coordinator": tmp_path / "c", "metrics": ANY_PORT}
        rules = {MARKET: MarketRules()}
        with ExchangeNode("early", markets=rules, data_dir=tmp_path / "early", **shared) as early:
            early.wait_ready()
            early.submit_order(MARKET, "buy", "10", "1")
            with ExchangeNode("late", markets=rules, data_dir=tmp_path / "late", **shared) as late:
                try:
                    eventually(lambda: health(late.metrics_address) == (200, 503, "catching_up"), "it catches up")
                    assert "at least" in json.loads(get(late.metrics_address, "/readyz")[1])["markets"][MARKET]["why"]
                    assert health(early.metrics_address) == (200, 200, "ready")
                    lag = samples(early)["openoutcry_replica_lag_commands"]
                    assert lag[("market", MARKET), ("peer", late.node_id)] >= 1
                finally:
                    let.set()
                eventually(lambda: health(late.metrics_address) == (200, 200, "ready"), "it is in sync")


def test_market_below_min_in_sync_is_not_ready_until_another_replica_is_there(tmp_path: Path) -> None:
    with Rendezvous("tcp://127.0.0.1:0") as rendezvous:
        shared: dict[str, Any] = {"directory": rendezvous.address, "coordinator": tmp_path / "c", "metrics": ANY_PORT}
        rules = {MARKET: MarketRules()}
        with ExchangeNode("a", markets=rules, data_dir=tmp_path / "a", min_in_sync=2, **shared) as a:
            eventually(lambda: health(a.metrics_address) == (200, 503, "below_min_in_sync"), "one is too few")
            eventually(
                lambda: "1 replicas are in sync, 2 needed" in get(a.metrics_address, "/readyz")[1], "it says how many"
            )
            with ExchangeNode("b", markets=rules, data_dir=tmp_path / "b", min_in_sync=2, **shared) as b:
                for node in (a, b):
                    eventually(lambda at=node.metrics_address: health(at) == (200, 200, "ready"), "two are enough")
            eventually(lambda: health(a.metrics_address) == (200, 503, "below_min_in_sync"), "one is too few again")


def test_node_whose_journal_has_failed_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    with ExchangeNode("a", markets={MARKET: MarketRules()}, metrics=ANY_PORT) as node:
        node.wait_ready()
        assert health(node.metrics_address) == (200, 200, "ready")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(OpenOutcryError):
                node.submit_order(MARKET, "buy", "10", "1")
            eventually(lambda: health(node.metrics_address) == (503, 503, "failed"), "the failure is told")
        assert "input/output error" in get(node.metrics_address, "/healthz")[1]
        at_work, words = _in_words(node)
        assert at_work, "the watchdog leaves the process, and its other markets, alone"
        assert "input/output error" in words
        node.group.supervisor.stop()
        assert not _in_words(node)[0], "nothing would be started again: the process is"
        assert samples(node)["openoutcry_market_ready"][("market", MARKET),] == 0


def test_dead_actor_makes_the_node_unhealthy() -> None:
    with ExchangeNode("a", markets={MARKET: MarketRules()}, metrics=ANY_PORT) as node:
        node.wait_ready()
        node.market(MARKET).ref.tell("nonsense")  # an exception in an actor ends it
        eventually(lambda: health(node.metrics_address)[:2] == (503, 503), "its end is told")
        assert "BookActor does not run: " in get(node.metrics_address, "/healthz")[1]
        assert samples(node)["openoutcry_node_failures"] == {(): 1}


def test_every_metric_is_in_the_list_and_every_listed_metric_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.create(tmp_path / "authority")
    one, other, place = [Identity(authority.issue(name)) for name in ("a", "b", "place")]
    with LogOutput(file=tmp_path / "log"), Rendezvous("tls+tcp://127.0.0.1:0", identity=place) as rendezvous:
        shared: dict[str, Any] = {"directory": rendezvous.address, "coordinator": tmp_path / "c", "metrics": ANY_PORT}
        rules = {MARKET: MarketRules()}
        with (
            ExchangeNode("a", identity=one, markets=rules, data_dir=tmp_path / "a", snapshot_every=5, **shared) as a,
            ExchangeNode("b", identity=other, markets=[MARKET], data_dir=tmp_path / "b", **shared) as b,
        ):
            a.wait_ready()
            a.wait_in_sync(MARKET, 2)
            slow = a.subscribe(MARKET, queue_size_max=1)
            for number in range(6):
                a.submit_order(MARKET, "buy" if number % 2 else "sell", "10", "1")
            with pytest.raises(OrderRejected):
                a.cancel_order(MARKET, 99)
            let, append = threading.Event(), Journal.append
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", lambda *args, **options: (let.wait(30), append(*args, **options)))
                with pytest.raises(RequestTimeout):
                    a.submit_order(MARKET, "buy", "10", "1", timeout=0.1)
                let.set()
            assert slow.error is not None
            assert a.group.directory.actor is not None
            a.group.directory.actor.tell(Announce(None))  # type: ignore[arg-type]
            eventually(lambda: "openoutcry_actor_restarts_total" in samples(a), "it was started anew")
            eventually(lambda: "openoutcry_snapshot_bytes" in samples(a), "a snapshot was written")
            found = samples(a)
            names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}
            assert {name for name in names if not name.startswith("process_")} == set(METRICS)
            market = (("market", MARKET),)
            assert found["openoutcry_ack_seconds_count"][market] == 7
            assert found["openoutcry_ack_seconds_bucket"][("le", "+Inf"), *market] == 7
            assert found["openoutcry_rejections_total"] == {(("code", "unknown_order"), *market): 1}
            assert found["openoutcry_requests_failed_total"] == {(("code", "timeout"), *market): 1}
            assert found["openoutcry_subscribers_cut_total"][market] == 1
            assert found["openoutcry_sequence"][("at", "applied"), *market] == a.sequence(MARKET)
            assert found["openoutcry_trades"][market] == 3
            assert found["openoutcry_in_sync_replicas"][market] == 2
            assert found["openoutcry_peer_up"] == {(("peer", b.node_id),): 1}
            assert found["openoutcry_frames_in_total"][("peer", b.node_id),] > 0
            assert found["openoutcry_bytes_out_total"][("peer", b.node_id),] > 100
            assert samples(b)["openoutcry_market_role"][(*market, ("role", "following"))] == 1
            assert all(metric.help.endswith(".") for metric in METRICS.values())


def test_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    targets = [target for panel in panels for target in panel.get("targets", ())]
    asked = set()
    for target in targets:
        names = re.findall(r"openoutcry_\w+", target["expr"])
        for name in names:
            listed = name.removesuffix("_bucket") if name not in METRICS else name
            assert listed in METRICS, f"{target['expr']}: there is no {name}"
            assert name in METRICS or METRICS[listed].kind == "histogram"
            asked.add(listed)
            labels = {"node", "le", *METRICS[listed].labels}
            used = re.findall(r"(\w+)=~?\"", target["expr"]) + re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            used += [label for group in re.findall(r"by \(([\w,]+)\)", target["expr"]) for label in group.split(",")]
            assert set(used) <= labels, f"{target['expr']}: {name} has the labels {labels}"
    assert set(METRICS) - asked == {
        "openoutcry_build_info",
        "openoutcry_events_total",
        "openoutcry_open_orders",
        "openoutcry_records_total",
        "openoutcry_snapshot_sequence",
        "openoutcry_swaps_total",
        "openoutcry_trades",
    }, "what only a closer look needs"


def test_watchers_that_ask_without_end_are_bounded_and_refused_addresses_say_why() -> None:
    with ExchangeNode("a", markets={MARKET: MarketRules()}, metrics=ANY_PORT) as node:
        assert node.metrics_address is not None
        host, _, port = node.metrics_address.partition(":")
        held = [socket.create_connection((host, int(port))) for _ in range(REQUESTS_MAX)]
        try:
            with socket.create_connection((host, int(port)), timeout=10) as one_more:
                assert one_more.recv(1) == b"", "its connection is closed"
            node.wait_ready()
        finally:
            for connection in held:
                connection.close()
        eventually(lambda: _answers(node), "there is room again")
        for address in ("9464", "127.0.0.1:x", node.metrics_address):
            with pytest.raises(ConfigurationError, match="127"):
                ExchangeNode("b", metrics=address)


def test_answer_that_fails_is_a_500_that_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: ExchangeNode) -> tuple[bool, dict[str, Any]]:
        raise KeyError("applied")

    with ExchangeNode("a", metrics=ANY_PORT) as node:
        monkeypatch.setattr("openoutcry.actors.telemetry.health.readyz", fail)
        assert get(node.metrics_address, "/readyz") == (500, "/readyz failed: KeyError; see the node's log\n")
        assert [vars(each)["path"] for each in caplog.records if vars(each).get("event") == "health_failed"] == [
            "/readyz"
        ]
        assert get(node.metrics_address, "/healthz")[0] == 200


def test_probe_may_ask_by_head_and_over_ipv6() -> None:
    with ExchangeNode("a", metrics=ANY_PORT) as node:
        asked = urllib.request.Request(f"http://{node.metrics_address}/healthz", method="HEAD")
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert (answer.status, answer.read()) == (200, b"")
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with ExchangeNode("a", metrics="[::1]:0") as node:
        assert str(node.metrics_address).startswith("[::1]:")
        assert get(node.metrics_address, "/healthz")[0] == 200


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


def _answers(node: ExchangeNode) -> bool:
    try:
        return get(node.metrics_address, "/readyz")[0] == 200
    except OSError:
        return False
