"""Remote actors: order, bounds, errors and death watch between two nodes that have no markets."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest
from openoutcry.actors import ConfigurationError, ExchangeNode, InvalidRequest, MarketRules
from openoutcry.actors.group import CODEC
from openoutcry.actors.kit.actor import Actor, Mailbox
from openoutcry.actors.peers.link import Link, SendFrame, SendNext
from openoutcry.actors.peers.messages import PeerUp
from openoutcry.actors.peers.meters import LinkMeters
from openoutcry.actors.remote.actors import EARLY_SIZE_MAX, RemoteActors
from openoutcry.actors.remote.link import MESSAGE_OVERHEAD, PARCEL_SIZE, WINDOW_SIZE, RemoteLink
from openoutcry.actors.remote.refs import RemoteRef, Terminated
from openoutcry.actors.remote.schema import MESSAGE_SIZE_MAX, message, type_of
from openoutcry.actors.remote.wire import ASK, CREDIT, FIND, FOUND, GONE, REPLY, TELL, WATCH, Parcel
from openoutcry.actors.testing import ActorProbe, eventually
from openoutcry.transport.errors import (
    ActorStopped,
    Closed,
    MessageRefused,
    OpenOutcryError,
    Overloaded,
    ProtocolError,
    RemoteFailure,
    RequestTimeout,
    UnknownActor,
    Unreachable,
)
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@message("test.say")
class Say:
    what: str
    number: int = 0


@message("test.blob")
class Blob:
    data: bytes


HERE = threading.local()
"""Its ``refuses`` set: no Picky can be made on this thread."""


@message("test.picky")
class Picky:
    number: int

    def __post_init__(self) -> None:
        if getattr(HERE, "refuses", False):
            raise ValueError("too late")


@message("test.other")
class Other:
    pass


class Speaker(Actor):
    """Does what it is told, and keeps all that it heard."""

    mailbox_size_max = 5  # what comes from other nodes has a window of its own

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []
        self.go = threading.Event()

    def on_receive(self, message: Any) -> Any:
        self.heard.append(message)
        what = message.what if isinstance(message, Say) else ""
        if what == "wait":
            self.go.wait(20)
        elif what == "fail":
            raise ValueError("told to fail")
        elif what == "fail in no encoding":
            raise ValueError("a lone surrogate: \udc80")
        elif what == "refuse":
            raise Overloaded("not now", code="busy")
        elif what == "answer badly":
            return {"a": "dict"}
        return message


class Plain(pykka.ThreadingActor):
    """A Pykka actor that knows nothing of this library."""

    use_daemon_thread = True

    def on_receive(self, message: Any) -> Any:
        if message == Say("fail"):
            raise ValueError("told to fail")
        return message


class Pair:
    """Two nodes, a speaker at alice, and its ref at bob."""

    def __init__(self) -> None:
        self.alice = ExchangeNode("alice", serve_directory="tcp://127.0.0.1:0")
        self.bob = ExchangeNode("bob", directory=str(self.alice.directory_address))
        self.started: list[pykka.ActorRef[Any]] = []
        self.speaker = self.start(Speaker)
        self.serve("speaker", self.speaker)
        self.ref = self.bob.actor("speaker@alice", timeout=20)

    def start(self, kind: type[pykka.ThreadingActor] = Speaker) -> pykka.ActorRef[Any]:
        self.started.append(kind.start())
        return self.started[-1]

    def serve(self, name: str, ref: pykka.ActorRef[Any]) -> None:
        self.alice.register(name, ref, accepts=[Say, Blob])

    def actor(self) -> Speaker:
        found = self.speaker._actor_weakref()
        assert isinstance(found, Speaker)
        return found

    def cut(self) -> None:
        """End the link; it comes back by itself."""
        self.bob.group.links.up[self.alice.node_id].link.reset("for the test")

    def close(self) -> None:
        self.actor_may_go()
        self.bob.close()
        self.alice.close()
        for ref in self.started:
            ref.stop(block=False)

    def actor_may_go(self) -> None:
        with contextlib.suppress(AssertionError):
            self.actor().go.set()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def fill(ref: RemoteRef) -> int:
    """Tell until there is no room; return how many were taken."""
    for taken in itertools.count():
        try:
            ref.tell(Blob(bytes(10_000)), timeout=0)
        except Overloaded as error:
            return taken if error.code == "window_full" else -1
    raise AssertionError


def code_of(call: Callable[[], object], kind: type[OpenOutcryError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return caught.value.code


# -- telling and asking ---------------------------------------------------------------------------------------------


def test_actor_is_reached_by_its_nodes_name_by_its_id_and_through_the_directory_from_any_node(pair: Pair) -> None:
    for address in ("speaker@alice", f"speaker@{pair.alice.node_id}", pair.ref.address, "speaker"):
        for node in (pair.alice, pair.bob):
            ref = node.wait_actor(address)
            assert ref == pair.ref
            assert ref.ask(Say(address)) == Say(address)
    assert pair.ref.accepts == ("test.say/1", "test.blob/1")
    assert len({pair.ref, pair.bob.actor("speaker")}) == 1


def test_bare_name_is_found_at_the_node_that_is_linked_though_another_that_is_not_has_it_too(pair: Pair) -> None:
    nodes = ["aaa.1", pair.alice.node_id, "zzz.1"]
    started_s = time.monotonic()
    assert pair.bob.group.remote.find("speaker", 20.0, lambda *_: nodes) == pair.ref
    assert time.monotonic() - started_s < 10


def test_bare_name_is_found_at_another_node_when_the_first_has_used_up_its_share_of_the_time(bench: Bench) -> None:
    bench.remote.link_up(PeerUp("silent.1", "silent", Wire(5, 50)))  # type: ignore[arg-type]
    bench.up(7, 80)
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def find() -> None:
        found.put(bench.remote.find("feed", 6.0, lambda *_: ["unlinked.1", "silent.1", "alice.1"]))

    finding = threading.Thread(target=find)
    finding.start()
    eventually(lambda: bench.wire.frames, "alice is asked")
    _, request, name = CODEC.decode(bench.wire.frames[0]).items[0]
    bench.receive(80, (FOUND, request, 5, name, ()))
    finding.join()
    assert found.get(timeout=1).node == "alice.1"


def test_messages_of_each_sender_arrive_once_and_in_order_far_beyond_one_window(pair: Pair) -> None:
    senders, count = 4, 3000
    assert senders * count * 256 > 2 * WINDOW_SIZE

    def send(sender: int) -> None:
        for number in range(count):
            pair.ref.tell(Say(str(sender), number), timeout=30)
        assert pair.ref.ask(Say(str(sender), count), timeout=30) == Say(str(sender), count)

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = pair.actor().heard
    assert len(heard) == senders * (count + 1)
    for sender in range(senders):
        assert [m.number for m in heard if m.what == str(sender)] == list(range(count + 1))


class Wire:
    """A link that is up, and sends nothing by itself."""

    def __init__(self, session: int, their_session: int) -> None:
        self.session = session
        self.their_session = their_session
        self.frames: list[bytes] = []
        self.takes: list[Callable[[], bytes | None]] = []
        self.busy = False
        self.send = self.frames.append
        self.send_next = self.takes.append
        self.resets: list[str] = []
        self.reset = self.resets.append

    def up(self) -> PeerUp:
        return PeerUp("alice.1", "alice", self)  # type: ignore[arg-type]


def test_tells_that_queue_up_travel_in_one_frame_and_an_ask_behind_them() -> None:
    wire = Wire(7, 8)
    link = RemoteLink(None, wire.up(), "alice.1", "alice")  # type: ignore[arg-type]
    ref = RemoteRef(None, "alice.1", "alice", "speaker", 5, {})  # type: ignore[arg-type]
    for number in range(100):
        link.send(ref, (TELL, 5, "test.say/1", bytes(number)), 0)
    link.ask(ref, "test.say/1", b"", 1)
    (take,) = wire.takes
    frame = take()
    assert frame is not None
    parcel = CODEC.decode(frame)
    assert parcel.session == 7
    tells = [(TELL, 5, "test.say/1", bytes(number)) for number in range(100)]
    assert parcel.items == ((WATCH, 5), *tells, (ASK, 5, "test.say/1", b"", 1))
    assert take() is None
    link.ask(ref, "test.say/1", b"", 1)
    assert CODEC.decode(wire.frames[0]).items == ((ASK, 5, "test.say/1", b"", 2),), "nothing waits: it goes at once"
    link.close(Closed("the end"))


def test_a_frame_does_not_overtake_items_queued_before(actor_probe: ActorProbe) -> None:
    outlet = Outlet()
    link = Link(7, 8, outlet, actor_probe.ref, LinkMeters())  # type: ignore[arg-type]
    link.send(b"first")
    link.send_next(lambda: b"second")
    link.send(b"third")
    actor_probe.expect_sequence(SendNext, SendFrame)
    assert outlet.frames == [b"first"]
    link.sent(b"second")
    link.sent()
    link.send(b"fourth")
    assert outlet.frames == [b"first", b"fourth"]


@pytest.mark.parametrize("kind", [ASK, REPLY])
def test_later_messages_do_not_overtake_a_large_item_sent_at_once(actor_probe: ActorProbe, kind: int) -> None:
    outlet = Outlet()
    wire = Link(7, 8, outlet, actor_probe.ref, LinkMeters())  # type: ignore[arg-type]
    link = RemoteLink(None, PeerUp("alice.1", "alice", wire), "alice.1", "alice")  # type: ignore[arg-type]
    ref = RemoteRef(None, "alice.1", "alice", "speaker", 5, {})  # type: ignore[arg-type]
    link._follow(5)
    take = actor_probe.expect(SendNext).take
    assert take()
    wire.sent(b"")
    link._received[6] = 300
    link.credit(6, 300)
    if kind == ASK:
        link.ask(ref, "test.blob/1", bytes(PARCEL_SIZE), 1)
    else:
        link.reply((REPLY, 1, "", "", bytes(PARCEL_SIZE)))
    link.send(ref, (TELL, 5, "test.say/1", b""), 0)
    frames = [*outlet.frames, actor_probe.expect(SendNext).take()]
    actor_probe.expect_none(0)
    items = [[item[0] for item in CODEC.decode(frame).items] for frame in frames if frame]
    assert items == [[kind], [CREDIT, TELL]]
    link.close(Closed("the end"))


class Outlet:
    """Takes every frame at once."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_nowait(self, frame: bytes) -> bool:
        self.frames.append(frame)
        return True


