"""Forcing: a person's request that this replica leads by force, until it leads or is refused."""

from __future__ import annotations

import contextlib
from concurrent.futures import InvalidStateError

from ...transport.coordinator import MarketRecord
from ...transport.errors import OpenOutcryError, Unavailable, copied
from ..leadership.messages import CoordinatorAnswer
from .commands import Command
from .messages import ForceLeader
from .replica import SwapRecord


class Forcing:
    """The request to lead by force that is under way, if any. Owned by the BookActor."""

    def __init__(self, market: str, node: str) -> None:
        self._market = market
        self._node = node
        self._asked: ForceLeader | None = None

    @property
    def note(self) -> tuple[Command, ...]:
        """The command with which the log of the forced leader begins; none if nothing is under way."""
        return (self._asked.note,) if self._asked is not None else ()

    def begin(self, asked: ForceLeader) -> None:
        """The forced swap is about to run."""
        self._asked = asked

    def succeeded(self, sequence: int) -> None:
        """This replica leads, and the note is in its log up to ``sequence``."""
        if self._asked is not None:
            with contextlib.suppress(InvalidStateError):  # its caller already knows that the outcome is unknown
                self._asked.future.set_result(sequence)
            self._asked = None

    def fail(self, error: OpenOutcryError) -> None:
        """Tell the caller of ``error``. The swap may succeed all the same: then the log begins with the note."""
        if self._asked is not None:
            refuse(self._asked, error)

    def on_answer(self, answer: CoordinatorAnswer, *, claiming: bool) -> None:
        """The coordinator has answered a call of this replica, or did not; ``claiming``: a claim is under way."""
        call, record = answer.what, answer.record
        if isinstance(call, SwapRecord):
            if call.force and answer.error is not None:
                unknown = (
                    f"market {self._market}: the coordinator gave no answer ({answer.error}): whether this node leads "
                    "is unknown; see its status"
                )
                self.fail(Unavailable(unknown, code="outcome_unknown"))
            elif call.force and record is None:
                changed = f"market {self._market}: the record has changed meanwhile: look again"
                self.fail(Unavailable(changed, code="changing"))
                self._asked = None
        elif isinstance(record, MarketRecord) and not claiming and record.leader != self._node:
            self._asked = None  # the swap, whose answer was lost, has not happened


def refuse(asked: ForceLeader, error: OpenOutcryError) -> None:
    """Tell the caller of ``asked`` of ``error``."""
    with contextlib.suppress(InvalidStateError):  # it already knows that the outcome is unknown
        asked.future.set_exception(copied(error))
