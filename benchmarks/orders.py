"""The orders that the benchmarks send: limit orders within ten ticks; half of them trade, so that the book is small."""

from __future__ import annotations

import random
from typing import Any

from openoutcry.actors.book.commands import SUBMIT

_PREPARED = 1 << 14


class Orders:
    """An endless supply of different commands; making one costs little, since only its name is new."""

    def __init__(self, account: str = "bench", seed: int = 1) -> None:
        chance = random.Random(seed)
        self._account = account
        self._shapes = [
            (chance.randrange(2), 0, 10_000 + chance.randrange(10, 20), chance.randrange(1, 5), 0, 0, 0)
            for _ in range(_PREPARED)
        ]
        self._at = 0

    def batch(self, count: int) -> tuple[tuple[Any, ...], ...]:
        """Return the next ``count`` commands, as ``ExchangeNode.order`` makes them."""
        first, account, shapes = self._at, self._account, self._shapes
        self._at += count
        return tuple(
            [(SUBMIT, account, f"{at:x}", *shapes[at & (_PREPARED - 1)]) for at in range(first, first + count)]
        )