def test_future_of_an_ask_is_pykkas_with_a_time_of_its_own(pair: Pair) -> None:
    future = pair.ref.ask(Say("a"), block=False)
    assert future.map(lambda answer: answer.what).get(timeout=5) == "a"
    assert pykka.get_all([future, pair.ref.ask(Say("b"), block=False)], timeout=5) == [Say("a"), Say("b")]
    slow = pair.ref.ask(Say("wait"), block=False, timeout=0.3)
    with pytest.raises(pykka.Timeout):
        slow.get(timeout=0.01)
    assert code_of(slow.get, RequestTimeout) == "timeout"


def test_plain_pykka_actor_is_served_too(pair: Pair) -> None:
    plain = pair.start(Plain)
    pair.serve("plain", plain)
    assert pair.alice.status().actors == ("plain", "speaker")
    ref = pair.bob.actor("plain@alice")
    assert ref.ask(Say("hello")) == Say("hello")
    with pytest.raises(RemoteFailure, match="ValueError: told to fail"):
        ref.ask(Say("fail"))
    for number in range(20_000):
        ref.tell(Say("on", number), timeout=30)
    assert ref.ask(Say("end"), timeout=30) == Say("end")


def test_node_with_markets_and_one_without_share_actors_but_no_market(exchange: Any) -> None:
    net = exchange(nodes=1)
    with ExchangeNode("pure", directory=net.directory_address) as pure:
        refs = Speaker.start(), Speaker.start()
        net[0].register("here", refs[0], accepts=[Say])
        pure.register("there", refs[1], accepts=[Say])
        assert pure.actor("here@node-0", timeout=20).ask(Say("x")) == Say("x")
        assert net[0].actor("there@pure", timeout=20).ask(Say("y")) == Say("y")
        with pytest.raises(ConfigurationError) as caught:
            pure.open_market("BTC-USD", MarketRules())
        assert caught.value.code == "no_coordinator"
        for ref in refs:
            ref.stop()


