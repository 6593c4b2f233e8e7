"""Recorded order flow: rows of a file become commands, the book's answers are compared with the recorded ones.

Pure except :func:`read_flow`: the caller sends the commands, to a bare :class:`~..book.orderbook.OrderBook` or through
nodes. The file is CSV, ``.gz`` or plain, with one header line and one command a line::

    seq,ts_ns,cmd,order_id,side,price_ticks,qty,expect

``seq``
    1, 2, 3, … without a gap.
``ts_ns``
    When the recorded exchange received it, nanoseconds since the Unix epoch; never runs backwards.
``cmd``
    ==========  ==================================================================================================
    ``SNAP``    an order that rests when the recording starts, in queue order
    ``NEW``     a new limit order that does not trade at once
    ``TAKE``    a new limit order that trades at once; its remainder rests
    ``AMEND``   a new price and a new open quantity for a resting order
    ``TAKEA``   the same, into the market; a new limit order where the order is not resting
    ``CANCEL``  a cancel; price and quantity say nothing
    ==========  ==================================================================================================
``order_id``
    The order's id at the recorded exchange: any text.
``side``
    ``B`` (bid) or ``A`` (ask).
``price_ticks``, ``qty``
    Whole numbers of ticks and lots; the price may be empty in a ``CANCEL``.
``expect``
    The fills that it made there, in order: ``maker_id:qty@price_ticks``, joined by ``;``; empty where none.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TextIO, cast

from ...transport.errors import InvalidRequest
from ...transport.numerals import whole_of
from ..book.commands import (
    ACCEPTED,
    ACCEPTED_CLIENT_ORDER_ID,
    AMEND,
    AMENDED,
    CANCEL,
    CANCELLED,
    REJECTED,
    SUBMIT,
    TRADE,
    Command,
    Event,
    OrderType,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from ..book.orderbook import OrderView

COLUMNS: Final = ("seq", "ts_ns", "cmd", "order_id", "side", "price_ticks", "qty", "expect")
LINE_LENGTH_MAX: Final = 1024 * 1024
"""Most characters of one line of a recording; a longer one is refused."""
_ACCOUNT: Final = "flow"
"""The account of all commands of a recording."""
_ENTERS: Final = ("SNAP", "NEW", "TAKE")
_COMMANDS: Final = (*_ENTERS, "AMEND", "TAKEA", "CANCEL")
_SIDES: Final = {"B": Side.BUY, "A": Side.SELL}


class Fill(NamedTuple):
    """One fill of a taker."""

    maker_id: str
    quantity_lots: int
    price_ticks: int


class FlowRow(NamedTuple):
    """One line of the file."""

    seq: int
    timestamp_ns: int
    cmd: str
    order_id: str
    side: Side
    price_ticks: int
    quantity_lots: int
    expect: tuple[Fill, ...]


class Difference(NamedTuple):
    """A row to which the book answered differently from the recorded exchange."""

    row: FlowRow
    fills: tuple[Fill, ...]
    """What the book traded."""
    answer: str
    """The other difference: a rejection's code, or ``no answer``; empty if only the fills differ."""

    def __str__(self) -> str:
        """Return one line for people."""
        wanted = _shown(self.row.expect)
        found = self.answer or _shown(self.fills)
        return f"row {self.row.seq}, {self.row.cmd} of {self.row.order_id}: the recorded one {wanted}, the book {found}"


BookRow = tuple[str, int, str, int]
"""``(side, price_ticks, order_id, open_lots)`` of one resting order; side and order id as the flow has them."""


def read_flow(path: Path) -> list[FlowRow]:
    """Return the rows of a recording, in order.

    Raises:
        InvalidRequest: a line breaks the module's table (code ``invalid_flow``); the message names it.
        OSError: the file cannot be read.
    """
    try:
        return _rows(path)
    except InvalidRequest:
        raise
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidRequest(f"{path} is no CSV in UTF-8, or not whole: {error}", code="invalid_flow") from error


