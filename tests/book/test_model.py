"""The book does what the naive book does, whatever it is sent, however the log is cut, wherever it is restored."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import NaiveBook, NaiveOrder, bought_and_sold
from openoutcry.actors.book import orderbook
from openoutcry.actors.book.commands import (
    ACCEPTED,
    AMEND,
    CANCEL,
    CANCEL_ALL,
    CLOCK,
    CONFIGURE,
    DUPLICATE,
    NOTE,
    SUBMIT,
    TRADE,
    Command,
    Event,
    OrderType,
    RejectCode,
    SelfTradePrevention,
    Side,
    TimeInForce,
    checked_commands,
)
from openoutcry.actors.book.orderbook import BookImage, OrderBook, OrderView, Sweep
from openoutcry.actors.book.rules import MarketRules

ACCOUNTS = ("ann", "bob", "cyd")
LIMIT, MARKET, POST_ONLY = OrderType
GTC, IOC, FOK, GTD = TimeInForce

Batch = tuple[int, tuple[Command, ...]]
"""Commands, and the time at which the leader ordered them."""

Log = list[Batch]


# -- logs that hurt: few accounts, prices and lots, so that orders meet, and their own accounts ----------------

PRICES = st.integers(-3, 6)
LOTS = st.integers(1, 9)
NAMES = st.sampled_from(("",) * 8 + ("x", "y", "z"))


@dataclasses.dataclass(frozen=True)
class Step:
    """What becomes a command once the sequence number and the time are known."""


@dataclasses.dataclass(frozen=True)
class Tick(Step):
    """A CLOCK."""


@dataclasses.dataclass(frozen=True)
class Note(Step):
    """A NOTE."""

    text: str


@dataclasses.dataclass(frozen=True)
class Submit(Step):
    account: str
    name: str
    side: int
    order_type: int
    price: int
    unbounded: bool
    quantity: int
    time_in_force: int
    lifetime_ns: int
    stp: int


@dataclasses.dataclass(frozen=True)
class Change(Step):
    """An amend or a cancel: of an open order (the newest, the one before, …), or of whatever was some commands ago."""

    name: str
    back: int
    of_open_order: bool
    by: str | None
    price: int | None
    quantity: int | None
    cancel: bool


@dataclasses.dataclass(frozen=True)
class CancelAll(Step):
    account: str
    name: str


@dataclasses.dataclass(frozen=True)
class Retry(Step):
    """The command of some sequences ago once more, perhaps with another quantity."""

    back: int
    altered: bool


@dataclasses.dataclass(frozen=True)
class Configure(Step):
    rules: MarketRules


STEPS_MAX = 20
"""Most commands in a batch."""

RULES = st.builds(
    MarketRules,
    tick_size=st.sampled_from(("0.01", "0.01", "0.01", "0.05")),
    quantity_min_lots=st.sampled_from((1, 1, 1, 2)),
    quantity_max_lots=st.sampled_from((1000, 1000, 8)),
    price_min_ticks=st.sampled_from((-1000, -1000, -2)),
    price_max_ticks=st.sampled_from((1000, 1000, 5)),
    price_band_ticks=st.sampled_from((0, 0, 0, 4)),
    reference_price_ticks=st.integers(-1, 3),
    market_protection_ticks=st.sampled_from((0, 0, 1)),
    open_orders_max=st.sampled_from((0, 0, 0, 4)),
    dedupe_window=st.sampled_from((1, 4, 10, 1000)),
    amend_keeps_priority=st.sampled_from((True, True, False)),
)

SUBMITS = st.builds(
    Submit,
    account=st.sampled_from(ACCOUNTS),
    name=NAMES,
    side=st.sampled_from((0, 1)),
    order_type=st.sampled_from((LIMIT,) * 6 + (MARKET, POST_ONLY)).map(int),
    price=PRICES,
    unbounded=st.booleans(),
    quantity=LOTS,
    time_in_force=st.sampled_from((GTC,) * 5 + (IOC, FOK, GTD, GTD)).map(int),
    lifetime_ns=st.sampled_from((0, 1, 1, 2, 2, 3, 3, 9)),
    stp=st.sampled_from((0, 0, *SelfTradePrevention)).map(int),
)

CHANGES = st.builds(
    Change,
    name=NAMES,
    back=st.integers(0, 9),
    of_open_order=st.sampled_from((True, True, True, False)),
    by=st.sampled_from((None,) * 6 + ACCOUNTS),
    price=st.none() | PRICES,
    quantity=st.none() | LOTS,
    cancel=st.booleans(),
)

RARE_STEPS = st.one_of(
    st.just(Tick()),
    st.builds(Note, st.sampled_from(("forced", str(RejectCode.CLIENT_ORDER_ID_REUSED)))),
    st.builds(CancelAll, st.sampled_from(ACCOUNTS), NAMES),
    st.builds(Retry, back=st.integers(1, 8), altered=st.booleans()),
    st.builds(Configure, RULES),
)

STEPS = st.sampled_from((SUBMITS,) * 11 + (CHANGES,) * 7 + (RARE_STEPS,) * 2).flatmap(lambda steps: steps)


def command_of(step: Step, now_ns: int, log: Sequence[Command], naive: NaiveBook) -> Command:
    """The command that ``step`` is, given those before it and the book they made."""
    match step:
        case Submit():
            # A market order is ioc or fok; one in many is not, which the book must refuse.
            immediate = step.order_type == MARKET and step.time_in_force not in (IOC, FOK) and step.lifetime_ns
            time_in_force = int(IOC) if immediate else step.time_in_force
            expires = time_in_force == GTD or (step.lifetime_ns == 9 and step.quantity == 9)
            return (
                SUBMIT,
                step.account,
                step.name,
                step.side,
                step.order_type,
                None if step.order_type == MARKET and step.unbounded else step.price,
                step.quantity,
                time_in_force,
                now_ns + step.lifetime_ns if expires else 0,
                step.stp,
            )
        case Change():
            if step.of_open_order and naive.resting:
                order = naive.resting[-1 - step.back % len(naive.resting)]
                order_id, owner = order.id, order.account
            else:
                order_id, owner = max(1, len(log) + 2 - step.back), ACCOUNTS[0]
            account = step.by or owner
            if step.cancel:
                return (CANCEL, account, step.name, order_id)
            return (AMEND, account, step.name, order_id, step.price, step.quantity)
        case CancelAll():
            return (CANCEL_ALL, step.account, step.name)
        case Retry():
            again = log[-step.back] if step.back <= len(log) else (CLOCK, "", "")
            if step.altered and again[0] == SUBMIT:
                again = (*again[:6], again[6] + 1, *again[7:])
            return again
        case Configure():
            return (CONFIGURE, "", "", step.rules.to_tuple())
        case Note():
            return (NOTE, "", "", step.text)
        case _:
            return (CLOCK, "", "")


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """The log of one market from its first command on."""
    now_ns = 1
    first: Command = (CONFIGURE, "", "", draw(RULES).to_tuple())
    written: list[Command] = [] if draw(st.integers(0, 9)) == 9 else [first]
    log: Log = [(now_ns, tuple(written))] if written else []
    naive = NaiveBook()
    for command in written:
        naive.execute(now_ns, command)
    for passed_ns, steps in draw(
        st.lists(st.tuples(st.integers(0, 2), st.lists(STEPS, min_size=2, max_size=STEPS_MAX)), min_size=2, max_size=24)
    ):
        now_ns += passed_ns
        start = len(written)
        for step in steps:
            written.append(command_of(step, now_ns, written, naive))
            naive.execute(now_ns, written[-1])
        log.append((now_ns, checked_commands(tuple(written[start:]), internal=True)))
    return log


@pytest.fixture(scope="class")  # Hypothesis runs many examples in a function: what is scoped to one is refused
def eager_housekeeping() -> Iterator[None]:
    """Let the book compact, drop levels, absorb its digest and forget after a few orders, not only after thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orderbook, "COMMANDS_MAX", STEPS_MAX)
        patch.setattr(orderbook, "_DEAD_MAX", 1)
        patch.setattr(orderbook, "_DIRTY_MAX", 3)
        patch.setattr(orderbook, "_EMPTY_MAX", 1)
        patch.setattr(orderbook, "_IDLE_MAX", 1)
        patch.setattr(orderbook, "_SPARE_MAX", 2)
        patch.setattr(orderbook, "_PIECE_ROWS", 2)
        patch.setattr(orderbook, "_LAST_MAX", 1)
        yield