# -- errors ---------------------------------------------------------------------------------------------------------


def test_each_failure_has_its_error_and_code(pair: Pair) -> None:
    bob, ref = pair.bob, pair.ref
    assert code_of(lambda: bob.actor("nobody@alice"), UnknownActor) == "unknown_actor"
    assert code_of(lambda: bob.actor("nobody"), UnknownActor) == "unknown_actor"
    assert code_of(lambda: bob.actor("speaker@carol", timeout=0.05), Unreachable) == "unreachable"
    assert code_of(lambda: bob.wait_actor("nobody@alice", timeout=0.5), UnknownActor) == "unknown_actor"
    for address in ("", "@alice", "a" * 65 + "@alice", "new\nline@alice"):
        assert code_of(lambda address=address: bob.actor(address), InvalidRequest) == "invalid_actor_name"
    assert code_of(lambda: ref.tell("no message"), MessageRefused) == "message_refused"
    assert code_of(lambda: ref.tell(Other()), MessageRefused) == "message_refused"
    assert code_of(lambda: ref.ask(Say("x", "one")), MessageRefused) == "message_refused"  # type: ignore[arg-type]
    assert code_of(lambda: ref.tell(Blob(bytes(MESSAGE_SIZE_MAX))), MessageRefused) == "message_too_large"
    assert code_of(lambda: ref.ask(Say("fail")), RemoteFailure) == "remote_failure"
    assert code_of(lambda: ref.ask(Say("refuse")), RemoteFailure) == "busy"
    assert code_of(lambda: ref.ask(Say("answer badly")), RemoteFailure) == "reply_refused"
    assert code_of(lambda: ref.ask(Say("x"), timeout=-1), InvalidRequest) == "invalid_timeout"
    assert pair.speaker.is_alive()
    assert [message for message in pair.actor().heard if not isinstance(message, Say)] == []


def test_changed_message_without_a_new_version_is_refused_at_the_sender(pair: Pair) -> None:
    changed = RemoteRef(
        pair.bob.group.remote, pair.ref.node, "alice", "speaker", pair.ref.actor_id, {"test.say/1": "0" * 12}
    )
    with pytest.raises(MessageRefused, match="other fields at alice"):
        changed.tell(Say("x"))


def test_registration_is_checked(pair: Pair) -> None:
    with pytest.raises(ConfigurationError) as caught:
        pair.serve("speaker", pair.speaker)
    assert caught.value.code == "actor_registered"
    for name in ("", "a@b", "x" * 65, 5):
        with pytest.raises(InvalidRequest):
            pair.serve(name, pair.speaker)  # type: ignore[arg-type]
    with pytest.raises(MessageRefused, match="not registered"):
        pair.alice.register("other", pair.speaker, accepts=[dict])


def test_registering_a_non_actor_or_a_non_list_is_refused_with_a_code(pair: Pair, actor_probe: ActorProbe) -> None:
    wrong: Any = object()
    calls: list[Callable[[], object]] = [
        lambda: pair.bob.watch(pair.ref, wrong),
        lambda: pair.bob.watch(wrong, actor_probe.ref),
        lambda: pair.bob.unwatch(wrong, actor_probe.ref),
        lambda: pair.ref.watch(wrong),
        lambda: pair.serve("other", wrong),
    ]
    assert [code_of(call, InvalidRequest) for call in calls] == ["invalid_actor_ref"] * len(calls)
    for accepts in (Say, 5):
        assert code_of(lambda a=accepts: pair.alice.register("x", pair.speaker, accepts=a), InvalidRequest)
    assert code_of(lambda: pair.bob.actor(5), InvalidRequest) == "invalid_actor_name"  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        ExchangeNode(5)  # type: ignore[arg-type]


def test_time_out_names_the_time_that_was_asked_for(pair: Pair) -> None:
    pair.ref.tell(Say("wait"))
    with pytest.raises(RequestTimeout, match="within 0 s"):
        pair.ref.ask(Say("x"), timeout=0)


