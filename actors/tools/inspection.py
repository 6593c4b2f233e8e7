"""Reads a stopped node's disk: is it sound, and what is on it? Never writes, prints or repairs.

``openoutcry verify`` and ``openoutcry log`` show the findings. It reads the folder of one market: its journal, and the
snapshots beside it. The functions that turn records into words are pure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, assert_never
from urllib.parse import unquote

from ...transport.errors import ConfigurationError, ProtocolError, StorageError
from ...transport.numerals import time_text
from ...transport.plain import plain
from ..book.commands import (
    AMEND,
    CANCEL,
    CANCEL_ALL,
    CLOCK,
    CONFIGURE,
    NOTE,
    SET_TIME,
    SUBMIT,
    Command,
    Event,
    OrderType,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from ..book.journal import FolderLock, Journal, JournalDamaged
from ..book.orderbook import BROKEN, OrderBook, events_between
from ..book.record import EMPTY, Tail
from ..book.rules import MarketRules
from ..book.snapshots import read_snapshot, sequence_of
from ..book.storage import REPAIRING
from ..market.views import (
    Accepted,
    Amended,
    Cancelled,
    Configured,
    Duplicate,
    MarketEvent,
    Noted,
    Rejected,
    Trade,
    to_event,
)

_PUT_ASIDE: Final = re.compile(r"(.+)\.(?:damaged|diverged)-[0-9]+")
_SEGMENT: Final = re.compile(r"[0-9]{20}\.log")
"""Matches a file of a market's log; a ``*.log`` with another name belongs to another program."""
_PROGRESS_EVERY: Final = 1000
"""Commands."""

_ADVICE_LOG: Final = (
    "start the node: it puts this folder aside and is made good by another node that holds the market. If none does, "
    "restore the data directory from a backup; `openoutcry log` prints what is sound before that place"
)
_ADVICE_SNAPSHOT: Final = "the node passes over it and starts from an older state, where there is one; delete the file"
_ADVICE_STATE: Final = (
    "the files are as they were written, but do not lead to one state: use the version of this program that wrote "
    "them; if it finds the same, move this folder away and start the node: it joins the market as new"
)


# -- which folders -------------------------------------------------------------------------------------------------


def market_folders(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return the markets' folders in a data directory by name, or ``folder`` itself; and those put aside.

    Raises:
        ConfigurationError: it is neither (code ``not_a_data_dir``).
    """
    folder = folder.resolve()
    found: dict[str, Path] = {}
    aside = []
    if (folder / "markets").is_dir():
        for path in sorted((folder / "markets").iterdir()):
            whole = _PUT_ASIDE.fullmatch(path.name)
            if whole is not None and path.with_name(whole[1]).is_dir():
                aside.append(path)
            elif path.is_dir():
                found[unquote(path.name)] = path
    elif any([_SEGMENT.fullmatch(path.name) for path in folder.glob("*.log")]):
        found[unquote(folder.name)] = folder
    if not found:
        raise ConfigurationError(
            f"{folder} holds no market's log: name a node's data directory, or the folder of a market in it",
            code="not_a_data_dir",
        )
    return found, aside


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep nodes out of a data directory, or out of the one around a market's folder, while it is read.

    Raises:
        ConfigurationError: a node runs on it (code ``data_dir_in_use``).
    """
    folder = folder.resolve()
    if folder.parent.name == "markets" and not (folder / "markets").is_dir():
        folder = folder.parent.parent
    if not (folder / "lock").exists():  # no node ever ran here: it is a copy
        yield
        return
    try:
        lock = FolderLock(folder, read_only=True)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"a node is running on {folder}: stop it first, or ask it with `openoutcry status`", code=error.code
        ) from error
    try:
        yield
    finally:
        lock.release()


# -- is it sound -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One finding, and its place."""

    file: str
    byte: int | None = None
    """Offset in the file; None: the file as a whole."""
    sequence: int | None = None
    """The sequence number expected there; None: it is not in the log."""
    reason: str
    advice: str

    def __str__(self) -> str:
        byte = f", byte {self.byte}" if self.byte is not None else ""
        sequence = f", sequence {self.sequence}" if self.sequence is not None else ""
        return f"{self.file}{byte}{sequence}: {self.reason}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MarketReport:
    """The findings in one market's folder. If the log is damaged, up to the damage."""

    market: str
    folder: str
    sound: bool
    records: int
    commands: int
    begins_after: int
    """The log begins after this sequence number: above 0 once it was pruned."""
    sequence: int
    """The last sequence number; the fields below belong to it."""
    epoch: int
    chain: str
    """Hexadecimal; equal on two nodes if their logs are equal up to here."""
    state_hash: str | None
    """State hash of the book after the log, uncommitted commands included; None: the log lacks its beginning."""
    committed: int
    """Highest sequence number that the log marks as committed; written with the next record, so it lags."""
    torn_bytes: int
    """Size of an unfinished write behind the end: normal after a crash; the node removes it at its start."""
    snapshots: tuple[int, ...]
    """The sequence numbers of the sound snapshots."""
    open_orders: int | None
    trades: int | None
    repairing: str | None
    """Why the replica is being repaired from a peer, if it is."""
    damage: tuple[Damage, ...]


