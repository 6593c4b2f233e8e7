"""The coordinator in etcd: what is particular to it, and what happens when members of it are killed."""

from __future__ import annotations

import base64
import contextlib
import http.server
import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_cluster import EtcdCluster, etcd_cluster, missing
from openoutcry.actors.testing import eventually
from openoutcry.actors.tools.config import load_config
from openoutcry.transport import etcd as etcd_module
from openoutcry.transport.coordinator import MarketRecord
from openoutcry.transport.errors import ConfigurationError, StorageError, Unavailable
from openoutcry.transport.etcd import EtcdCoordinator, is_etcd, open_etcd
from processes import MARKET

NODES = ("n1", "n2", "n3")
NO_ETCD = missing()

pytestmark = pytest.mark.skipif(NO_ETCD is not None, reason=NO_ETCD or "")

SWAPPER = """
import json, sys, threading, time
from openoutcry.transport.errors import Unavailable
from openoutcry.transport.etcd import open_etcd
store = open_etcd(sys.argv[1])
won, unknown = [], 0
print("ready", flush=True)
asked = threading.Thread(target=sys.stdin.readline, daemon=True)
asked.start()
while asked.is_alive():
    try:
        record = store.read("BTC-USD")
        leader = record.in_sync[record.epoch % 3]
        record = store.swap(record, epoch=record.epoch + 1, leader=leader, in_sync=record.in_sync)
    except Unavailable:
        unknown += 1
    else:
        if record is not None:
            won.append((record.version, time.monotonic()))
print(json.dumps({"won": won, "unknown": unknown}), flush=True)
store.close()
"""


@pytest.fixture
def address(cluster: EtcdCluster, request: pytest.FixtureRequest) -> str:
    return cluster.address(f"test/{request.node.name}")


@pytest.fixture
def coordinator(address: str) -> Iterator[EtcdCoordinator]:
    with contextlib.closing(open_etcd(address)) as coordinator:
        yield coordinator


@pytest.fixture
def record(coordinator: EtcdCoordinator) -> MarketRecord:
    return coordinator.create(MARKET, "n1", NODES)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "OPERATION_S", 0.3)


class LostAnswers:
    """What is between a coordinator and etcd: writes of a market are held back, or carried out but not answered."""

    def __init__(self, coordinator: EtcdCoordinator, *, carry_out: bool) -> None:
        self._carry_out = carry_out
        self._clients = list(coordinator._clients)
        self.held: list[Callable[[], Any]] = []
        """What etcd would still do with the writes that were held back."""
        for client in self._clients:
            client.post = self._losing(client.post)

    def stop(self) -> None:
        for client in self._clients:
            del client.post

    def _losing(self, post: Callable[..., Any]) -> Callable[..., Any]:
        def lose(url: str, *, json: dict[str, Any]) -> Any:
            if not any(["request_put" in action for action in json.get("success", ())]):
                return post(url, json=json)
            if self._carry_out:
                post(url, json=json)
            else:
                self.held.append(lambda: post(url, json=json))
            raise importlib.import_module("etcd3gw").exceptions.ConnectionTimeoutError("the answer is lost")

        return lose


def key(coordinator: EtcdCoordinator, rest: str) -> str:
    return base64.b64encode(f"{coordinator._root}{rest}".encode()).decode()


def put(cluster: EtcdCluster, coordinator: EtcdCoordinator, rest: str, value: str) -> None:
    body = {"key": key(coordinator, rest), "value": base64.b64encode(value.encode()).decode()}
    assert "error" not in cluster.call("/v3/kv/put", body)


def delete(cluster: EtcdCluster, coordinator: EtcdCoordinator, rest: str) -> None:
    assert "error" not in cluster.call("/v3/kv/deleterange", {"key": key(coordinator, rest)})


def revision(cluster: EtcdCluster) -> int:
    return int(cluster.call("/v3/kv/range", {"key": base64.b64encode(b"x").decode()})["header"]["revision"])