def test_sender_waits_for_a_slow_actor_then_is_refused_and_nothing_that_was_taken_is_lost(pair: Pair) -> None:
    pair.ref.tell(Say("wait"))
    taken = 1 + fill(pair.ref)
    assert WINDOW_SIZE * 0.9 < (taken - 1) * 10_000 < WINDOW_SIZE
    with pytest.raises(Overloaded):
        pair.ref.ask(Blob(bytes(10_000)), timeout=0.05)
    waiting = threading.Thread(target=lambda: pair.ref.tell(Blob(bytes(10_000)), timeout=20))
    waiting.start()
    pair.actor().go.set()
    waiting.join(20)
    assert not waiting.is_alive()
    assert pair.ref.ask(Say("last"), timeout=20) == Say("last")
    assert len(pair.actor().heard) == taken + 2


def test_slow_actor_does_not_hold_up_another_of_its_node(pair: Pair) -> None:
    pair.serve("other", pair.start(Speaker))
    other = pair.bob.actor("other@alice")
    pair.ref.tell(Say("wait"))
    fill(pair.ref)
    assert other.ask(Say("quick")) == Say("quick")


# -- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Speaker, Plain])
@pytest.mark.parametrize("end", ["stop", "fail", "unregister"])
@pytest.mark.parametrize("where", ["bob", "alice"])
def test_the_end_of_an_actor_notifies_watchers_once_and_is_raised_in_senders(
    pair: Pair, actor_probe: ActorProbe, kind: Any, end: str, where: str
) -> None:
    actor = pair.start(kind)
    pair.serve("mortal", actor)
    node: ExchangeNode = getattr(pair, where)
    ref = node.actor("mortal@alice")
    node.watch(ref, actor_probe.ref)
    other = actor_probe.another()
    node.watch(ref, other.ref)
    node.unwatch(ref, other.ref)
    if end == "stop":
        actor.stop()
    elif end == "fail":
        actor.tell(Say("fail"))
    else:
        assert pair.alice.unregister("mortal")
        assert not pair.alice.unregister("mortal")
    told = actor_probe.expect(Terminated)
    # Pykka does not say of a plain actor how it has ended.
    expected = {"stop": "stopped", "unregister": "unregistered", "fail": "failed" if kind is Speaker else "stopped"}
    assert (told.ref, told.reason) == (ref, expected[end])
    assert code_of(lambda: ref.tell(Say("x")), ActorStopped) == "actor_stopped"
    assert code_of(lambda: ref.ask(Say("x")), ActorStopped) == "actor_stopped"
    assert code_of(lambda: node.actor("mortal@alice"), UnknownActor) == "unknown_actor"
    node.watch(ref, actor_probe.ref)
    assert actor_probe.expect(Terminated).reason == told.reason
    pair.serve("mortal", pair.start())
    assert node.actor("mortal@alice") != ref
    assert node.actor("mortal@alice").ask(Say("anew")) == Say("anew")
    actor_probe.expect_none()
    other.expect_none(0)


def test_a_failure_with_unencodable_text_is_reported_and_the_link_stays_up(pair: Pair, actor_probe: ActorProbe) -> None:
    pair.serve("other", pair.start())
    other = pair.bob.actor("other@alice")
    pair.bob.watch(pair.ref, actor_probe.ref)
    pair.speaker.tell(Say("fail in no encoding"))
    told = actor_probe.expect(Terminated)
    assert (told.reason, told.detail) == ("failed", "ValueError: a lone surrogate: ?")
    assert other.ask(Say("still here")) == Say("still here")


class Unnotifiable:
    """An inbox that takes nothing."""

    def put(self, envelope: Any) -> None:
        del envelope
        raise RuntimeError("broken inbox")


def test_a_watcher_that_cannot_be_notified_does_not_keep_others_from_it(pair: Pair, actor_probe: ActorProbe) -> None:
    broken = pair.start(Plain)
    broken.actor_inbox = Unnotifiable()  # type: ignore[assignment]
    pair.bob.watch(pair.ref, broken)
    pair.bob.watch(pair.ref, actor_probe.ref)
    pair.cut()
    assert actor_probe.expect(Terminated).reason == "unreachable"
    assert pair.bob.wait_actor("speaker@alice").ask(Say("again")) == Say("again")
    pair.started.remove(broken)
    actor = broken._actor_weakref()
    assert actor is not None
    actor.actor_inbox.put(Envelope(_ActorStop()))


def test_watchers_that_ended_and_watches_that_were_taken_back_leave_nothing_behind(
    pair: Pair, actor_probe: ActorProbe
) -> None:
    for watched in (pair.ref, pair.speaker, pair.start(Plain)):
        for _ in range(40):
            pair.bob.watch(watched, actor_probe.ref)
            pair.bob.unwatch(watched, actor_probe.ref)
            gone = Speaker.start()
            pair.bob.watch(watched, gone)
            gone.stop()
    for number in range(40):
        pair.serve(f"name-{number}", pair.speaker)
        pair.alice.unregister(f"name-{number}")
    link = pair.bob.group.remote._links[pair.alice.node_id]
    assert len(link._watchers[pair.ref.actor_id]) <= 2
    mailbox = pair.speaker.actor_inbox
    assert isinstance(mailbox, Mailbox)
    assert len(mailbox._watchers) <= 3, "its one registration, and at most two watchers that ended just now"
    assert all(len(entries) <= 2 for entries in pair.bob.group.remote._local_watches.values())
    watchman = pair.bob.group.remote._watchman
    assert watchman is not None
    waiting = watchman._actor_weakref()._watched  # type: ignore[union-attr]
    eventually(lambda: all(len(told) <= 2 for _, told in list(waiting.values())), "the watchman lets go")


