"""The test kit on nodes: remote probes and ends, faults between nodes, nodes in processes, an application outside."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pykka
import pytest
from openoutcry.actors import Actor, ExchangeNode, InvalidRequest, RequestTimeout, Unreachable, message
from openoutcry.actors.kit.actor import tell
from openoutcry.actors.testing import ActorProbe, eventually
from openoutcry.actors.testkit import processes

ROOT = Path(__file__).resolve().parents[1]
MARKET = "BTC-USD"


@message("testing.note")
class Note:
    number: int


class Echo(Actor):
    def on_receive(self, message: Any) -> Any:
        if message == Note(-1):
            raise ValueError("told to fail")
        return message


@pytest.fixture
def echo() -> Any:
    ref = Echo.start()
    yield ref
    ref.stop(block=False)


# -- probes ---------------------------------------------------------------------------------------------------------


def test_sequence_is_expected_as_a_whole_and_stays_unread_if_it_is_not(actor_probe: ActorProbe) -> None:
    for number in range(4):
        actor_probe.ref.tell(Note(number))
    with pytest.raises(AssertionError, match=r"expected as number 3 of 3 a str, but the next message is Note"):
        actor_probe.expect_sequence(Note(0), Note, str)
    assert actor_probe.expect_sequence(Note(0), Note, lambda note: note.number == 2) == [Note(0), Note(1), Note(2)]
    with pytest.raises(AssertionError, match=r"expected as number 2 of 2 .* nothing came within 0\.05 s"):
        actor_probe.expect_sequence(Note, Note, within=0.05)
    assert actor_probe.expect(Note) == Note(3)


def test_block_bounds_all_that_is_expected_in_it_together(actor_probe: ActorProbe) -> None:
    began_s = time.monotonic()
    with pytest.raises(AssertionError, match="nothing came"), actor_probe.within(0.1):
        actor_probe.expect(Note, within=60)
    assert time.monotonic() - began_s < 30
    with pytest.raises(AssertionError, match=r"within 0.05 s, but it took"), actor_probe.within(0.05):
        time.sleep(0.1)
    actor_probe.ref.tell(Note(1))
    with actor_probe.within(20):
        actor_probe.expect(Note)
    actor_probe.expect_none(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_end_of_an_actor_elsewhere_is_expected_beside_the_conversation(
    exchange: Callable[..., Any], actor_probe: ActorProbe, echo: pykka.ActorRef[Any]
) -> None:
    net = exchange(nodes=2, markets=[])
    net[0].register("echo", echo, accepts=[Note])
    net[1].register("probe", actor_probe.ref, accepts=[Note])
    ref = net[1].actor("echo@node-0")
    actor_probe.watch(ref)
    with pytest.raises(AssertionError, match=r"expected <RemoteRef echo@node-0> to end, but nothing is known"):
        actor_probe.expect_terminated(ref, within=0.05)
    net[0].actor("probe@node-1").tell(Note(1))
    tell(echo, Note(-1))
    ended = actor_probe.expect_terminated(ref)
    assert (ended.ref, ended.reason, ended.detail) == (ref, "failed", "ValueError: told to fail")
    actor_probe.expect_sequence(Note(1))
    actor_probe.expect_none(0.05)
    with pytest.raises(ValueError, match="is not watched"):
        actor_probe.expect_terminated(ref)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_end_of_an_actor_here_tells_whether_it_failed(actor_probe: ActorProbe, echo: pykka.ActorRef[Any]) -> None:
    actor_probe.watch(echo)
    echo.tell(Note(-1))
    assert actor_probe.expect_terminated(echo).reason == "failed"


# -- faults ---------------------------------------------------------------------------------------------------------


def reached(node: ExchangeNode) -> Any:
    try:
        return node.actor("echo@node-0", timeout=0.1).ask(Note(1), timeout=1) == Note(1)
    except (Unreachable, RequestTimeout):
        return False


def test_link_that_is_cut_is_down_on_both_sides_until_it_is_healed(
    exchange: Callable[..., Any], actor_probe: ActorProbe, echo: pykka.ActorRef[Any]
) -> None:
    net = exchange(nodes=3, markets=[], faults=True)
    net[0].register("echo", echo, accepts=[Note])
    ref = net[1].actor("echo@node-0")
    actor_probe.watch(ref)
    net.cut(0, 1)
    assert actor_probe.expect_terminated(ref, within=10).reason == "unreachable"
    for _ in range(3):
        assert not reached(net[1])
    assert reached(net[2]), "another link is as before"
    net.heal()
    eventually(lambda: reached(net[1]), "the link is back")


def test_what_is_dropped_one_way_ends_the_link_by_silence(
    exchange: Callable[..., Any], actor_probe: ActorProbe, echo: pykka.ActorRef[Any]
) -> None:
    net = exchange(nodes=2, markets=[], faults=True)
    net[0].register("echo", echo, accepts=[Note])
    ref = net[1].actor("echo@node-0")
    actor_probe.watch(ref)
    net.drop(0, 1)
    assert actor_probe.expect_terminated(ref, within=10).reason == "unreachable"
    net.heal()
    eventually(lambda: reached(net[1]), "the link is back")


def test_what_is_delayed_arrives_later_and_in_order(exchange: Callable[..., Any], actor_probe: ActorProbe) -> None:
    net = exchange(nodes=2, markets=[], faults=True)
    net[0].register("probe", actor_probe.ref, accepts=[Note])
    ref = net[1].actor("probe@node-0")
    net.delay(1, 0, 0.3)
    began_s = time.monotonic()
    for number in range(3):
        ref.tell(Note(number))
    actor_probe.expect_sequence(Note(0), Note(1), Note(2))
    assert time.monotonic() - began_s >= 0.3


def test_faults_are_for_exchanges_that_were_started_with_them(exchange: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="faults=True"):
        exchange(nodes=1, markets=[]).cut(0, 0)


def test_restarted_node_is_behind_its_proxy_again(exchange: Callable[..., Any]) -> None:
    net = exchange(nodes=2, faults=True)
    order = net[0].submit_order(MARKET, "buy", "99", "1")
    net.restart(0)
    net[1].cancel_order(MARKET, order.order_id, account="node-0")
    net.assert_same_hash(MARKET)


# -- processes ------------------------------------------------------------------------------------------------------


def serve_echo(node: ExchangeNode) -> str:
    node.register("echo", Echo.start(), accepts=[Note])
    return node.name


def hand_back(_node: ExchangeNode, value: Any) -> Any:
    return value


def fetch_lock(_node: ExchangeNode) -> Any:
    return threading.Lock()


def parent_of(_node: ExchangeNode) -> int:
    return os.getppid()


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_nodes_in_processes_take_calls_and_functions_die_and_come_back(
    exchange_processes: Callable[..., Any], actor_probe: ActorProbe, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda **_: start_method)
    net = exchange_processes(nodes=2)
    assert (net[0].run(parent_of) == os.getpid()) is (start_method == "spawn")
    assert net[0].pid != net[1].pid != os.getpid()
    order = net[0].submit_order(MARKET, "buy", "99", "1")
    with pytest.raises(InvalidRequest) as caught:
        net[1].submit_order("nowhere", "buy", "99", "1")
    assert caught.value.code == "unknown_market"
    assert net[1].run(serve_echo) == "node-1"
    with pytest.raises(AssertionError, match="which cannot be passed on"):
        net[1].run(fetch_lock)
    assert net[1].run(hand_back, {"a": (1, None)}) == {"a": (1, None)}
    with ExchangeNode("outside", directory=net.directory_address) as outside:
        ref = outside.actor("echo@node-1", timeout=20)
        assert ref.ask(Note(5)) == Note(5)
        actor_probe.watch(ref)
        net[1].kill()
        assert actor_probe.expect_terminated(ref, within=10).reason == "unreachable"
    with pytest.raises(AssertionError, match="ended before it answered"):
        net[1].sequence(MARKET)
    net.restart(1)
    net[1].cancel_order(MARKET, order.order_id, account="node-0")
    net.assert_same_hash(MARKET)


def test_process_that_is_stuck_is_killed_and_one_that_is_paused_can_be_closed(
    exchange_processes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = exchange_processes(nodes=3, markets=[])
    monkeypatch.setattr(processes, "CALL_S", 0.2)
    net[0].pause()
    with pytest.raises(AssertionError, match=r"node-0 did not answer within 0\.2 s, and was killed"):
        net[0].status()
    assert not net[0].is_alive()
    net[1].pause()
    net[1].close()
    assert not net[1].is_alive()
    net[2].pause()
    with pytest.raises(AssertionError, match="ended before it answered"):
        net[2].actor("more than the pipe takes" * 1_000_000)
    assert not net[2].is_alive()


def test_process_whose_node_cannot_start_says_why(exchange_processes: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match="min_in_sync is a whole number from 1 to 16, not 0"):
        exchange_processes(nodes=1, min_in_sync=0)


# -- an application outside -----------------------------------------------------------------------------------------

APPLICATION = """\
from openoutcry.actors import message

@message("app.hello")
class Hello:
    name: str

def test_hello_reaches_an_actor_of_another_node(exchange, actor_probe):
    net = exchange(nodes=2, markets=[])
    net[0].register("probe", actor_probe.ref, accepts=[Hello])
    net[1].actor("probe@node-0").tell(Hello("world"))
    assert actor_probe.expect(Hello).name == "world"
"""


@pytest.mark.wheel
def test_ten_lines_of_an_application_that_installed_the_wheel_and_pytest(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "COV"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    wheels = Path(os.environ.get("OPENOUTCRY_WHEELS", tmp_path / "dist"))  # of the gate, which has built one
    if not wheels.exists():
        source = tmp_path / "source"  # what a build leaves behind is not for the next one
        for part in ("actors", "transport"):
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("setup.cfg", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, source)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source)
    (wheel,) = wheels.glob("openoutcry-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, "pytest")
    application = tmp_path / "application"
    application.mkdir()
    (application / "test_app.py").write_text(APPLICATION)
    where = run(python, "-c", "import openoutcry.actors.kit as kit; print(kit.__file__)")
    assert str(tmp_path) in where
    assert "1 passed" in run(python, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", application)
