"""The yardstick for the engine: a plain order book of dicts and heaps, as one writes it first.

It matches by price and time, and that is all: no accounts, market rules, self-trade prevention, expiry, repeated
requests, state hash or snapshots. A cancelled order stays in its queue until a taker meets it, and a price stays in its
heap until nobody is left there: nothing is ever searched for. It never gives back the memory of what nobody meets.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from challenge import CANCEL_ORDER, NEW, Message, Report


@dataclass(slots=True)
class PlainOrder:
    """An order; open as long as its quantity is not 0."""

    id: int
    side: int
    price: int
    quantity: int


class PlainBook:
    """One market, which takes the challenge's messages and keeps its reports."""

    def __init__(self) -> None:
        self.orders: dict[int, PlainOrder] = {}
        self.levels: tuple[dict[int, deque[PlainOrder]], dict[int, deque[PlainOrder]]] = ({}, {})
        self.heaps: tuple[list[int], list[int]] = ([], [])
        self.reports: list[Report] = []

    def process(self, first_sequence: int, messages: Sequence[Message]) -> None:
        for sequence, (kind, side, ioc, quantity, order_id, price) in enumerate(messages, first_sequence):
            if kind == NEW:
                self.new(sequence, side, ioc, quantity, order_id, price)
            elif kind == CANCEL_ORDER:
                self.cancel(sequence, order_id)
            else:
                self.modify(sequence, quantity, order_id, price)

    def new(self, sequence: int, side: int, ioc: int, quantity: int, order_id: int, price: int) -> None:
        self.reports.append((0, sequence, side, order_id, price, quantity))
        order = PlainOrder(order_id, side, price, quantity)
        self.match(sequence, order)
        if order.quantity and ioc:
            self.reports.append((2, sequence, side, order_id, price))
        elif order.quantity:
            self.rest(order)

    def cancel(self, sequence: int, order_id: int) -> None:
        order = self.orders.pop(order_id, None)
        if order is None:
            self.reports.append((4, sequence, order_id))
            return
        order.quantity = 0
        self.reports.append((2, sequence, order.side, order_id, order.price))

    def modify(self, sequence: int, quantity: int, order_id: int, price: int) -> None:
        order = self.orders.pop(order_id, None)
        if order is None:
            self.reports.append((5, sequence, order_id))
            return
        order.quantity = 0
        self.reports.append((3, sequence, order.side, order_id, price, quantity))
        again = PlainOrder(order_id, order.side, price, quantity)
        self.match(sequence, again)
        if again.quantity:
            self.rest(again)

    def rest(self, order: PlainOrder) -> None:
        levels = self.levels[order.side]
        if order.price not in levels:
            levels[order.price] = deque()
            heapq.heappush(self.heaps[order.side], order.price if order.side else -order.price)
        levels[order.price].append(order)
        self.orders[order.id] = order

    def best(self, side: int) -> PlainOrder | None:
        """Return the order of ``side`` that trades next."""
        heap, levels = self.heaps[side], self.levels[side]
        while heap:
            price = heap[0] if side else -heap[0]
            queue = levels[price]
            while queue and not queue[0].quantity:
                queue.popleft()
            if queue:
                return queue[0]
            heapq.heappop(heap)
            del levels[price]
        return None

    def match(self, sequence: int, taker: PlainOrder) -> None:
        while taker.quantity:
            maker = self.best(1 - taker.side)
            if maker is None or (maker.price < taker.price if taker.side else maker.price > taker.price):
                return
            lots = min(taker.quantity, maker.quantity)
            taker.quantity -= lots
            maker.quantity -= lots
            self.reports.append((1, sequence, maker.price, lots, maker.id, taker.id))
            if not maker.quantity:
                del self.orders[maker.id]