def test_local_actor_can_be_watched_without_being_registered(pair: Pair, actor_probe: ActorProbe) -> None:
    for kind, reason in ((Speaker, "failed"), (Plain, "stopped")):
        ref = pair.start(kind)
        pair.bob.watch(ref, actor_probe.ref)
        ref.tell(Say("fail"))
        told = actor_probe.expect(Terminated)
        assert (told.ref, told.reason) == (ref, reason)
    actor_probe.expect_none()


def test_stop_answers_callers_that_wait_for_a_reply_or_for_room(pair: Pair) -> None:
    pair.ref.tell(Say("wait"))
    asked = pair.ref.ask(Say("later"), block=False, timeout=20)
    fill(pair.ref)
    failed: list[OpenOutcryError] = []

    def send() -> None:
        try:
            pair.ref.tell(Blob(bytes(200_000)), timeout=20)
        except OpenOutcryError as error:
            failed.append(error)

    waiting = threading.Thread(target=send)
    waiting.start()
    pair.alice.unregister("speaker")
    waiting.join(10)
    assert [type(error) for error in failed] == [ActorStopped]
    assert code_of(asked.get, ActorStopped) == "actor_stopped"


def test_actor_that_stops_with_asks_in_its_mailbox_answers_them(pair: Pair) -> None:
    pair.ref.tell(Say("wait"))
    pair.ref.tell(Say("fail"))
    asks = [pair.ref.ask(Say("unheard", number), block=False) for number in range(20)]
    pair.actor().go.set()
    for ask in asks:
        assert code_of(ask.get, ActorStopped) == "actor_stopped"


def test_cut_link_ends_watches_and_asks_and_the_ref_works_again_when_it_is_back(
    pair: Pair, actor_probe: ActorProbe
) -> None:
    pair.bob.watch(pair.ref, actor_probe.ref)
    asked = pair.ref.ask(Say("wait"), block=False, timeout=20)
    pair.cut()
    told = actor_probe.expect(Terminated)
    assert (told.ref, told.reason) == (pair.ref, "unreachable")
    assert code_of(asked.get, Unreachable) == "unreachable"
    pair.actor().go.set()

    def again() -> bool:
        try:
            return bool(pair.ref.ask(Say("again")) == Say("again"))
        except Unreachable:
            return False

    eventually(again, "the link is back")
    actor_probe.expect_none()
    pair.bob.watch(pair.ref, actor_probe.ref)
    pair.speaker.stop()
    assert actor_probe.expect(Terminated).reason == "stopped"


def test_node_that_closes_is_unreachable_to_others_and_closed_to_itself(pair: Pair, actor_probe: ActorProbe) -> None:
    pair.bob.watch(pair.ref, actor_probe.ref)
    own = pair.alice.actor("speaker@alice")
    pair.alice.watch(own, actor_probe.another().ref)
    pair.alice.close()
    assert actor_probe.expect(Terminated, within=10).reason == "unreachable"
    assert actor_probe._others[0].expect(Terminated).reason == "unreachable"
    assert code_of(lambda: own.tell(Say("x")), Closed) == "closed"
    assert code_of(lambda: pair.alice.actor("speaker@alice"), Closed) == "closed"
    assert pair.speaker.is_alive(), "it is the application's"


def serve_until_killed(directory: str) -> None:
    node = ExchangeNode("mortal", directory=directory)
    node.register("speaker", Speaker.start(), accepts=[Say])
    threading.Event().wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_watchers_are_notified_once_when_a_process_dies_or_hangs(
    pair: Pair, actor_probe: ActorProbe, how: signal.Signals
) -> None:
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=serve_until_killed, args=(pair.alice.directory_address,), daemon=True)
    process.start()
    try:
        ref = pair.bob.wait_actor("speaker@mortal")
        pair.bob.watch(ref, actor_probe.ref)
        asked = ref.ask(Say("hello"), block=False)
        assert asked.get() == Say("hello")
        assert process.pid is not None
        os.kill(process.pid, how)
        told = actor_probe.expect(Terminated, within=10)
        assert (told.ref, told.reason) == (ref, "unreachable")
        assert code_of(lambda: ref.tell(Say("x")), Unreachable) == "unreachable"
        actor_probe.expect_none()
    finally:
        process.kill()
        process.join(10)


def test_messages_sent_before_a_node_closes_arrive(pair: Pair) -> None:
    for number in range(500):
        pair.ref.tell(Say("last words", number))
    pair.bob.close()
    eventually(lambda: len(pair.actor().heard) == 500, "all of it arrives")


# -- what a peer may send -------------------------------------------------------------------------------------------


class Bench:
    """The remote actors of one node, without the node: parcels are put in by hand."""

    def __init__(self, probe: ActorProbe) -> None:
        self.wire = Wire(0, 0)
        self.remote = RemoteActors(
            "bob.1", "bob", timeout_s=lambda t: t or 1.0, announce=lambda *_: None, report=lambda _: None
        )
        self.probe = probe
        self.remote.register("probe", probe.ref, [Say])
        (self.actor_id,) = self.remote._served

    def up(self, session: int, their_session: int) -> None:
        self.wire = Wire(session, their_session)
        self.remote.link_up(self.wire.up())

    def receive(self, session: int, *items: Any) -> None:
        self.remote.receive("alice.1", Parcel(session, items))

    def tell(self, what: str) -> Any:
        return (TELL, self.actor_id, "test.say/1", type_of(Say).encode(Say(what)))

    def sent(self) -> Any:
        frames = [*self.wire.frames, *[frame for take in self.wire.takes if (frame := take())]]
        self.wire.frames.clear()
        self.wire.takes.clear()
        return [item for frame in frames for item in CODEC.decode(frame).items]