# -- what is compared ------------------------------------------------------------------------------------------


def as_view(order: NaiveOrder) -> OrderView:
    return OrderView(
        order.id,
        order.account,
        order.client_order_id,
        Side(order.side),
        order.price,
        order.quantity,
        order.filled,
        order.open,
        order.expire_ns,
        order.post_only,
    )


def assert_same_to_see(book: OrderBook, naive: NaiveBook) -> None:
    for side in (0, 1):
        assert list(book.orders(side)) == [as_view(order) for order in naive.queue(side)]
        assert book.depth(side) == naive.depth(side)
        assert book.depth(side, 2) == naive.depth(side)[:2]
        assert book.best(side) == naive.best(side)
    for account in ACCOUNTS:
        assert book.open_orders(account) == [as_view(order) for order in naive.open_orders(account)]
    assert len(book) == len(naive.resting)
    assert book.trade_count == naive.trade_count
    assert book.trades(1000) == naive.trades()
    assert book.trades(2) == naive.trades()[:2]
    assert book.events_after(naive.forgotten_through) == list(naive.remembered())
    for sequence in range(1, book.sequence + 1):
        assert book.events_of(sequence) == [event for event in naive.remembered() if event[1] == sequence]


def assert_adds_up(naive: NaiveBook) -> None:
    for order in naive.accepted:
        assert order.adds_up(), order
    bought, sold = bought_and_sold(naive.accepted)
    assert bought == sold == sum(event[4] for event in naive.events if event[0] == TRADE)


