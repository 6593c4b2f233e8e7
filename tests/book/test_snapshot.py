"""A snapshot restores the book that wrote it, or is refused: never another book, never another exception."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openoutcry.actors.book.commands import AMEND, CANCEL, SUBMIT, Command
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.rules import MarketRules
from openoutcry.transport.errors import ProtocolError

CHECKSUM_SIZE = 16
COMMANDS: tuple[Command, ...] = (
    (SUBMIT, "ann", "a1", 0, 0, 100, 9, 0, 0, 0),
    (SUBMIT, "bob", "b1", 1, 0, 100, 4, 0, 0, 0),
    (SUBMIT, "bob", "b2", 1, 2, 103, 5, 3, 900, 3),
    (SUBMIT, "ann", "", 1, 0, 103, 2, 0, 0, 2),
    (SUBMIT, "ann", "a2", 0, 0, 99, 7, 3, 800, 1),
    (SUBMIT, "ann", "a2", 0, 0, 99, 7, 3, 800, 1),
    (SUBMIT, "ann", "a1", 0, 0, 98, 7, 0, 0, 0),
    (AMEND, "ann", "", 1, 101, 6),
    (CANCEL, "bob", "b3", 5),
    (SUBMIT, "bob", "b4", 1, 0, 101, 2, 0, 0, 4),
    (SUBMIT, "bob", "b5", 0, 0, 103, 1, 0, 0, 4),
)


def book_of_every_kind_of_order() -> OrderBook:
    """With partial fills, self-trades, expiries, repeated requests and rejections."""
    book = OrderBook(MarketRules(tick_size="0.5", dedupe_window=9))
    book.apply(1, 700, COMMANDS)
    return book


SNAPSHOT = book_of_every_kind_of_order().snapshot()
BODY = SNAPSHOT[:-CHECKSUM_SIZE]


def sealed(body: bytes) -> bytes:
    """``body`` as its maker would have sealed it: the state hash and the checks have to find what is wrong."""
    return body + blake2b(body, digest_size=CHECKSUM_SIZE).digest()


def test_restored_book_writes_the_same_snapshot() -> None:
    restored = OrderBook.restore(SNAPSHOT)
    assert len(restored) == 4
    assert restored.snapshot() == SNAPSHOT == sealed(BODY)
    assert restored.state_hash() == book_of_every_kind_of_order().state_hash()


def test_any_damaged_byte_is_found() -> None:
    for at in range(len(SNAPSHOT)):
        for flipped in (0x01, 0x80, 0xFF):
            damaged = bytearray(SNAPSHOT)
            damaged[at] ^= flipped
            with pytest.raises(ProtocolError):
                OrderBook.restore(bytes(damaged))


def test_snapshot_cut_short_or_followed_by_anything_is_refused() -> None:
    for length in range(len(SNAPSHOT)):
        with pytest.raises(ProtocolError):
            OrderBook.restore(SNAPSHOT[:length])
    for more in (b"\x00", b"\xc0", SNAPSHOT):
        with pytest.raises(ProtocolError):
            OrderBook.restore(SNAPSHOT + more)
        with pytest.raises(ProtocolError):
            OrderBook.restore(sealed(BODY + more))


def values_in(value: Any, path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], Any]]:
    if type(value) is not tuple:
        return [(path, value)]
    return [found for at, item in enumerate(value) for found in values_in(item, (*path, at))]


def with_value(value: Any, path: tuple[int, ...], new: Any) -> Any:
    if not path:
        return new
    return (*value[: path[0]], with_value(value[path[0]], path[1:], new), *value[path[0] + 1 :])


def test_state_hash_alone_finds_any_value_that_was_changed_in_the_head_or_in_an_order() -> None:
    unpacked = msgpack.unpackb(BODY, use_list=False)
    changes = {int: lambda value: value + 1, str: lambda value: value + "x", bool: lambda value: not value}
    found = [(path, value) for path, value in values_in(unpacked) if path[0] in (0, 1, 4)]
    assert len(found) > 70
    for path, value in found:
        changed = with_value(unpacked, path, changes[type(value)](value))
        with pytest.raises(ProtocolError):
            OrderBook.restore(sealed(msgpack.packb(changed)))


@pytest.mark.parametrize("first", [0, 1, 4, 7])
def test_state_hash_finds_lots_that_were_moved_between_orders_though_all_sums_are_right(first: int) -> None:
    book = OrderBook(MarketRules())
    book.apply(1, 0, tuple([(SUBMIT, "ann", "", 0, 0, 100, 9, 0, 0, 0)] * 12))
    changed = msgpack.unpackb(book.snapshot()[:-CHECKSUM_SIZE], use_list=False)
    for at, more in ((first, 1), (first + 1, -1), (first + 2, -1), (first + 3, 1)):  # nor do the sums of their ids tell
        for field in (5, 6):
            changed = with_value(changed, (1, at, field), 9 + more)
    with pytest.raises(ProtocolError, match="state hash"):
        OrderBook.restore(sealed(msgpack.packb(changed)))


def test_state_hash_is_the_same_for_every_build_and_version_of_python() -> None:
    assert book_of_every_kind_of_order().state_hash() == "89938d9210b994bf71aefd49ba034cfa"


@given(st.data())
def test_snapshot_of_any_other_shape_is_a_protocol_error_or_the_same_state(data: st.DataObject) -> None:
    unpacked = msgpack.unpackb(BODY, use_list=False)
    path, _ = data.draw(st.sampled_from(values_in(unpacked)))
    path = path[: data.draw(st.integers(0, len(path)))]
    strange = st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
    new = data.draw(strange | st.lists(strange, max_size=12).map(tuple))
    try:
        restored = OrderBook.restore(sealed(msgpack.packb(with_value(unpacked, path, new))))
    except ProtocolError:
        return
    assert restored.state_hash() == unpacked[4]


@given(st.integers(0, len(BODY) - 1), st.binary(min_size=1, max_size=4))
def test_sealed_nonsense_is_a_protocol_error_or_the_same_state(at: int, nonsense: bytes) -> None:
    try:
        restored = OrderBook.restore(sealed(BODY[:at] + nonsense + BODY[at + len(nonsense) :]))
    except ProtocolError:
        return
    assert restored.state_hash() == OrderBook.restore(SNAPSHOT).state_hash()
