"""CoordinatorActor: the one thread that talks to the node's coordinator, so that no order waits for it.

It keeps the node's lease, by which the others tell a dead leader from a slow one, and carries out the calls of the
BookActors. A store that cannot be reached is an answer too: markets that need no change go on without it.

Messages: CoordinatorCall; answers CoordinatorAnswer to whom the call names. StoreStatus (ask) answers what is wrong,
StoreQuery (ask) what it is asked to read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from ..transport.coordinator import Coordinator
from ..transport.errors import OpenOutcryError, ensure
from ..transport.etcd import is_etcd, open_etcd
from ..transport.log import get_logger
from ..transport.sqlite import SqliteCoordinator
from ._base import TICK, NodeActor, tell
from .messages import ActorFailed, CoordinatorAnswer, CoordinatorCall, StoreQuery, StoreStatus
from .meters import NodeMeters

logger = get_logger(__name__)


def open_coordinator(address: str | Path) -> Coordinator:
    """Open the store at ``address``: etcd's (``etcd://…``), or the path of an SQLite file, made if absent.

    Raises:
        ConfigurationError: it is no address, or the file is none of ours.
        Unavailable: it cannot be reached.
    """
    if isinstance(address, str) and is_etcd(address):
        return open_etcd(address)
    return SqliteCoordinator(Path(address))


class CoordinatorActor(NodeActor):
    """Owns the node's coordinator object and closes it; renews the lease of ``node`` every third of ``lease_ms``."""

    tick_ms: ClassVar[int] = 50

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        node: str,
        lease_ms: int,
        report: Callable[[ActorFailed], None],
        meters: NodeMeters | None = None,
    ) -> None:
        super().__init__(report=report)
        self._coordinator = coordinator
        self._node = node
        self._log = logger.bind(node=node)
        self._lease_ms = lease_ms
        self._meters = meters or NodeMeters()
        self._renew_at_s = 0.0
        self._error: Exception | None = None

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, CoordinatorCall):
            self._call(message)
        elif isinstance(message, StoreStatus):
            return None if self._error is None else str(self._error)
        elif isinstance(message, StoreQuery):
            return message.run(self._coordinator)
        else:
            ensure(message is TICK, f"CoordinatorActor does not understand {type(message).__name__}")
        if time.monotonic() >= self._renew_at_s:
            self._renew()
        return None

    def _call(self, call: CoordinatorCall) -> None:
        try:
            with self._measured():
                answer = call.run(self._coordinator)
        except OpenOutcryError as error:
            tell(call.reply_to, CoordinatorAnswer(call.what, None, error))
        except Exception as error:
            # A fault of ours or of the store's library. Whoever asked has to hear of it, and asks again.
            self._log.exception("coordinator_call_broken", what=type(call.what).__name__)
            tell(call.reply_to, CoordinatorAnswer(call.what, None, error))
        else:
            tell(call.reply_to, CoordinatorAnswer(call.what, answer, None))

    def _renew(self) -> None:
        self._renew_at_s = time.monotonic() + self._lease_ms / 3000
        try:
            with self._measured():
                self._coordinator.renew(self._node, ttl_ms=self._lease_ms)
        except Exception as error:
            if self._error is None:
                self._log.error("coordinator_unusable", error=error)
            self._error = error
            self._meters.coordinator_error = str(error)
        else:
            if self._error is not None:
                self._log.info("coordinator_usable")
            self._error = self._meters.coordinator_error = None

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        began_s = time.perf_counter()
        try:
            yield
        except Exception:
            self._meters.coordinator_failures += 1
            raise
        finally:
            self._meters.coordinator_s.observe(time.perf_counter() - began_s)

    def on_stop(self) -> None:
        try:
            self._coordinator.release(self._node)
        except OpenOutcryError as error:
            self._log.warning("lease_not_released", error=error)
        self._coordinator.close()
