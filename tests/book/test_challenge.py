"""The published matching-engine challenge: 34 cases that real engines got wrong, and two million messages by hash."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from openoutcry.actors.book.orderbook import OrderBook

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class Programs(NamedTuple):
    """The benchmark's own modules: what it measures and what is tested here have to be the same."""

    challenge: ModuleType
    engine: ModuleType
    plain: ModuleType


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    names = ("challenge", "engine", "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield Programs(*map(importlib.import_module, names))
    for name in (*names, "reporting"):
        sys.modules.pop(name, None)


def test_every_gate_case_gives_its_reports_and_depth_after_each_message(programs: Programs, data: Path) -> None:
    challenge = programs.challenge
    cases = json.loads((data / "challenge" / "gate.json").read_text())
    assert len(cases) == 34
    for name, case in cases.items():
        messages = [tuple(message) for message in case["messages"]]
        book = OrderBook(challenge.RULES)
        for at, command in enumerate(challenge.to_commands(messages)):
            events = book.apply(at + 1, 0, (command,))
            reports = [list(report) for report in challenge.to_reports(messages, events)]
            assert reports == case["reports"][at], f"{name}, message {at}"
            if case["depth"][at] is not None:
                depth = {
                    side: [[level.price_ticks, level.quantity_lots] for level in book.depth(at_side)]
                    for at_side, side in enumerate(("bids", "asks"))
                }
                assert depth == case["depth"][at], f"{name}, message {at}"
        book.check()


@pytest.mark.slow
def test_two_million_messages_give_the_hash_that_160_engines_agree_on(programs: Programs, data: Path) -> None:
    challenge = programs.challenge
    messages = challenge.read_messages(data / "challenge" / "orders_normal_s23_n1000000.bin.xz")
    assert len(messages) == 1_996_097
    _, events = programs.engine.run(challenge.to_commands(messages))
    assert challenge.sha256_of(challenge.to_reports(messages, events)) == challenge.SCENARIOS["normal"].sha256


@pytest.mark.parametrize("scenario", ["static", "normal", "swing-25", "swing-40", "flash-crash"])
def test_plain_book_and_engine_make_the_same_reports_of_each_scenario(programs: Programs, scenario: str) -> None:
    challenge = programs.challenge
    messages = challenge.generate(scenario, 5_000)
    _, events = programs.engine.run(challenge.to_commands(messages))
    _, plain = programs.engine.run_plain(messages)
    reports = list(challenge.to_reports(messages, events))
    assert reports == list(challenge.in_order(plain.reports))
    assert {report[0] for report in reports} == {0, 1, 2, 3, 4, 5}
