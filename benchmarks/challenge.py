"""The published matching-engine challenge: its order flow, its file format, its reports and its hashes.

Flash One Technologies, "Matching Engine Algorithm Performance Challenge" (arXiv:2606.01183). A scenario is an order
flow that is a function of its name, the number of orders and a seed: orders priced along a random walk, entered in
shuffled order, most of them cancelled, some modified, some immediate-or-cancel. Every engine that matches it rightly
writes the same reports, and the hash of those of seed 23 is published for each scenario.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import lzma
import math
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

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
from openoutcry.actors.book.rules import MarketRules

NEW: Final = 0
CANCEL_ORDER: Final = 1
MODIFY: Final = 2

ORDERS: Final = 1_000_000
"""The published scenarios enter so many orders, which makes about two million messages."""
SEED: Final = 23

RULES: Final = MarketRules(amend_keeps_priority=False)
ACCOUNT: Final = "challenge"

Message = tuple[int, int, int, int, int, int]
"""``(type, side, ioc, quantity, order_id, price)``; its sequence number is its place in the flow."""
Report = tuple[int, ...]


class Scenario(NamedTuple):
    """How far the price walks, and the published SHA-256 of the reports for :data:`ORDERS` and :data:`SEED`."""

    volatility: float
    swing: float
    sha256: str


SCENARIOS: Final = {
    "static": Scenario(0.0, 0.0, "9803843ee404fc29c9a0aa5614f8f0d5a58b5c44fcac9ef89067886fcaaa30d1"),
    "normal": Scenario(0.15, 0.02, "e9b2e3926854410b01a035aeb25dd05f1e597c233be8263de9eb49b6713d367e"),
    "swing-25": Scenario(0.5, 0.25, "61a84be9469661bd039e00dbc9a7c011e70b6ace37aadfe60045ea083b05f4df"),
    "swing-40": Scenario(0.5, 0.4, "3cb0175e7982ff09ea220d1feaee3844cf9116a5ce455757879dea1d880b9b9f"),
    "flash-crash": Scenario(0.5, 0.6, "cff8d3f94b709fc64a8b2058a6ca4fb6920364904796e46906895e362d2bb16b"),
}

_HEADER = struct.Struct("<QII")
_RECORD = struct.Struct("<BBBBIQQqq")

# The published model: dollars, ticks from the mid-price, microseconds.
_TICK = 0.005
_MID_START = 167.52
_DISTANCES = [1 / (away + 1) ** 2.23 + 5 * math.exp(-0.5 * (away - 8.0) ** 2) for away in range(800)]
_DISTANCES_SUMMED = list(itertools.accumulate(_DISTANCES))
_LIFE_RATE = math.log(2) / 431.0


def generate(scenario: str, orders: int = ORDERS, seed: int = SEED) -> list[Message]:
    """Return the messages of a scenario, in order; the same for the same arguments, wherever they are made."""
    uniform = _mersenne_twister(seed)
    entries = _entries(SCENARIOS[scenario], orders, uniform)
    arrival = list(range(orders))
    for at in range(orders - 1, 0, -1):
        other = int(uniform() * (at + 1))
        arrival[at], arrival[other] = arrival[other], arrival[at]
    timed: list[tuple[int, Message]] = []
    now = 0
    for entry in arrival:
        side, price, quantity, away = entries[entry]
        order_id = entry + 1
        ioc = uniform() < 0.15
        timed.append((now, (NEW, side, int(ioc), quantity, order_id, price)))
        if not ioc:
            now = _live_on(uniform, now, timed, side, price, quantity, order_id, away)
        now += 1
    timed.sort(key=lambda message: message[0])
    return [message for _, message in timed]


def _mersenne_twister(seed: int) -> Callable[[], float]:
    """Return a source of uniform numbers in [0, 1) seeded as C++'s ``std::mt19937`` is, which Python's is not."""
    words = [seed]
    for at in range(1, 624):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + at) & 0xFFFFFFFF)
    source = random.Random()
    source.setstate((3, (*words, 624), None))
    return source.random


def _entries(scenario: Scenario, orders: int, uniform: Callable[[], float]) -> list[tuple[int, int, int, int]]:
    """Return ``(side, price, quantity, ticks from the touch)`` of each order: buys along the first half of the walk."""
    drift = step = 0.0
    if scenario.volatility:
        step = scenario.volatility * math.sqrt((scenario.swing / scenario.volatility) ** 2 / orders)
        drift = -0.5 * step * step
    mid = _MID_START
    entries = []
    for at in range(orders):
        first, second = uniform(), uniform()
        shock = math.sqrt(-2 * math.log(max(first, 1e-300))) * math.cos(2 * math.pi * second)
        mid *= math.exp(drift + step * shock)
        mid_ticks = math.floor(mid / _TICK + 0.5)
        away = bisect.bisect_left(_DISTANCES_SUMMED, uniform() * _DISTANCES_SUMMED[-1])
        side = 0 if at < orders // 2 else 1
        price = max(1, mid_ticks + (away + 1 if side else -away - 1))
        entries.append((side, price, 1 + int(uniform() * 100), away))
    return entries


def _live_on(
    uniform: Callable[[], float],
    now: int,
    timed: list[tuple[int, Message]],
    side: int,
    price: int,
    quantity: int,
    order_id: int,
    away: int,
) -> int:
    """Add what befalls an order that may rest, from ``now`` on; return when the last of it does."""
    modified: Message | None = None
    if uniform() < 0.2:
        now += 30 + int(uniform() * 70)
        better = price + (-1 if side else 1) if uniform() < 0.8 else price
        modified = (MODIFY, side, 0, quantity + 1, order_id, better)
        timed.append((now, modified))
    if uniform() >= 0.95:
        return now
    now += int(-math.log(max(uniform(), 1e-300)) / (_LIFE_RATE / math.sqrt(1.0 + away)))
    cancel = (CANCEL_ORDER, side, 0, quantity, order_id, price)
    timed.append((now, cancel))
    for late in (cancel, modified):  # some are sent again when the order is gone
        if late is not None and uniform() < 0.02:
            now += 1 + int(uniform() * 20)
            timed.append((now, late))
    return now


def read_messages(path: Path) -> list[Message]:
    """Return the messages of a challenge file (.bin, or .bin.xz), in order."""
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
        if kind == NEW:
            entered[order_id] = sequence
            tif = int(TimeInForce.IOC if ioc else TimeInForce.GTC)
            stp = int(SelfTradePrevention.NONE)
            commands.append((SUBMIT, ACCOUNT, "", side, int(OrderType.LIMIT), price, quantity, tif, 0, stp))
        elif kind == CANCEL_ORDER:
            commands.append((CANCEL, ACCOUNT, "", entered.get(order_id, never)))
        else:
            commands.append((AMEND, ACCOUNT, "", entered.get(order_id, never), price, quantity))
    return commands


def to_reports(messages: Sequence[Message], events: Iterable[Event]) -> Iterator[Report]:
    """Yield the challenge's reports for ``events``, sorted as the challenge has them."""

    def theirs(order_id: int) -> int:
        return messages[order_id - 1][4]

    reports: list[Report] = []
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
            reports.append((4 if message_kind == CANCEL_ORDER else 5, at, order_id))
    return in_order(reports)


def in_order(reports: Iterable[Report]) -> Iterator[Report]:
    """Yield ``reports`` by sequence and then type, else as they come: the order in which they are hashed."""
    return iter(sorted(reports, key=lambda report: (report[1], report[0])))


def sha256_of(reports: Iterable[Report]) -> str:
    """Return the challenge's hash: of all reports as lines of comma-separated numbers."""
    lines = [",".join(map(str, report)) for report in reports]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
