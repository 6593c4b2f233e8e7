"""A stopped node's disk, looked at from outside: `openoutcry verify`, `openoutcry log` and what they are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from openoutcry.actors import ExchangeNode, MarketRules
from openoutcry.actors.book.commands import AMEND, CANCEL_ALL, CLOCK, CONFIGURE, NOTE, SUBMIT, Command
from openoutcry.actors.book.journal import FolderLock, Journal
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.record import Record, Tail
from openoutcry.actors.book.snapshots import Snapshots
from openoutcry.actors.cli import main
from openoutcry.actors.tools.inspection import (
    LoggedCommand,
    command_fields,
    command_words,
    held,
    market_folders,
    read_log,
    verify_market,
)
from openoutcry.transport.errors import ConfigurationError, StorageError
from openoutcry.transport.numerals import time_text

MARKET = "BTC-USD"
RULES = MarketRules(tick_size="0.01", lot_size="0.001")
CONFIGURED: Command = (CONFIGURE, "", "", RULES.to_tuple())
SEGMENT = 4096

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def order(name: str, side: int, price: int, lots: int) -> Command:
    return (SUBMIT, name, f"{name}{price}", side, 0, price, lots, 0, 0, 0)


def flow(count: int) -> list[tuple[Command, ...]]:
    """Return a market's rules and ``count`` records, of one to three orders each, some of which trade."""
    records: list[tuple[Command, ...]] = [(CONFIGURED,)]
    for number in range(count):
        ticks = 10_000 + number
        records.append(tuple([order(f"a{at}", (number + at) % 2, ticks - at, 1 + at) for at in range(1 + number % 3)]))
    return records


def write(
    folder: Path, batches: list[tuple[Command, ...]], *, snapshots_at: tuple[int, ...] = (), prune: bool = False
) -> tuple[OrderBook, list[Record]]:
    """Write a log as a node does, a record for each batch; a snapshot after each of the records ``snapshots_at``."""
    book, journal, records = OrderBook(), Journal(folder, segment_size=SEGMENT), []
    snapshots = Snapshots(folder / "snapshots")
    for number, commands in enumerate(batches):
        record = Record.make(journal.tail, epoch=1, timestamp_ns=10**18 + number, commands=commands, origins=())
        journal.append([record], committed=journal.tail.sequence)
        book.apply(record.first_sequence, record.timestamp_ns, commands)
        records.append(record)
        if number in snapshots_at:
            oldest = snapshots.write(record.tail, book.snapshot())
            if prune:
                journal.prune(oldest)
    journal.close()
    return book, records


def node_folder(folder: Path) -> Path:
    """Return a market's folder, not there yet, in a data directory that a node seems to have used."""
    (folder / "markets").mkdir(parents=True)
    (folder / "lock").touch()
    return folder / "markets" / MARKET


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return all that is below a folder: when each file and folder was last changed, and each file's bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x10
    path.write_bytes(data)


def place_of(folder: Path, number: int) -> tuple[Path, int]:
    """Return where record ``number`` of a log starts: its file and byte."""
    journal = Journal(folder, read_only=True)
    segment, byte = journal._place(number)
    return journal._paths[segment], byte


# -- verify ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_of_a_healthy_directory_agrees_with_the_node_that_wrote_it(tmp_path: Path, run: Run) -> None:
    data_dir = tmp_path / "desk"
    with ExchangeNode("desk", markets={MARKET: RULES, "A/B": RULES}, data_dir=data_dir, snapshot_every=7) as node:
        node.wait_ready()
        for number in range(10):
            node.submit_order(MARKET, "sell", f"{100 + number}", "2")
            node.submit_order(MARKET, "buy", "101", "1.5")
        sequence, state_hash = node.position(MARKET)
        open_orders, trades = len(node.all_orders(MARKET)), len(node.trades(MARKET, 1000))
    result = run("verify", data_dir, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["sound"], [market["market"] for market in found["markets"]]) == (True, ["A/B", MARKET])
    report = found["markets"][1]
    assert (report["sequence"], report["state_hash"]) == (sequence, state_hash)
    assert (report["open_orders"], report["trades"], report["commands"]) == (open_orders, trades, sequence)
    assert report["snapshots"], "the test is meant to compare a snapshot with the log"

    only = run("verify", data_dir / "markets" / MARKET)
    assert only.exit_code == 0
    assert only.stdout.startswith(f"{MARKET}: sound\n")
    assert f"  state hash     {state_hash}\n" in only.stdout
    assert "A/B" not in only.stdout


