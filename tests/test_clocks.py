"""Wrong clocks: found, told, kept out of the log, and out of the lead where another can lead; and the way back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from openoutcry.actors import ExchangeNode, MarketRules, Unavailable
from openoutcry.actors.book.commands import CLOCK, SET_TIME, SUBMIT
from openoutcry.actors.book.logtime import LogTime
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.book.replica import CLOCK_PATIENCE_NS, CLOCK_START_NS, Replica, Send, SwapRecord
from openoutcry.actors.book.wire import Resign
from openoutcry.actors.cli import main
from openoutcry.actors.control.server import ControlServer
from openoutcry.actors.peers.clocks import ALONE, ClockMeter, Clocks, Offset, judge
from openoutcry.actors.telemetry.health import readyz
from openoutcry.transport.coordinator import MarketRecord
from openoutcry.transport.errors import ConfigurationError, ProtocolError
from processes import eventually

MARKET = "M"
S = 1_000_000_000
DAY = 86_400 * S
BOUND = S
WALL = 20_000 * DAY


def away(**offsets: int) -> dict[str, Offset]:
    return {name: Offset(offset, 0) for name, offset in offsets.items()}


# -- whose clock is off ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offsets", "off", "right", "agreed"),
    [
        ({}, False, set(), 0),
        (away(b=S // 2, c=-S // 2), False, {"b", "c"}, 0),
        (away(b=DAY, c=S // 2), False, {"c"}, 0),
        (away(b=DAY, c=DAY), True, {"b", "c"}, DAY),
        (away(b=-DAY, c=-DAY, d=0), True, set(), 0),
        (away(b=-DAY, c=-DAY, d=0, e=0), False, {"d", "e"}, 0),
        (away(b=DAY), True, set(), 0),
        (away(b=DAY, coordinator=0), False, set(), 0),
        (away(b=DAY, coordinator=DAY), True, {"b"}, DAY),
        (away(b=0, c=0, coordinator=DAY), False, {"b", "c"}, 0),
        ({"b": Offset(DAY, 2 * DAY), "c": Offset(0, 0)}, False, {"b", "c"}, 0),
    ],
)
def test_a_clock_is_off_that_differs_from_more_than_half_of_the_others(
    offsets: dict[str, Offset], off: bool, right: set[str], agreed: int
) -> None:
    found = judge(offsets, BOUND)
    assert (found.off, found.right, found.agreed_ns) == (off, right, agreed)


def test_a_clock_is_measured_by_the_quickest_of_the_last_hellos() -> None:
    meter = ClockMeter()
    meter.measured(WALL + 90, round_trip_ns=400, now_ns=1000)
    meter.measured(WALL + 1090, round_trip_ns=20, now_ns=2000)
    meter.measured(WALL, round_trip_ns=-5, now_ns=2000)
    meter.measured(WALL, round_trip_ns=60 * S, now_ns=2000)
    assert meter.ahead(2000) == Offset(WALL + 1100 - 2000, 10)
    assert meter.ahead(2000 + 60 * S) is None, "long ago"


# -- the log's time ----------------------------------------------------------------------------------------------------


class Leader:
    """The log's time at a leader, second by second."""

    def __init__(self) -> None:
        self.log = LogTime(BOUND)
        self.now = 0
        self.last = 0

    def at(self, second: float, wall_off: int = 0, clocks: Clocks = ALONE) -> float:
        """Stamp a record when it is ``second``; return how far off the stamp is, in seconds."""
        self.now = int(second * S)
        self.last = self.log.stamp(self.last, WALL + self.now + wall_off, self.now, clocks)
        return (self.last - WALL - self.now) / S


@pytest.mark.parametrize("jump", [3650 * DAY, DAY, 2 * S, -2 * S, -DAY, -3650 * DAY])
def test_the_logs_time_does_not_follow_a_clock_that_jumps_and_goes_on_without_it(jump: int) -> None:
    leader = Leader()
    assert leader.at(0) == 0
    assert [leader.at(second, jump) for second in (1, 2, 2.5, 4000)] == [0] * 4
    assert leader.log.jumped_ns == jump
    assert leader.at(4001) == 0
    assert leader.log.jumped_ns == 0


