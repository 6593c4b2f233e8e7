"""The test kit: what a probe reports and how it fails, the fixtures in a pytest run of their own, and its cost."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pykka
import pytest
from openoutcry.actors import testing
from openoutcry.actors.testing import TIME_FACTOR_VARIABLE, ActorProbe, Exchange
from openoutcry.transport.errors import Unavailable

pytest_plugins = ["pytester"]


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pong:
    number: int


class Target(pykka.ThreadingActor):
    use_daemon_thread = True

    def on_receive(self, message: Any) -> Any:
        if message == "fail":
            raise RuntimeError("told to fail")
        return message


@pytest.fixture
def target() -> Iterator[pykka.ActorRef[Any]]:
    ref = Target.start()
    yield ref
    ref.stop()


def tell_after(seconds: float, ref: pykka.ActorRef[Any], message: object) -> None:
    threading.Timer(seconds, ref.tell, [message]).start()


def test_messages_are_expected_in_order_by_class_predicate_union_or_value(actor_probe: ActorProbe) -> None:
    for message in (Ping(1), Pong(2), Ping(3), "four", Ping(5)):
        actor_probe.ref.tell(message)
    assert actor_probe.expect(Ping).number == 1
    assert actor_probe.expect(lambda message: message.number == 2) == Pong(2)
    assert actor_probe.expect(Ping | Pong) == Ping(3)
    assert actor_probe.expect("four") == "four"
    assert actor_probe.expect(Ping(5)) == Ping(5)
    actor_probe.expect_none(within=0)
    assert actor_probe.messages == (Ping(1), Pong(2), Ping(3), "four", Ping(5))
    assert actor_probe.last == Ping(5)


def test_expect_waits_for_a_message_that_comes_later(actor_probe: ActorProbe) -> None:
    assert actor_probe.last is None
    tell_after(0.05, actor_probe.ref, Ping(1))
    assert actor_probe.expect(Ping) == Ping(1)


def test_another_message_than_expected_fails_shows_all_and_stays_unread(actor_probe: ActorProbe) -> None:
    actor_probe.ref.tell(Ping(1))
    actor_probe.ref.ask(Pong(2))
    actor_probe.ref.ask("x" * 1000)
    actor_probe.expect(Ping)
    with pytest.raises(AssertionError) as caught:
        actor_probe.expect(Ping)
    lines = str(caught.value).splitlines()
    assert lines[0] == "expected a Ping, but the next message is Pong(number=2)"
    assert lines[1] == "3 received, of which unread (from >): 2"
    assert [line.split() for line in lines[2:4]] == [
        [lines[2].split()[0], "s", "tell", "Ping(number=1)"],
        [">", lines[3].split()[1], "s", "ask", "Pong(number=2)"],
    ]
    assert lines[4].endswith("… (1002 characters)")
    assert len(lines) == 5
    assert actor_probe.expect(Pong) == Pong(2)


def test_silence_fails_after_the_time_given_and_names_the_predicate(actor_probe: ActorProbe) -> None:
    began_s = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        actor_probe.expect(lambda message: message, within=0.05)
    assert 0.05 <= time.monotonic() - began_s < 2
    assert "a message that passes <lambda> (test_testing.py:" in str(caught.value)
    assert "nothing came within 0.05 s" in str(caught.value)
    assert "0 received" in str(caught.value)


def test_a_long_conversation_is_cut_to_its_end(actor_probe: ActorProbe) -> None:
    for number in range(120):
        actor_probe.ref.tell(Ping(number))
    with pytest.raises(AssertionError) as caught:
        actor_probe.fish(Pong, within=0.2)
    assert "… 70 earlier" in str(caught.value)
    assert "Ping(number=70)" in str(caught.value)
    assert "Ping(number=69)" not in str(caught.value)


def test_message_whose_repr_fails_does_not_hide_the_failure(actor_probe: ActorProbe) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError("no repr")

    actor_probe.ref.tell(Odd())
    with pytest.raises(AssertionError, match=r"the next message is <.*Odd, whose repr raised ValueError"):
        actor_probe.expect(Ping)


def test_fish_skips_to_the_match_and_nothing_when_there_is_none(actor_probe: ActorProbe) -> None:
    for number in range(3):
        actor_probe.ref.tell(Ping(number))
    tell_after(0.05, actor_probe.ref, Pong(9))
    assert actor_probe.fish(lambda message: message.number == 1) == Ping(1)
    assert actor_probe.fish(Pong) == Pong(9)
    actor_probe.ref.tell(Ping(10))
    with pytest.raises(AssertionError, match=r"fished for a Pong, but it did not come within 0\.05 s"):
        actor_probe.fish(Pong, within=0.05)
    assert actor_probe.expect(Ping) == Ping(10)


def test_expect_none_fails_for_an_unread_message_and_for_a_new_one(actor_probe: ActorProbe) -> None:
    actor_probe.expect_none(within=0.02)
    tell_after(0.05, actor_probe.ref, Ping(1))
    for _ in range(2):
        with pytest.raises(AssertionError, match=r"expected no message for 2 s, but got Ping\(number=1\)"):
            actor_probe.expect_none(within=2)
    actor_probe.expect(Ping)
    actor_probe.expect_none(within=0)


def test_asks_are_answered_with_none_a_value_or_what_a_callable_returns(actor_probe: ActorProbe) -> None:
    assert actor_probe.ref.ask(Ping(1), timeout=3) is None
    actor_probe.reply_with(Pong(7))
    assert actor_probe.ref.ask(Ping(2), timeout=3) == Pong(7)
    actor_probe.reply_with(lambda ping: Pong(ping.number * 10))
    assert actor_probe.ref.ask(Ping(3), timeout=3) == Pong(30)
    assert actor_probe.messages == (Ping(1), Ping(2), Ping(3))


def test_reply_that_raises_reaches_the_asker_and_harms_neither_the_probe_nor_others(
    actor_probe: ActorProbe, target: pykka.ActorRef[Any]
) -> None:
    def refuse(message: object) -> None:
        if message == Ping(1):
            raise Unavailable("not now")
        pytest.fail("not at all")

    actor_probe.reply_with(refuse)
    with pytest.raises(Unavailable, match="not now"):
        actor_probe.ref.ask(Ping(1), timeout=3)
    with pytest.raises(AssertionError, match="not at all"):
        actor_probe.ref.ask(Ping(2), timeout=3)
    actor_probe.ref.tell(Ping(3))
    assert actor_probe.fish(Ping(3))
    with pytest.raises(Unavailable):
        actor_probe.ref.ask(Ping(1), timeout=3)
    assert target.is_alive()


@pytest.mark.parametrize("how", ["stop", "fail"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_stop_and_failure_of_a_watched_actor_are_seen(
    actor_probe: ActorProbe, target: pykka.ActorRef[Any], how: str
) -> None:
    actor_probe.watch(target)
    with pytest.raises(AssertionError, match=r"expected Target .* to stop, but it is alive after 0\.05 s"):
        actor_probe.expect_stopped(target, within=0.05)
    later = threading.Timer(0.05, target.stop if how == "stop" else target.tell, [] if how == "stop" else [how])
    later.start()
    actor_probe.expect_stopped(target)
    with pytest.raises(AssertionError, match="has already stopped"):
        actor_probe.watch(target)
    with pytest.raises(ValueError, match="is not watched"):
        actor_probe.expect_stopped(target)


def test_probe_stopped_by_the_code_under_test_says_so_at_once(actor_probe: ActorProbe) -> None:
    actor_probe.ref.tell(Ping(1))
    threading.Timer(0.1, actor_probe.ref.stop).start()
    assert actor_probe.expect(Ping) == Ping(1)
    began_s = time.monotonic()
    with pytest.raises(AssertionError, match="the probe has been stopped"):
        actor_probe.expect(Ping, within=10)
    assert time.monotonic() - began_s < 5


def test_stop_ends_all_probes_made_here_and_no_other_actor(target: pykka.ActorRef[Any]) -> None:
    probe = ActorProbe()
    others = [probe.another(), probe.another().another()]
    for _ in range(2):
        probe.stop()
        assert not any(one.ref.is_alive() for one in (probe, *others, *probe._others))
    assert target.is_alive()


def test_messages_of_many_threads_are_all_kept(actor_probe: ActorProbe) -> None:
    def tell_all(first: int) -> None:
        for number in range(first, first + 200):
            actor_probe.ref.tell(Ping(number))

    threads = [threading.Thread(target=tell_all, args=(1000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    numbers = [actor_probe.expect(Ping).number for _ in range(800)]
    for thread in threads:
        thread.join()
    for index in range(4):
        of_this_thread = [number - 1000 * index for number in numbers if number // 1000 == index]
        assert of_this_thread == list(range(200))
    actor_probe.expect_none(within=0)


def test_time_factor_stretches_waits_but_not_expect_none(
    actor_probe: ActorProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIME_FACTOR_VARIABLE, "1000")
    tell_after(0.1, actor_probe.ref, Ping(1))
    assert actor_probe.expect(Ping, within=0.005) == Ping(1)
    began_s = time.monotonic()
    actor_probe.expect_none(within=0.01)
    assert time.monotonic() - began_s < 5
    for wrong in ("fast", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(TIME_FACTOR_VARIABLE, wrong)
        with pytest.raises(ValueError, match=TIME_FACTOR_VARIABLE):
            actor_probe.expect(Ping)
    monkeypatch.delenv(TIME_FACTOR_VARIABLE)


@pytest.mark.slow
def test_fixture_stops_its_probes_after_each_test_and_leaves_other_actors_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pykka

        refs = []

        class Other(pykka.ThreadingActor):
            use_daemon_thread = True

        def test_first(actor_probe):
            refs.extend([actor_probe.ref, actor_probe.another().ref, Other.start()])
            assert all(ref.is_alive() for ref in refs)

        def test_second(actor_probe):
            assert [ref.is_alive() for ref in refs] == [False, False, True]
            refs[2].stop()
            assert actor_probe.messages == ()
        """
    )
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)