@pytest.mark.parametrize("number", [0, 5, 17, 29], ids=["first", "within", "in a later segment", "last"])
@pytest.mark.parametrize("within", [1, 6, 9, 30, 70], ids=["mark", "checksum", "length", "chain", "body"])
def test_verify_finds_a_flipped_bit_and_names_the_place(tmp_path: Path, run: Run, number: int, within: int) -> None:
    folder = node_folder(tmp_path)
    _, records = write(folder, flow(29))
    path, byte = place_of(folder, number)
    flip(path, byte + within)
    result = run("verify", tmp_path, "--json")
    assert result.exit_code == 1
    assert result.stderr.endswith(f"damaged: {MARKET} (damaged)\n")
    (report,) = json.loads(result.stdout)["markets"]
    (damage,) = report["damage"]
    first = records[number].first_sequence
    assert (damage["file"], damage["byte"], damage["sequence"]) == (str(path), byte, first)
    assert "start the node: it puts this folder aside" in damage["advice"]
    assert (report["sound"], report["sequence"], report["records"]) == (False, first - 1, number)
    assert f"  damage         {path}, byte {byte}, sequence {first}: " in run("verify", tmp_path).stdout


def test_verify_reads_a_pruned_log_on_from_its_snapshot(tmp_path: Path) -> None:
    book, records = write(tmp_path, flow(60), snapshots_at=(20, 35, 50), prune=True)
    report = verify_market(MARKET, tmp_path)
    assert report.sound
    assert 0 < report.begins_after <= records[35].last_sequence
    assert report.snapshots == (records[35].last_sequence, records[50].last_sequence)
    assert (report.sequence, report.state_hash) == (book.sequence, book.state_hash())

    newer, older = sorted((tmp_path / "snapshots").iterdir(), reverse=True)
    flip(newer, 200)
    report = verify_market(MARKET, tmp_path)
    (damage,) = report.damage
    assert (damage.file, damage.sequence) == (str(newer), records[50].last_sequence)
    assert report.state_hash == book.state_hash(), "the older one is enough"
    flip(older, 200)
    report = verify_market(MARKET, tmp_path)
    assert [damage.file for damage in report.damage] == [str(older), str(newer), str(tmp_path)]
    assert report.state_hash is None
    assert (report.sequence, report.chain) == (book.sequence, records[-1].chain.hex()), "the log itself is sound"


def test_verify_finds_a_snapshot_that_is_whole_but_not_of_this_log(tmp_path: Path) -> None:
    _, records = write(tmp_path, flow(10), snapshots_at=(5,))
    other = OrderBook()
    for record in records[:6]:
        other.apply(record.first_sequence, record.timestamp_ns + 1, record.commands)
    Snapshots(tmp_path / "snapshots").write(records[5].tail, other.snapshot())
    (damage,) = verify_market(MARKET, tmp_path).damage
    assert f"its state hash is {other.state_hash()}, the log leads to " in damage.reason

    Snapshots(tmp_path / "snapshots").write(Tail(1, records[6].last_sequence, bytes(32)), b"")
    assert "it does not belong to this log" in verify_market(MARKET, tmp_path).damage[0].reason


def test_verify_tells_where_a_log_that_is_whole_cannot_be_executed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_size=SEGMENT)
    for timestamp_ns in (5, 6, 4):
        commands: tuple[Command, ...] = ((CLOCK, "", ""),)
        record = Record.make(journal.tail, epoch=1, timestamp_ns=timestamp_ns, commands=commands, origins=())
        journal.append([record], committed=0)
    journal.close()
    report = verify_market(MARKET, tmp_path)
    (damage,) = report.damage
    path, byte = place_of(tmp_path, 2)
    assert (damage.file, damage.byte) == (str(path), byte)
    assert (damage.sequence, report.sequence, report.state_hash) == (3, 2, None)
    assert "time ran backwards at 3" in damage.reason
    assert [logged.sequence for logged in read_log(tmp_path)] == [1, 2, 3], "it can still be read"
    with pytest.raises(StorageError, match="time ran backwards at 3"):
        list(read_log(tmp_path, with_events=True))


def test_a_torn_tail_is_sound_and_its_size_is_told(tmp_path: Path, run: Run) -> None:
    folder = node_folder(tmp_path)
    book, records = write(folder, flow(3))
    path, byte = place_of(folder, 3)
    data = path.read_bytes()
    path.write_bytes(data[: byte + 100] + bytes(len(data) - byte - 100))
    result = run("verify", tmp_path)
    assert result.exit_code == 0
    assert "  torn tail      100 bytes, cut at the next start\n" in result.stdout
    assert f"  last sequence  {records[2].last_sequence}\n" in result.stdout
    assert book.state_hash() not in result.stdout
    assert f"  committed      {records[1].last_sequence} or more: this mark lags on disk" in result.stdout
    assert "what was answered is never cut" in result.stdout


