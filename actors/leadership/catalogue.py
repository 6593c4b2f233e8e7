"""MarketsActor: keeps one node's markets as the exchange has them: joins new ones, and balances leadership.

It looks at the coordinator's records every ``PERIOD_S`` or so, and once more soon after something has changed. It is
not on the path of an order, and does one thing at a time. :mod:`.balance` decides what to hand over.

The coordinator's records are the exchange's one list of markets: linearizable, there as long as any market is, and what
a leader needs anyway. A market's rules are not part of it: they are the first command of its log, as for every market.

Messages: LookSoon.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Final

from ...transport.coordinator import MarketRecord, next_epoch
from ...transport.errors import OpenOutcryError, ensure
from ...transport.log import get_logger
from ..kit.node_actor import TICK, ActorFailed, NodeActor
from .balance import Move, plan
from .messages import LookSoon

logger = get_logger(__name__)

PERIOD_S: Final = 2.0
"""Seconds between reads of the records, varied by a quarter, so that nodes do not all read at once."""
SOON_S: Final = 0.2
"""Fewest seconds between two reads."""
HOLD_S: Final = 30.0
"""Seconds that a market stays at this node after it was handed over to it."""
AGAIN_S: Final = 5.0
"""Seconds before a failed hand-over of a market is retried."""


class MarketsActor(NodeActor):
    """Manages which markets the node ``node`` has and leads. It has no state to lose: it may be restarted."""

    tick_ms: ClassVar[int] = 100

    def __init__(
        self,
        *,
        node: str,
        read_all: Callable[[], tuple[MarketRecord, ...]],
        alive: Callable[[], Collection[str]],
        join: Callable[[str], None] | None,
        hand_over: Callable[[Move], None] | None,
        open_again: Callable[[], None],
        report: Callable[[ActorFailed], None],
    ) -> None:
        """Begin to look; all functions may raise OpenOutcryError, which is logged, and the step is retried.

        ``open_again``: retry the markets that could not be opened, if they are due.

        ``read_all``: the coordinator's records; ``alive``: ids of the nodes that this one has links to, and its own;
        ``join``: join a market unless it is joined; None: join none. ``hand_over``: make a move of which this node is
        the source; None: make none.
        """
        super().__init__(report=report)
        self._node = node
        self._read_all = read_all
        self._alive = alive
        self._join = join
        self._hand_over = hand_over
        self._open_again = open_again
        self._looked_s = time.monotonic()
        self._look_at_s = self._looked_s + PERIOD_S / 2
        self._records: dict[str, MarketRecord] = {}
        self._held_until_s: dict[str, float] = {}
        self._not_joined: set[str] = set()

    def on_receive(self, message: Any) -> None:
        if isinstance(message, LookSoon):
            self._look_at_s = min(self._look_at_s, self._looked_s + SOON_S)
        else:
            ensure(message is TICK, f"MarketsActor does not understand {type(message).__name__}")
        self._open_again()
        if time.monotonic() >= self._look_at_s:
            self._looked_s = time.monotonic()
            moved = self._look()
            self._look_at_s = self._looked_s + (SOON_S if moved else PERIOD_S * random.uniform(0.75, 1.25))  # noqa: S311

    def _look(self) -> bool:
        """Look at the records once; return whether a market was handed over."""
        try:
            records = self._read_all()
        except OpenOutcryError as error:
            logger.debug("coordinator_call_failed", node=self._node, error=error)
            return False
        self._join_new(records)
        return self._balance(records)

    def _join_new(self, records: tuple[MarketRecord, ...]) -> None:
        if self._join is None:
            return
        for record in records:
            try:
                self._join(record.market)
            except Exception as error:  # a problem with one market must not affect the others
                if record.market not in self._not_joined:
                    logger.error("market_not_joined", node=self._node, market=record.market, error=error)
                self._not_joined.add(record.market)
            else:
                self._not_joined.discard(record.market)

    def _balance(self, records: tuple[MarketRecord, ...]) -> bool:
        """Make this node's first move of the plan, if it has one; return whether it is made."""
        if self._hand_over is None:
            return False
        alive = self._alive()
        now_s = time.monotonic()
        before, self._records = self._records, {record.market: record for record in records}
        for market, record in self._records.items():
            former = before.get(market, record)
            # A live node handed it over, by hand or by balance; if others led in between, it was taken over.
            given = former.leader in alive and record.epoch == next_epoch(former)
            if record.leader == self._node != former.leader and given:
                self._held_until_s[market] = now_s + HOLD_S
        self._held_until_s = {market: at_s for market, at_s in self._held_until_s.items() if at_s > now_s}
        moves = plan(records, alive=alive, held=self._held_until_s)
        move = next((m for m in moves if m.source == self._node == self._records[m.market].leader), None)
        if move is None:
            return False
        try:
            self._hand_over(move)
        except OpenOutcryError as error:
            logger.warning("market_not_moved", node=self._node, market=move.market, peer=move.target, error=error)
            self._held_until_s[move.market] = time.monotonic() + AGAIN_S
            return False
        logger.info("market_moved", node=self._node, market=move.market, peer=move.target)
        return True
