"""What always holds is checked by errors that are raised: `python -O` drops assertions."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openoutcry.actors
import openoutcry.transport
import pytest
from openoutcry.actors.book.disk import FILE, Begun, DiskState, keep_disk, read_disk
from openoutcry.actors.book.orderbook import BookImage, OrderBook
from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.book.replica import Replica
from openoutcry.actors.book.rules import MarketRules
from openoutcry.transport.coordinator import MarketRecord, successor
from openoutcry.transport.errors import InvariantBroken, OpenOutcryError, ProtocolError, StorageError, ensure, present

TESTS = Path(__file__).parent
PACKAGES = [Path(str(package.__file__)).parent for package in (openoutcry.actors, openoutcry.transport)]
OF_TESTS = ("testing.py", "testkit")
"""Sources whose assertions are those of a test."""
BUY = (1, "ann", "", 0, 0, 100, 5, 0, 0, 0)
ESSENTIAL = ("test_invariants.py", "book", "simulation/test_replication.py", "test_coordinator.py")
OTHERWISE = "not etcd and not under_any_schedule and not as_the_table_says and not model and not challenge and not cme"
"""What takes long, or checks by assertions in helpers, which pytest does not rewrite."""


def book() -> OrderBook:
    """Return a book at sequence 1 and time 100 with a bid of 5 at 100."""
    made = OrderBook(MarketRules())
    made.apply(1, 100, (BUY,))
    return made


def test_no_assert_statement_stands_in_the_source() -> None:
    found = [
        f"{path}:{node.lineno}"
        for package in PACKAGES
        for path in package.rglob("*.py")
        if not any(part in OF_TESTS for part in path.relative_to(package).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "first_sequence", "timestamp_ns", "commands"),
    [
        ("gap: 5 after 1", 5, 100, (BUY,)),
        ("gap: 1 after 1", 1, 100, (BUY,)),
        ("time ran backwards at 2", 2, 99, (BUY,)),
        ("an empty batch", 2, 100, ()),
        ("unknown command", 2, 100, ((99, "ann", ""),)),
    ],
)
def test_a_book_refuses_what_cannot_follow(what: str, first_sequence: int, timestamp_ns: int, commands: Any) -> None:
    with pytest.raises(InvariantBroken, match=what) as caught:
        book().apply(first_sequence, timestamp_ns, commands)
    assert caught.value.code == "invariant"


def _cross(wrong: OrderBook) -> None:
    wrong._rest(2, "bob", "", 1, 99, 5, 5, (0, 0, False, 0, 0))


def _ask_at_the_bid(wrong: OrderBook) -> BookImage:
    wrong._rest(2, "bob", "", 1, 101, 5, 5, (0, 0, False, 0, 0))
    image = wrong.image()
    image._walked[1, 100] = image._walked.pop((1, 101))
    image._keys[1][:] = [-100]
    return image


def _too_many_open(wrong: OrderBook) -> None:
    (order,) = wrong._levels[100].orders
    order.open = 7


def _nothing_open(wrong: OrderBook) -> None:
    (order,) = wrong._levels[100].orders
    order.quantity = 1


def _twice(wrong: OrderBook) -> None:
    wrong._rest(1, "ann", "", 0, 98, 5, 5, (0, 0, False, 0, 0))


def _window_gap(wrong: OrderBook) -> None:
    wrong._window.append(BUY)


@pytest.mark.parametrize("spoil", [_cross, _ask_at_the_bid, _too_many_open, _nothing_open, _twice, _window_gap])
def test_a_snapshot_that_does_not_hold_together_is_refused(
    spoil: Callable[[OrderBook], BookImage | None],
) -> None:
    assert OrderBook.restore(book().snapshot()).state_hash() == book().state_hash()
    wrong = book()
    if spoil is not _window_gap:
        wrong.sequence = 2
        wrong._window.append(BUY)
    image = spoil(wrong) or wrong.image()
    with pytest.raises(ProtocolError, match=r"does not hold together|does not add up"):
        OrderBook.restore(b"".join(image.pieces()))


def test_a_replica_refuses_what_its_own_log_excludes() -> None:
    replica = Replica(market="M", node="a", applied=EMPTY, incarnation=1)
    replica.start()
    record = Record.make(EMPTY, epoch=1, timestamp_ns=1, commands=(BUY,), origins=())
    for wrong in (
        lambda: replica.propose((BUY,), (), timestamp_ns=1, now_ns=1),
        lambda: replica.on_durable(replica._generation, 1),
        lambda: replica.on_applied(1, ""),
        lambda: replica.on_snapshot_kept(EMPTY, ()),
        lambda: Record.make(record.tail, epoch=1, timestamp_ns=1, commands=(), origins=()),
    ):
        with pytest.raises(InvariantBroken):
            wrong()


@pytest.mark.parametrize(
    "change",
    [{"version": 0}, {"epoch": 0}, {"forced": 2}, {"in_sync": ("b", "a")}, {"leader": "c"}, {"market": ""}],
    ids=str,
)
def test_a_market_record_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"market": "M", "version": 1, "epoch": 1, "leader": "a", "in_sync": ("a", "b")}
    assert successor(MarketRecord(**good), epoch=2, leader="b", in_sync=["b"]).epoch == 2
    with pytest.raises(InvariantBroken):
        MarketRecord(**{**good, **change})
    with pytest.raises(InvariantBroken, match="was not in sync"):
        successor(MarketRecord(**good), epoch=2, leader="c", in_sync=["c"])


@pytest.mark.parametrize("wrong", [-1, None, "x", 1.5, True, [], {}, 2**63, "left out"], ids=repr)
@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(DiskState)])
def test_a_disk_state_that_cannot_be_is_refused(field: str, wrong: Any, tmp_path: Path) -> None:
    good = DiskState("store", 1, "life", ("later",), 2, 2, "a", False, 2, 1, (Begun(1, 1, b"x"),))
    keep_disk(tmp_path, good)
    assert read_disk(tmp_path, "store") == good
    possible = [("begun", []), ("epochs", []), ("store", "x"), ("life", "x"), ("leader", "x"), ("forked", True)]
    if (field, wrong) in possible:
        return  # it can be
    values = json.loads((tmp_path / FILE).read_text())
    values[field] = wrong
    if wrong == "left out":
        del values[field]
    (tmp_path / FILE).write_text(json.dumps(values))
    with pytest.raises(StorageError) as caught:
        read_disk(tmp_path, "store")
    assert caught.value.code == "corrupt"


def test_ensure_and_present_raise_the_error_of_an_invariant() -> None:
    ensure([0], "not raised")
    assert present(0, "not raised") == 0
    for broken in (lambda: ensure((), "nothing is there"), lambda: present(None, "nothing is there")):
        with pytest.raises(OpenOutcryError, match="nothing is there") as caught:
            broken()
        assert (type(caught.value), caught.value.code) == (InvariantBroken, "invariant")


@pytest.mark.slow
@pytest.mark.skipif(not __debug__, reason="it is what runs under -O")
def test_what_is_essential_holds_without_assertions() -> None:
    command = [sys.executable, "-O", "-m", "pytest", "-q", "-m", "not slow", "-k", OTHERWISE, "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, "-W", "ignore::pytest.PytestConfigWarning", *(str(TESTS / name) for name in ESSENTIAL)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=TESTS.parent,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