def verify_market(
    market: str, folder: Path, on_progress: Callable[[int, int], object] = lambda _more, _all: None
) -> MarketReport:
    """Check one market's folder: checksums, chain, snapshots, and that the log leads to one consistent state.

    ``on_progress`` is called with the number of newly executed commands, and with their total.

    Raises:
        StorageError: the disk cannot be read.
    """
    journal = Journal(folder, read_only=True)
    snapshots, damage = _read_snapshots(folder, journal)
    if journal.damage is not None:
        damage.append(_of_log(journal.damage))
    start = _start_of(journal, snapshots)
    if start is None:
        reason = f"the log begins after {journal.base.sequence}, and no sound snapshot holds the state there"
        damage.append(Damage(file=str(folder), sequence=journal.base.sequence, reason=reason, advice=_ADVICE_LOG))
    tail, book = start or (journal.tail, None)
    kept = {snapshot.tail: snapshot for snapshot in snapshots}
    records = read = told = 0
    in_all = journal.tail.sequence - journal.base.sequence
    try:
        for record in journal.records():
            records += 1
            read += len(record.commands)
            if book is not None and record.first_sequence == tail.sequence + 1:
                book.apply(record.first_sequence, record.timestamp_ns, record.commands)
                tail = record.tail
                snapshot = kept.get(tail)
                if snapshot is not None and snapshot.book.state_hash() != book.state_hash():
                    reason = f"its state hash is {snapshot.book.state_hash()}, the log leads to {book.state_hash()}"
                    damage.append(
                        Damage(file=str(snapshot.path), sequence=tail.sequence, reason=reason, advice=_ADVICE_STATE)
                    )
            if read - told >= _PROGRESS_EVERY:
                on_progress(read - told, in_all)
                told = read
        on_progress(read - told, in_all)
        if book is not None:
            book.check()
    except JournalDamaged as error:
        damage.append(_of_log(error))
    except BROKEN as error:
        damage.append(_of_log(_not_executable(journal, tail.sequence, error), _ADVICE_STATE))
        book = None
    if snapshots and journal.damage is None and snapshots[-1].tail.sequence > journal.tail.sequence:
        # The node died between storing a fetched state and starting a new log there: it starts from that state.
        tail, book = snapshots[-1].tail, snapshots[-1].book
    mark = folder / REPAIRING
    return MarketReport(
        market=market,
        folder=str(folder),
        sound=not damage,
        records=records,
        commands=read,
        begins_after=journal.base.sequence,
        sequence=tail.sequence,
        epoch=tail.epoch,
        chain=tail.chain.hex(),
        state_hash=book.state_hash() if book is not None else None,
        committed=journal.committed,
        torn_bytes=journal.cut_bytes,
        snapshots=tuple([snapshot.tail.sequence for snapshot in snapshots]),
        open_orders=len(book) if book is not None else None,
        trades=book.trade_count if book is not None else None,
        repairing=mark.read_text(errors="replace").strip() if mark.exists() else None,
        damage=tuple(damage),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Snapshot:
    path: Path
    tail: Tail
    book: OrderBook


def _read_snapshots(folder: Path, journal: Journal) -> tuple[list[_Snapshot], list[Damage]]:
    """Return the sound snapshots that fit the log, oldest first, and the errors of the others."""
    found = []
    damage = []
    for path in sorted((folder / "snapshots").glob("*.snap")):
        sequence = sequence_of(path)
        try:
            tail, data = read_snapshot(path)
            sequence = tail.sequence
            in_log = journal.base.sequence <= sequence <= journal.tail.sequence
            if in_log and journal.tail_at(sequence) != tail:
                raise ProtocolError("it does not belong to this log: epoch or chain differ there")
            found.append(_Snapshot(path, tail, OrderBook.restore(data)))
        except (StorageError, ProtocolError) as error:
            damage.append(Damage(file=str(path), sequence=sequence, reason=error.message, advice=_ADVICE_SNAPSHOT))
    return found, damage


def _start_of(journal: Journal, snapshots: Iterable[_Snapshot]) -> tuple[Tail, OrderBook] | None:
    """Return the earliest state that the log continues, None if the log lacks its beginning."""
    if journal.base == EMPTY:
        return EMPTY, OrderBook()
    for snapshot in snapshots:
        if journal.tail_at(snapshot.tail.sequence) == snapshot.tail:
            return snapshot.tail, snapshot.book
    return None


def _not_executable(journal: Journal, applied: int, error: Exception) -> JournalDamaged:
    return journal.damage_at(applied + 1, f"the log cannot be executed here: {error or type(error).__name__}")


def _of_log(damage: JournalDamaged, advice: str = _ADVICE_LOG) -> Damage:
    return Damage(file=str(damage.path), byte=damage.byte, sequence=damage.sequence, reason=damage.why, advice=advice)


# -- what does it say --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedCommand:
    """One command of a log. ``timestamp_ns``: the leader's time, nanoseconds since the Unix epoch."""

    sequence: int
    epoch: int
    timestamp_ns: int
    command: Command
    rules: MarketRules | None
    """The market's rules, once the command is executed; None: not known yet."""
    events: tuple[Event, ...] | None
    """Events of the command; None: not requested, or the log begins too late to know."""


def read_log(
    folder: Path, *, first: int = 1, last: int | None = None, with_events: bool = False
) -> Iterator[LoggedCommand]:
    """Yield the commands ``first`` to ``last`` of a market's log, up to damage.

    Raises:
        JournalDamaged: the log is damaged there, before ``last``.
        StorageError: the disk refuses to be read.
    """
    journal = Journal(folder, read_only=True)
    snapshots = _read_snapshots(folder, journal)[0] if journal.base != EMPTY else []
    start = _start_of(journal, snapshots)
    applied, book = start or (EMPTY, None)
    # A pruned log no longer has its CONFIGURE: take the rules from the first known state.
    rules = book.rules if book is not None and book.configured else None
    for record in journal.records():
        if last is not None and record.first_sequence > last:
            return
        events: list[Event] | None = None
        if with_events and book is not None and record.first_sequence == applied.sequence + 1:
            try:
                events = book.apply(record.first_sequence, record.timestamp_ns, record.commands)
            except BROKEN as error:
                raise _not_executable(journal, applied.sequence, error) from error
            applied = record.tail
        for sequence, command in enumerate(record.commands, record.first_sequence):
            if command[0] == CONFIGURE:
                rules = MarketRules.from_tuple(command[3])
            if first <= sequence and (last is None or sequence <= last):
                mine = tuple(events_between(events, sequence, sequence)) if events is not None else None
                yield LoggedCommand(sequence, record.epoch, record.timestamp_ns, command, rules, mine)
    if journal.damage is not None and (last is None or journal.damage.sequence <= last):
        raise journal.damage


def command_fields(logged: LoggedCommand) -> dict[str, Any]:
    """Return a command with field names for users; prices and quantities in decimals.

    If the rules are not known they are in ticks and lots, as ``price_ticks`` and ``quantity_lots``.
    """
    kind, account, client_order_id, *rest = logged.command
    fields: dict[str, Any] = {"sequence": logged.sequence, "epoch": logged.epoch, "timestamp_ns": logged.timestamp_ns}
    fields["command"] = _NAMES.get(kind, str(kind))
    if kind not in (CLOCK, CONFIGURE, NOTE, SET_TIME):
        fields |= {"account": account, "client_order_id": client_order_id}
    if kind == SUBMIT:
        side, order_type, price, quantity, time_in_force, expire_ns, stp = rest
        fields |= {"side": _lower(Side, side), **_sizes(price, quantity, logged.rules)}
        fields |= {"order_type": _lower(OrderType, order_type), "time_in_force": _lower(TimeInForce, time_in_force)}
        fields |= {"expire_ns": expire_ns, "self_trade_prevention": _lower(SelfTradePrevention, stp)}
    elif kind == CANCEL:
        fields["order_id"] = rest[0]
    elif kind == AMEND:
        order_id, price, quantity = rest
        fields |= {"order_id": order_id, **_sizes(price, quantity, logged.rules)}
    elif kind == CONFIGURE:
        fields["rules"] = MarketRules.from_tuple(rest[0])
    elif kind in (NOTE, SET_TIME):
        fields["text"] = rest[0]
    elif rest:
        fields["values"] = rest
    if logged.events is not None:
        fields["events"] = events_of(logged)
    return fields


def events_of(logged: LoggedCommand) -> list[MarketEvent]:
    """Return a command's events, in decimals; empty if not known."""
    rules = logged.rules or MarketRules()  # without rules nothing is accepted, and no event holds a price
    return [to_event(event, rules) for event in logged.events or ()]


def command_words(logged: LoggedCommand) -> str:
    """Return a command as a sentence of one line."""
    fields = command_fields(logged)
    who = plain(fields.get("account", ""))
    kind = logged.command[0]
    if kind == SUBMIT:
        words = f"{who} {fields['side']}s {_amount(fields, 'quantity', 'lot')}{_order_words(fields)}"
    elif kind == CANCEL:
        words = f"{who} cancels order {fields['order_id']}"
    elif kind == CANCEL_ALL:
        words = f"{who} cancels all orders"
    elif kind == AMEND:
        price, quantity = _amount(fields, "price", "tick"), _amount(fields, "quantity", "lot")
        changes = [f"price {price}" if price else "", f"open quantity {quantity}" if quantity else ""]
        words = f"{who} amends order {fields['order_id']}: {', '.join([change for change in changes if change])}"
    elif kind == CLOCK:
        return "time passes"
    elif kind == CONFIGURE:
        return f"the rules are set: {_rules_words(fields['rules'])}"
    elif kind in (NOTE, SET_TIME):
        return f"{_NAMES[kind].replace('_', ' ')}: {plain(fields['text'])}"
    else:
        return plain(repr(logged.command))
    named = fields["client_order_id"]
    return f"{words}, id {plain(named)}" if named else words


def event_words(event: MarketEvent) -> str:
    """Return a command's events as a sentence of one line."""
    if isinstance(event, Trade):
        verb, preposition = ("bought", "from") if event.side == "buy" else ("sold", "to")
        made = f"{plain(event.maker_account)}, order {event.maker_order_id}"
        done = f"{verb} {event.quantity} at {event.price} {preposition} {made}"
        return f"trade {event.trade_id}: {plain(event.taker_account)} {done}"
    if isinstance(event, Accepted):
        return f"accepted as order {event.order_id}"
    if isinstance(event, Rejected):
        return f"rejected: {event.message} ({event.code})"
    if isinstance(event, Cancelled):
        return f"order {event.order_id}: {event.quantity} cancelled ({event.reason}), {event.open_quantity} left open"
    if isinstance(event, Amended):
        kept = "kept" if event.priority_kept else "queued at the back"
        return f"order {event.order_id}: now {event.open_quantity} at {event.price}, place {kept}"
    if isinstance(event, Duplicate):
        return f"a retry: answered before, at sequence {event.first_sequence}"
    if isinstance(event, Noted):
        return "nothing is changed"
    if isinstance(event, Configured):
        return "in force from here on"
    assert_never(event)


_NAMES: Final = {
    SUBMIT: "submit",
    CANCEL: "cancel",
    CANCEL_ALL: "cancel_all",
    AMEND: "amend",
    CLOCK: "clock",
    CONFIGURE: "configure",
    NOTE: "note",
    SET_TIME: "set_time",
}


def _lower(kind: Any, value: int) -> str:
    return str(kind(value).name.lower())


def _sizes(price: int | None, quantity: int | None, rules: MarketRules | None) -> dict[str, Any]:
    if rules is None:
        return {"price_ticks": price, "quantity_lots": quantity}
    return {
        "price": rules.ticks_to_price(price) if price is not None else None,
        "quantity": rules.lots_to_quantity(quantity) if quantity is not None else None,
    }


def _amount(fields: dict[str, Any], what: str, unit: str) -> str:
    if what in fields:
        return f"{fields[what]}" if fields[what] is not None else ""
    units = fields[f"{what}_{unit}s"]
    return f"{units} {unit}{'' if units == 1 else 's'}" if units is not None else ""


def _order_words(fields: dict[str, Any]) -> str:
    """Return the price of an order, and those of its other terms that are unusual."""
    price = _amount(fields, "price", "tick")
    order_type, time_in_force = fields["order_type"], fields["time_in_force"]
    words = f" at {price}"
    if order_type == "market":
        words = f" at market, bound {price}" if price else " at market"
    if order_type == "post_only":
        words += ", post only"
    if time_in_force == "gtd":
        words += f", until {time_text(fields['expire_ns'])}"
    elif time_in_force != "gtc":
        words += f", {time_in_force}"
    if fields["self_trade_prevention"] != "none":
        words += f", own orders: {fields['self_trade_prevention'].replace('_', ' ')}"
    return words


def _rules_words(rules: MarketRules) -> str:
    usual = MarketRules()
    names = [field.name for field in dataclasses.fields(rules)]
    shown = [name for name in names if name in _ALWAYS_SHOWN or getattr(rules, name) != getattr(usual, name)]
    return ", ".join([f"{name}={getattr(rules, name)}" for name in shown])


_ALWAYS_SHOWN: Final = ("tick_size", "lot_size")
