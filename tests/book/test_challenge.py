"""The published matching-engine challenge: 34 cases that real engines got wrong, and two million messages by hash."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from openoutcry.actors.book.orderbook import OrderBook

PUBLISHED_SHA256 = "e9b2e3926854410b01a035aeb25dd05f1e597c233be8263de9eb49b6713d367e"


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    """``benchmarks/engine.py``: what it measures and what is tested here have to be the same."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "engine.py"
    spec = importlib.util.spec_from_file_location("benchmarks_engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_gate_case_gives_its_reports_and_depth_after_each_message(engine: ModuleType, data: Path) -> None:
    cases = json.loads((data / "challenge" / "gate.json").read_text())
    assert len(cases) == 34
    for name, case in cases.items():
        messages = [tuple(message) for message in case["messages"]]
        book = OrderBook(engine.RULES)
        for at, command in enumerate(engine.to_commands(messages)):
            events = book.apply(at + 1, 0, (command,))
            reports = [list(report) for report in engine.to_reports(messages, events)]
            assert reports == case["reports"][at], f"{name}, message {at}"
            if case["depth"][at] is not None:
                depth = {
                    side: [[level.price_ticks, level.quantity_lots] for level in book.depth(at_side)]
                    for at_side, side in enumerate(("bids", "asks"))
                }
                assert depth == case["depth"][at], f"{name}, message {at}"
        book.check()


def test_two_million_messages_give_the_hash_that_160_engines_agree_on(engine: ModuleType, data: Path) -> None:
    messages = engine.read_messages(data / "challenge" / "orders_normal_s23_n1000000.bin.xz")
    assert len(messages) == 1_996_097
    _, events = engine.run(engine.to_commands(messages))
    assert engine.sha256_of(messages, events) == PUBLISHED_SHA256
