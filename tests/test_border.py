"""The border alone: whatever a caller writes becomes a command, or an error with a code of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from openoutcry.actors.book.commands import INT64_MAX
from openoutcry.actors.book.rules import MarketRules
from openoutcry.actors.border import cancel_command, checked_count, checked_timeout, submit_command
from openoutcry.actors.kit import Actor
from openoutcry.transport.errors import InvalidRequest, shown

HUGE = 10**5000
"""Python refuses to write it."""


class Mute:
    """What has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def order(**changed: Any) -> Any:
    arguments = {
        "side": "buy",
        "price": "1",
        "quantity": "1",
        "order_type": "limit",
        "time_in_force": None,
        "expire_ns": 0,
        "self_trade_prevention": "none",
    }
    return submit_command(MarketRules(), "ann", "", **{**arguments, **changed})


@pytest.mark.parametrize("value", [HUGE, -HUGE, Mute()], ids=["huge", "less than all", "without a text"])
@pytest.mark.parametrize(
    ("check", "code"),
    [
        (lambda value: cancel_command("ann", "", value), "invalid_order_id"),
        (lambda value: checked_count(value, "depth"), "invalid_depth"),
        (checked_timeout, "invalid_timeout"),
        (lambda value: Actor().tell_after(value, "message"), "invalid_delay"),
        *[
            (lambda value, what=what: order(**{what: value}), f"invalid_{what}")
            for what in ("side", "price", "quantity", "order_type", "time_in_force", "self_trade_prevention")
        ],
        (lambda value: order(expire_ns=value), "invalid_expiry"),
    ],
)
def test_what_cannot_be_written_is_refused_with_a_code_as_all_else(
    check: Callable[[Any], Any], code: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(value)
    assert caught.value.code == code
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [-1, 10**20, 1.5, float("nan"), "100", None, True])
def test_a_count_is_a_whole_number_that_a_machine_can_count_to(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked_count(value, "depth")
    assert caught.value.code == "invalid_depth"
    assert checked_count(0, "depth") == 0
    assert checked_count(INT64_MAX, "depth") == INT64_MAX
    with pytest.raises(InvalidRequest):
        checked_count(0, "queue_size_max", at_least=1)


def test_a_value_is_shown_as_far_as_a_message_has_room_for_it() -> None:
    assert shown("x" * 100, 5) == "'xxxx"
    assert shown(HUGE) == "a value of type int that cannot be written"