@pytest.mark.parametrize("harm", ["none", "torn tail", "flipped bit", "unborn segment", "damaged snapshot", "copy"])
def test_nothing_on_the_disk_changes(tmp_path: Path, run: Run, harm: str) -> None:
    folder = node_folder(tmp_path)
    write(folder, flow(29), snapshots_at=(12,))
    path, byte = place_of(folder, 29)
    if harm == "torn tail":
        data = path.read_bytes()
        path.write_bytes(data[: byte + 100] + bytes(len(data) - byte - 100))
    elif harm == "flipped bit":
        flip(path, byte)
    elif harm == "unborn segment":
        (folder / f"{999:020d}.log").write_bytes(bytes(SEGMENT))
    elif harm == "damaged snapshot":
        flip(next((folder / "snapshots").iterdir()), 200)
    elif harm == "copy":
        (tmp_path / "lock").unlink()
    (folder / "snapshots" / "leftover.new").touch()
    before = contents(tmp_path)
    broken = harm in ("flipped bit", "damaged snapshot")
    assert run("verify", tmp_path).exit_code == broken
    assert run("verify", folder).exit_code == broken
    assert run("log", tmp_path, MARKET, "--events").exit_code == (harm == "flipped bit")
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_the_folder_of_a_running_node_is_refused_and_one_that_is_read_keeps_nodes_out(tmp_path: Path, run: Run) -> None:
    with ExchangeNode("desk", markets={MARKET: RULES}, data_dir=tmp_path) as node:
        node.wait_ready()
        for command in (
            ("verify", tmp_path),
            ("verify", tmp_path / "markets" / MARKET),
            ("log", tmp_path, MARKET),
        ):
            result = run(*command)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr.startswith(f"a node is running on {tmp_path}: stop it first, or ask it with ")
            assert result.stderr.endswith("(data_dir_in_use)\n")
    with held(tmp_path):
        assert run("verify", tmp_path).exit_code == 0, "readers do not keep each other out"
        with pytest.raises(ConfigurationError, match="in use by a process that reads it"):
            FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_folders_that_a_node_put_aside_are_told_and_checked_only_when_named(tmp_path: Path, run: Run) -> None:
    folder = node_folder(tmp_path)
    write(folder, flow(2))
    aside = folder.with_name(f"{MARKET}.damaged-1")
    write(aside, flow(5))
    flip(*place_of(aside, 2))
    (folder / "repairing").write_text("it was damaged\n")
    result = run("verify", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.endswith(f"{aside}: was put aside, and is not checked\n")
    assert "  repairing      from a peer, as the node will go on to: it was damaged\n" in result.stdout
    assert run("verify", aside).exit_code == 1


def test_a_folder_that_is_no_data_directory_is_refused_by_name(tmp_path: Path, run: Run) -> None:
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith("or the folder of a market in it (not_a_data_dir)\n")
    (tmp_path / "alice.log").write_text("of another program\n")
    result = run("verify", tmp_path)
    assert result.stderr.endswith("or the folder of a market in it (not_a_data_dir)\n"), "no log of a market's"
    assert run("verify", tmp_path / "nowhere").exit_code == 2
    write(node_folder(tmp_path), flow(1))
    assert run("log", tmp_path, "ETH").stderr.endswith("has no market ETH; it has: BTC-USD (unknown_market)\n")
    assert list(market_folders(tmp_path / "markets" / MARKET)[0]) == [MARKET]


# -- log ---------------------------------------------------------------------------------------------------------------


def test_log_prints_what_was_traded(tmp_path: Path, run: Run) -> None:
    commands: list[Command] = [
        (SUBMIT, "ann", "s", 1, 0, 10_025, 3_000, 0, 0, 0),
        (SUBMIT, "bea", "b", 0, 0, 10_050, 1_000, 1, 0, 0),
        (AMEND, "ann", "a", 2, None, 1_500),
        (CANCEL_ALL, "ann", "c"),
    ]
    write(node_folder(tmp_path), [(CONFIGURED,), *[(command,) for command in commands]])
    lines = run("log", tmp_path, MARKET).stdout.splitlines()
    assert [line.split("Z  ", 1)[1] for line in lines] == [
        "the rules are set: tick_size=0.01, lot_size=0.001",
        "ann sells 3.000 at 100.25, id s",
        "bea buys 1.000 at 100.50, ioc, id b",
        "ann amends order 2: open quantity 1.500, id a",
        "ann cancels all orders, id c",
    ]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    assert run("log", tmp_path, MARKET, "--from", "3", "--to", "4").stdout.splitlines() == lines[2:4]
    told = run("log", tmp_path, MARKET, "--from", "3", "--to", "3", "--events").stdout.splitlines()
    assert told[0] == lines[2]
    assert [line.strip() for line in told[1:]] == [
        "accepted as order 3",
        "trade 1: bea bought 1.000 at 100.25 from ann, order 2",
    ]
    first, *_ = [json.loads(line) for line in run("log", tmp_path, MARKET, "--from", "3", "--json").stdout.splitlines()]
    assert {key: first[key] for key in ("sequence", "command", "account", "side", "price", "quantity")} == {
        "sequence": 3,
        "command": "submit",
        "account": "bea",
        "side": "buy",
        "price": "100.50",
        "quantity": "1.000",
    }
    assert "events" not in first


def test_log_of_a_damaged_journal_prints_what_is_before_the_damage(tmp_path: Path, run: Run) -> None:
    folder = node_folder(tmp_path)
    _, records = write(folder, flow(9))
    flip(*place_of(folder, 6))
    first = records[6].first_sequence
    result = run("log", tmp_path, MARKET)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == first - 1
    assert f"(sequence {first}): damaged before the end of the log" in result.stderr
    assert run("log", tmp_path, MARKET, "--to", first - 1).exit_code == 0


def test_log_of_a_pruned_journal_takes_its_rules_from_the_snapshot(tmp_path: Path) -> None:
    _, records = write(tmp_path, flow(80), snapshots_at=(35, 60), prune=True)
    found = list(read_log(tmp_path, with_events=True))
    assert 1 < found[0].sequence < records[35].first_sequence
    assert found[0].rules == RULES
    assert {logged.sequence for logged in found if logged.events is None} == set(
        range(found[0].sequence, records[35].last_sequence + 1)
    ), "what the log did before the first state that is known, nobody can tell"
    for path in (tmp_path / "snapshots").iterdir():
        path.unlink()
    assert " lot at 10032 ticks, id " in command_words(next(read_log(tmp_path)))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (order("ann", 0, 1, 1), "ann buys 0.001 at 0.01, id ann1"),
        ((SUBMIT, "a\nb", "", 1, 0, 5, 2, 0, 0, 1), r"a\nb sells 0.002 at 0.05, own orders: cancel newest"),
        ((SUBMIT, "ann", "\x1b[2J", 1, 1, None, 2, 2, 0, 0), r"ann sells 0.002 at market, fok, id \x1b[2J"),
        ((SUBMIT, "ann", "", 0, 1, 700, 2, 1, 0, 0), "ann buys 0.002 at market, bound 7.00, ioc"),
        (
            (SUBMIT, "ann", "", 0, 2, -700, 2, 3, 1_500_000_000, 0),
            "ann buys 0.002 at -7.00, post only, until 1970-01-01T00:00:01.500000000Z",
        ),
        ((AMEND, "ann", "", 7, 5, 6), "ann amends order 7: price 0.05, open quantity 0.006"),
        ((CANCEL_ALL, "ann", "x"), "ann cancels all orders, id x"),
        ((CLOCK, "", ""), "time passes"),
        ((NOTE, "", "", "forced\nby bob"), r"note: forced\nby bob"),
        ((99, "", "", "later"), "(99, '', '', 'later')"),
    ],
)
def test_every_command_is_one_line_that_no_name_can_break(command: Command, words: str) -> None:
    logged = LoggedCommand(7, 1, 0, command, RULES, None)
    assert command_words(logged) == words
    fields: dict[str, Any] = command_fields(logged)
    assert (fields["sequence"], fields["epoch"]) == (7, 1)


def test_without_rules_prices_are_in_ticks_and_quantities_in_lots() -> None:
    logged = LoggedCommand(1, 1, 0, order("ann", 0, 5, 1), None, None)
    assert command_words(logged) == "ann buys 1 lot at 5 ticks, id ann5"
    assert (command_fields(logged)["price_ticks"], command_fields(logged)["quantity_lots"]) == (5, 1)
    assert time_text(1_600_000_000_000_000_001) == "2020-09-13T12:26:40.000000001Z"