def run_beside_the_naive_book(log: Iterable[Batch]) -> None:
    book, naive = OrderBook(), NaiveBook()
    for now_ns, commands in log:
        expected = [event for command in commands for event in naive.execute(now_ns, command)]
        assert book.apply(book.sequence + 1, now_ns, commands) == expected
        for first in [event[2] for event in expected if event[0] == DUPLICATE]:
            assert book.answer_of(first) == [event for event in naive.events if event[1] == first]
        book.check()
        assert_same_to_see(book, naive)
        assert_adds_up(naive)


# -- the promises ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("eager_housekeeping")
@given(logs())
def test_book_answers_and_shows_what_the_naive_book_does(log: Log) -> None:
    run_beside_the_naive_book(log)


@pytest.mark.usefixtures("eager_housekeeping")
@given(logs(), st.data())
def test_restored_book_goes_on_exactly_as_the_original(log: Log, data: st.DataObject) -> None:
    original = OrderBook()
    restored: list[OrderBook] = []
    where = data.draw(st.sets(st.integers(0, max(0, len(log) - 1)), min_size=1, max_size=3))
    for at, (now_ns, commands) in enumerate(log):
        if at in where:
            restored.append(OrderBook.restore(original.snapshot()))
        events = original.apply(original.sequence + 1, now_ns, commands)
        snapshot = original.snapshot()
        for book in restored:
            assert book.apply(book.sequence + 1, now_ns, commands) == events
            book.check()
            assert book.state_hash() == original.state_hash()
            assert book.snapshot() == snapshot
            assert [book.events_of(n) for n in range(1, book.sequence + 1)] == [
                original.events_of(n) for n in range(1, book.sequence + 1)
            ]