def test_many_small_steps_of_a_clock_are_a_jump() -> None:
    leader = Leader()
    leader.at(0)
    off = [leader.at(second, second * S // 2) for second in range(1, 100)]
    assert max(off) <= 1.2


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_others_say_whether_the_clock_or_the_log_is_right(jump: int) -> None:
    with_us = judge(away(b=0, c=0), BOUND, WALL + jump)
    with_log = judge(away(b=-jump, c=-jump), BOUND, WALL + jump)
    leader = Leader()
    leader.at(0)
    assert leader.at(1, jump, with_log) == 0
    off = leader.at(2, jump, with_us)
    if jump > 0:
        assert off == jump / S, "the log was behind"
    else:
        assert off == -0.5, "it is ahead, and goes on at half the pace"
        assert [leader.at(second, jump, with_us) for second in (3, 5)] == [-1, -2]


def test_a_jump_is_seen_before_the_clocks_have_been_compared_again() -> None:
    leader = Leader()
    clocks = judge(away(b=0, c=0), BOUND, WALL)
    leader.at(0, 0, clocks)
    assert leader.at(0.1, DAY, clocks) == 0


def test_a_new_leader_goes_on_from_what_it_has_seen_of_the_log() -> None:
    follower = Leader()
    right, wrong = away(a=0), away(a=-DAY)
    for second in range(5):
        follower.now, follower.last = second * S, WALL + second * S
        clocks = judge(wrong, BOUND, WALL + DAY)
        follower.log.seen("a", follower.last, WALL + DAY + follower.now, follower.now, clocks)
    assert follower.at(6, DAY) == 0, "its leader is gone, and so is the only other clock"
    late = Leader()
    late.log.seen("a", WALL, WALL + 50 * S, 50 * S, judge(right, BOUND, WALL))
    assert late.at(51) == 0, "a record that was long under way says nothing of the time"


def test_a_new_leader_does_not_count_time_that_the_log_has_gone_on_already() -> None:
    leader = Leader()
    clocks = judge(away(a=0, b=0), BOUND, WALL)
    leader.log.seen("a", WALL, WALL, 0, clocks)
    leader.last = WALL + 60 * S + S // 10  # made a moment ago by another, whose clock is a little ahead; not seen then
    assert leader.at(60, 0, clocks) == 0.1
    assert leader.at(60.1, 0, clocks) <= 0.1


def test_a_log_in_the_future_does_not_stand_still() -> None:
    leader = Leader()
    leader.last = WALL + DAY
    stamps = [leader.at(second) for second in range(4)]
    assert stamps == [DAY / S - each / 2 for each in range(4)]
    assert leader.log.offset_ns(leader.last, WALL + 3 * S, 3 * S) == DAY - 3 * S // 2


# -- who leads ---------------------------------------------------------------------------------------------------------


def test_a_member_whose_clock_is_off_leaves_a_lost_leader_to_others_for_a_while() -> None:
    replica = Replica(market=MARKET, node="b", applied=EMPTY, incarnation=1)
    replica.on_peer_up("c")
    replica.on_record(MarketRecord(MARKET, 2, 2, "a", ("a", "b", "c")), 0)
    replica.repairing = False
    replica.on_clocks(off=True, right=frozenset("c"), compared=True)
    replica.on_tick(1)
    assert replica.on_leader_lapsed("a") == []
    replica.on_tick(CLOCK_PATIENCE_NS + 1)
    assert replica.on_leader_lapsed("a") != [], "nobody else did"
    replica.on_clocks(off=True, right=frozenset("d"), compared=True)
    assert replica.on_leader_lapsed("a") != [], "who is right is not in sync"


def replica_with_others(leader: str, *, off: bool, right: str = "", compared: bool = True) -> Replica:
    tail = Record.make(EMPTY, epoch=1, timestamp_ns=1, commands=(order("a"),), origins=()).tail
    replica = Replica(market=MARKET, node="b", applied=tail, incarnation=1)
    replica.on_clocks(off=off, right=frozenset(right), compared=compared)
    replica.start()
    replica.on_record(MarketRecord(MARKET, 2, 2, leader, ("a", "b", "c")), 0)
    replica.on_tick(0)
    return replica


def has(effects: Sequence[object], kind: type) -> bool:
    return any([isinstance(effect, kind) for effect in effects])


@pytest.mark.parametrize("leader", ["a", "b"])
def test_a_member_that_has_just_started_waits_to_compare_its_clock_before_it_leads(leader: str) -> None:
    record = MarketRecord(MARKET, 2, 2, leader, ("a", "b", "c"))

    def claims(replica: Replica, now_ns: int) -> bool:
        replica.on_tick(now_ns)
        replica.on_leader_lapsed(leader)
        return has(replica.on_record(record, now_ns), SwapRecord)

    for waited in (S, CLOCK_START_NS - 1):
        assert not claims(replica_with_others(leader, off=False, compared=False), waited)
    assert claims(replica_with_others(leader, off=False, compared=False), CLOCK_START_NS), "not for ever"
    compared = replica_with_others(leader, off=False, compared=False)
    compared.on_clocks(off=False, right=frozenset("c"), compared=True)
    assert claims(compared, S)
    alone = Replica(market=MARKET, node="b", applied=compared.base, incarnation=1)
    alone.on_clocks(off=False, right=frozenset(), compared=False)
    assert has(alone.on_record(MarketRecord(MARKET, 2, 2, "b", ("b",)), 0), SwapRecord), "there is nobody to ask"


def test_a_leader_that_starts_with_a_wrong_clock_asks_another_to_lead_first() -> None:
    replica = replica_with_others("b", off=True, compared=False)
    replica.on_peer_up("c")
    replica.on_clocks(off=True, right=frozenset("c"), compared=True)
    replica.on_tick(S)
    effects = replica.on_record(MarketRecord(MARKET, 2, 2, "b", ("a", "b", "c")), S)
    assert [effect for effect in effects if isinstance(effect, Send)] == [Send(("c",), Resign(MARKET, 2))]
    assert not has(effects, SwapRecord)
    replica.on_tick(S + CLOCK_PATIENCE_NS)
    later = replica.on_record(MarketRecord(MARKET, 2, 2, "b", ("a", "b", "c")), S + CLOCK_PATIENCE_NS)
    assert has(later, SwapRecord), "nobody else did"


def test_one_clock_against_another_wins_only_if_it_was_right_before() -> None:
    for off_before, leads in ((False, True), (True, False)):
        replica = replica_with_others("a", off=off_before, right="ac")
        replica.on_peer_up("c")
        replica.on_clocks(off=True, right=frozenset(), compared=True)  # a is gone: c and we are left
        replica.on_tick(S)
        assert bool(replica.on_leader_lapsed("a")) is leads
    started = replica_with_others("a", off=True)
    started.on_peer_up("c")
    started.on_tick(S)
    assert started.on_leader_lapsed("a") == []


@pytest.mark.parametrize(
    ("offsets", "compared"),
    [({}, False), (away(coordinator=DAY), False), (away(coordinator=0), True), (away(b=DAY), True)],
)
def test_a_clock_is_compared_with_another_nodes_or_by_a_coordinators_that_agrees(
    offsets: dict[str, Offset], compared: bool
) -> None:
    assert judge(offsets, BOUND).compared is compared


# -- the way back ------------------------------------------------------------------------------------------------------


def order(name: str, expire_ns: int = 0) -> tuple[Any, ...]:
    return (SUBMIT, "ann", name, 0, 0, 100, 1, 3 if expire_ns else 0, expire_ns, 0)


def test_the_logs_time_is_turned_back_by_a_command_alone_and_orders_keep_their_dates() -> None:
    book = OrderBook(MarketRules())
    book.apply(1, WALL + DAY, (order("a", WALL + 2 * DAY), order("b")))
    with pytest.raises(Exception, match="time ran backwards"):
        book.apply(3, WALL, ((CLOCK, "", ""),))
    with pytest.raises(Exception, match="time ran backwards"):
        book.apply(3, WALL, ((SET_TIME, "", "", "why"), (CLOCK, "", "")))
    book.apply(3, WALL, ((SET_TIME, "", "", "why"),))
    copy = OrderBook.restore(book.snapshot())
    for each in (book, copy):
        assert each.timestamp_ns == WALL
        each.apply(4, WALL + DAY, (order("c", WALL + DAY + 1),))
        assert len(each) == 3
        each.apply(5, WALL + 2 * DAY, ((CLOCK, "", ""),))
        assert [found.order_id for found in each.orders(0)] == [2]
    assert book.state_hash() == copy.state_hash()
    made = Record.make(EMPTY, epoch=1, timestamp_ns=1, commands=((SET_TIME, "", "", "x"), (CLOCK, "", "")), origins=())
    with pytest.raises(ProtocolError, match="set among other commands"):
        Record.parse(EMPTY, made.body)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ExchangeNode]:
    with ExchangeNode("alice", markets={MARKET: MarketRules()}, data_dir=tmp_path) as made:
        made.wait_ready()
        yield made


def set_clock(node: ExchangeNode, off_ns: int) -> None:
    node.market(MARKET).read(lambda actor: setattr(actor.timekeeper, "clock_ns", lambda: time.time_ns() + off_ns))


@pytest.mark.parametrize("jump", [3650 * DAY, -3650 * DAY])
def test_orders_expire_on_time_although_the_leaders_clock_has_jumped(node: ExchangeNode, jump: int) -> None:
    long = node.submit_order(MARKET, "buy", "1", "1", time_in_force="gtd", expire_ns=time.time_ns() + 3600 * S)
    short = node.submit_order(MARKET, "buy", "2", "1", time_in_force="gtd", expire_ns=time.time_ns() + S)
    set_clock(node, jump)
    node.submit_order(MARKET, "sell", "3", "1")
    eventually(lambda: node.get_order(MARKET, short.order_id) is None, "it lapses on an idle market")
    assert node.get_order(MARKET, long.order_id) is not None
    node.submit_order(MARKET, "buy", "3", "1")
    assert abs(node.trades(MARKET)[0].timestamp_ns - time.time_ns()) < 10 * S
    assert abs(node.status().markets[MARKET].time_off_s + jump / S) < 10
    ready, found = readyz(node)
    assert ready
    assert abs(found["markets"][MARKET]["time_off_s"] + jump / S) < 10
    assert found["clock"]["off"] is False


def test_an_operator_sets_a_log_from_the_future_back(tmp_path: Path) -> None:
    options: dict[str, Any] = {"markets": {MARKET: MarketRules()}, "data_dir": tmp_path}
    with ExchangeNode("alice", **options) as node:
        node.wait_ready()
        node.market(MARKET).read(lambda actor: actor.timekeeper.forget())
        set_clock(node, 3650 * DAY)
        stays = node.submit_order(MARKET, "buy", "1", "1")
        dated = node.submit_order(MARKET, "buy", "1", "1", time_in_force="gtd", expire_ns=time.time_ns() + 3651 * DAY)
    with ExchangeNode("alice", **options) as node:
        node.wait_ready()
        server = ControlServer(node)
        try:
            where = ["--data-dir", str(tmp_path)]
            show = CliRunner().invoke(main, ["clock", "show", "--json", *where])
            assert json.loads(show.output)["markets_ahead_s"][MARKET] > 3649 * 86_400
            reset = CliRunner().invoke(main, ["clock", "reset", MARKET, "--reason", "the CMOS battery", *where])
            assert reset.exit_code == 0, reset.output
            again = CliRunner().invoke(main, ["clock", "reset", MARKET, "--reason", "again", *where])
            assert again.output.strip().endswith("(not_needed)")
        finally:
            server.withdraw()
            server.close()
        assert node.status().markets[MARKET].time_off_s == 0
        assert {found.order_id for found in node.all_orders(MARKET)} == {stays.order_id, dated.order_id}
        gtd = node.submit_order(MARKET, "buy", "2", "1", time_in_force="gtd", expire_ns=time.time_ns() + S)
        eventually(lambda: node.get_order(MARKET, gtd.order_id) is None, "it lapses when it is due")
    with ExchangeNode("alice", **options) as node:
        node.wait_ready()
        assert node.submit_order(MARKET, "sell", "1", "1").trades, "the log is read back"


def test_only_the_leader_sets_the_time_and_not_by_a_clock_that_is_off(node: ExchangeNode) -> None:
    set_clock(node, -DAY)
    node.submit_order(MARKET, "buy", "1", "1")
    wrong = judge(away(b=DAY, c=DAY), BOUND, time.time_ns() - DAY - time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    node.market(MARKET).read(lambda actor: setattr(actor.timekeeper, "clocks", lambda: wrong))
    with pytest.raises(Unavailable) as refused:
        node.set_time(MARKET, reason="why not")
    assert refused.value.code == "clock_off"


# -- among nodes -------------------------------------------------------------------------------------------------------


def test_nodes_compare_their_clocks_by_hellos(tmp_path: Path) -> None:
    store, rules = tmp_path / "c.sqlite", {MARKET: MarketRules()}
    listen = "tcp://127.0.0.1:0"
    with (
        ExchangeNode("a", markets=rules, data_dir=tmp_path / "a", coordinator=store, serve_directory=listen) as one,
        ExchangeNode(
            "b", markets=[MARKET], data_dir=tmp_path / "b", coordinator=store, directory=one.directory_address or ""
        ) as other,
    ):
        for node, peer in ((one, other), (other, one)):
            eventually(lambda node=node: node.clocks.offsets, "the clocks are compared")
            assert abs(node.clocks.offsets[peer.node_id].offset_ns) < S // 4
            assert not node.status().clock["off"]


@pytest.mark.parametrize("value", [0, 49, 1.5, "1000", True])
def test_a_bound_of_clocks_is_checked(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="clock_bound_ms is a whole number of at least 50"):
        ExchangeNode("alice", data_dir=tmp_path, clock_bound_ms=value)
