"""Feed a file of the published matching-engine challenge to the order book: million messages a second and SHA-256.

    python benchmarks/engine.py FILE.bin[.xz]

Reads the challenge's own format (Flash One Technologies, "Matching Engine Algorithm Performance Challenge",
arXiv:2606.01183) for any scenario or seed. The time is that of matching alone: reading the file, and writing the
reports as text, come before and after. The garbage collector is off while the clock runs (the book makes no cycles;
what it would walk is this program's list of all events). The hash is of the reports, as the published one is.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import lzma
import platform
import statistics
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from openoutcry.actors.book.commands import (
    ACCEPTED,
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
    TimeInForce,
)
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.rules import MarketRules

RULES = MarketRules(amend_keeps_priority=False)
ACCOUNT = "challenge"
BATCH = 256

Message = tuple[int, int, int, int, int, int]
"""``(type, side, ioc, quantity, order_id, price)``; its sequence number is its place in the file."""

_HEADER = struct.Struct("<QII")
_RECORD = struct.Struct("<BBBBIQQqq")


def read_messages(path: Path) -> list[Message]:
    """Return the messages of a challenge file, in order."""
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    _magic, _version, count = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    if len(body) != count * _RECORD.size:
        raise SystemExit(f"{path}: the header promises {count} records; {len(body)} bytes do not hold that many")
    messages = []
    for at, (kind, side, ioc, _, quantity, sequence, order_id, price, _) in enumerate(_RECORD.iter_unpack(body)):
        if sequence != at:
            raise SystemExit(f"{path}: record {at} has sequence {sequence}")
        messages.append((kind, side, ioc, quantity, order_id, price))
    return messages


def to_commands(messages: Sequence[Message]) -> list[Command]:
    """Return the messages as commands. Message n is sequence n + 1, which is also the id of the order it enters."""
    entered: dict[int, int] = {}
    commands: list[Command] = []
    never = len(messages) + 1
    for sequence, (kind, side, ioc, quantity, order_id, price) in enumerate(messages, 1):
        if kind == 0:
            entered[order_id] = sequence
            tif = int(TimeInForce.IOC if ioc else TimeInForce.GTC)
            stp = int(SelfTradePrevention.NONE)
            commands.append((SUBMIT, ACCOUNT, "", side, int(OrderType.LIMIT), price, quantity, tif, 0, stp))
        elif kind == 1:
            commands.append((CANCEL, ACCOUNT, "", entered.get(order_id, never)))
        else:
            commands.append((AMEND, ACCOUNT, "", entered.get(order_id, never), price, quantity))
    return commands


def to_reports(messages: Sequence[Message], events: Sequence[Event]) -> Iterator[tuple[int, ...]]:
    """Yield the challenge's reports for ``events``, sorted as the challenge has them."""

    def theirs(order_id: int) -> int:
        return messages[order_id - 1][4]

    reports: list[tuple[int, ...]] = []
    for event in events:
        kind, at = event[0], event[1] - 1
        message_kind, side, _, quantity, order_id, price = messages[at]
        if kind == ACCEPTED:
            reports.append((0, at, side, order_id, price, quantity))
        elif kind == TRADE:
            reports.append((1, at, event[3], event[4], theirs(event[5]), theirs(event[6])))
        elif kind == CANCELLED:
            reports.append((2, at, event[4], theirs(event[2]), event[5]))
        elif kind == AMENDED:
            reports.append((3, at, side, order_id, price, quantity))
        elif kind == REJECTED:
            reports.append((4 if message_kind == 1 else 5, at, order_id))
    return iter(sorted(reports, key=lambda report: (report[1], report[0])))


def run(commands: Sequence[Command]) -> tuple[float, list[Event]]:
    """Match ``commands`` in batches on a fresh book; return the seconds it took and all events."""
    book = OrderBook(RULES)
    batches = [tuple(commands[at : at + BATCH]) for at in range(0, len(commands), BATCH)]
    events: list[Event] = []
    apply = book.apply
    sequence = 1
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for batch in batches:
            events += apply(sequence, 0, batch)
            sequence += len(batch)
        elapsed = time.perf_counter() - started
    finally:
        gc.enable()
    book.check()
    return elapsed, events


def sha256_of(messages: Sequence[Message], events: Sequence[Event]) -> str:
    """Return the challenge's hash: of all reports as lines of comma-separated numbers."""
    lines = [",".join(map(str, report)) for report in to_reports(messages, events)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("file", type=Path, help="a challenge file, .bin or .bin.xz")
    parser.add_argument("--runs", type=int, default=3, help="how often to match it all (default 3); the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    messages = read_messages(options.file)
    commands = to_commands(messages)
    seconds: list[float] = []
    events: list[Event] = []
    for _ in range(options.runs):
        del events[:]
        elapsed, events = run(commands)
        seconds.append(elapsed)
    median = statistics.median(seconds)
    result = {
        "file": options.file.name,
        "messages": len(messages),
        "runs": options.runs,
        "million_messages_per_s": round(len(messages) / median / 1e6, 3),
        "sha256": sha256_of(messages, events),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write("".join(f"{name:>24}: {value}\n" for name, value in result.items()))


if __name__ == "__main__":
    main()