# Addresses and arguments


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1/x", "begins with etcd://"),
        ("etcd:///x", "HOST:PORT"),
        ("etcd://h:1,/x", "HOST:PORT"),
        ("etcd://h:port/x", "HOST:PORT"),
        ("etcd://h:70000/x", "HOST:PORT"),
        ("etcd://::1/x", "HOST:PORT"),
        ("etcds://eve:hush@h:1/x", "are parameters"),
        ("etcds://h:1/x?pass=hush", "'pass' does not exist"),
        ("etcds://h:1/x?user", "key=value"),
        ("etcds://h:1/x?user=eve&password=hush&password=hush", "twice"),
        ("etcds://h:1/x?user=eve&password=hush&password_file=/x", "twice"),
        ("etcds://h:1/x?user=eve&password_file=/nowhere", "password file cannot be read"),
        ("etcds://h:1/x?user=eve", "both user and password"),
        ("etcds://h:1/x?cert=/x", "both cert and key"),
        ("etcds://h:1/x?ca=/nowhere", "ca=/nowhere, .* cannot be used"),
        ("etcd://h:1/x?user=eve&password=hush", "need TLS"),
    ],
)
def test_wrong_address_is_refused_and_no_password_is_repeated(address: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        open_etcd(address)
    assert "hush" not in str(caught.value)


def test_endpoints_have_a_default_port_and_may_be_of_ipv6() -> None:
    assert [etcd_module._endpoint(text) for text in ("h", "h:1", "[::1]", "[::1]:1", " 10.0.0.1:9")] == [
        ("h", 2379),
        ("h", 1),
        ("::1", 2379),
        ("::1", 1),
        ("10.0.0.1", 9),
    ]


def test_addresses_are_told_from_paths() -> None:
    assert is_etcd("etcd://h")
    assert is_etcd("etcds://h:1/x?user=a")
    assert not any([is_etcd(other) for other in ("coordinator.sqlite", "/etcd://h", Path("etcd://h"), None)])


def test_settings_take_an_address_where_they_take_a_path(tmp_path: Path) -> None:
    address = "etcds://10.0.0.1:2379,10.0.0.2:2379/exchange?ca=/etc/ca.crt"
    (tmp_path / "openoutcry.toml").write_text(f'[node]\ncoordinator = "{address}"\n')
    home = {"OPENOUTCRY_HOME": str(tmp_path)}
    assert load_config(environment=home, flags={}).options["coordinator"] == address
    assert load_config(environment=home, flags={"coordinator": "etcd://h"}).options["coordinator"] == "etcd://h"
    of_environment = {**home, "OPENOUTCRY_COORDINATOR": "etcd://h/x"}
    assert load_config(environment=of_environment, flags={}).options["coordinator"] == "etcd://h/x"
    assert load_config(environment=home, flags={"coordinator": "x.sqlite"}).options["coordinator"] == Path("x.sqlite")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "etcd3gw", None)
    with pytest.raises(ConfigurationError, match="pip install etcd3gw"):
        open_etcd("etcd://127.0.0.1:1")


def test_etcd_that_nobody_serves_is_unavailable_in_bounded_time(impatient: None) -> None:
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="Connection refused") as caught:
        open_etcd("etcd://127.0.0.1:1,127.0.0.1:2")
    assert caught.value.code == "coordinator_unavailable"
    assert time.monotonic() - began_s < 2


def test_what_is_not_etcd_is_refused() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ConfigurationError, match=r"is it etcd 3\.4 or newer"):
                open_etcd(f"etcd://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


# What was lost on the way


def test_swap_that_was_done_but_not_answered_is_unknown_and_then_read(
    coordinator: EtcdCoordinator, record: MarketRecord
) -> None:
    lost = LostAnswers(coordinator, carry_out=True)
    with pytest.raises(Unavailable, match="may have done it or not") as caught:
        coordinator.swap(record, epoch=2, leader="n2", in_sync=NODES)
    assert caught.value.code == "coordinator_unavailable"
    lost.stop()
    assert coordinator.read(MARKET) == MarketRecord(MARKET, 2, 2, "n2", NODES)


@pytest.mark.parametrize("look", ["read", "read_all", "swap", "create"])
def test_swap_that_was_lost_can_take_no_effect_once_the_record_was_read(
    coordinator: EtcdCoordinator, record: MarketRecord, look: str
) -> None:
    lost = LostAnswers(coordinator, carry_out=False)
    with pytest.raises(Unavailable):
        coordinator.swap(record, epoch=2, leader="n2", in_sync=NODES)
    lost.stop()
    expected: MarketRecord | None = record
    if look == "read":
        assert coordinator.read(MARKET) == record
    elif look == "read_all":
        assert coordinator.read_all() == (record,)
    elif look == "create":
        assert coordinator.create(MARKET, "n3", NODES) == record
    else:
        expected = coordinator.swap(record, epoch=3, leader="n3", in_sync=NODES)
        assert expected is not None
    (carry_out_late,) = lost.held
    assert "succeeded" not in carry_out_late()
    assert coordinator.read(MARKET) == expected


def test_create_that_was_lost_is_carried_out_by_the_next_read(
    coordinator: EtcdCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert coordinator.read(MARKET) is None
    lost = LostAnswers(coordinator, carry_out=False)
    with monkeypatch.context() as patch:
        patch.setattr(etcd_module, "OPERATION_S", 0.1)
        with pytest.raises(Unavailable):
            coordinator.create(MARKET, "n1", NODES)
    lost.stop()
    record = coordinator.read(MARKET)
    assert record == MarketRecord(MARKET, 1, 1, "n1", NODES)
    assert not any(["succeeded" in carry_out_late() for carry_out_late in lost.held])
    assert coordinator.read(MARKET) == record


# What the store holds


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "7",
        '{"market":"BTC-USD"}',
        '{"market":"BTC-USD","version":1,"epoch":1,"leader":"n1","in_sync":["n2","n1"]}',
        '{"market":"BTC-USD","version":1,"epoch":1.0,"leader":"n1","in_sync":["n1"]}',
        '{"market":"ETH-USD","version":1,"epoch":1,"leader":"n1","in_sync":["n1"]}',
        '{"market":"BTC-USD", "version":1,"epoch":1,"leader":"n1","in_sync":["n1"]}',
    ],
)
def test_record_that_is_not_ours_is_refused(
    cluster: EtcdCluster, coordinator: EtcdCoordinator, record: MarketRecord, value: str
) -> None:
    put(cluster, coordinator, f"markets/{MARKET}", value)
    with pytest.raises(StorageError, match="record"):
        coordinator.read(MARKET)
    with pytest.raises(StorageError, match="record"):
        coordinator.swap(record, epoch=2, leader="n1", in_sync=NODES)