def _rows(path: Path) -> list[FlowRow]:
    rows: list[FlowRow] = []
    if path.exists() and not path.is_file():
        raise InvalidRequest(f"{path} is no ordinary file: a recording is read twice", code="invalid_flow")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8") as file:
        lines = csv.reader(_lines(cast("TextIO", file)))
        if tuple(next(lines, ())) != COLUMNS:
            raise InvalidRequest(f"{path}: the first line is not {','.join(COLUMNS)}", code="invalid_flow")
        for fields in lines:
            try:
                row = _row(fields)
                if row.seq != len(rows) + 1:
                    raise ValueError(f"its seq is not {len(rows) + 1}")
                if rows and row.timestamp_ns < rows[-1].timestamp_ns:
                    raise ValueError("its time is before that of the line above")
            except ValueError as error:
                raise InvalidRequest(f"{path}, line {lines.line_num}: {error}", code="invalid_flow") from error
            rows.append(row)
    return rows


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of ``file``; without a bound, a file that has no line end would fill the memory."""
    for number in itertools.count(1):
        line = file.readline(LINE_LENGTH_MAX + 1)
        if len(line) > LINE_LENGTH_MAX:
            raise ValueError(f"line {number} has more than {LINE_LENGTH_MAX:,} characters")
        if not line:
            return
        yield line


def _row(fields: Sequence[str]) -> FlowRow:
    if len(fields) != len(COLUMNS):
        raise ValueError(f"it has {len(fields)} columns, not {len(COLUMNS)}")
    seq, timestamp_ns, cmd, order_id, side, price_ticks, quantity, expect = fields
    if cmd not in _COMMANDS:
        raise ValueError(f"cmd is one of {', '.join(_COMMANDS)}, not {cmd!r:.60}")
    if side not in _SIDES:
        raise ValueError(f"side is one of {', '.join(_SIDES)}, not {side!r:.60}")
    if cmd == "CANCEL":
        price_ticks, quantity = price_ticks or "0", quantity or "0"
    fills = []
    for fill in expect.split(";") if expect else ():
        maker_id, _, rest = fill.rpartition(":")
        lots, _, price = rest.partition("@")
        quantity_lots, at_ticks = whole_of(lots), whole_of(price)
        if quantity_lots is None or at_ticks is None:
            raise ValueError(f"expect is maker_id:qty@price_ticks, joined by ;, not {fill!r:.60}")
        fills.append(Fill(maker_id, quantity_lots, at_ticks))
    return FlowRow(
        _whole("seq", seq),
        _whole("ts_ns", timestamp_ns),
        cmd,
        order_id,
        _SIDES[side],
        _whole("price_ticks", price_ticks),
        _whole("qty", quantity),
        tuple(fills),
    )


def _whole(column: str, text: str) -> int:
    found = whole_of(text)
    if found is None:
        raise ValueError(f"{column} is a whole number in digits, as 1000, not {text!r:.60}")
    return found


class FlowCommands:
    """Turns each row into a command, and maps orders of the flow to orders of the book.

    A cancel or an amend must name the book's order id, which is the sequence number of the order's submit.
    If only this flow is submitted to the market, in order, those numbers are known beforehand: the first
    row's command is ``first_sequence``, the next one's the number after. So commands can be sent in batches, or many
    at a time, without waiting for answers. :func:`differences` notices if the assumption did not hold.

    Every command is the request of one account and is named by its row, so that sending it twice is safe.
    """

    def __init__(self, *, first_sequence: int = 1) -> None:
        """``first_sequence`` is the sequence number of the first row's command: 2 after a market's CONFIGURE."""
        self.next_sequence = first_sequence
        self.flow_ids: dict[int, str] = {}
        """The flow's name of each order that was entered, by the book's order id."""
        self._order_ids: dict[str, int] = {}
        self._open: dict[str, int] = {}

    def command(self, row: FlowRow) -> Command:
        """Return the command of the next row.

        Raises:
            InvalidRequest: the row cancels or amends an order that no row before it entered (code ``invalid_flow``).
        """
        sequence = self.next_sequence
        self.next_sequence += 1
        name = f"{row.seq}"
        resting = row.order_id in self._open
        if row.cmd in _ENTERS or (row.cmd == "TAKEA" and not resting):
            self._order_ids[row.order_id] = sequence
            self.flow_ids[sequence] = row.order_id
            self._track(row)
            limit, gtc, stp = int(OrderType.LIMIT), int(TimeInForce.GTC), int(SelfTradePrevention.NONE)
            side, price = int(row.side), row.price_ticks
            return (SUBMIT, _ACCOUNT, name, side, limit, price, row.quantity_lots, gtc, 0, stp)
        order_id = self._order_ids.get(row.order_id)
        if order_id is None:
            raise InvalidRequest(f"row {row.seq}: no row before it entered {row.order_id}", code="invalid_flow")
        if row.cmd == "CANCEL":
            self._open.pop(row.order_id, None)
            return (CANCEL, _ACCOUNT, name, order_id)
        self._track(row)
        return (AMEND, _ACCOUNT, name, order_id, row.price_ticks, row.quantity_lots)

    def _track(self, row: FlowRow) -> None:
        """Track the resting orders by the recorded fills, without asking a book."""
        self._open[row.order_id] = row.quantity_lots
        for fill in row.expect:
            for order_id in (row.order_id, fill.maker_id):
                left = self._open.get(order_id, 0) - fill.quantity_lots
                if left > 0:
                    self._open[order_id] = left
                else:
                    self._open.pop(order_id, None)


def differences(
    rows: Iterable[FlowRow], events: Iterable[Event], *, first_sequence: int, flow_ids: Mapping[int, str]
) -> Iterator[Difference]:
    """Yield each of ``rows`` to which the book answered differently from the recorded exchange; none means equality.

    ``events`` are the answers to these rows and no others, in the order of their sequence numbers;
    ``first_sequence`` is that of the first row's command and ``flow_ids`` :attr:`FlowCommands.flow_ids`. So it works on
    a whole run and on each batch as its results arrive. The fills must be equal one by one: maker, lots, price
    and order. A rejection, an answer about an order of another name and a missing answer are differences too.
    """
    answers: dict[int, list[Event]] = {}
    for event in events:
        answers.setdefault(event[1], []).append(event)
    for sequence, row in enumerate(rows, first_sequence):
        fills: list[Fill] = []
        answer = "gave no answer"
        for event in answers.pop(sequence, ()):
            kind = event[0]
            if kind == TRADE:
                _, _, _, price_ticks, lots, maker_id, taker_id, *_ = event
                fills.append(Fill(flow_ids.get(maker_id, f"?{maker_id}"), lots, price_ticks))
                about = taker_id
            elif kind in (ACCEPTED, AMENDED, CANCELLED):
                about = event[2]
                if answer == "gave no answer":
                    answer = ""
            else:
                answer = f"rejected it: {event[-1]}" if kind == REJECTED else f"answered {event!r}"
                break
            if flow_ids.get(about) != row.order_id or (
                kind == ACCEPTED and event[ACCEPTED_CLIENT_ORDER_ID] != f"{row.seq}"
            ):
                answer = f"answered about order {about}: were other commands submitted in between?"
                break
        if answer or tuple(fills) != row.expect:
            yield Difference(row, tuple(fills), answer)


def book_rows(orders: Iterable[OrderView], flow_ids: Mapping[int, str]) -> list[BookRow]:
    """Return resting orders (bids best first, then asks best first, as the book yields them) in the flow's words."""
    return [
        ("A" if order.side == Side.SELL else "B", order.price_ticks, flow_ids[order.order_id], order.open_lots)
        for order in orders
    ]


def final_book_hash(rows: Sequence[BookRow]) -> str:
    """Return the SHA-256, in hexadecimal, by which the final books of two replays of a flow are compared."""
    return hashlib.sha256(repr(list(rows)).encode()).hexdigest()


def _shown(fills: Sequence[Fill]) -> str:
    traded = ";".join([f"{fill.maker_id}:{fill.quantity_lots}@{fill.price_ticks}" for fill in fills])
    return f"traded {traded}" if traded else "did not trade"