@pytest.mark.usefixtures("eager_housekeeping")
@given(logs(), st.data())
def test_an_image_stays_as_the_book_was_while_the_book_goes_on(log: Log, data: st.DataObject) -> None:
    where = data.draw(st.integers(0, max(0, len(log) - 1)))
    book = OrderBook()
    snapshot, pieces = b"", iter(())
    written = bytearray()
    for at, (now_ns, commands) in enumerate(log):
        if at == where:
            snapshot, pieces = book.snapshot(), book.image().pieces()
        book.apply(book.sequence + 1, now_ns, commands)
        written += next(pieces, b"")  # some of it while orders come, the rest when there are no more
    assert bytes(written) + b"".join(pieces) == snapshot


@pytest.mark.usefixtures("eager_housekeeping")
@given(logs(), st.data())
def test_a_sweep_is_a_copy_of_the_moment_of_its_last_slice(log: Log, data: st.DataObject) -> None:
    where, count = data.draw(st.integers(0, max(0, len(log) - 1))), data.draw(st.integers(1, 6))
    book = OrderBook()
    sweep: Sweep | None = None
    images: list[tuple[BookImage, bytes, list[OrderView]]] = []

    def take_slice() -> None:
        nonlocal sweep
        if sweep is not None and (image := sweep.step(count)) is not None:
            images.append((image, book.snapshot(), [order for side in Side for order in book.orders(side)]))
            sweep = None

    for at, (now_ns, commands) in enumerate(log):
        if at == where:
            sweep = book.sweep()
        book.apply(book.sequence + 1, now_ns, commands)
        take_slice()
    while sweep is not None:
        take_slice()
    assert len(images) == (1 if log else 0)
    for image, snapshot, orders in images:
        assert b"".join(image.pieces()) == snapshot
        assert list(image.orders()) == orders
        assert OrderBook.restore(snapshot).snapshot() == snapshot


@pytest.mark.parametrize("walked", range(8))
def test_a_sweep_sees_each_order_once_wherever_it_was_when_the_order_changed(walked: int) -> None:
    def buy(name: str, price: int, lots: int) -> Command:
        return (SUBMIT, "ann", name, Side.BUY, OrderType.LIMIT, price, lots, 0, 0, 0)

    book = OrderBook(MarketRules())
    names = "filled", "part", "cancelled", "moved", "requeued", "kept"
    resting = [buy(name, 102 if name in ("filled", "part") else 100, 5) for name in names]
    book.apply(1, 1, (*resting, buy("deep", 98, 5)))
    sweep = book.sweep()
    for _ in range(walked):
        assert sweep.step(1) is None
    changes: tuple[Command, ...] = (
        (SUBMIT, "bob", "s", Side.SELL, OrderType.LIMIT, 102, 7, 0, 0, 0),
        (CANCEL, "ann", "", 3),
        (AMEND, "ann", "", 4, 99, 5),
        (AMEND, "ann", "", 5, 100, 6),
        (AMEND, "ann", "", 6, 100, 4),
        buy("new", 100, 5),
        buy("new level", 97, 5),
    )
    book.apply(8, 2, changes)
    image = None
    while image is None:
        image = sweep.step(1)
    assert list(image.orders()) == list(book.orders(Side.BUY))
    assert [order.client_order_id for order in image.orders()] == [
        *("part", "kept", "requeued", "new"),
        *("moved", "deep", "new level"),
    ]
    assert b"".join(image.pieces()) == book.snapshot()


