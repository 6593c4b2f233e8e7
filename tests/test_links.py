"""Links under attack and under stress: what a stranger sends, and what comes and goes, costs this node nothing."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynng
import pytest
from openoutcry.actors import ConfigurationError, ExchangeNode, InvalidRequest, MarketRules, StorageError
from openoutcry.actors.book.messages import JournalFailed, Query
from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.book.submission import Request
from openoutcry.actors.book.wire import Forward, Refused
from openoutcry.actors.group import CODEC
from openoutcry.actors.kit.node_actor import TICK
from openoutcry.actors.kit.supervision import Supervise
from openoutcry.actors.peers import links as links_module
from openoutcry.actors.peers import peer as peer_module
from openoutcry.actors.peers.discovery import Announce
from openoutcry.actors.peers.life import DIAL_S
from openoutcry.actors.peers.messages import HelloReceived, PeerFound
from openoutcry.actors.peers.wire import Hello
from openoutcry.transport.errors import ProtocolError
from openoutcry.transport.sockets import Inbox, refuses

MARKET = "BTC-USD"
RULES = MarketRules()


def until(condition: Callable[[], Any], what: str, within: float = 20.0) -> Any:
    """Wait for ``condition`` to hold and return its value; fail with ``what`` after the deadline."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.005)
    return found


def threads_of_peers() -> int:
    return len([thread for thread in threading.enumerate() if thread.name.startswith("PeerActor")])


class Stranger:
    """Says by hand what a peer could say to ``node``; what it sends is well formed, and need not be honest."""

    def __init__(self, node: ExchangeNode, node_id: str = "stranger.1", *, address: str | None = None) -> None:
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._echo = 0
        self._node = node
        self._inbox = Inbox("tcp://127.0.0.1:0", on_frame=self._hear, on_pipe_removed=lambda _: None, name=node_id)
        self._inbox.start()
        self.node_id = node_id
        self.address = address or self._inbox.address
        self.cut = threading.Event()
        self._socket = pynng.Push0(send_timeout=5000)
        self._socket.add_post_pipe_remove_cb(lambda _: self.cut.set())
        self._socket.dial(node.address, block=True)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._socket.close()
        self._inbox.close()

    def _hear(self, _pipe_id: int, frame: bytes) -> None:
        message = CODEC.decode(frame)
        if isinstance(message, Hello):
            self._echo = message.session
        else:
            self.heard.put(message)

    def send(self, message: Any) -> None:
        self._socket.send(CODEC.encode(message))

    def hello(self, node_id: str | None = None) -> None:
        coordinator = self._node.status().coordinator
        self.send(
            Hello(node_id or self.node_id, "stranger", self.address, coordinator, 1, self._echo, self._node.node_id)
        )

    def link(self) -> None:
        """Say hello until the link is up."""

        def up() -> bool:
            self.hello()
            return bool(self._node.status().peers.get(self.node_id, {}).get("up"))

        until(up, "the link is up")


