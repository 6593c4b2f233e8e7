"""One hour of a real market: the book makes the fills that the exchange made, and ends as the exchange's book did."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from openoutcry.actors.book.commands import Command, Event
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.rules import MarketRules
from openoutcry.actors.tools.replay import (
    Fill,
    FlowCommands,
    FlowRow,
    book_rows,
    differences,
    final_book_hash,
    read_flow,
)
from openoutcry.transport.errors import InvalidRequest

RULES = MarketRules(tick_size="0.25")
HEADER = "seq,ts_ns,cmd,order_id,side,price_ticks,qty,expect\n"


@pytest.fixture(scope="module")
def rows(data: Path) -> list[FlowRow]:
    return read_flow(data / "cme" / "es_20231225.commands.csv.gz")


def replayed(rows: list[FlowRow]) -> tuple[OrderBook, FlowCommands, list[Event]]:
    book, flow, events = OrderBook(RULES), FlowCommands(), []
    for timestamp_ns, batch in itertools.groupby(rows, key=lambda row: row.timestamp_ns):
        commands = tuple([flow.command(row) for row in batch])
        events += book.apply(book.sequence + 1, timestamp_ns, commands)
    book.check()
    return book, flow, events


def test_hour_at_the_cme_gives_the_fills_and_the_book_that_the_exchange_had(rows: list[FlowRow]) -> None:
    book, flow, events = replayed(rows)

    assert list(differences(rows, events, first_sequence=1, flow_ids=flow.flow_ids)) == []
    assert book.trade_count == 5853
    assert len({event[1] for event in events if event[0] == 3}) == 2875

    final = book_rows((*book.orders(0), *book.orders(1)), flow.flow_ids)
    assert final_book_hash(final).startswith("76dba82ff7162031")
    assert len(final) == len(book) == 11_217
    assert (len(book.depth(0)), len(book.depth(1))) == (922, 565)
    assert [f"{RULES.ticks_to_price(book.best(side) or 0)}" for side in (0, 1)] == ["4810.00", "4810.25"]


def test_book_that_forgot_priority_at_every_amend_would_be_found_out(rows: list[FlowRow]) -> None:
    book, flow = OrderBook(MarketRules(tick_size="0.25", amend_keeps_priority=False)), FlowCommands()
    events = book.apply(1, 0, tuple([flow.command(row) for row in rows]))

    assert list(differences(rows, events, first_sequence=1, flow_ids=flow.flow_ids))
    final = book_rows((*book.orders(0), *book.orders(1)), flow.flow_ids)
    assert not final_book_hash(final).startswith("76dba82ff7162031")


# -- the reading and the comparing, on flows small enough to see through ---------------------------------------


@pytest.fixture
def flow_of(tmp_path: Path) -> Callable[[str], list[FlowRow]]:
    def read(lines: str) -> list[FlowRow]:
        (tmp_path / "flow.csv").write_text(HEADER + lines)
        return read_flow(tmp_path / "flow.csv")

    return read


@pytest.mark.parametrize("name", ["flow.csv", "flow.csv.gz"])
def test_a_recording_that_is_binary_or_truncated_is_refused(tmp_path: Path, name: str) -> None:
    whole = HEADER.encode() + "1,10,SNAP,\u00e9,A,100,5,\n".encode("latin-1")
    packed = gzip.compress(HEADER.encode())
    (tmp_path / name).write_bytes(packed[:-4] if name.endswith("gz") else whole)
    with pytest.raises(InvalidRequest, match="is no CSV in UTF-8, or not whole"):
        read_flow(tmp_path / name)


SMALL = """\
1,10,SNAP,a,A,100,5,
2,10,SNAP,b,A,100,5,
3,11,AMEND,a,A,100,3,
4,12,TAKE,c,B,100,4,a:3@100;b:1@100
5,13,TAKEA,c,B,100,2,b:2@100
6,14,CANCEL,b,A,,,
"""


def test_flow_becomes_commands_that_name_orders_by_the_sequence_of_their_submit(flow_of) -> None:
    rows = flow_of(SMALL)
    flow = FlowCommands(first_sequence=2)
    commands: list[Command] = [flow.command(row) for row in rows]

    assert [command[0] for command in commands] == [1, 1, 4, 1, 1, 2], "c was filled: its TAKEA enters a new order"
    assert commands[2] == (4, "flow", "3", 2, 100, 3)
    assert commands[5] == (2, "flow", "6", 3)
    assert flow.flow_ids == {2: "a", 3: "b", 5: "c", 6: "c"}
    assert rows[3].expect == (Fill("a", 3, 100), Fill("b", 1, 100))


def test_every_kind_of_wrong_answer_is_a_difference(flow_of) -> None:
    rows = flow_of(SMALL)
    _, flow, events = replayed(rows)
    ids = flow.flow_ids
    assert list(differences(rows, events, first_sequence=1, flow_ids=ids)) == []
    assert list(differences(rows[3:], [e for e in events if e[1] > 3], first_sequence=4, flow_ids=ids)) == []

    def rows_that_differ(wrong: list[Event]) -> list[int]:
        return [found.row.seq for found in differences(rows, wrong, first_sequence=1, flow_ids=ids)]

    a_fill_is_missing = [event for event in events if event[0] != 3 or event[2] != 2]
    fills_swapped = [events[at] for at in (0, 1, 2, 3, 5, 4, *range(6, len(events)))]
    answer_is_missing = [event for event in events if event[1] != 2]
    rejected = [*events[:-1], (2, 6, "flow", "6", "unknown_order")]
    anothers = [(*events[0][:3], "eve", "", *events[0][5:]), *events[1:]]
    assert rows_that_differ(a_fill_is_missing) == [4]
    assert rows_that_differ(fills_swapped) == [4]
    assert rows_that_differ(answer_is_missing) == [2]
    assert rows_that_differ(rejected) == [6]
    assert rows_that_differ(anothers) == [1]
    assert [str(found) for found in differences(rows, rejected, first_sequence=1, flow_ids=ids)] == [
        "row 6, CANCEL of b: the recorded one did not trade, the book rejected it: unknown_order"
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,10,SNAP,a,A,100,5\n", "line 2: it has 7 columns, not 8"),
        ("1,10,SNAP,a,A,100,5,,\n", "line 2: it has 9 columns, not 8"),
        ("1,10,BUY,a,A,100,5,\n", "line 2: cmd is one of SNAP, NEW, TAKE, AMEND, TAKEA, CANCEL, not 'BUY'"),
        ("1,10,SNAP,a,X,100,5,\n", "line 2: side is one of B, A, not 'X'"),
        ("1,10,SNAP,a,A,1.5,5,\n", r"line 2: price_ticks is a whole number in digits, as 1000, not '1\.5'"),
        ("1,10,TAKE,a,A,100,5,b:1\n", "line 2: expect is maker_id:qty@price_ticks, joined by ;, not 'b:1'"),
        ("2,10,SNAP,a,A,100,5,\n", "line 2: its seq is not 1"),
        ("1,10,SNAP,a,A,100,5,\n2,9,NEW,b,A,100,5,\n", "line 3: its time is before"),
    ],
)
def test_malformed_line_is_refused_by_its_number(flow_of, line: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        flow_of(line)


def test_amend_of_an_order_that_nobody_entered_is_refused(flow_of) -> None:
    (row,) = flow_of("1,10,AMEND,a,A,100,5,\n")
    with pytest.raises(InvalidRequest, match="row 1: no row before it entered a"):
        FlowCommands().command(row)