@pytest.fixture
def bench(actor_probe: ActorProbe) -> Iterator[Bench]:
    made = Bench(actor_probe)
    yield made
    made.remote.close()


def test_parcels_count_only_in_the_life_of_the_link_that_they_were_sent_in(bench: Bench) -> None:
    bench.receive(70, bench.tell("of an earlier life"))
    bench.receive(80, bench.tell("early"))
    bench.probe.expect_none(0.05)
    bench.up(7, 80)
    assert bench.probe.expect(Say).what == "early"
    bench.receive(80, bench.tell("now"))
    assert bench.probe.expect(Say).what == "now"
    bench.remote.link_down("alice.1")
    bench.receive(80, bench.tell("late"))
    bench.up(9, 90)
    bench.receive(80, bench.tell("later"))
    bench.receive(90, bench.tell("of the new life"))
    assert bench.probe.expect(Say).what == "of the new life"


def test_message_that_gets_past_a_senders_checks_is_refused_here_and_ends_nothing(bench: Bench) -> None:
    bench.up(7, 80)
    other = type_of(Other)
    for key, body in ((other.key, other.encode(Other())), ("test.say/1", b"\xc0"), ("test.say/1", b"\x92\x01\x01")):
        bench.receive(80, (TELL, bench.actor_id, key, body))
        bench.receive(80, (2, bench.actor_id, key, body, 5))
        replies = [item[1:3] for item in bench.sent() if item[0] == REPLY]
        assert replies == [(5, "message_refused")]
    assert bench.remote.refused == 6
    bench.receive(80, bench.tell("good"))
    assert bench.probe.expect(Say).what == "good"


@pytest.fixture
def picky() -> Iterator[Callable[[], None]]:
    """Have no Picky made on this thread from the call on, up to the end of the test."""
    yield lambda: setattr(HERE, "refuses", True)
    HERE.refuses = False


def test_message_that_cannot_be_made_here_is_refused_and_costs_the_others_nothing(
    bench: Bench, actor_probe: ActorProbe, picky: Callable[[], None]
) -> None:
    other = actor_probe.another()
    bench.remote.register("other", other.ref, [Picky])
    bench.up(7, 80)
    kind = type_of(Picky)
    body = kind.encode(Picky(1))
    picky()
    actor = bench.remote._names["other"].actor_id
    bench.receive(80, (TELL, actor, kind.key, body), (ASK, actor, kind.key, body, 5), bench.tell("behind them"))
    assert bench.probe.expect(Say).what == "behind them"
    link = bench.remote._links["alice.1"]
    with link._changed:
        link._put_credit()
    items = bench.sent()
    assert [item[1:3] for item in items if item[0] == REPLY] == [(5, "message_refused")]
    assert b"too late" in next(item[4] for item in items if item[0] == REPLY)
    assert sum(item[2] for item in items if item[0] == CREDIT and item[1] == actor) == 2 * (len(body) + 256)
    assert bench.remote.refused == 2
    other.expect_none(0)


def test_an_asker_gets_an_error_for_an_answer_that_cannot_be_decoded(bench: Bench, picky: Callable[[], None]) -> None:
    bench.up(7, 80)
    body = type_of(Picky).encode(Picky(1))
    ref = RemoteRef(bench.remote, "alice.1", "alice", "x", 5, {})
    asks = [bench.remote._links["alice.1"].ask(ref, "k", b"", 10) for _ in range(2)]
    picky()
    bench.receive(80, (REPLY, 1, "", "test.picky/1", body), (REPLY, 2, "", "", b"\x07"))
    assert code_of(asks[0].get, MessageRefused) == "reply_refused"
    assert asks[1].get() == 7


def test_message_that_cannot_be_made_costs_a_nodes_link_to_itself_nothing(
    pair: Pair, picky: Callable[[], None]
) -> None:
    pair.alice.register("picky", pair.start(), accepts=[Picky, Say])
    own = pair.alice.actor("picky@alice")
    late = Picky(1)
    picky()
    own.tell(late)
    assert code_of(lambda: own.ask(late, timeout=5), MessageRefused) == "message_refused"
    assert own.ask(Say("still here"), timeout=5) == Say("still here")


