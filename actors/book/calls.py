"""CoordinatorCalls: the calls of one market's replica to the coordinator, through the node's CoordinatorActor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, assert_never

import pykka

from ...transport.coordinator import DiskMark
from ..kit.node_actor import tell
from ..leadership.messages import CoordinatorAnswer, CoordinatorCall, DiskMarked
from .messages import IsLeaseExpired
from .replica import CreateRecord, ReadMarks, ReadRecord, ReportMark, StoreCall, SwapRecord


class CoordinatorCalls:
    """One market's calls to the coordinator; each comes back as a CoordinatorAnswer. Owned by the BookActor."""

    def __init__(
        self, *, market: str, node: str, coordinator: pykka.ActorRef[Any], reply_to: pykka.ActorRef[Any], log: Any
    ) -> None:
        self._market = market
        self._node = node
        self._coordinator = coordinator
        self._reply_to = reply_to
        self._log = log
        self._reported: DiskMark | None = None
        """The last disk mark that was passed on for a report."""
        self._asking_lease = False
        self._silent = False
        self.swaps = 0
        """How many swaps were asked for."""

    def carry_out(self, call: StoreCall, *, may_create: bool) -> None:
        """Make a call; ``may_create``: this node has rules to open the market with."""
        market, node = self._market, self._node
        match call:
            case ReadRecord():
                self._ask(call, lambda store: store.read(market))
            case ReadMarks():
                self._ask(call, lambda store: store.marks(market))
            case ReportMark():
                tell(self._coordinator, DiskMarked(self._reply_to, market, call.mark, call))
            case CreateRecord():
                if may_create:
                    self._ask(call, lambda store: store.create(market, node, (node,)))
            case SwapRecord():
                self.swaps += 1
                self._ask(
                    call,
                    lambda store: store.swap(
                        call.expected,
                        epoch=call.epoch,
                        leader=call.leader,
                        in_sync=call.in_sync,
                        force=call.force,
                        yielding=call.yielding,
                        lives=dict(call.lives),
                    ),
                )
            case _:
                assert_never(call)

    def report(self, mark: DiskMark | None) -> None:
        """Let the disk mark be reported with the next lease, if it has changed."""
        if mark is not None and mark != self._reported:
            self._reported = mark
            tell(self._coordinator, DiskMarked(self._reply_to, self._market, mark))

    def ask_for_lease(self, leader: str, *, ended: bool) -> None:
        """Ask whether the lease of a lost leader is over (``ended``: its process is), unless that is being asked."""
        if not self._asking_lease:
            self._asking_lease = True
            self._ask(IsLeaseExpired(leader), lambda store: ended or store.lapsed(leader))

    def on_answer(self, answer: CoordinatorAnswer) -> None:
        """The coordinator has answered, or did not: log the first time that it does not."""
        silent, self._silent = self._silent, answer.error is not None
        if isinstance(answer.what, IsLeaseExpired):
            self._asking_lease = False
        elif isinstance(answer.what, ReportMark) and answer.error is None:
            self._reported = answer.what.mark
        if answer.error is not None:
            self._log.log(logging.DEBUG if silent else logging.WARNING, "coordinator_call_failed", error=answer.error)

    def _ask(self, what: StoreCall | IsLeaseExpired, run: Callable[[Any], Any]) -> None:
        tell(self._coordinator, CoordinatorCall(self._reply_to, run, what))
