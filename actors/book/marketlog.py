"""MarketLog: what one replica tells operators in the node's log, once each time that it changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ...transport.log import PROGRESS_S
from .commands import Event
from .replica import Replica, Role
from .requests import BATCH_MAX, Requests
from .submission import Request
from .transfer import Fetched


class MarketLog:
    """Reports what happens to one market's replica. Owned by the BookActor."""

    def __init__(self, log: Any, replica: Replica) -> None:
        self._log = log
        self._replica = replica
        self._said_ns = 0
        self._known: tuple[int, tuple[str, ...], bool] = (0, (), False)
        """As leader: the epoch, the in-sync set, and whether it yields, when that was looked at last."""

    def progress(self, fetched: Fetched[Any] | None, now_ns: int) -> None:
        """Say now and then how far the replica has caught up; ``fetched``: the state that it fetches, if it does."""
        replica = self._replica
        behind = replica.known_committed - replica.applied
        if replica.role is not Role.FOLLOWING or (behind <= BATCH_MAX and fetched is None):
            self._said_ns = now_ns
        elif now_ns - self._said_ns >= PROGRESS_S * 1e9:
            self._said_ns = now_ns
            state = {"fetched": len(fetched.data), "bytes": fetched.size} if fetched is not None else {}
            self._log.info("catching_up", sequence=replica.applied, of=replica.known_committed, **state)

    def members(self) -> None:
        """Leader: say who has left the in-sync set, or was added to it, and that another may lead."""
        replica, (epoch, before, yielded) = self._replica, self._known
        if replica.role is not Role.LEADING:
            return
        self._known = replica.epoch, replica.in_sync, replica.yields
        if epoch != replica.epoch:
            return
        for peer in sorted({*before} - {*replica.in_sync}):
            self._log.warning("replica_left", peer=peer, in_sync=replica.in_sync)
        if replica.yields and not yielded:
            self._log.warning("leader_yields", in_sync=replica.in_sync, present=replica.present)
        for peer in sorted({*replica.in_sync} - {*before}):
            self._log.info("replica_in_sync", peer=peer, in_sync=replica.in_sync)

    def late(self, requests: Requests[Request], now_ns: int) -> None:
        """Warn of requests whose deadlines are over."""
        if numbers := requests.expired(now_ns):
            first = requests.outstanding[numbers[0]].commands[0]
            leader = self._replica.leader
            self._log.warning("requests_expired", requests=len(numbers), leader=leader, client_order_id=first[2])

    def rejected(self, events: Sequence[Event]) -> None:
        """Say which commands the book has rejected, to who asks for so much."""
        for _, sequence, account, named, code in events if self._log.isEnabledFor(logging.DEBUG) else ():
            self._log.debug("command_rejected", sequence=sequence, account=account, client_order_id=named, code=code)