def test_nodes_link_to_itself_lives_on_after_what_nobody_foresaw(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    own = pair.alice.actor("speaker@alice")

    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(pair.alice.group.remote, "named", fail)
    with pytest.raises(RuntimeError):
        pair.alice.actor("speaker@alice")
    monkeypatch.undo()
    assert pair.alice.actor("speaker@alice", timeout=5) == own
    assert own.ask(Say("still here"), timeout=5) == Say("still here")


def test_actor_whose_inbox_takes_nothing_costs_the_others_nothing(bench: Bench, actor_probe: ActorProbe) -> None:
    broken = Plain.start()
    inbox, broken.actor_inbox = broken.actor_inbox, Unnotifiable()  # type: ignore[assignment]
    bench.remote.register("broken", broken, [Say])
    bench.up(7, 80)
    actor = bench.remote._names["broken"].actor_id
    _, _, key, body = bench.tell("x")
    bench.receive(80, (ASK, actor, key, body, 5), bench.tell("behind it"))
    assert actor_probe.expect(Say).what == "behind it"
    assert [item[1:3] for item in bench.sent() if item[0] == REPLY] == [(5, "remote_failure")]
    broken.actor_inbox = inbox
    broken.stop()


def test_message_to_an_actor_that_is_not_served_is_answered_by_its_end(bench: Bench) -> None:
    bench.up(7, 80)
    bench.receive(80, (WATCH, 12345), (TELL, 12345, "test.say/1", b""), (2, 12345, "test.say/1", b"", 9))
    items = bench.sent()
    assert (GONE, 12345, "stopped", "") in items
    assert [item[:3] for item in items if item[0] == REPLY] == [(REPLY, 9, "actor_stopped")]


def test_answers_credits_and_ends_that_nobody_waits_for_are_passed_over(bench: Bench) -> None:
    bench.up(7, 80)
    bench.receive(80, (3, 99, "", "", b"\xc0"), (8, 99, 5), (GONE, 99, "stopped", ""), (5, 99, 1, "probe", ()))
    bench.receive(80, bench.tell("good"))
    assert bench.probe.expect(Say).what == "good"


def test_actor_that_ends_while_it_is_found_is_known_to_have_ended(bench: Bench) -> None:
    bench.up(7, 80)
    link = bench.remote._links["alice.1"]
    found = bench.remote.named("probe", link)
    assert found is not None
    bench.remote.named = lambda *_: bench.remote.unregister("probe") and found  # type: ignore[method-assign]
    bench.receive(80, (FIND, 1, "probe"))
    kinds = [item[0] for item in bench.sent() if item[0] in (FOUND, GONE)]
    assert kinds.index(FOUND) < len(kinds) - 1
    assert kinds[-1] == GONE


def test_queue_lengths_can_be_read_while_a_link_searches_for_an_actor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = bench.remote._own
    depths = own.depths

    def contended() -> tuple[int, int, int]:
        asking = threading.Thread(target=lambda: bench.remote.watched(bench.actor_id, own))
        asking.start()
        asking.join(5)
        assert not asking.is_alive(), "the link would hold its own lock: the two are always taken in one order"
        return depths()

    monkeypatch.setattr(own, "depths", contended)
    assert set(bench.remote.queues()) == {"remote_outbox_bytes", "remote_asks", "remote_window_bytes"}
    monkeypatch.undo()
    bench.remote.close()
    assert bench.remote.queues()["remote_asks"][0] == 0, "metrics may be read of a node that is closed"


def test_item_that_cannot_be_encoded_costs_neither_the_others_nor_the_link(bench: Bench) -> None:
    bench.up(7, 80)
    link = bench.remote._links["alice.1"]
    with link._changed:
        for item in ((WATCH, 1), (GONE, 2, "failed", "\udc80"), (WATCH, 3)):
            link._put(item)
    assert bench.sent() == [(WATCH, 1), (WATCH, 3)]
    with link._changed:
        link._put((GONE, 2, "failed", "\udc80"))
    assert bench.sent() == []


def test_ask_beyond_the_bound_of_asks_takes_no_room_in_the_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openoutcry.actors.remote.link.ASKS_MAX", 1030)
    bench.up(7, 80)
    link = bench.remote._links["alice.1"]
    ref = RemoteRef(bench.remote, "alice.1", "alice", "x", 5, {})
    asks = [link.ask(ref, "k", b"", 60) for _ in range(1030)]
    under_way = link._under_way[5]
    for _ in range(3):
        with pytest.raises(Overloaded, match="unanswered"):
            link.ask(ref, "k", b"", 60)
    assert link._under_way[5] == under_way
    assert len(asks) == len(link._asks)


@pytest.mark.parametrize(
    "items",
    [(), ((),), (1,), ((1,),), ((1, 0, "x", b""),), ((1, 5, "x", "text"),), ((True, 5),), ((9, 5),), ((6, 5, 5),),
     ((7, 5, "", ""),), ((8, 5, 0),), ((8, 5, -1),), ((1, 5, "x", bytes(MESSAGE_SIZE_MAX + 1)),), ((4, 1, "x" * 65),)],
)  # fmt: skip
def test_malformed_parcel_costs_its_sender_the_link(items: Any) -> None:
    frame = CODEC.encode(Parcel(1, items))
    with pytest.raises(OpenOutcryError) as caught:
        CODEC.decode(frame)
    assert caught.value.code == "protocol"


def test_node_that_sends_an_actor_more_than_its_window_loses_the_link(bench: Bench, actor_probe: ActorProbe) -> None:
    slow = Speaker.start()
    bench.remote.register("slow", slow, [Say, Blob])
    bench.up(7, 80)
    actor = bench.remote._names["slow"].actor_id
    bench.receive(80, (WATCH, actor))
    wait = type_of(Say).encode(Say("wait"))
    body = type_of(Blob).encode(Blob(bytes(10_000)))
    cost = len(body) + MESSAGE_OVERHEAD
    bench.receive(80, (TELL, actor, "test.say/1", wait))
    speaker = slow._actor_weakref()
    assert isinstance(speaker, Speaker)
    eventually(lambda: speaker.heard, "the first message has been taken")
    whole = WINDOW_SIZE // cost
    for _ in range(whole):
        bench.receive(80, (TELL, actor, "test.blob/1", body))
    with pytest.raises(ProtocolError, match="window"):
        bench.receive(80, (TELL, actor, "test.blob/1", body))
    bench.receive(80, bench.tell("to another"))
    assert actor_probe.expect(Say).what == "to another"
    speaker.go.set()
    eventually(lambda: len(speaker.heard) == whole + 1, "the rest has been taken")
    for _ in range(whole):
        bench.receive(80, (TELL, actor, "test.blob/1", body))
    eventually(lambda: len(speaker.heard) == 2 * whole + 1, "there is room again")
    link = bench.remote._links["alice.1"]
    bench.remote.unregister("slow")
    assert not [counts for counts in (link._received, link._taken_out, link._owed) if actor in counts]
    slow.stop()


def test_node_that_asks_on_and_takes_no_answers_loses_the_link(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 100_000
    monkeypatch.setattr("openoutcry.actors.remote.link.OUTBOX_SIZE_MAX", bound)
    bench.up(7, 80)
    bench.wire.busy = True
    asked, body = 0, type_of(Other).encode(Other())  # each is refused, with an answer
    while not bench.wire.resets:
        assert asked < 10_000, "answers wait without end"
        bench.receive(80, *[(ASK, bench.actor_id, "test.other/1", body, asked + number) for number in range(1, 101)])
        asked += 100
    assert not bench.wire.frames, "what would wait at the link waits here, where it is counted"
    link = bench.remote._links["alice.1"]
    assert 2 * bound < link._answers_size < 3 * bound
    assert len(bench.wire.resets) == 1
    bench.sent()
    while link._waiting:
        link._taken()
    assert link._answers_size == link._waiting_size == 0


def test_messages_that_are_refused_take_no_room_in_the_window(bench: Bench) -> None:
    bench.up(7, 80)
    for _ in range(2 * WINDOW_SIZE // 50_000):
        bench.receive(80, (TELL, bench.actor_id, "no such type", bytes(50_000)))
    bench.receive(80, bench.tell("good"))
    assert bench.probe.expect(Say).what == "good"


def test_what_nobody_looked_for_is_not_remembered(bench: Bench) -> None:
    bench.up(7, 80)
    link = bench.remote._links["alice.1"]
    for request in range(1, 100):
        bench.receive(80, (FOUND, request, request, "probe", ()))
    assert not link._watchers
    assert not link._under_way
    future = link.find("probe", 10)
    bench.receive(80, (FOUND, 1, 5, "probe", ()))
    assert future.get().actor_id == 5
    assert list(link._watchers) == list(link._under_way) == [5]


@pytest.mark.parametrize("answer", ["REPLY to FIND", "FOUND another", "FOUND to ASK", "FOUND to ASK of no such actor"])
def test_answer_of_another_kind_than_was_asked_for_costs_the_link_and_answers_nobody(bench: Bench, answer: str) -> None:
    bench.up(7, 80)
    link = bench.remote._links["alice.1"]
    ref = RemoteRef(bench.remote, "alice.1", "alice", "probe", 5, {})
    wrong: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
        "REPLY to FIND": (lambda: link.find("probe", 10), (REPLY, 1, "", "", b"\xc0")),
        "FOUND another": (lambda: link.find("probe", 10), (FOUND, 1, 5, "other", ())),
        "FOUND to ASK": (lambda: link.ask(ref, "test.say/1", b"", 10), (FOUND, 1, 5, "probe", ())),
        "FOUND to ASK of no such actor": (lambda: link.ask(ref, "test.say/1", b"", 10), (FOUND, 1, 6, "5", ())),
    }
    ask, item = wrong[answer]
    future = ask()
    with pytest.raises(ProtocolError, match="answer"):
        bench.receive(80, item)
    with pytest.raises(pykka.Timeout):
        future.get(timeout=0)
    bench.remote.link_down("alice.1")  # as the inbox sees to, and as who waits is told by
    assert code_of(future.get, Unreachable) == "unreachable"


def test_error_is_an_answer_to_a_search_and_to_an_ask(bench: Bench) -> None:
    bench.up(7, 80)
    link = bench.remote._links["alice.1"]
    ref = RemoteRef(bench.remote, "alice.1", "alice", "probe", 5, {})
    for request, future in enumerate((link.find("probe", 10), link.ask(ref, "test.say/1", b"", 10)), 1):
        bench.receive(80, (REPLY, request, "overloaded", "", b"later"))
        assert code_of(future.get, Overloaded) == "overloaded"


def test_parcels_received_before_the_link_is_up_are_bounded_in_bytes(bench: Bench) -> None:
    for number in range(1000):  # as when many look for an actor while its node starts
        bench.receive(80, (FIND, number + 1, "probe"))
    bench.up(7, 80)
    assert len([item for item in bench.sent() if item[0] == FOUND]) == 1000
    bench.remote.link_down("alice.1")
    large = (TELL, bench.actor_id, "test.blob/1", bytes(MESSAGE_SIZE_MAX))
    for _ in range(EARLY_SIZE_MAX // (MESSAGE_SIZE_MAX + 1000)):
        bench.receive(90, large)
    with pytest.raises(ProtocolError, match="before the link is up"):
        bench.receive(90, large, large)
    assert not bench.remote._early


def test_a_forbidden_item_ends_the_link_even_if_it_came_before_the_link_was_up(bench: Bench) -> None:
    bench.receive(80, bench.tell("good"), (GONE, 1, "bogus", ""), bench.tell("lost"))
    bench.up(7, 80)
    assert bench.probe.expect(Say).what == "good"
    assert len(bench.wire.resets) == 1
    assert "bogus" in bench.wire.resets[0]
    bench.probe.expect_none(0)


def test_credit_for_more_than_is_under_way_is_an_error_of_the_protocol(bench: Bench) -> None:
    bench.up(7, 80)
    link = bench.remote._links["alice.1"]
    link.send(RemoteRef(bench.remote, "alice.1", "alice", "x", 5, {}), (TELL, 5, "k", b"12"), 0)
    with pytest.raises(OpenOutcryError, match="credit"):
        bench.receive(80, (8, 5, 10_000))
