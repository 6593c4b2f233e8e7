"""CoordinatorActor: the one thread that talks to the node's coordinator, so that no order waits for it.

Messages: CoordinatorCall; answers CoordinatorAnswer to whom the call names. A store that cannot be reached is an answer
too; any other failure ends the actor and is the node's to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..transport.coordinator import Coordinator
from ..transport.errors import Unavailable
from ._base import NodeActor, tell
from .messages import ActorFailed, CoordinatorAnswer, CoordinatorCall


class CoordinatorActor(NodeActor):
    """Owns the node's coordinator object and closes it."""

    def __init__(self, *, coordinator: Coordinator, report: Callable[[ActorFailed], None]) -> None:
        super().__init__(report=report)
        self._coordinator = coordinator

    def on_receive(self, message: Any) -> None:
        assert isinstance(message, CoordinatorCall), f"CoordinatorActor does not understand {type(message).__name__}"
        try:
            record = message.run(self._coordinator)
        except Unavailable as error:
            tell(message.reply_to, CoordinatorAnswer(message.what, None, error))
        else:
            tell(message.reply_to, CoordinatorAnswer(message.what, record, None))

    def on_stop(self) -> None:
        self._coordinator.close()
