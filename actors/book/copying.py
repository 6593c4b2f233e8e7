"""Copying: copies of one market's whole book, for snapshots and readers, made in slices while the market goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...transport.errors import OpenOutcryError
from ...transport.files import refusal
from .orderbook import BookImage, OrderBook, Sweep

SLICE: Final = 1000
"""Orders that are copied between two messages: about half a millisecond."""

Done = Callable[[BookImage | OpenOutcryError], None]
"""Called with the copy, while the book is still at its sequence; or with the error why there is none."""


class Copying:
    """The copy that is being made of one replica's book, and who waits for it. Owned by the BookActor."""

    def __init__(self, go_on: Callable[[], object]) -> None:
        """``go_on`` has :meth:`step` called soon, after the messages that wait."""
        self._go_on = go_on
        self._sweep: Sweep | None = None
        self._wanted: list[Done] = []
        """Who gets the copy that is being made."""
        self._next: list[Done] = []
        """Who came while it was being made, and gets the next."""

    def want(self, book: OrderBook, done: Done) -> None:
        """Call ``done`` with a copy of ``book`` that is of a moment from now on."""
        self._next.append(done)
        self._begin(book)

    def _begin(self, book: OrderBook) -> None:
        if self._sweep is None and self._next:
            self._wanted, self._next = self._next, []
            self._sweep = book.sweep()
            self._go_on()

    def step(self, book: OrderBook) -> None:
        """Copy some more; when all is copied, hand it out."""
        sweep = self._sweep
        if sweep is None:
            return  # it was of a book that has been replaced
        made: BookImage | OpenOutcryError | None
        try:
            made = sweep.step(SLICE)
        except MemoryError as error:
            made = refusal(error, "no copy of the book can be made")
        if made is None:
            self._go_on()
            return
        book.drop(sweep)
        self._sweep = None
        wanted, self._wanted = self._wanted, []
        for done in wanted:
            done(made)
        self._begin(book)

    def on_another_book(self, book: OrderBook) -> None:
        """The book was replaced: begin again with this one."""
        self._sweep = None
        self._next, self._wanted = self._wanted + self._next, []
        self._begin(book)

    def end(self, error: OpenOutcryError) -> None:
        """The replica ends: nobody gets a copy any more."""
        waiting, self._wanted, self._next, self._sweep = self._wanted + self._next, [], [], None
        for done in waiting:
            done(error)