def test_store_that_was_wiped_or_replaced_is_refused_and_not_made_anew(
    cluster: EtcdCluster, coordinator: EtcdCoordinator, record: MarketRecord
) -> None:
    delete(cluster, coordinator, "id")
    with pytest.raises(StorageError, match="wiped, replaced or restored"):
        coordinator.read(MARKET)
    put(cluster, coordinator, "id", "00000000-0000-0000-0000-000000000000")
    with pytest.raises(StorageError, match="wiped, replaced or restored"):
        coordinator.swap(record, epoch=2, leader="n1", in_sync=NODES)
    put(cluster, coordinator, "id", coordinator.coordinator_id)
    assert coordinator.read(MARKET) == record


def test_store_that_went_back_to_a_backup_is_refused(coordinator: EtcdCoordinator, record: MarketRecord) -> None:
    coordinator._revision += 1000
    with pytest.raises(StorageError, match="restored from a backup"):
        coordinator.read(MARKET)


def test_id_that_is_none_is_refused(cluster: EtcdCluster, address: str) -> None:
    with contextlib.closing(open_etcd(address)) as coordinator:
        put(cluster, coordinator, "id", "me")
    with pytest.raises(StorageError, match="holds no id"):
        open_etcd(address)


# Leases


def test_renewals_write_nothing(cluster: EtcdCluster, coordinator: EtcdCoordinator) -> None:
    coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    before = revision(cluster)
    for _ in range(5):
        coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    assert revision(cluster) == before


def test_lease_is_taken_again_when_it_was_lost(cluster: EtcdCluster, coordinator: EtcdCoordinator) -> None:
    coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    delete(cluster, coordinator, "leases/n1")
    assert coordinator.lapsed("n1")
    coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    assert not coordinator.lapsed("n1")
    cluster.call("/v3/lease/revoke", {"ID": str(coordinator._leases["n1"].lease)})
    assert coordinator.lapsed("n1")
    coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    assert not coordinator.lapsed("n1")


def test_lease_of_a_next_life_outlives_that_of_the_last(coordinator: EtcdCoordinator, address: str) -> None:
    with contextlib.closing(open_etcd(address)) as last_life:
        last_life.renew("n1", holder="disk", ttl_ms=1)
    coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    time.sleep(2)  # the shared etcd grants 1 s at least, and looks every half second
    assert not coordinator.lapsed("n1")


