"""Price-time matching of one market: commands in, events out. Pure: no I/O, no clock, no threads, no randomness.

The book's state is a function of the log alone: the same commands under the same sequence numbers and timestamps give
the same state, the same events and the same :meth:`OrderBook.state_hash` on every replica.

How it is laid out (what measured best in pure Python, see ``benchmarks/engine.py``):

- ``account -> id -> Order`` finds an order for cancel and amend, which name both, and an account's orders; there is no
  other index of orders. ``price -> Level`` finds a level (in an uncrossed book a price is never bid and ask at once, so
  one dict serves both sides).
- Each side keeps one ascending list of *keys* with its best at the end: a bid's key is its price, an ask's key its
  negated price. So matching reads ``keys[-1]`` on either side, and ``key >= floor`` means "good enough for the taker".
- An empty level stays in place, since the next order at that price is likely. Only at the top of its side it is removed
  at once, so that a side's best key always has orders. The others are removed when they may outnumber the levels with
  orders. Removed levels are reused for new ones: most levels of a real book live shortly.
- A level's queue is a list of orders with the index of its head. A cancelled order stays in it with ``open == 0``, is
  skipped at the head, and is removed when a level holds more dead orders than live ones: constant time per order.
  (Most levels of a real book hold few orders; a deque would allocate room for 64 at each.)
- :meth:`OrderBook.apply` is the one hot loop: limit orders (good till cancelled, immediate or cancel) and cancels are
  handled in it, with a call only where they trade. The methods below it do all other commands.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby, islice
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from ...transport import codec
from ...transport.errors import InvariantBroken, ProtocolError, ensure
from .commands import (
    ACCEPTED,
    AMEND,
    AMENDED,
    CANCEL,
    CANCEL_ALL,
    CANCELLED,
    CLOCK,
    CONFIGURE,
    CONFIGURED,
    DUPLICATE,
    NOTE,
    NOTED,
    REJECTED,
    SET_TIME,
    SUBMIT,
    TRADE,
    CancelReason,
    Command,
    Event,
    OrderType,
    RejectCode,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from .record import COMMANDS_MAX
from .rules import MarketRules

_BUY: Final = int(Side.BUY)
_SELL: Final = int(Side.SELL)
_MARKET: Final = int(OrderType.MARKET)
_POST_ONLY: Final = int(OrderType.POST_ONLY)
_GTC: Final = int(TimeInForce.GTC)
_IOC: Final = int(TimeInForce.IOC)
_FOK: Final = int(TimeInForce.FOK)
_GTD: Final = int(TimeInForce.GTD)
_STP_CANCEL_NEWEST: Final = int(SelfTradePrevention.CANCEL_NEWEST)
_STP_CANCEL_OLDEST: Final = int(SelfTradePrevention.CANCEL_OLDEST)
_STP_CANCEL_BOTH: Final = int(SelfTradePrevention.CANCEL_BOTH)

_ANY_PRICE: Final = -(2**64)
_HASH_PRIME: Final = 2**60 - 93
"""A prime whose remainders fit into two digits of a Python int, not three."""
_SNAPSHOT_VERSION: Final = 2
_CHECKSUM_SIZE: Final = 16
BROKEN: Final = (ArithmeticError, AttributeError, InvariantBroken, LookupError, TypeError, ValueError)
"""What a book raises for an invalid state or command."""
_DEAD_MAX: Final = 32
"""A level is compacted when it holds more dead orders than live ones, and more than this."""
_DIRTY_MAX: Final = 65_536
_PIECE_ROWS: Final = 256
"""Orders, commands or events in a piece of a snapshot."""
_LAST_MAX: Final = 1000
"""Most touched orders that a sweep leaves for its last slice, unless :data:`_ROUNDS_MAX` were not enough."""
_ROUNDS_MAX: Final = 20
_IDLE_MAX: Final = 1024
"""Keep up to this many idle accounts and stale expiries, or as many as are live, whichever is more."""
_EMPTY_MAX: Final = 64
"""Keep up to this many empty levels, or as many as have orders, whichever is more."""
_SPARE_MAX: Final = 256
"""Most removed levels kept for reuse."""
_sequence_of: Final = itemgetter(1)

Terms: TypeAlias = tuple[int, int, bool, int, int]
"""Properties that few orders have: ``(expire_ns, stp, post_only, cancelled, requeued)``.

