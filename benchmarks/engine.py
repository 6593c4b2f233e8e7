"""How fast the matching engine is, alone, and how much memory it takes.

    python benchmarks/engine.py                                 every scenario of the published challenge
    python benchmarks/engine.py --scenario normal --rounds 9
    python benchmarks/engine.py --file orders.bin.xz            a file in the challenge's format
    python benchmarks/engine.py --memory                        1 M resting orders; 5 M commands that leave few

Each round matches all messages with the engine and then with the plain book of ``plain.py``, in batches, so that both
see the same machine; what counts is the median and the ratio of the medians. The time is the processor's, of matching
alone: reading messages and writing reports as text come before and after. The garbage collector is off meanwhile
(neither book makes cycles; what it would walk is this program's list of all events). The reports of both books have to
have the published hash, where there is one.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from challenge import (
    ORDERS,
    RULES,
    SCENARIOS,
    Message,
    generate,
    in_order,
    read_messages,
    sha256_of,
    to_commands,
    to_reports,
)
from openoutcry.actors.book import engine_build
from openoutcry.actors.book.commands import CANCEL, SUBMIT, Command, Event
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.rules import MarketRules
from openoutcry.transport import codec
from plain import PlainBook
from reporting import ROUNDS, Report

BATCH = 256
RESTING = 1_000_000
FLOW = 5_000_000


def run(commands: Sequence[Command]) -> tuple[float, list[Event]]:
    """Match ``commands`` in batches on a fresh book; return the seconds it took and all events."""
    book = OrderBook(RULES)
    batches = [tuple(commands[at : at + BATCH]) for at in range(0, len(commands), BATCH)]
    events: list[Event] = []
    sequence = 1
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        for batch in batches:
            events += book.apply(sequence, 0, batch)
            sequence += len(batch)
        elapsed = time.process_time() - started
    finally:
        gc.enable()
    book.check()
    return elapsed, events


def run_plain(messages: Sequence[Message]) -> tuple[float, PlainBook]:
    """Match ``messages`` in batches on a fresh plain book; return the seconds it took and the book."""
    book = PlainBook()
    batches = [messages[at : at + BATCH] for at in range(0, len(messages), BATCH)]
    sequence = 0
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        for batch in batches:
            book.process(sequence, batch)
            sequence += len(batch)
        elapsed = time.process_time() - started
    finally:
        gc.enable()
    return elapsed, book


def measure(report: Report, name: str, messages: Sequence[Message], rounds: int, published: str | None) -> None:
    """Report the engine's speed on ``messages``, the plain book's, and their ratio."""
    commands = to_commands(messages)
    engine: list[float] = []
    plain: list[float] = []
    for number in range(rounds):
        elapsed, events = run(commands)
        engine.append(len(messages) / elapsed / 1e6)
        if number == 0:
            sha256 = sha256_of(to_reports(messages, events))
        del events
        elapsed, book = run_plain(messages)
        plain.append(len(messages) / elapsed / 1e6)
        if number == 0 and sha256_of(in_order(book.reports)) != sha256:
            raise SystemExit(f"{name}: the two books do not make the same reports")
        del book
    if published is not None and sha256 != published:
        raise SystemExit(f"{name}: the reports have the hash {sha256}, not {published}")
    details = {"messages": len(messages), "sha256": sha256, "published": published is not None, "build": engine_build()}
    report.add(f"{name}, engine ({engine_build()})", "M messages/s", engine, **details)
    report.add(f"{name}, plain book", "M messages/s", plain)
    report.add(f"{name}, engine : plain", "times", [statistics.median(engine) / statistics.median(plain)])


def rss() -> int:
    """Return the bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def from_wire(commands: list[Command]) -> tuple[Command, ...]:
    """Return ``commands`` as a node gets them: no object shared with those of another batch."""
    decoded: tuple[Command, ...] = codec.unpack(codec.pack(tuple(commands)))
    return decoded


def resting() -> Iterator[float]:
    """Fill a book with resting orders of a thousand accounts, each with a client order id; yield bytes per order."""
    book, before = OrderBook(MarketRules()), rss()
    for at in range(0, RESTING, BATCH):
        numbers = range(at, min(at + BATCH, RESTING))
        submits: list[Command] = [
            (SUBMIT, f"account-{n % 1000}", f"c{n:09}", n % 2, 0, 50_000 + (n % 5000 if n % 2 else -1 - n % 5000),
             1 + n % 1000, 0, 0, 0)
            for n in numbers
        ]  # fmt: skip
        book.apply(at + 1, at, from_wire(submits))
        book.state_hash()
    assert len(book) == RESTING
    yield (rss() - before) / 1e6


def flow() -> Iterator[float]:
    """Enter and cancel orders, a thousand of which are open at a time; yield the growth after each million commands."""
    book, before = OrderBook(MarketRules()), rss()
    for at in range(0, FLOW, BATCH):
        commands: list[Command] = []
        for n in range(at, min(at + BATCH, FLOW)):
            if n % 2 == 0:
                side = n // 2 % 2
                price = 50_000 + n % 997 if side else 49_999 - n % 997
                commands.append((SUBMIT, f"account-{n // 2 % 1000}", f"c{n:09}", side, 0, price, 1 + n % 1000, 0, 0, 0))
            else:
                entered = n - 2001
                commands.append((CANCEL, f"account-{entered // 2 % 1000}", f"c{n:09}", max(1, entered + 1)))
        book.apply(at + 1, at, from_wire(commands))
        book.state_hash()
        if at // 1_000_000 != (at + BATCH) // 1_000_000:
            yield (rss() - before) / 1e6
    assert len(book) <= 2_000, "the flow leaves a large book"


def in_fresh_process(measured: str) -> list[float]:
    """Return what ``resting`` or ``flow`` yields in a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_listed, (measured,))


def _listed(measured: str) -> list[float]:
    return list({"resting": resting, "flow": flow}[measured]())


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: all")
    parser.add_argument("--file", type=Path, help="a challenge file, .bin or .bin.xz, instead")
    parser.add_argument(
        "--orders", type=int, default=ORDERS, help="of a scenario; only the default's hash is published"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"the median counts (default {ROUNDS})")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    options = parser.parse_args()
    report = Report("engine")
    if options.memory:
        report.add("1 M resting orders", "MB", in_fresh_process("resting"), build=engine_build())
        grown = in_fresh_process("flow")
        for millions, megabytes in enumerate(grown, 1):
            report.add(f"after {millions} M commands that leave few orders", "MB", [megabytes], build=engine_build())
    elif options.file:
        known = SCENARIOS["normal"].sha256 if options.file.name.startswith("orders_normal_s23_n1000000.") else None
        measure(report, options.file.name, read_messages(options.file), options.rounds, known)
    else:
        for name in options.scenario or SCENARIOS:
            published = SCENARIOS[name].sha256 if options.orders == ORDERS else None
            measure(report, name, generate(name, options.orders), options.rounds, published)
    report.finish()


if __name__ == "__main__":
    main()
