"""Leadership by force: what it takes, what it leaves in the log, and what becomes of those who come back after all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from openoutcry.actors import ExchangeNode, InvalidRequest, MarketRules, Noted, Unavailable
from openoutcry.actors.book.commands import NOTE, NOTE_SIZE_MAX, checked_commands
from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.book.replica import KeepFetched, PutAside, RepairEnded, Replica, Role, Send, SwapRecord, Troubled
from openoutcry.actors.book.wire import Ack, Append, Join, Lead, Objection, Rewind
from openoutcry.actors.cli import main
from openoutcry.actors.testing import eventually
from openoutcry.actors.tools.inspection import command_fields, read_log
from openoutcry.transport.coordinator import MarketRecord, successor
from openoutcry.transport.errors import ProtocolError
from openoutcry.transport.sqlite import SqliteCoordinator
from processes import flip_a_bit

MARKET = "BTC-USD"
RULES = MarketRules()
OPTIONS = {"lease_ms": 300}


def status(node: Any) -> dict[str, Any]:
    found: dict[str, Any] = node.status().markets[MARKET].to_dict()
    return found


def notes(folder: Path) -> list[str]:
    """What the log of a market in ``folder`` notes."""
    fields = [command_fields(logged) for logged in read_log(folder)]
    return [field["text"] for field in fields if field["command"] == "note"]


def stale_and_alone(exchange: Any) -> tuple[Any, int, int]:
    """Return an exchange of two in which only the second runs, which has missed the last answers of the first.

    And where it stands, and where the first stood.
    """
    net = exchange(nodes=2, markets={MARKET: RULES}, **OPTIONS)
    for number in range(5):
        net[0].submit_order(MARKET, "buy", f"{90 + number}", "1")
    behind = net.wait_same_sequence(MARKET)
    net[1].close()
    eventually(lambda: len(status(net[0])["in_sync"]) == 1, "the first node is alone in sync")
    for number in range(7):
        ahead = net[0].submit_order(MARKET, "sell", f"{200 + number}", "1").sequence
    net[0].close()
    net.restart(1, wait=False)
    eventually(lambda: status(net[1])["leader"] == net[0].node_id, "the second knows who has led")
    return net, behind, ahead


def test_a_stale_replica_leads_by_force_and_a_former_leader_that_comes_back_keeps_its_log_aside(exchange: Any) -> None:
    net, behind, ahead = stale_and_alone(exchange)
    with pytest.raises(Unavailable):
        net[1].submit_order(MARKET, "buy", "1", "1", timeout=0.5)
    plan = net[1].force_plan(MARKET)
    assert (plan.sequence, plan.leader, plan.in_sync) == (behind, net[0].node_id, (net[0].node_id,))
    subscription = net[1].subscribe(MARKET)
    sequence = net[1].force_leader(MARKET, reason="ann: its disk burnt", plan=plan)
    assert sequence == behind + 1
    event = next(update for update in subscription if update.sequence == sequence).events[-1]
    assert isinstance(event, Noted)
    assert event.text.endswith(f"what they answered after {behind} is lost; reason: ann: its disk burnt")
    order = net[1].submit_order(MARKET, "buy", "95", "1")

    net.restart(0)
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)
    assert net[0].get_order(MARKET, order.order_id) is not None
    markets = net[0].data_dir / "markets"
    assert status(net[0])["put_aside"] == str(markets / f"{MARKET}.diverged-1")
    kept = [logged.sequence for logged in read_log(markets / f"{MARKET}.diverged-1")]
    assert kept == list(range(1, ahead + 1)), "nothing of what was answered is gone from the disk"
    net.close()
    for node in net:
        assert notes(node.data_dir / "markets" / MARKET) == [event.text]
        checked = json.loads(CliRunner().invoke(main, ["verify", str(node.data_dir), "--json"]).stdout)
        assert checked["sound"]


def test_force_is_refused_where_nothing_has_to_be_lost(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES}, **OPTIONS)
    observer = net.add(markets=(), observe=[MARKET])
    observer.wait_ready()
    assert [refusal(node) for node in net] == ["already_leading", "not_needed", "observer"]
    epoch = status(net[0])["epoch"]
    net[0].submit_order(MARKET, "buy", "1", "1")
    assert status(net[0])["epoch"] == epoch, "a refusal changes nothing"


def refusal(node: ExchangeNode, **arguments: Any) -> str:
    with pytest.raises(Unavailable) as caught:
        node.force_leader(MARKET, reason="a test", **arguments)
    return caught.value.code


def test_force_is_refused_while_an_in_sync_node_lives_or_when_it_is_not_as_it_was_shown(
    exchange: Any, tmp_path: Path
) -> None:
    net, _, _ = stale_and_alone(exchange)
    coordinator = SqliteCoordinator(next(tmp_path.rglob("coordinator.sqlite")))
    coordinator.renew(net[0].node_id, holder="disk", ttl_ms=60_000)
    assert refusal(net[1]) == "in_sync_reachable"
    coordinator.release(net[0].node_id)
    plan = net[1].force_plan(MARKET)
    record = coordinator.read(MARKET)
    assert record is not None
    assert coordinator.swap(record, epoch=record.epoch, leader=record.leader, in_sync=record.in_sync) is not None
    coordinator.close()
    assert refusal(net[1], plan=plan) == "changing"
    assert net[1].force_leader(MARKET, reason="a test", plan=net[1].force_plan(MARKET))


def test_a_node_whose_only_log_was_damaged_goes_on_by_force_from_what_it_is_given(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    for _ in range(5):
        net[0].submit_order(MARKET, "buy", "100", "1")
    net[0].close()
    flip_a_bit(net[0].data_dir / "markets" / MARKET)
    node = net.restart(0, wait=False)
    assert node.force_leader(MARKET, reason="a test") == 2, "the market's rules come first"
    node.wait_ready()
    assert (status(node)["repairing"], node.rules(MARKET)) == (None, RULES)
    node = net.restart(0)
    assert status(node)["repairing"] is None
    node.submit_order(MARKET, "buy", "100", "1")


@pytest.mark.parametrize("lost", [1, 40])
def test_the_note_can_be_read_back_however_long_the_names_are_and_the_reason(
    exchange: Any, tmp_path: Path, lost: int
) -> None:
    net, behind, _ = stale_and_alone(exchange)
    coordinator = SqliteCoordinator(next(tmp_path.rglob("coordinator.sqlite")))
    record = coordinator.read(MARKET)
    assert record is not None
    in_sync = tuple(sorted([record.leader, *[f"{chr(0x1F600 + number) * 64}.12345678" for number in range(lost)]]))
    assert coordinator.swap(record, epoch=record.epoch, leader=record.leader, in_sync=in_sync) is not None
    coordinator.close()
    reason = "\N{FIRE}" * 500
    assert net[1].force_leader(MARKET, reason=reason) == behind + 1
    net.restart(1, wait=False).wait_ready()
    net.close()
    (note,) = notes(net[1].data_dir / "markets" / MARKET)
    assert note.endswith(f"what they answered after {behind} is lost; reason: {reason}")
    assert len(note.encode()) <= NOTE_SIZE_MAX
    assert record.leader in note
    assert (" more;" in note) == (lost == 40)


@pytest.mark.parametrize("reason", ["", "x" * 501, "\ud800", None])
def test_a_reason_that_no_log_can_hold_is_refused(exchange: Any, reason: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with pytest.raises(InvalidRequest) as caught:
        net[0].force_leader(MARKET, reason=reason)
    assert caught.value.code == "invalid_reason"


def test_what_passes_the_border_can_be_read_back_and_a_longer_note_does_not_pass() -> None:
    longest = checked_commands(((NOTE, "", "", "\N{FIRE}" * (NOTE_SIZE_MAX // 4)),), internal=True)
    record = Record.make(EMPTY, epoch=1, timestamp_ns=1, commands=longest, origins=())
    assert Record.parse(EMPTY, record.body) == record
    with pytest.raises(ProtocolError):
        checked_commands(((NOTE, "", "", "\N{FIRE}" * (NOTE_SIZE_MAX // 4) + "."),), internal=True)


# -- the protocol alone ------------------------------------------------------------------------------------------------


def log_of(records: int, *, epoch: int) -> list[Record]:
    log: list[Record] = []
    for number in range(records):
        after = log[-1].tail if log else EMPTY
        log.append(
            Record.make(
                after, epoch=epoch, timestamp_ns=number, commands=((3, "ann", f"{epoch}.{number}"),), origins=()
            )
        )
    return log


def former_member(*, committed: int, forced: int) -> Replica:
    """A replica "b" that holds five records of epoch 1 and follows "a", which leads in epoch 2."""
    log = log_of(5, epoch=1)
    applied = log[committed - 1].tail if committed else EMPTY
    replica = Replica(market="M", node="b", applied=applied, pending=log[committed:], incarnation=1)
    replica.start()
    replica.on_peer_up("a")
    replica.on_record(MarketRecord("M", 2, 2, "a", ("a",), forced), 0)
    return replica


def kinds(effects: list[Any]) -> list[type]:
    return [type(effect.message if isinstance(effect, Send) else effect) for effect in effects]


@pytest.mark.parametrize("committed", [0, 3, 5])
def test_what_may_have_been_acknowledged_before_the_force_is_put_aside_not_cut(committed: int) -> None:
    replica = former_member(committed=committed, forced=2)
    aside = replica.on_rewind("a", Rewind("M", 2, replica._join_number, 3, ()))
    assert kinds(aside) == [PutAside]
    assert replica.on_lead("a", Lead("M", 2, ("a",), 0)) == [], "nothing is taken in meanwhile"
    assert kinds(replica.on_put_aside()) == [Join]
    assert (replica.tail, replica.applied, replica.epoch) == (EMPTY, 0, 2)


def test_a_snapshot_does_not_replace_a_log_that_may_hold_what_was_acknowledged_before_the_force() -> None:
    replica = former_member(committed=5, forced=2)
    tail = log_of(9, epoch=2)[-1].tail
    assert replica.wants_snapshot("a", 2, tail)
    assert kinds(replica.on_snapshot_fetched(tail)) == [PutAside]
    replica.on_put_aside()
    assert replica.wants_snapshot("a", 2, tail)
    assert kinds(replica.on_snapshot_fetched(tail)) == [KeepFetched]


def test_what_a_leader_from_before_the_force_had_committed_does_not_commit_what_has_taken_its_place() -> None:
    log, others = log_of(3, epoch=1), []
    replica = Replica(market="M", node="b", applied=log[-1].tail, incarnation=1)
    for leader in "ac":
        replica.on_peer_up(leader)
    replica.on_record(MarketRecord("M", 1, 1, "a", ("a",)), 0)
    replica.on_append("a", Append("M", 1, 3, log[-1].chain, (), 5, 5, "ab" * 16, replica._join_number))
    replica.on_record(MarketRecord("M", 2, 2, "c", ("c",), forced=2), 0)
    after = log[-1].tail
    for number in (4, 5):
        commands = ((3, "bob", f"{number}"),)
        others.append(Record.make(after, epoch=2, timestamp_ns=number, commands=commands, origins=()))
        after = others[-1].tail
    bodies = tuple([record.body for record in others])
    replica.on_append("c", Append("M", 2, 3, log[-1].chain, bodies, 3, 0, "", replica._join_number))
    assert kinds(replica.on_durable(replica._generation, 5)) == [Ack], "the new leader has committed 3"
    assert (replica.committed, replica.expected_hash) == (3, None)


def test_without_force_a_committed_entry_that_the_leader_lacks_is_objected_to_and_nothing_is_cut() -> None:
    replica = former_member(committed=5, forced=0)
    trouble, objection = replica.on_rewind("a", Rewind("M", 2, replica._join_number, 3, ()))
    assert isinstance(trouble, Troubled)
    assert trouble.error is not None
    assert trouble.error.code == "diverged"
    assert "delete nothing" in trouble.error.message
    assert isinstance(objection.message, Objection)
    assert (objection.message.tail_epoch, objection.message.tail_sequence) == (1, 5)
    assert (replica.tail.sequence, replica.committed, replica.joined) == (5, 5, False)


def test_a_forced_swap_whose_answer_was_lost_counts_if_it_was_carried_out() -> None:
    record = MarketRecord("M", 7, 3, "a", ("a", "b"))
    replica = Replica(market="M", node="b", applied=EMPTY, incarnation=1, repairing=True)
    replica.on_record(record, 0)
    (swap,) = replica.force(record)
    assert isinstance(swap, SwapRecord)
    assert (swap.epoch, swap.in_sync, swap.force) == (8, ("b",), True)
    replica.on_coordinator_unavailable(swap)
    after = successor(record, epoch=8, leader="b", in_sync=("b",), force=True)
    assert kinds(replica.on_record(after, 0)) == [RepairEnded, SwapRecord]
    assert replica.role is Role.CLAIMING