``cancelled`` lots were taken by self-trade prevention; ``requeued`` is the sequence of the amend that sent the order to
the back of a queue, or 0. A million orders take 16 MB less if both are here.
"""
_TERMS: Final[tuple[Terms, ...]] = tuple([(0, stp, False, 0, 0) for stp in range(5)])
"""The terms of plain orders, by self-trade prevention: shared, because most orders have them."""


_Row: TypeAlias = "tuple[Order, int, int, Terms]"
"""An order as it was: with its open lots, quantity and terms."""
_Reread: TypeAlias = tuple[int, int, int, int, Terms]
"""Side, price, open lots, quantity and terms of an order."""


class Account:
    """An account: its open orders by id, and by client order id the sequence at which it was last executed as new.

    An account with neither orders nor requests in the dedupe window is forgotten some time later.
    """

    __slots__ = ("name", "orders", "salt", "seen")

    def __init__(self, name: str) -> None:
        self.name = name
        self.salt = crc32(name.encode())
        """For the digests of its orders."""
        self.orders: dict[int, Order] = {}
        self.seen: dict[str, int] = {}


class Level:
    """All orders at one price, in queue order.

    ``lots`` is the open quantity of all orders; ``dead`` counts the orders in the queue that are no longer open,
    including all those before ``head``. If a level has no lots, its queue is empty.
    """

    __slots__ = ("dead", "head", "key", "lots", "orders", "price", "side")

    def __init__(self) -> None:
        self.side = 0
        self.price = 0
        self.key = 0
        self.lots = 0
        self.dead = 0
        self.head = 0
        self.orders: list[Order] = []

    def compact(self) -> None:
        """Drop the dead orders if they outnumber the open ones."""
        if self.dead > _DEAD_MAX and 2 * self.dead > len(self.orders):
            self.orders = [order for order in self.orders if order.open]
            self.dead = self.head = 0


class Order:
    """A resting order. ``quantity = filled + open + cancelled`` lots.

    :meth:`OrderBook._rest` and the hot loop create it empty and then fill it in: an ``__init__`` with this many
    arguments would take twice as long.
    """

    __slots__ = (
        "account",
        "client_order_id",
        "digest",
        "id",
        "level",
        "open",
        "quantity",
        "terms",
    )

    id: Any
    account: Account
    client_order_id: str
    level: Level
    open: int
    quantity: int
    terms: Terms
    digest: int

    @property
    def cancelled(self) -> int:
        return self.terms[3]

    @property
    def priority(self) -> int:
        """The sequence at which it queued."""
        return self.terms[4] or self.id


class OrderView(NamedTuple):
    """One open order. Price in ticks, quantities in lots."""

    order_id: int
    account: str
    client_order_id: str
    side: Side
    price_ticks: int
    quantity_lots: int
    filled_lots: int
    open_lots: int
    expire_ns: int
    post_only: bool


class DepthLevel(NamedTuple):
    """One price of one side: its open lots and its number of orders."""

    price_ticks: int
    quantity_lots: int
    orders: int


class BookImage:
    """The state of a book at one moment, to be written while the book goes on. Made by a :class:`Sweep`."""

    def __init__(
        self,
        head: tuple[Any, ...],
        count: int,
        keys: tuple[list[int], list[int]],
        walked: dict[tuple[int, int], list[_Row]],
        after: int,
        again: dict[Order, _Reread],
        window: list[Command],
        events: list[Event],
        state_hash: str,
    ) -> None:
        """``walked``: by side and price, the orders that queued up to sequence ``after``, as they once were.

        ``again``: the orders that were touched since, and all that queued later, as they are in this image.
        """
        self._head = head
        self._count = count
        self._keys = keys
        self._walked = walked
        self._after = after
        self._again = again
        self._window = window
        self._events = events
        self._state_hash = state_hash

    @property
    def sequence(self) -> int:
        """The sequence number up to which the log is applied."""
        sequence: int = self._head[1]
        return sequence

    @property
    def state_hash(self) -> str:
        """The state hash at that sequence number."""
        return self._state_hash

    @property
    def last_trade(self) -> Event | None:
        """The last trade, if any."""
        found: Event | None = self._head[4]
        return found

    @property
    def rules(self) -> MarketRules:
        """The market's rules."""
        return MarketRules.from_tuple(self._head[5]) if self._head[5] is not None else MarketRules()

    def depth(self, side: int) -> Iterator[DepthLevel]:
        """Yield the price levels of ``side``, best first."""
        mine = (order for order in self.orders() if order.side == side)
        for price, orders in groupby(mine, key=attrgetter("price_ticks")):
            lots = [order.open_lots for order in orders]
            yield DepthLevel(price, sum(lots), len(lots))

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of :meth:`OrderBook.snapshot`, in pieces that take some tenths of a millisecond each."""
        check = blake2b(digest_size=_CHECKSUM_SIZE)
        for piece in self._body():
            check.update(piece)
            yield piece
        yield check.digest()

    def _body(self) -> Iterator[bytes]:
        yield codec.pack_header(5) + codec.pack(self._head) + codec.pack_header(self._count)
        rows: list[tuple[Any, ...]] = []
        for side, price, order, open_lots, quantity, terms in self._orders():
            if order is None:
                yield b""  # time for others
                continue
            expire_ns, stp, post_only, cancelled, requeued = terms
            owner, client_order_id, number = order.account.name, order.client_order_id, order.id
            rows.append(
                (
                    *(number, owner, client_order_id, side, price, open_lots, quantity, cancelled),
                    *(requeued or number, expire_ns, stp, post_only),
                )
            )
            if len(rows) >= _PIECE_ROWS:
                yield codec.pack_items(rows)
                rows = []
        yield codec.pack_items(rows)
        for items in (self._window, self._events):
            yield codec.pack_header(len(items))
            for at in range(0, len(items), _PIECE_ROWS):
                yield codec.pack_items(items[at : at + _PIECE_ROWS])
        yield codec.pack(self._state_hash)

    def orders(self) -> Iterator[OrderView]:
        """Yield the open orders: bids best price first, then asks, each level in queue order."""
        for side, price, order, open_lots, quantity, terms in self._orders():
            if order is not None:
                yield _viewed(order, side, price, open_lots, quantity, terms)

    def _orders(self) -> Iterator[tuple[int, int, Order | None, int, int, Terms]]:
        """Yield the open orders, with now and then none: time for others."""
        queued: dict[tuple[int, int], list[tuple[int, Order]]] = {}
        for number, (order, (side, price, open_lots, _, terms)) in enumerate(self._again.items()):
            priority = terms[4] or order.id
            if open_lots and priority > self._after:
                queued.setdefault((side, price), []).append((priority, order))
            if number % _PIECE_ROWS == 0:
                yield side, price, None, 0, 0, terms
        again, nothing = self._again, _TERMS[0]
        for side, keys in enumerate(self._keys):
            for number, key in enumerate(reversed(keys)):
                price = -key if side else key
                for order, open_lots, quantity, terms in self._walked.get((side, price), ()):
                    now = again.get(order)
                    if now is None:
                        yield side, price, order, open_lots, quantity, terms
                    elif now[2]:
                        yield side, price, order, now[2], now[3], now[4]
                for _, order in sorted(queued.get((side, price), ())):
                    now = again[order]
                    yield side, price, order, now[2], now[3], now[4]
                if number % _PIECE_ROWS == 0:
                    yield side, price, None, 0, 0, nothing


class Sweep:
    """A copy of a whole book that is made in slices, while the book goes on. Made by :meth:`OrderBook.sweep`.

    A walk over all levels copies what is in them. What is touched meanwhile is read again, and again what is touched
    during that, until little is left: the last slice reads it, and the copy is of that moment. So one slice takes a
    time that does not grow with the book, and the book notes what is touched where it does so anyway, for its digest.
    """

    def __init__(self, book: OrderBook) -> None:
        self._book = book
        self._after = book.sequence
        self._keys = [(side, list(keys)) for side, keys in enumerate(book._keys)]
        self._level: tuple[int, int, list[Order], int] | None = None
        """The level that is being copied: side, price, its queue, and how far it is copied."""
        self._walked: dict[tuple[int, int], list[_Row]] = {}
        self._again: dict[Order, _Reread] = {}
        self._rereading: list[Order] = []
        self._rounds = 0
        self.touched: set[Order] = set()
        """Orders that were touched since they were last read, or since the sweep began. The book adds to it."""

    def step(self, count: int) -> BookImage | None:
        """Read some ``count`` orders; return the copy when it is whole. The book is at one sequence meanwhile."""
        self._book._absorb()  # it tells what was touched
        while count > 0:
            if self._level is not None or self._keys:
                count -= self._walk(count)
            elif self._rereading:
                count -= self._reread(self._rereading, count)
            elif self._rounds < _ROUNDS_MAX and len(self.touched) > _LAST_MAX:
                self._rounds += 1
                self._rereading, self.touched = list(self.touched), set()
            else:
                last = list(self.touched)
                self._reread(last, len(last))
                return self._whole()
        return None

    def _walk(self, count: int) -> int:
        """Copy up to ``count`` orders of the next level, or part of it; return how many were looked at, at least 1."""
        if self._level is None:
            side, keys = self._keys[-1]
            if not keys:
                self._keys.pop()
                return 1
            key = keys.pop()
            price = -key if side else key
            level = self._book._levels.get(price)
            if level is None or level.side != side or not level.lots:
                return 1
            self._level = side, price, list(level.orders), 0
        side, price, orders, at = self._level
        end = at + count
        self._level = (side, price, orders, end) if end < len(orders) else None
        rows = self._walked.setdefault((side, price), [])
        rows += [
            (order, order.open, order.quantity, order.terms)
            for order in islice(orders, at, end)
            if order.open and (order.terms[4] or order.id) <= self._after
        ]
        return min(count, len(orders) - at) + 1

    def _reread(self, orders: list[Order], count: int) -> int:
        again = self._again
        part, orders[-count:] = orders[-count:], []
        for order in part:
            level = order.level
            again[order] = (level.side, level.price, order.open, order.quantity, order.terms)
        return len(part)

    def _whole(self) -> BookImage:
        book = self._book
        book._sweeps.remove(self)
        first = book._remembered_from()
        rules = book._rules.to_tuple() if book._configured else None
        bids, asks = book._keys
        head = (_SNAPSHOT_VERSION, book.sequence, book.timestamp_ns, book.trade_count, book.last_trade, rules, first)
        return BookImage(
            head,
            book._count,
            (list(bids), list(asks)),
            self._walked,
            self._after,
            self._again,
            book._window[first - book._window_start :],
            book._events[bisect_left(book._events, first, key=_sequence_of) :],
            book.state_hash(),
        )


class OrderBook:
    """One market's book. Every state change goes through :meth:`apply`; everything else reads.

    Invariants (asserted by :meth:`apply` as far as is cheap, by :meth:`check` in full): best bid < best ask; for every
    order ``0 < open <= quantity``; a level's queue is sorted by priority; sequence numbers have no gap.
    """

    def __init__(self, rules: MarketRules | None = None) -> None:
        """Start empty at sequence 0. Without ``rules`` the first command must be CONFIGURE."""
        self.sequence = 0
        self.timestamp_ns = 0
        self.trade_count = 0
        self.last_trade: Event | None = None
        self._levels: dict[int, Level] = {}
        self._levels_max = _EMPTY_MAX
        self._spare_levels: list[Level] = []
        self._keys: tuple[list[int], list[int]] = ([], [])
        self._accounts: dict[str, Account] = {}
        self._accounts_max = _IDLE_MAX
        # Heap of (expire_ns, order id, account); those of closed orders stay until they are due, or too many.
        self._expiries: list[tuple[int, int, str]] = []
        self._expiries_max = _IDLE_MAX
        # The last commands, those before `_window_start` already forgotten, and the events they caused.
        self._window: list[Command] = []
        self._window_start = 1
        self._events: list[Event] = []
        self._dirty: list[Order] = []
        self._sweeps: list[Sweep] = []
        # The digest of the open orders and their number, but for what has befallen those in `_dirty`.
        self._digest = 0
        self._count = 0
        self._set_rules(rules)

    # -- commands -----------------------------------------------------------------------------------------------

    def apply(self, first_sequence: int, timestamp_ns: int, commands: Sequence[Command]) -> list[Event]:
        """Execute ``commands`` as sequences ``first_sequence``, ``first_sequence + 1``, … and return their events.

        ``timestamp_ns`` is the leader's time of the whole batch; it never runs backwards in a log, except after a
        SET_TIME, which is alone in its batch: orders keep their expiry dates. Otherwise the cut of a log into
        batches does not change the result. A submitted order's id is its sequence number.
        """
        if not commands:
            raise InvariantBroken("an empty batch: time would pass, and orders lapse, at no sequence number")
        if first_sequence != self.sequence + 1:
            raise InvariantBroken(f"gap: {first_sequence} after {self.sequence}")
        if timestamp_ns < self.timestamp_ns and (commands[0][0] != SET_TIME or len(commands) > 1):
            raise InvariantBroken(f"time ran backwards at {first_sequence}")
        self.timestamp_ns = timestamp_ns
        events: list[Event] = []
        self._window.extend(commands)
        if self._expiries and self._expiries[0][0] <= timestamp_ns:
            self._expire(first_sequence, timestamp_ns, events)
        self._execute(first_sequence, commands, events)
        self.sequence = first_sequence + len(commands) - 1
        bids, asks = self._keys
        if bids and asks and bids[-1] >= -asks[-1]:
            raise InvariantBroken(f"crossed book at {self.sequence}")
        self._events += events
        window = self._rules.dedupe_window + COMMANDS_MAX  # repeated commands are still held: see `answer_of`
        if len(self._window) > window + (window >> 4):
            self._forget(self.sequence - window)
        if len(self._dirty) > _DIRTY_MAX:
            self._absorb()
        if len(self._expiries) > self._expiries_max:
            self._expiries = sorted([expiry for expiry in self._expiries if expiry[1] in self._orders_of(expiry[2])])
            self._expiries_max = 2 * len(self._expiries) + _IDLE_MAX
        if len(self._accounts) > self._accounts_max:
            self._accounts = {name: who for name, who in self._accounts.items() if who.orders or who.seen}
            self._accounts_max = 2 * len(self._accounts) + _IDLE_MAX
        return events

    def _execute(self, first_sequence: int, commands: Sequence[Command], events: list[Event]) -> None:
        """Execute ``commands`` from ``first_sequence`` on: the hot loop.

        Everything that most commands need is a local variable or inlined here. For such a command the loop does the
        same as :meth:`_submit` and :meth:`_cancel`, without the checks that cannot fail.

        Numbers that only pass from a command into an event are declared as ``Any``: compiled, an ``int`` is a machine
        word, and each event would need a new Python object for it.
        """
        levels, spare, accounts = self._levels, self._spare_levels, self._accounts
        bids, asks = self._keys
        dirty = self._dirty
        window, more_rules, quantity_min, quantity_max, price_min, price_max = self._limits_now
        owner: Account | None
        order: Order | None
        kind: int
        account: str
        client_order_id: str
        side: int
        order_type: int
        limit: Any
        price: int
        lots_asked: Any
        quantity: int
        time_in_force: int
        expire_ns: int
        stp: int
        order_id: Any
        at: Any
        for sequence, command in enumerate(commands, first_sequence):
            at = sequence
            kind = command[0]
            account = command[1]
            client_order_id = command[2]
            owner = accounts.get(account)
            if client_order_id:
                if owner is None:
                    owner = accounts[account] = Account(account)
                first = owner.seen.setdefault(client_order_id, sequence)
                if first != sequence:
                    if first > sequence - window:
                        self._answer_again(sequence, first, command, events)
                        continue
                    owner.seen[client_order_id] = sequence
            if kind == SUBMIT:
                _, _, _, side, order_type, limit, lots_asked, time_in_force, expire_ns, stp = command
                if order_type or time_in_force > _IOC or expire_ns or more_rules:
                    self._submit(sequence, command, events)
                    continue
                price, quantity = limit, lots_asked
                if not quantity_min <= quantity <= quantity_max or not price_min <= price <= price_max:
                    self._submit(sequence, command, events)
                    continue
                events.append((ACCEPTED, at, at, account, client_order_id, side, limit, lots_asked))
                open_lots = quantity
                terms = _TERMS[stp]
                if side:
                    keys, opposite, key = asks, bids, -price
                else:
                    keys, opposite, key = bids, asks, price
                if opposite and opposite[-1] >= -key:
                    open_lots, taken = self._match(at, at, account, side, limit, -key, quantity, stp, events)
                    if not open_lots:
                        continue
                    if taken:
                        terms = _terms(0, stp, False, taken, 0)
                if time_in_force:
                    events.append((CANCELLED, at, at, account, side, limit, open_lots, 0, CancelReason.UNFILLED))
                    continue
                level = levels.get(price)
                if level is None:
                    if spare and (not keys or key > keys[-1]):
                        level = levels[price] = spare.pop()
                        level.side, level.price, level.key = side, price, key
                        keys.append(key)
                    else:
                        level = self._new_level(side, price)
                level.lots += open_lots
                if owner is None:
                    owner = accounts[account] = Account(account)
                order = Order()
                order.id = sequence
                order.account = owner
                order.client_order_id = client_order_id
                order.level = level
                order.open = open_lots
                order.quantity = quantity
                order.digest = 0
                order.terms = terms
                level.orders.append(order)
                owner.orders[at] = order
                dirty.append(order)
            elif kind == CANCEL:
                order_id = command[3]
                order = owner.orders.pop(order_id, None) if owner is not None else None
                if order is None:
                    events.append((REJECTED, at, account, client_order_id, RejectCode.UNKNOWN_ORDER))
                    continue
                level = order.level
                lots = order.open
                events.append(
                    (CANCELLED, at, order_id, account, level.side, level.price, lots, 0, CancelReason.REQUESTED)
                )
                order.open = 0
                if order.digest:
                    dirty.append(order)
                level.lots -= lots
                if level.lots:
                    level.dead += 1
                    if level.dead > _DEAD_MAX:
                        level.compact()
                else:
                    self._empty(level)
            elif kind == AMEND:
                self._amend(sequence, command, events)
            elif kind == CANCEL_ALL:
                self._cancel_all(sequence, command[1], events)
            elif kind == CONFIGURE:
                self._configure(sequence, command, events)
                window, more_rules, quantity_min, quantity_max, price_min, price_max = self._limits_now
            elif kind in (NOTE, SET_TIME):
                events.append((NOTED, sequence, command[3]))
            elif kind != CLOCK:
                raise InvariantBroken(f"unknown command {command!r} passed the border")

    def _submit(self, sequence: int, command: Command, events: list[Event]) -> None:
        _, account, client_order_id, side, order_type, price, quantity, time_in_force, expire_ns, stp = command
        opposite = self._keys[1 - side]
        if order_type == _MARKET:  # noqa: SIM108 (two ternaries in one line hide the rule)
            floor = self._market_floor(side, price, opposite)
        else:
            floor = price if side else -price
        crosses = bool(opposite) and opposite[-1] >= floor
        code = self._refusal(account, order_type, price, quantity, time_in_force, expire_ns, crosses)
        if code is None and time_in_force == _FOK and not self._fillable(side, floor, account, stp, quantity):
            code = RejectCode.FOK_UNFILLABLE
        if code is not None:
            events.append((REJECTED, sequence, account, client_order_id, code))
            return
        events.append((ACCEPTED, sequence, sequence, account, client_order_id, side, price, quantity))
        open_lots, cancelled = quantity, 0
        if crosses:
            open_lots, cancelled = self._match(sequence, sequence, account, side, price, floor, quantity, stp, events)
        if open_lots:
            if order_type == _MARKET or time_in_force in (_IOC, _FOK):
                events.append(
                    (CANCELLED, sequence, sequence, account, side, price, open_lots, 0, CancelReason.UNFILLED)
                )
                return
            terms = _terms(expire_ns, stp, order_type == _POST_ONLY, cancelled, 0)
            self._rest(sequence, account, client_order_id, side, price, open_lots, quantity, terms)
            if expire_ns:
                heapq.heappush(self._expiries, (expire_ns, sequence, account))

    def _match(
        self,
        sequence: Any,
        taker_id: Any,
        account: str,
        side: int,
        limit: Any,
        floor: int,
        open_lots: int,
        stp: int,
        events: list[Event],
    ) -> tuple[int, int]:
        """Trade ``open_lots`` against the opposite side down to key ``floor``; ``limit`` is the taker's own price.

        Return the taker's lots that are still open, and those that self-trade prevention cancelled.
        """
        keys = self._keys[1 - side]
        levels = self._levels
        dirty = self._dirty
        trade = self.last_trade
        trade_id = self.trade_count
        taken = 0
        now: Any = self.timestamp_ns
        maker_id: Any
        at_price: Any
        while open_lots and keys and keys[-1] >= floor:
            price = keys[-1] if side else -keys[-1]
            level = levels[price]
            at_price = price
            queue = level.orders
            head = level.head
            while open_lots and level.lots:
                maker = queue[head]
                maker_open = maker.open
                if not maker_open:
                    head += 1
                    continue
                owner = maker.account
                if stp and owner.name == account:
                    lots = self._prevent_self_trade(
                        sequence, taker_id, account, side, limit, maker, open_lots, stp, events
                    )
                    taken += lots
                    open_lots -= lots
                    continue
                lots = maker_open if maker_open < open_lots else open_lots
                open_lots -= lots
                level.lots -= lots
                trade_id += 1
                maker_id = maker.id
                maker_name = owner.name
                trade = (TRADE, sequence, trade_id, at_price, lots, maker_id, taker_id, maker_name, account, side, now)
                events.append(trade)
                if lots == maker_open:
                    maker.open = 0
                    if maker.digest:
                        dirty.append(maker)
                    level.dead += 1
                    head += 1
                    del owner.orders[maker_id]
                else:
                    maker.open = maker_open - lots
                    dirty.append(maker)
            level.head = head
            if level.lots:
                level.compact()
            else:
                self._empty(level)
        self.last_trade = trade
        self.trade_count = trade_id
        return open_lots, taken

    def _prevent_self_trade(
        self,
        sequence: int,
        taker_id: int,
        account: str,
        side: int,
        limit: int | None,
        maker: Order,
        open_lots: int,
        stp: int,
        events: list[Event],
    ) -> int:
        """Apply mode ``stp`` where a taker met its own resting order; return the taker's lots that it cancels.

        If this leaves a maker without lots, the caller drops it and its level.
        """
        taken = 0
        if stp == _STP_CANCEL_OLDEST:
            given = maker.open
        elif stp == _STP_CANCEL_NEWEST:
            given, taken = 0, open_lots
        elif stp == _STP_CANCEL_BOTH:
            given, taken = maker.open, open_lots
        else:
            given = taken = min(maker.open, open_lots)
        if given:
            level = maker.level
            maker.open -= given
            expire_ns, maker_stp, post_only, cancelled, requeued = maker.terms
            maker.terms = (expire_ns, maker_stp, post_only, cancelled + given, requeued)
            level.lots -= given
            self._dirty.append(maker)
            left = maker.open
            events.append(
                (CANCELLED, sequence, maker.id, account, 1 - side, level.price, given, left, CancelReason.SELF_TRADE)
            )
            if not left:
                level.dead += 1
                del maker.account.orders[maker.id]
        if taken:
            left = open_lots - taken
            events.append((CANCELLED, sequence, taker_id, account, side, limit, taken, left, CancelReason.SELF_TRADE))
        return taken

    def _rest(
        self,
        order_id: int,
        account: str,
        client_order_id: str,
        side: int,
        price: int,
        open_lots: int,
        quantity: int,
        terms: Terms,
    ) -> None:
        level = self._levels.get(price)
        if level is None:
            level = self._new_level(side, price)
        if level.side != side:
            raise InvariantBroken(f"order {order_id} would cross the book at {price}")
        level.lots += open_lots
        owner = self._account(account)
        order = Order()
        order.id = order_id
        order.account = owner
        order.client_order_id = client_order_id
        order.level = level
        order.open = open_lots
        order.quantity = quantity
        order.terms = terms
        order.digest = 0
        level.orders.append(order)
        owner.orders[order_id] = order
        self._dirty.append(order)

    def _account(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name)
        return account

    def _new_level(self, side: int, price: int) -> Level:
        if len(self._levels) >= self._levels_max:
            self._drop_empty_levels()
        level = self._levels[price] = self._spare_levels.pop() if self._spare_levels else Level()
        keys = self._keys[side]
        key = -price if side else price
        level.side, level.price, level.key = side, price, key
        if keys and key < keys[-1]:
            insort(keys, key)
        else:
            keys.append(key)
        return level

    def _empty(self, level: Level) -> None:
        """Clear the queue of an empty level; at the top of its side, drop it and the empty levels beneath."""
        level.orders.clear()
        level.dead = level.head = 0
        keys = self._keys[level.side]
        if keys[-1] == level.key:
            levels = self._levels
            spare = self._spare_levels
            while True:
                keys.pop()
                del levels[level.price]
                if len(spare) < _SPARE_MAX:
                    spare.append(level)
                if not keys:
                    return
                level = levels[-keys[-1] if level.side else keys[-1]]
                if level.lots:
                    return

    def _drop_empty_levels(self) -> None:
        levels = self._levels
        for side, keys in enumerate(self._keys):
            keys[:] = [key for key in keys if levels[-key if side else key].lots]
        for price in [price for price, level in levels.items() if not level.lots]:
            del levels[price]
        self._levels_max = 2 * len(levels) + _EMPTY_MAX

    def _cancel(self, sequence: int, order: Order, reason: str, events: list[Event]) -> None:
        level = order.level
        events.append(
            (CANCELLED, sequence, order.id, order.account.name, level.side, level.price, order.open, 0, reason)
        )
        self._take_out(order)
        del order.account.orders[order.id]

    def _cancel_all(self, sequence: int, account: str, events: list[Event]) -> None:
        own = self._orders_of(account)
        for order_id in sorted(own):  # not in dict order: a restored book has another insertion order
            order = own[order_id]
            level = order.level
            events.append(
                (CANCELLED, sequence, order_id, account, level.side, level.price, order.open, 0, CancelReason.REQUESTED)
            )
            self._take_out(order)
        own.clear()

    def _take_out(self, order: Order) -> None:
        """Remove ``order`` from its level in constant time: from now on it is dead (open 0) in the queue."""
        level = order.level
        level.lots -= order.open
        order.open = 0
        if order.digest:
            self._dirty.append(order)
        if level.lots:
            level.dead += 1
            level.compact()
        else:
            self._empty(level)

    def _amend(self, sequence: int, command: Command, events: list[Event]) -> None:
        """Give an order a new price or a new open quantity.

        If the price stays and the quantity does not grow, the order keeps its place in the queue. Anything else is
        cancel and re-entry: the order may trade as a taker, and its remainder queues at the back under the same id.
        """
        _, account, client_order_id, order_id, price, quantity = command
        owner = self._accounts.get(account)
        order = owner.orders.get(order_id) if owner is not None else None
        if order is None:
            events.append((REJECTED, sequence, account, client_order_id, RejectCode.UNKNOWN_ORDER))
            return
        level = order.level
        side = level.side
        open_now = order.open
        if price is None:
            price = level.price
        if quantity is None:
            quantity = open_now
        moved = price != level.price
        floor = price if side else -price
        opposite = self._keys[1 - side]
        crosses = bool(opposite) and opposite[-1] >= floor
        # The limits apply to changed values only: an order that breaks newer limits may still be reduced.
        code = self._limits(price if moved else None, quantity if quantity != open_now else None)
        total = order.quantity - open_now + quantity
        expire_ns, stp, post_only, cancelled, _ = order.terms
        if code is None and total > codec.INT64_MAX:
            code = RejectCode.QUANTITY_TOO_LARGE  # including its filled lots: the sum must fit into a snapshot
        if code is None and crosses and post_only:
            code = RejectCode.POST_ONLY_WOULD_TRADE
        if code is not None:
            events.append((REJECTED, sequence, account, client_order_id, code))
            return
        kept = not moved and quantity <= open_now and self._rules.amend_keeps_priority
        events.append((AMENDED, sequence, order_id, account, side, price, quantity, kept))
        if kept:
            less = open_now - quantity
            order.quantity -= less
            order.open = quantity
            level.lots -= less
            self._dirty.append(order)
            return
        self._take_out(order)
        open_lots = quantity
        if crosses:
            open_lots, taken = self._match(sequence, order_id, account, side, price, floor, quantity, stp, events)
            cancelled += taken
        if open_lots:
            terms = (expire_ns, stp, post_only, cancelled, sequence)
            self._rest(order_id, account, order.client_order_id, side, price, open_lots, total, terms)
        else:
            del order.account.orders[order_id]

    def _expire(self, sequence: int, timestamp_ns: int, events: list[Event]) -> None:
        heap = self._expiries
        while heap and heap[0][0] <= timestamp_ns:
            _, order_id, account = heapq.heappop(heap)
            order = self._orders_of(account).get(order_id)
            if order is not None:
                self._cancel(sequence, order, CancelReason.EXPIRED, events)

    def _answer_again(self, sequence: int, first: int, command: Command, events: list[Event]) -> None:
        if self._window[first - self._window_start] == command:
            events.append((DUPLICATE, sequence, first))
        else:
            events.append((REJECTED, sequence, command[1], command[2], RejectCode.CLIENT_ORDER_ID_REUSED))

    def _configure(self, sequence: int, command: Command, events: list[Event]) -> None:
        """Set the rules; change tick and lot size only while no number in the book depends on them."""
        rules = MarketRules.from_tuple(command[3])
        units, units_now = (rules.tick_size, rules.lot_size), (self._rules.tick_size, self._rules.lot_size)
        if self._configured and units != units_now and (len(self) or self.trade_count):
            events.append((REJECTED, sequence, command[1], command[2], RejectCode.UNITS_IN_USE))
            return
        # Exactly, so that a wider window finds the same on all replicas.
        self._forget(sequence - self._rules.dedupe_window)
        self._set_rules(rules)
        events.append((CONFIGURED, sequence, command[3]))

    # -- rules --------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> MarketRules:
        """The market's rules at :attr:`sequence`."""
        return self._rules

    @property
    def configured(self) -> bool:
        """Whether the rules are set: until then every submit is rejected."""
        return self._configured

    def _set_rules(self, rules: MarketRules | None) -> None:
        self._configured = rules is not None
        self._rules = rules = rules or MarketRules()
        self._rules_packed = codec.pack(rules.to_tuple() if self._configured else None)
        more = bool(not self._configured or rules.price_band_ticks or rules.open_orders_max)
        self._limits_now = (
            rules.dedupe_window,
            more,
            rules.quantity_min_lots,
            rules.quantity_max_lots,
            rules.price_min_ticks,
            rules.price_max_ticks,
        )

    def _refusal(
        self,
        account: str,
        order_type: int,
        price: int | None,
        quantity: int,
        time_in_force: int,
        expire_ns: int,
        crosses: bool,
    ) -> str | None:
        """Return the code under which the rules refuse an order, or None."""
        if not self._configured:
            return RejectCode.MARKET_NOT_CONFIGURED
        if (
            (order_type == _MARKET and time_in_force not in (_IOC, _FOK))
            or (order_type == _POST_ONLY and time_in_force not in (_GTC, _GTD))
            or (time_in_force == _GTD) != bool(expire_ns)
        ):
            return RejectCode.INVALID_TIME_IN_FORCE
        if code := self._limits(price, quantity):
            return code
        if expire_ns and expire_ns <= self.timestamp_ns:
            return RejectCode.ALREADY_EXPIRED
        if order_type == _POST_ONLY and crosses:
            return RejectCode.POST_ONLY_WOULD_TRADE
        most = self._rules.open_orders_max
        if most and time_in_force in (_GTC, _GTD) and len(self._orders_of(account)) >= most:
            return RejectCode.TOO_MANY_OPEN_ORDERS
        return None

    def _limits(self, price: int | None, quantity: int | None) -> str | None:
        _, _, quantity_min, quantity_max, price_min, price_max = self._limits_now
        if quantity is not None:
            if quantity < quantity_min:
                return RejectCode.QUANTITY_TOO_SMALL
            if quantity > quantity_max:
                return RejectCode.QUANTITY_TOO_LARGE
        if price is not None:
            if not price_min <= price <= price_max:
                return RejectCode.PRICE_OUT_OF_RANGE
            around = self._band_centre()
            if around is not None and abs(price - around) > self._rules.price_band_ticks:
                return RejectCode.PRICE_OUT_OF_BAND
        return None

    def _band_centre(self) -> int | None:
        """Return the price at the centre of the market's band, or None if there is no band."""
        if not self._rules.price_band_ticks:
            return None
        return self.last_trade[3] if self.last_trade else self._rules.reference_price_ticks or None

    def _market_floor(self, side: int, bound: int | None, opposite: list[int]) -> int:
        """Return the worst key at which a market order trades: its own bound, the market's protection and its band."""
        floor = _ANY_PRICE
        if bound is not None:
            floor = bound if side else -bound
        if self._rules.market_protection_ticks and opposite:
            floor = max(floor, opposite[-1] - self._rules.market_protection_ticks)
        around = self._band_centre()
        if around is not None:
            floor = max(floor, (around if side else -around) - self._rules.price_band_ticks)
        return floor

    def _fillable(self, side: int, floor: int, account: str, stp: int, quantity: int) -> bool:
        """Whether ``quantity`` would trade in full; ``stp`` decides whether own orders count, stop or are skipped.

        The cost grows with the levels in reach and the account's own orders, not with all orders in reach.
        """
        own_lots: dict[int, int] = {}
        for order in self._orders_of(account).values() if stp else ():
            if order.level.side != side:
                own_lots[order.level.price] = own_lots.get(order.level.price, 0) + order.open
        for key in reversed(self._keys[1 - side]):
            if key < floor:
                break
            level = self._levels[key if side else -key]
            own = own_lots.get(level.price, 0)
            if own and stp != _STP_CANCEL_OLDEST:
                for maker in level.orders:
                    if maker.open and maker.account.name == account:
                        break
                    quantity -= maker.open
                return quantity <= 0
            quantity -= level.lots - own
            if quantity <= 0:
                return True
        return False

    # -- queries ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of open orders."""
        self._absorb()
        return self._count

    def best(self, side: int) -> int | None:
        """Return the best price of ``side`` in ticks, or None if it is empty."""
        keys = self._keys[side]
        return (-keys[-1] if side else keys[-1]) if keys else None

    def depth(self, side: int, levels: int | None = None) -> list[DepthLevel]:
        """Return the best ``levels`` prices of ``side`` (all, by default), best first."""
        return [
            DepthLevel(level.price, level.lots, len(level.orders) - level.dead)
            for level in islice(self._levels_of(side), levels)
        ]

    def _levels_of(self, side: int) -> Iterator[Level]:
        """Yield the levels of ``side`` that have orders, best first."""
        for key in reversed(self._keys[side]):
            level = self._levels[-key if side else key]
            if level.lots:
                yield level

    @property
    def level_count(self) -> int:
        """The number of price levels of both sides, and of those that were emptied lately."""
        return len(self._levels)

    def orders(self, side: int) -> Iterator[OrderView]:
        """Yield the open orders of ``side``, best price first, each level in queue order."""
        for level in self._levels_of(side):
            yield from self.orders_at(level.price)

    def orders_at(self, price_ticks: int) -> list[OrderView]:
        """Return the orders at one price in queue order; empty if there is no such level."""
        level = self._levels.get(price_ticks)
        return [_view(order) for order in level.orders if order.open] if level is not None else []

    def order(self, order_id: int) -> OrderView | None:
        """Return one open order, or None if there is none of that id (filled, cancelled or never there).

        It looks at every account; if you know the account, use its :meth:`open_orders`.
        """
        for account in self._accounts.values():
            order = account.orders.get(order_id)
            if order is not None:
                return _view(order)
        return None

    def open_orders(self, account: str) -> list[OrderView]:
        """Return an account's open orders, oldest first."""
        return [_view(order) for _, order in sorted(self._orders_of(account).items())]

    def order_count(self, account: str) -> int:
        """Return the number of an account's open orders."""
        return len(self._orders_of(account))

    def order_count_at(self, price_ticks: int) -> int:
        """Return the number of orders at one price, and of those that were taken out of its queue lately."""
        level = self._levels.get(price_ticks)
        return len(level.orders) if level is not None else 0

    def _orders_of(self, account: str) -> dict[int, Order]:
        owner = self._accounts.get(account)
        return owner.orders if owner is not None else {}

    def events_of(self, sequence: int) -> list[Event]:
        """Return the events that ``sequence`` caused; empty once it has left the dedupe window."""
        return self.answer_of(sequence) if sequence >= self._remembered_from() else []

    def answer_of(self, sequence: int) -> list[Event]:
        """Return the events of ``sequence``, which a command of the last applied batch has repeated.

        It was in the dedupe window then; later commands of the same batch may have pushed it out.
        """
        return events_between(self._events, sequence, sequence)

    def events_after(self, sequence: int) -> list[Event] | None:
        """Return all events after ``sequence``, or None if the oldest of them have been forgotten."""
        if sequence < self._remembered_from() - 1:
            return None
        return self._events[bisect_left(self._events, sequence + 1, key=_sequence_of) :]

    def trades(self, limit: int) -> list[Event]:
        """Return the last trades, newest first, at most ``limit`` and as far back as the dedupe window reaches."""
        oldest = self._remembered_from()
        found: list[Event] = []
        for event in reversed(self._events):
            if len(found) >= limit or event[1] < oldest:
                break
            if event[0] == TRADE:
                found.append(event)
        return found

    def next_expiry_ns(self) -> int | None:
        """Return when the next good-till-date order may expire, or None."""
        return self._expiries[0][0] if self._expiries else None

    # -- state --------------------------------------------------------------------------------------------------

    def _remembered_from(self) -> int:
        return max(self._window_start, self.sequence + 1 - self._rules.dedupe_window)

    def _forget(self, through: int) -> None:
        """Drop commands and events up to sequence ``through``, which have left the dedupe window."""
        start = self._window_start
        excess = through + 1 - start
        if excess <= 0:
            return
        accounts = self._accounts
        for sequence, command in enumerate(self._window[:excess], start):
            client_order_id = command[2]
            if client_order_id:
                owner = accounts.get(command[1])  # None: it only repeated a command that was forgotten long ago
                if owner is not None and owner.seen.get(client_order_id) == sequence:
                    del owner.seen[client_order_id]
        del self._window[:excess]
        self._window_start = start + excess
        del self._events[: bisect_left(self._events, self._window_start, key=_sequence_of)]

    def _absorb(self) -> None:
        """Update the order digest with every order touched since the last update."""
        digest, count = self._digest, self._count
        for sweep in self._sweeps:
            sweep.touched.update(self._dirty)
        for order in self._dirty:
            before = order.digest
            if order.open:
                term = _digest_of(order)
                digest += term - before
                order.digest = term
                if not before:
                    count += 1
            elif before:
                digest -= before
                order.digest = 0
                count -= 1
        self._digest = digest % _HASH_PRIME
        self._count = count
        self._dirty.clear()

    def state_hash(self) -> str:
        """Return 32 hexadecimal digits: a digest of the whole state, equal on all replicas at equal sequence numbers.

        The cost grows with the orders touched since the last call. Orders enter through a sum of
        per-order terms modulo a prime, so it finds faults, not forgery by a lying node.
        """
        self._absorb()
        state = (
            self.sequence,
            self.timestamp_ns,
            self.trade_count,
            self.last_trade,
            self._count,
            self._digest,
            self._remembered_from(),
        )
        return blake2b(codec.pack(state) + self._rules_packed, digest_size=16).hexdigest()

    def snapshot(self) -> bytes:
        """Return the whole state as bytes; equal states give equal bytes."""
        return b"".join(self.image().pieces())

    def image(self) -> BookImage:
        """Return a copy of the whole state; a :meth:`sweep` makes it in slices."""
        sweep = self.sweep()
        while True:
            if (image := sweep.step(_DIRTY_MAX)) is not None:
                return image

    def sweep(self) -> Sweep:
        """Begin a copy of the whole state that is made in slices: call its :meth:`Sweep.step` between batches.

        One that is not wanted any more is given to :meth:`drop`.
        """
        self._absorb()
        sweep = Sweep(self)
        self._sweeps.append(sweep)
        return sweep

    def drop(self, sweep: Sweep) -> None:
        """Forget a sweep, finished or not."""
        self._sweeps = [other for other in self._sweeps if other is not sweep]

    @classmethod
    def restore(cls, snapshot: bytes) -> OrderBook:
        """Return the book whose :meth:`snapshot` this is.

        Raises:
            ProtocolError: the bytes are not a snapshot, or do not add up to the checksum or state hash they carry.
        """
        body, checksum = snapshot[:-_CHECKSUM_SIZE], snapshot[-_CHECKSUM_SIZE:]
        if blake2b(body, digest_size=_CHECKSUM_SIZE).digest() != checksum:
            raise ProtocolError("the snapshot does not add up to the checksum it carries")
        values = codec.unpack_trusted(body)
        try:
            head, orders, window, events, expected = values
            version, sequence, timestamp_ns, trade_count, last_trade, rules, window_start = head
            if version != _SNAPSHOT_VERSION:
                raise ProtocolError(
                    f"the snapshot is of version {version}, from another release; this one reads {_SNAPSHOT_VERSION}",
                    code="snapshot_version",
                )
            book = cls(MarketRules.from_tuple(rules) if rules is not None else None)
            book.sequence = sequence
            book.timestamp_ns = timestamp_ns
            book.trade_count = trade_count
            book.last_trade = last_trade
            for values in orders:
                order_id, account, client_order_id, side, price, open_lots, quantity, cancelled, priority = values[:9]
                expire_ns, stp, post_only = values[9:]
                terms = _terms(expire_ns, stp, post_only, cancelled, priority if priority != order_id else 0)
                book._rest(order_id, account, client_order_id, side, price, open_lots, quantity, terms)
                if expire_ns:
                    book._expiries.append((expire_ns, order_id, account))
            heapq.heapify(book._expiries)
            book._window = list(window)
            book._window_start = window_start
            book._events = list(events)
            repeats = {e[1] for e in events if e[0] == DUPLICATE or e[-1] == RejectCode.CLIENT_ORDER_ID_REUSED}
            for at, command in enumerate(window, window_start):
                if command[2] and at not in repeats:
                    book._account(command[1]).seen[command[2]] = at
            book.check()
            found = book.state_hash()
        except BROKEN as error:
            raise ProtocolError(f"the snapshot does not hold together: {error}") from error
        if found != expected:
            raise ProtocolError("the snapshot does not add up to the state hash it carries")
        return book

    def check(self) -> None:
        """Check every invariant of the state from scratch; the cost grows with the whole book.

        Raises:
            InvariantBroken: one of them does not hold.
        """
        bids, asks = self._keys
        ensure(not bids or not asks or bids[-1] < -asks[-1], "crossed book")
        found: dict[int, Order] = {}
        for side, keys in enumerate(self._keys):
            ensure(keys == sorted(set(keys)), "a side's prices are out of order")
            ensure(not keys or self._levels[-keys[-1] if side else keys[-1]].lots, "a side's best level is empty")
            for key in keys:
                level = self._levels[-key if side else key]
                ensure(level.key == key, "a level's key is wrong")
                live = [order for order in level.orders if order.open]
                ensure(level.side == side, "a level is on the wrong side")
                ensure(level.lots == sum([order.open for order in live]), "a level's total is wrong")
                ensure(level.dead == len(level.orders) - len(live), "a level's count is wrong")
                ensure(live or not level.orders, "an empty level has a queue")
                ensure(level.dead <= max(_DEAD_MAX, len(live)), "a level keeps too many dead orders")
                ensure(not any([order.open for order in level.orders[: level.head]]), "an order was passed over")
                priorities = [order.priority for order in live]
                ensure(priorities == sorted(set(priorities)), "a level is not in time priority")
                for order in live:
                    ensure(order.level is level, "an order does not know its level")
                    ensure(0 < order.open <= order.quantity - order.cancelled, "an order's quantities do not add up")
                    found[order.id] = order
        ensure(len(self) == len(found), "the count of orders drifted")
        ensure(len(self._levels) == len(bids) + len(asks), "a level belongs to no side")
        ensure(len(self._levels) <= self._levels_max, "too many empty levels are kept")
        by_account = {o.id: o for account in self._accounts.values() for o in account.orders.values()}
        ensure(by_account == found, "the account index and the levels disagree")
        ensure(all(o.account is self._accounts[o.account.name] for o in found.values()), "an account is there twice")
        self._absorb()
        ensure(self._digest == sum([_digest_of(o) for o in found.values()]) % _HASH_PRIME, "the digest drifted")
        ensure(len(self._window) == self.sequence + 1 - self._window_start, "the dedupe window has a gap")
        seen = [at for account in self._accounts.values() for at in account.seen.values()]
        ensure(all([at >= self._window_start for at in seen]), "a request is remembered for too long")
        expiries = {(o.terms[0], o.id, o.account.name) for o in found.values() if o.terms[0]}
        ensure(expiries <= set(self._expiries), "an expiry is missing")