def test_renewal_that_was_lost_does_not_bring_back_what_was_given_up(
    coordinator: EtcdCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = LostAnswers(coordinator, carry_out=False)
    with monkeypatch.context() as patch:
        patch.setattr(etcd_module, "OPERATION_S", 0.1)
        with pytest.raises(Unavailable):
            coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    lost.stop()
    coordinator.release("n1")
    assert lost.held
    for carry_out_late in lost.held:
        with pytest.raises(Exception, match="Not Found"):
            carry_out_late()
    assert coordinator.lapsed("n1")


def test_lease_can_be_made_shorter(coordinator: EtcdCoordinator) -> None:
    coordinator.renew("n1", holder="disk", ttl_ms=600_000)
    coordinator.renew("n1", holder="disk", ttl_ms=1)
    eventually(lambda: coordinator.lapsed("n1"), "the lease has lapsed", within=5)


# TLS and authentication


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """An etcd that wants a certificate of its authority and a password."""
    with etcd_cluster(tmp_path_factory.mktemp("tls"), size=1, tls=True) as cluster:
        cluster.enable_authentication("alice", "s+cret", "guarded")
        yield cluster


def guarded_address(guarded: EtcdCluster, prefix: str = "guarded", **changes: str | None) -> str:
    folder = guarded.folder
    (folder / "password").write_text("s+cret\n")
    parameters: dict[str, Any] = {"ca": folder / "ca.crt", "cert": folder / "client.crt", "key": folder / "client.key"}
    parameters |= {"user": "alice", "password_file": folder / "password", **changes}
    return guarded.address(prefix, **{name: value for name, value in parameters.items() if value is not None})


def test_tls_and_password_work_and_outlive_a_restart_of_etcd(guarded: EtcdCluster) -> None:
    with contextlib.closing(open_etcd(guarded_address(guarded))) as coordinator:
        record = coordinator.create(MARKET, "n1", NODES)
        guarded.kill(guarded.members[0])
        guarded.start(guarded.members)
        coordinator._session.headers["Authorization"] = "one.that.etcd.forgot"
        record = coordinator.swap(record, epoch=2, leader="n2", in_sync=NODES)
        assert record is not None
        coordinator.renew("n2", holder="disk", ttl_ms=5000)
        assert not coordinator.lapsed("n2")
    with contextlib.closing(
        open_etcd(guarded_address(guarded, password_file=None, password="s%2Bcret"))
    ) as coordinator:
        assert coordinator.read(MARKET) == record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"password_file": None, "password": "no"}, "authentication failed", id="wrong password"),
        pytest.param({"password_file": None, "user": None}, "no user was given", id="no user"),
        pytest.param({"prefix": "other"}, "permission denied", id="not his keys"),
        pytest.param({"cert": None, "key": None}, "do not trust each other", id="no client certificate"),
        pytest.param({"ca": "foreign.crt"}, "do not trust each other", id="foreign server"),
        pytest.param({"cert": "foreign.crt", "key": "foreign.key"}, "do not trust each other", id="foreign client"),
    ],
)
def test_who_is_not_let_in_is_told_why(guarded: EtcdCluster, changes: dict[str, Any], message: str) -> None:
    changes = {
        name: str(guarded.folder / value) if str(value).startswith("foreign") else value
        for name, value in changes.items()
    }
    with pytest.raises(ConfigurationError, match=message):
        open_etcd(guarded_address(guarded, **changes))


# Members that die


def test_no_update_is_lost_when_the_leader_of_etcd_is_killed_in_the_middle_of_swaps(
    cluster: EtcdCluster, coordinator: EtcdCoordinator, record: MarketRecord, address: str
) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SWAPPER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]

    def version() -> int:
        with contextlib.suppress(Unavailable):
            found = coordinator.read(MARKET)
            assert found is not None
            return found.version
        return 0

    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        eventually(lambda: version() > 50, "they swap")
        dead = cluster.leader()
        killed_s = time.monotonic()
        cluster.kill(dead)
        found = []
        eventually(version, "etcd answers again")
        goal = version() + 50
        eventually(lambda: version() > goal, "they swap again")
        for child in children:
            out, err = child.communicate("end\n", timeout=60)
            assert child.returncode == 0, err
            found.append(json.loads(out))
    finally:
        for child in children:
            child.kill()
            child.communicate()
        cluster.start([member for member in cluster.members if member.process is None])
    won = sorted([tuple(each) for result in found for each in result["won"]])
    unknown = sum([result["unknown"] for result in found])
    versions = [version for version, _ in won]
    final = coordinator.read(MARKET)
    assert final is not None
    assert len(set(versions)) == len(versions), "two were told that they had made the same version"
    assert final.epoch == final.version, "each swap was made on top of the one before"
    assert len(versions) <= final.version - 1 <= len(versions) + unknown
    assert sum([at < killed_s for _, at in won]) > 20
    assert sum([at > killed_s for _, at in won]) > 20, "they went on with the two members that are left"
    gap = min([at for _, at in won if at > killed_s + 0.05]) - killed_s
    assert gap < 5, f"the first swap came {gap} s after the leader of etcd was killed"


def test_coordinator_outlives_a_restart_of_all_of_etcd(
    cluster: EtcdCluster, coordinator: EtcdCoordinator, record: MarketRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    for member in cluster.members:
        cluster.kill(member)
    with monkeypatch.context() as patch:
        patch.setattr(etcd_module, "OPERATION_S", 0.3)
        with pytest.raises(Unavailable):
            coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    cluster.start(cluster.members)
    assert coordinator.read(MARKET) == record
    assert not coordinator.lapsed("n1"), "leases are durable too"
    coordinator.renew("n1", holder="disk", ttl_ms=60_000)
    assert coordinator.swap(record, epoch=2, leader="n2", in_sync=NODES) is not None