@pytest.mark.usefixtures("eager_housekeeping")
@given(logs())
def test_how_the_log_is_cut_into_batches_changes_nothing(log: Log) -> None:
    single = [(now_ns, (command,)) for now_ns, commands in log for command in commands]
    widest = [
        (now_ns, tuple(command for _, commands in batches for command in commands))
        for now_ns, batches in itertools.groupby(log, key=lambda batch: batch[0])
    ]
    outcomes: list[tuple[str, bytes, list[Event]]] = []
    for cut in (log, single, widest):
        book = OrderBook()
        events = [event for now_ns, commands in cut for event in book.apply(book.sequence + 1, now_ns, commands)]
        outcomes.append((book.state_hash(), book.snapshot(), events))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("restored", [False, True])
def test_an_account_whose_retry_outlives_what_it_repeats_is_forgotten_like_any_other(*, restored: bool) -> None:
    book, others = OrderBook(MarketRules(dedupe_window=64)), itertools.count()

    def submit(account: str, name: str) -> Event:
        order = (SUBMIT, account, name, 0, 0, 100, 1, int(IOC), 0, 0)
        return book.apply(book.sequence + 1, 0, (order,))[0]

    submit("ann", "x")
    while book.sequence < 60:
        submit("bob", f"{next(others)}")
    assert submit("ann", "x")[0] == DUPLICATE
    while book.sequence < 80:
        submit("bob", f"{next(others)}")
    if restored:
        book = OrderBook.restore(book.snapshot())
    for _ in range(8000):  # more accounts than are kept without orders
        submit(f"account {next(others)}", "y")
    book.check()
    assert "ann" not in book._accounts
    assert submit("ann", "x")[0] == ACCEPTED


def test_cancel_all_goes_by_order_id_on_a_restored_book_too() -> None:
    """After an amend the order stands elsewhere in every index, and elsewhere again after a restore."""
    book = OrderBook(MarketRules())
    submits = [(SUBMIT, "ann", "", 0, 0, price, 5, int(GTC), 0, 0) for price in (10, 12, 11)]
    book.apply(1, 0, (*submits, (AMEND, "ann", "", 1, None, 6)))
    for again in (book, OrderBook.restore(book.snapshot())):
        assert [event[2] for event in again.apply(5, 0, ((CANCEL_ALL, "ann", ""),))] == [1, 2, 3]


def test_book_of_hundreds_of_orders_does_what_the_naive_book_does() -> None:
    """As in production: many orders at a price, most of them cancelled or moved, levels compacted after 32."""
    rng = random.Random(7)
    book, naive = OrderBook(MarketRules(dedupe_window=50)), NaiveBook(MarketRules(dedupe_window=50))
    while book.sequence < 8000:
        sequence, commands = book.sequence + 1, []
        for at in range(sequence, sequence + rng.randrange(1, 60)):
            account, name = rng.choice(ACCOUNTS), rng.choice(("", "", f"{rng.randrange(30)}"))
            side = rng.randrange(2)
            price = 100 + (1 if side else -1) * rng.choice((-1, 1, 1, 1, 1, 1, 1, 2, 2, 2))
            known = rng.choice(naive.resting) if naive.resting else None
            if known is None or rng.random() < 0.6:
                expires = rng.choice((0, 0, 0, at // 10 + 60))
                tif = int(GTD if expires else GTC)
                stp = rng.randrange(5)
                commands.append((SUBMIT, account, name, side, 0, price, rng.randrange(1, 20), tif, expires, stp))
            elif rng.random() < 0.7:
                commands.append((CANCEL, known.account, name, known.id))
            else:
                commands.append((AMEND, known.account, name, known.id, price, rng.randrange(1, 20)))
        expected = [event for command in commands for event in naive.execute(sequence // 10, command)]
        assert book.apply(sequence, sequence // 10, tuple(commands)) == expected
        book.check()
        for side in (0, 1):
            assert list(book.orders(side)) == [as_view(order) for order in naive.queue(side)]
        book = OrderBook.restore(book.snapshot()) if rng.random() < 0.05 else book
    assert len(book) > 100, "the flow no longer builds a book worth testing"
    assert_adds_up(naive)