def events_between(events: list[Event], first: int, last: int) -> list[Event]:
    """Return those of ``events``, in order of sequence, that sequences ``first`` to ``last`` caused."""
    start = bisect_left(events, first, key=_sequence_of)
    return events[start : bisect_left(events, last + 1, lo=start, key=_sequence_of)]


def _terms(expire_ns: int, stp: int, post_only: bool, cancelled: int, requeued: int) -> Terms:
    if expire_ns or post_only or cancelled or requeued:
        return (expire_ns, stp, post_only, cancelled, requeued)
    return _TERMS[stp]


def _digest_of(order: Order) -> int:
    """Return an order's term of the digest, never 0: the weighted sum of its values, times a salt of its own.

    Errors in some orders cannot cancel out errors in others: the salts are linear neither in the ids nor in the names.
    It uses few and small numbers, since it runs for every order that rests, and again after it has traded.
    """
    level = order.level
    expire_ns, stp, post_only, cancelled, requeued = terms = order.terms
    salt: Any = order.id * order.id << 32 | crc32(order.client_order_id.encode(), order.account.salt)
    value: Any = level.price * 0xD6E8FEB86659FD93 + order.open * 0x9E3779B97F4A7C15
    value += order.quantity << 4 | level.side << 3
    if expire_ns or stp or post_only or cancelled or requeued:
        value += crc32(repr(terms).encode()) * 0xC2B2AE3D27D4EB4F
    return salt * value % _HASH_PRIME or 1


def _view(order: Order) -> OrderView:
    level = order.level
    return _viewed(order, level.side, level.price, order.open, order.quantity, order.terms)


def _viewed(order: Order, side: int, price: int, open_lots: int, quantity: int, terms: Terms) -> OrderView:
    """Return an order as it is, or once was."""
    expire_ns, _, post_only, cancelled, _ = terms
    filled = quantity - open_lots - cancelled
    return OrderView(
        order.id,
        order.account.name,
        order.client_order_id,
        Side(side),
        price,
        quantity,
        filled,
        open_lots,
        expire_ns,
        post_only,
    )


__all__ = ["BROKEN", "BookImage", "DepthLevel", "Order", "OrderBook", "OrderView", "Sweep"]