@pytest.mark.slow
def test_failure_in_a_pytest_run_shows_the_conversation_and_not_the_insides_of_the_kit(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        def test_it(actor_probe):
            actor_probe.ref.tell("hello")
            actor_probe.expect(int)
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*actor_probe.expect(int)",
            "E *AssertionError: expected a int, but the next message is 'hello'",
            "E *1 received, of which unread (from >): 1",
            "E *> * s  tell  'hello'",
        ]
    )
    result.stdout.no_fnmatch_line("*raise self._failure*")


@pytest.mark.slow
def test_plugin_is_found_and_documents_its_fixtures(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--fixtures", "-q")
    result.stdout.fnmatch_lines(["actor_probe -- *", "*A started :class:`ActorProbe`*", "exchange -- *"])


@pytest.mark.slow
def test_plugin_imports_nothing_heavy_before_a_test_asks_for_it() -> None:
    package = Path(testing.__file__).parent
    program = f"""
import sys, types
sys.modules["openoutcry.actors"] = types.ModuleType("openoutcry.actors")
sys.modules["openoutcry.actors"].__path__ = [{str(package)!r}]
import openoutcry.actors.testing
print(sorted({{"pykka", "pynng", "msgpack"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@dataclasses.dataclass
class FakeNode:
    """What :class:`Exchange` needs of a node, with sequence numbers and hashes that a test sets."""

    name: str
    markets: Any
    data_dir: Path
    directory: list[str]
    coordinator: Path
    extra: int = 0
    calls: list[str] = dataclasses.field(default_factory=list)
    sequences: dict[str, int] = dataclasses.field(default_factory=dict)
    hash: str = "h"

    def wait_ready(self, *, timeout: float) -> None:  # noqa: ARG002
        self.calls.append("ready")
        if self.extra == -1 and self.name == "node-1":
            raise Unavailable("node-1 does not come up")

    def wait_in_sync(self, market: str, nodes: int, timeout: float) -> None:  # noqa: ARG002
        self.calls.append(f"{market} in sync on {nodes}")

    def sequence(self, market: str) -> int:
        if market not in self.sequences:
            raise Unavailable(f"{market} is not ready")
        return self.sequences[market]

    def position(self, market: str) -> tuple[int, str]:
        return self.sequence(market), self.hash

    def close(self) -> None:
        self.calls.append("close")
        CLOSED.append(self.name)


CLOSED: list[str] = []


@pytest.fixture
def start_exchange(monkeypatch: pytest.MonkeyPatch, exchange: Callable[..., Exchange]) -> Callable[..., Any]:
    CLOSED.clear()
    module = types.ModuleType("openoutcry.actors.node")
    monkeypatch.setattr(module, "ExchangeNode", FakeNode, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return exchange


def test_exchange_nodes_share_coordinator_and_rendezvous_but_no_folder(
    start_exchange: Callable[..., Any], tmp_path: Path
) -> None:
    first, second = start_exchange(nodes=3, markets=["A", "B"], extra=7), start_exchange()
    assert len(first) == 3
    assert [node.name for node in first] == ["node-0", "node-1", "node-2"]
    assert first[1].calls == ["ready", "A in sync on 3", "B in sync on 3"]
    assert first[1].extra == 7
    nodes = [*first, *second]
    assert len({node.data_dir for node in nodes}) == 5
    assert all(tmp_path in node.data_dir.parents for node in nodes)
    assert len({node.coordinator for node in first}) == 1
    assert first[0].coordinator != second[0].coordinator
    assert first[0].directory == first[2].directory != second[0].directory


def test_exchange_waits_for_one_sequence_and_compares_hashes(start_exchange: Callable[..., Any]) -> None:
    nodes = start_exchange()
    nodes[0].sequences["A"] = 5
    with pytest.raises(AssertionError) as caught:
        nodes.wait_same_sequence("A", timeout=0.03)
    assert str(caught.value).splitlines() == [
        "A: no common sequence number within 0.03 s",
        "    node-0  5",
        "    node-1  A is not ready",
    ]
    threading.Timer(0.05, nodes[1].sequences.update, [{"A": 5}]).start()
    assert nodes.wait_same_sequence("A") == 5
    assert nodes.assert_same_hash("A") == "h"
    nodes[1].hash = "other"
    with pytest.raises(AssertionError, match=r"all had 5\n    node-0  \(5, 'h'\)\n    node-1  \(5, 'other'\)"):
        nodes.assert_same_hash("A")


def test_exchange_restart_replaces_one_node_on_its_folder(start_exchange: Callable[..., Any]) -> None:
    nodes = start_exchange()
    old = nodes[1]
    new = nodes.restart(1)
    assert old.calls[-1] == "close"
    assert nodes[1] is new is not old
    assert new.data_dir == old.data_dir
    assert new.calls == ["ready", "BTC-USD in sync on 2"]
    assert CLOSED == ["node-1"]


def test_exchange_closes_every_node_even_if_one_fails_to_start_or_to_close(
    start_exchange: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="does not come up"):
        start_exchange(nodes=3, extra=-1)
    assert CLOSED == ["node-2", "node-1", "node-0"]
    CLOSED.clear()
    nodes = start_exchange(nodes=3)
    with monkeypatch.context() as patch:
        patch.setattr(nodes[2], "close", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            nodes.close()
    assert CLOSED == ["node-1", "node-0"]