def test_a_sender_of_malformed_frames_that_hangs_up_at_once_does_not_deafen_the_node(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    for _ in range(300):
        with pynng.Push0(send_timeout=5000) as socket:
            socket.dial(net[0].address, block=True)
            for _ in range(3):
                socket.send(b"\x00\x00\x00")
    until(lambda: net[0].status().frames_refused >= 100, "most of it has arrived")
    net[1].submit_order(MARKET, "buy", "1", "1")


def test_connections_that_come_and_go_leave_nothing_behind(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    frame = CODEC.encode(
        Hello("other.1", "other", "tcp://127.0.0.1:1", net[0].status().coordinator, 1, 0, net[0].node_id)
    )
    for _ in range(300):
        with pynng.Push0(send_timeout=5000) as socket:
            socket.dial(net[0].address, block=True)
            socket.send(frame)
    until(lambda: not net[0].group.links.pipes, "no connection is remembered")


def test_one_connection_speaks_for_one_node_and_never_for_the_node_itself(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with Stranger(net[0]) as stranger:
        stranger.link()
        stranger.hello("stranger.2")
        assert stranger.cut.wait(10), "a second name over the same connection"
    with Stranger(net[0]) as stranger:
        stranger.hello(net[0].node_id)
        assert stranger.cut.wait(10), "this node's own name"
    assert "stranger.2" not in net[0].status().peers
    assert net[0].status().frames_refused == 2


def test_the_number_of_peers_is_bounded(exchange: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "PEERS_MAX", 3)
    net = exchange(nodes=1, markets={MARKET: RULES})
    for number in range(3):
        with Stranger(net[0], f"other.{number}") as other:
            other.link()
    with Stranger(net[0], "one-too-many") as last:
        last.hello()
        assert last.cut.wait(10), "the hello of one more costs its sender the link"
    assert set(net[0].status().peers) == {f"other.{number}" for number in range(3)}


def test_a_node_that_is_neither_announced_nor_linked_is_forgotten(
    exchange: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "ABSENT_S_MAX", 0.5)
    net = exchange(nodes=2, markets={MARKET: RULES})
    before = threads_of_peers()
    with Stranger(net[0]) as stranger:
        stranger.link()
    until(lambda: stranger.node_id not in net[0].status().peers, "the stranger is forgotten")
    until(lambda: threads_of_peers() == before, "its actor has ended")
    assert net[0].status().peers[net[1].node_id]["up"], "who is linked stays"


def test_a_peer_that_gives_an_address_nobody_can_dial_costs_one_line_of_log(
    exchange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    before = len(os.listdir("/proc/self/fd"))
    undiallable = "ipc:///" + "nonsense" * 20
    with Stranger(net[0], address=undiallable) as stranger:
        stranger.hello()
        until(lambda: threads_of_peers() == 1, "the stranger is known")
        for _ in range(50):
            stranger.hello()
        ended = time.monotonic() + 0.5
        until(lambda: time.monotonic() > ended, "some ticks have passed")
        assert threads_of_peers() == 1
    assert [record.getMessage() for record in caplog.records if "nonsense" in record.getMessage()] != []
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert net[0].status().failures == ()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before + 5, "no socket is left behind")


MALFORMED = ("tcp://127.0.0.1:abc", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:0", "tcp://127.0.0.1:", "tcp://127.0.0.1")


@pytest.mark.parametrize("address", ["", "x" * 256, "nonsense", "http://127.0.0.1:80", *MALFORMED])
def test_a_hello_whose_address_is_none_is_an_error_of_the_protocol(address: str) -> None:
    with pytest.raises(ProtocolError, match="address"):
        CODEC.decode(CODEC.encode(Hello("other.1", "other", address, "-", 1, 0, "me.1")))


def test_a_linked_peer_that_announces_a_malformed_address_loses_only_its_connection(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with Stranger(net[0]) as stranger:
        stranger.link()
        stranger.address = MALFORMED[0]
        stranger.hello()
        assert stranger.cut.wait(10)
        until(lambda: not net[0].status().peers[stranger.node_id]["up"], "the link has ended")
    assert net[0].status().failures == ()
    assert not net[0].group.links.dead()


def test_a_peer_that_ends_every_connection_at_once_is_not_dialled_in_a_storm(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    hellos: list[float] = []
    refusing = pynng.Pull0(recv_timeout=100)
    refusing.add_post_pipe_connect_cb(lambda pipe: (hellos.append(time.monotonic()), pipe.close()))
    refusing.listen("tcp://127.0.0.1:0")
    with refusing, Stranger(net[0], address=str(refusing.listeners[0].url)) as stranger:
        stranger.hello()
        until(lambda: hellos, "it is dialled")
        ended = time.monotonic() + 2.0
        until(lambda: time.monotonic() > ended, "two seconds have passed")
        assert len(hellos) < 30


def test_an_ended_process_is_distinguished_from_a_silent_or_cut_off_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        inbox = Inbox("tcp://127.0.0.1:0", on_frame=lambda *_: None, on_pipe_removed=lambda _: None)
        inbox.start()
        assert not refuses(inbox.address), "it lives"
        inbox.close()
        assert refuses(inbox.address), "nobody listens there any more"
        assert not refuses(f"tcp://127.0.0.1:{silent.getsockname()[1]}"), "it may be stopped"
    for uncertain in ("tcp://localhost:1", "ipc:///nowhere", "inproc://x", "nonsense", *MALFORMED):
        assert not refuses(uncertain)


@pytest.mark.parametrize("error", [ProtocolError("not allowed"), RuntimeError("a bug")])
def test_a_frame_that_could_not_be_taken_in_costs_its_sender_the_connection(error: Exception) -> None:
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def hear(_pipe_id: int, frame: bytes) -> None:
        heard.put(frame)
        if frame == b"bad":
            raise error

    inbox = Inbox("tcp://127.0.0.1:0", on_frame=hear, on_pipe_removed=lambda _: None)
    inbox.start()
    cut = threading.Event()
    with pynng.Push0(send_timeout=5000) as socket:
        socket.add_post_pipe_remove_cb(lambda _: cut.set())
        socket.dial(inbox.address, block=True)
        socket.send(b"good")
        assert heard.get(timeout=10) == b"good"
        assert not cut.is_set()
        socket.send(b"bad")
        assert heard.get(timeout=10) == b"bad"
        assert cut.wait(10), "who sends knows that something was lost"
        assert inbox.frames_refused == 1
        socket.send(b"again")
        assert heard.get(timeout=10) == b"again"
    inbox.close()


def test_only_the_node_that_was_asked_can_refuse_a_request(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    follower = net[1]
    with Stranger(follower) as stranger:
        stranger.link()
        stall = threading.Event()
        net[0].market(MARKET).ref.tell(Query(lambda _: stall.wait(10)))
        answers = follower.submit_many_async(MARKET, [follower.order(MARKET, "buy", "1", "1")], timeout=20)
        until(
            lambda: follower.market(MARKET).read(lambda actor: len(actor.core.requests.outstanding)) == 1,
            "the request is under way",
        )
        for request in follower.market(MARKET).read(lambda actor: list(actor.core.requests.outstanding)):
            stranger.send(Refused(MARKET, request, "made_up", "no"))
        stranger.send(Forward(MARKET, 1, ((1, ((3, "stranger", ""),)),)))
        until(lambda: not stranger.heard.empty(), "the follower has read what the stranger sent")
        stall.set()
        assert answers()[0].status == "resting"


@pytest.mark.parametrize(
    "body", [b"\x00", b"\xc1", b"\x95" * 60, b"\x95\x01\xa1x\x01\xdd\xff\xff\xff\xff", b"\x95\x01\x01"]
)
def test_a_body_that_is_not_a_record_is_a_protocol_error(body: bytes) -> None:
    for read in (Record.span_of, lambda bad: Record.parse(EMPTY, bad)):
        with pytest.raises(ProtocolError):
            read(body)


@pytest.mark.parametrize(
    "command",
    [(), ("x",), (1, "ann", "one"), (2, "ann", "one", -1), (7, "", ""), (1, "ann", "\ud800", 0, 0, 1, 1, 0, 0, 0)],
)
def test_a_malformed_command_is_refused_at_the_edge_and_gets_into_no_log(exchange: Any, command: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    before = net[0].sequence(MARKET)
    with pytest.raises(InvalidRequest) as caught:
        net[0].submit_many(MARKET, [command])
    assert caught.value.code == "invalid_command"
    with pytest.raises(InvalidRequest):
        net[0].submit_order(MARKET, "buy", "1", "1", account="\ud800")
    assert net[0].sequence(MARKET) == before
    net[0].submit_order(MARKET, "buy", "1", "1")


def test_when_a_replica_fails_every_request_ends_and_its_journal_is_closed(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    node = net[1]
    book = node.market(MARKET).ref
    stall = threading.Event()
    net[0].market(MARKET).ref.tell(Query(lambda _: stall.wait(10)))
    before = len([thread for thread in threading.enumerate() if thread.name.startswith("JournalActor")])
    waits = [node.submit_many_async(MARKET, [node.order(MARKET, "buy", "1", "1")], timeout=30) for _ in range(3)]

    def fail(_actor: Any) -> None:
        entered.set()
        assert not stall.wait(0.2), "the leader is still stalled"
        raise RuntimeError("injected")

    entered = threading.Event()
    book.tell(Query(fail))
    assert entered.wait(10)
    waits.append(node.submit_many_async(MARKET, [node.order(MARKET, "buy", "1", "1")], timeout=30))
    started = time.monotonic()
    for answers in waits:
        with pytest.raises(StorageError, match="injected"):
            answers()
    assert time.monotonic() - started < 10
    until(
        lambda: len([t for t in threading.enumerate() if t.name.startswith("JournalActor")]) == before - 1,
        "the journal of the failed replica is closed",
    )
    stall.set()
    assert node.status().markets[MARKET].role == "stopped"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 10**6, "5"])
def test_an_unbounded_timeout_is_refused(exchange: Any, seconds: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with pytest.raises(InvalidRequest) as caught:
        net[0].submit_order(MARKET, "buy", "1", "1", timeout=seconds)
    assert caught.value.code == "invalid_timeout"


def test_a_subscriber_that_takes_nothing_does_not_keep_the_node_from_closing() -> None:
    full: queue.Queue[Any] = queue.Queue(maxsize=1)
    with ExchangeNode("alone", markets={MARKET: RULES}) as node:
        node.wait_ready()
        node.subscribe(MARKET, full)
        for _ in range(3):
            node.submit_order(MARKET, "buy", "1", "1")
        started = time.monotonic()
    assert time.monotonic() - started < 10
    while not full.empty() or any([t.name == f"subscription-{MARKET}" for t in threading.enumerate()]):
        full.get(timeout=10)


def test_a_node_that_waits_for_its_directory_closes_at_once_and_in_full(tmp_path: Path) -> None:
    node = ExchangeNode(
        "alone", markets={MARKET: RULES}, directory="tcp://127.0.0.1:1", coordinator=tmp_path / "coordinator.sqlite"
    )
    node.wait_ready()
    failed: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def look() -> None:
        try:
            node.lookup("anything", timeout=30)
        except Exception as error:
            failed.put(error)

    lookers = [threading.Thread(target=look, name="looker") for _ in range(3)]
    for looker in lookers:
        looker.start()
    started = time.monotonic()
    node.close()
    assert time.monotonic() - started < 5
    for looker in lookers:
        looker.join(10)
    assert failed.qsize() == 3
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("Discovery")]


def test_an_address_that_nobody_can_dial_is_not_advertised() -> None:
    for address in ("nonsense", "tcp://", "tcp://10.0.0.1:0", "http://10.0.0.1:80"):
        with pytest.raises(ConfigurationError, match="not an address to dial"):
            ExchangeNode("alone", advertise=address)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "*", ""])
def test_a_node_that_listens_everywhere_has_to_say_where_it_is_reached(host: str) -> None:
    with pytest.raises(ConfigurationError, match="advertise"):
        ExchangeNode("alone", listen=f"tcp://{host}:0")
    with pytest.raises(ConfigurationError, match="advertise"):
        ExchangeNode("alone", advertise=f"tcp://{host}:7500")


def test_a_node_that_listens_everywhere_gives_the_address_where_it_is_reached() -> None:
    with ExchangeNode("alone", listen="tcp://0.0.0.0:0", advertise="tcp://10.0.0.5:7500") as node:
        assert node.address == "tcp://10.0.0.5:7500"


@pytest.mark.parametrize("depth", ["x", 1.5, -1, True])
def test_a_depth_or_limit_that_is_not_a_number_is_refused(exchange: Any, depth: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with pytest.raises(InvalidRequest) as caught:
        net[0].get_order_book(MARKET, depth)
    assert caught.value.code == "invalid_depth"
    with pytest.raises(InvalidRequest) as caught:
        net[0].trades(MARKET, depth)
    assert caught.value.code == "invalid_limit"


@pytest.mark.parametrize("dies", [False, True], ids=["stops", "fails"])
def test_subscribers_are_notified_when_their_markets_replica_has_stopped(exchange: Any, dies: bool) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    subscription = net[1].subscribe(MARKET)
    book = net[1].market(MARKET).ref
    if dies:
        book.tell("a message that no BookActor understands")
    else:
        book.tell(JournalFailed(StorageError("the disk is gone", code="disk_failed")))
    assert subscription.get(timeout=10) is None
    assert isinstance(subscription.error, StorageError)
    assert subscription.error.code == ("replica_failed" if dies else "disk_failed")
    with pytest.raises(StorageError):
        net[1].subscribe(MARKET)


def test_failed_discovery_restarts_with_all_services_after_growing_pauses(
    exchange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    net[0].announce("clock", "tcp://10.0.0.9:1")
    assert len(net[1].lookup("clock").entries) == 1
    first = net[0].group.directory.actor
    first.tell(Announce(None))  # type: ignore[arg-type]
    until(
        lambda: net[0].group.directory.actor.is_alive() and net[0].group.directory.actor is not first,
        "discovery lives again",
    )
    until(lambda: len(net[1].lookup("clock").entries) == 1, "the service is found again")
    for _ in range(2):
        failing = net[0].group.directory.actor
        failing.tell(Announce(None))  # type: ignore[arg-type]
        until(lambda failing=failing: net[0].group.directory.actor is not failing, "it is started once more")
    pauses_s = [vars(record)["restart_s"] for record in caplog.records if vars(record).get("event") == "child_failed"]
    assert len(pauses_s) == 3
    assert pauses_s == sorted(pauses_s)
    until(lambda: net[0].meters.restarts["DiscoveryActor"] == 3, "each is counted")


def test_link_whose_actor_fails_is_made_again_and_the_followers_go_on(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    other = net[1].node_id
    failing = net[0].group.links.peers[other]
    failing.tell(HelloReceived(None, 1))  # type: ignore[arg-type]
    links = net[0].group.links
    until(lambda: links.peers[other] is not failing and other in links.up, "the link is up again")
    assert net[0].meters.restarts["PeerActor"] == 1
    net[1].submit_order(MARKET, "buy", "1", "1")
    net.assert_same_hash(MARKET)


def test_a_missing_link_is_logged_once_and_hides_no_other_error(
    exchange: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peer_module, "UNLINKED_S", 0.3)
    net = exchange(nodes=1, markets={MARKET: RULES})
    net[0].group.supervisor.tell(PeerFound("ghost.1", "ghost", "tcp://127.0.0.1:1"))
    until(lambda: "link_not_made" in caplog.text, "nobody listens there")
    foreign = Hello("ghost.1", "ghost", "tcp://127.0.0.1:1", "another exchange's", 1, 0, net[0].node_id)
    net[0].group.links.peers["ghost.1"].tell(HelloReceived(foreign, 1))
    until(lambda: "coordinator_differs" in caplog.text, "it is another exchange's")
    assert [vars(record)["event"] for record in caplog.records].count("link_not_made") == 1


@pytest.mark.parametrize("speaks", [False, True], ids=["silent", "connects"])
def test_a_connection_that_leads_to_no_link_is_given_up_and_made_again(exchange: Any, speaks: bool) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        net[0].group.supervisor.tell(PeerFound("frozen.1", "frozen", address))
        began_s = time.monotonic()
        for _ in range(3):
            accepted.append(listener.accept()[0])
            if speaks:
                accepted[-1].sendall(b"\0SP\0\0\x51\0\0")  # a Pull socket, which never says hello back
        assert time.monotonic() - began_s < 12
    for connection in accepted:
        connection.close()


def test_a_stale_peer_at_the_address_of_another_gives_up_and_takes_no_link_down(
    exchange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES})
    downs = sum(vars(record).get("event") == "link_down" for record in caplog.records)
    for node in net.nodes[1:]:
        node.group.supervisor.tell(PeerFound("node-0.0000dead", "node-0", net[0].address))
    stale = "node-0.0000dead"
    until(lambda: any(stale in node.status().peers for node in net.nodes[1:]) or "peer_replaced" in caplog.text, "met")
    until(lambda: all(stale not in node.status().peers for node in net.nodes), "all gave up")
    net[1].submit_order(MARKET, "buy", "1", "1")
    assert sum(vars(record).get("event") == "link_down" for record in caplog.records) == downs


@pytest.mark.parametrize("stale", ["nobody's", "each one's own", "a third node's"])
def test_nodes_that_were_announced_where_they_are_no_more_are_linked_once_they_are_announced_right(
    exchange: Any, stale: str
) -> None:
    def meet(node: Any, other: Any, address: str) -> None:
        node.group.supervisor.tell(PeerFound(other.node_id, other.name, address))

    def linked(node: Any, other: Any) -> bool:
        return other.node_id in node.group.links.linked() and node.node_id in other.group.links.linked()

    net = exchange(nodes=1, markets={MARKET: RULES})
    with ExchangeNode("b") as b, ExchangeNode("c") as c:
        wrong = {"nobody's": ("tcp://127.0.0.1:1",) * 2, "each one's own": (b.address, c.address)}
        at_b, at_c = wrong.get(stale, (net[0].address,) * 2)
        for node, other, address in ((b, c, at_b), (c, b, at_c)):
            meet(node, other, address)
            until(lambda node=node, other=other: other.node_id in node.status().peers, "met")
        assert not linked(b, c)
        meet(b, c, c.address)
        meet(c, b, b.address)
        until(lambda: linked(b, c), "linked")


def test_a_node_announced_at_the_address_of_this_one_is_not_dialled_and_told_once(
    exchange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node = exchange(nodes=1, markets={MARKET: RULES})[0]
    node.group.supervisor.tell(PeerFound("before.1", "before", node.address))
    until(lambda: "peer_unreachable" in caplog.text, "told")
    time.sleep(DIAL_S + 0.5)
    events = [vars(record)["event"] for record in caplog.records if hasattr(record, "event")]
    assert (events.count("peer_unreachable"), events.count("frame_refused")) == (1, 0)


def test_a_hello_for_another_node_costs_its_sender_the_connection_and_no_link(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with Stranger(net[0]) as stranger:
        coordinator = net[0].status().coordinator
        stranger.send(Hello(stranger.node_id, "stranger", stranger.address, coordinator, 1, 0, "node-0.0000dead"))
        assert stranger.cut.wait(10)
        assert stranger.node_id not in net[0].status().peers


def test_the_hint_for_a_missing_link_says_how_far_it_came(
    exchange: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peer_module, "UNLINKED_S", 0.3)
    net = exchange(nodes=1, markets={MARKET: RULES}, identities=True)
    identity = net[0].group.identity
    mute = Inbox("tls+tcp://127.0.0.1:0", on_frame=lambda *_: None, on_pipe_removed=lambda _: None, identity=identity)
    mute.start()
    net[0].group.supervisor.tell(PeerFound("node-0.1", "node-0", mute.address))
    net[0].group.supervisor.tell(PeerFound("away.1", "away", "tls+tcp://127.0.0.1:1"))

    def hint(peer: str) -> str:
        lines = [vars(line) for line in caplog.records if vars(line).get("event") == "link_not_made"]
        return "".join(line["hint"] for line in lines if line["peer"] == peer)

    until(lambda: hint("node-0.1") and hint("away.1"), "both are told of")
    mute.close()
    assert "certificate" not in hint("node-0.1")
    assert net[0].address in hint("node-0.1")
    assert "certificate" in hint("away.1")


def test_the_name_of_one_market_is_not_taken_for_a_list_of_letters() -> None:
    with ExchangeNode("alone", markets=MARKET) as node:
        assert node.markets == (MARKET,)


def test_followers_learn_the_commit_index_although_the_leader_is_never_idle(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    book, stop = net[0].market(MARKET).ref, threading.Event()

    def again(actor: Any) -> None:
        if not stop.is_set():
            actor.actor_ref.tell(Query(again))

    try:
        for _ in range(2):
            book.tell(Query(again))
        assert net[1].submit_order(MARKET, "buy", "1", "1", timeout=20).status == "resting"
    finally:
        stop.set()


def test_a_request_sent_to_a_former_leader_is_sent_to_the_new_one(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    request = Request((net[1].order(MARKET, "buy", "1", "1"),), time.monotonic_ns() + 20_000_000_000)
    request.sent_to, request.sent_ever = "deposed.00000000", True

    def lose(actor: Any) -> None:
        requests = actor.core.requests
        requests.last_number += 1
        requests.outstanding[requests.last_number] = request

    net[1].market(MARKET).read(lose)
    assert request.wait().state_sequence == net[1].sequence(MARKET)


def test_a_node_that_left_while_discovery_was_down_is_forgotten(exchange: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "ABSENT_S_MAX", 0.1)
    net = exchange(nodes=2, markets={MARKET: RULES})
    gone = net[1].node_id
    net[0].group.directory.actor.stop()
    net[1].close()
    until(lambda: gone in net[0].status().peers, "it was known")
    net[0].group.supervisor.ask(Supervise("DiscoveryActor again", net[0].group.start_discovery))
    until(lambda: gone not in net[0].status().peers, "it is forgotten, as nobody announces it")


def test_a_hello_received_while_the_node_closes_does_no_harm(tmp_path: Path) -> None:
    with ExchangeNode("a", markets={MARKET: RULES}, data_dir=tmp_path) as node:
        node.group.closed = True  # as `close` begins
        hello = Hello("late.1", "late", "tcp://127.0.0.1:1", node.status().coordinator, 1, 0, node.node_id)
        node.group.supervisor.tell(HelloReceived(hello, 1))
        node.group.supervisor.tell(PeerFound("later.1", "later", "tcp://127.0.0.1:1"))
        until(node.group.supervisor.actor_inbox.empty, "both are handled")
        node.group.supervisor.ask(TICK)
        node.group.closed = False
        assert node.dead_actors() == []
