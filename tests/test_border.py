"""The border alone: whatever a caller writes becomes a command, or an error with a code of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from openoutcry.actors.book.rules import MarketRules
from openoutcry.actors.kit.actor import Actor
from openoutcry.actors.market.border import (
    Requester,
    cancel_command,
    checked_count,
    checked_expiry,
    checked_timeout,
    submit_command,
)
from openoutcry.transport.codec import INT64_MAX
from openoutcry.transport.errors import InvalidRequest, quoted

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
    return submit_command(MarketRules(), Requester("ann"), **{**arguments, **changed})


@pytest.mark.parametrize("value", [HUGE, -HUGE, Mute()], ids=["huge", "less than all", "without a text"])
@pytest.mark.parametrize(
    ("check", "code"),
    [
        (lambda value: cancel_command(Requester("ann"), value), "invalid_order_id"),
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


AT = datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=-3)))


class Vague(tzinfo):
    """A time zone that does not say how far it is from UTC."""

    def utcoffset(self, _at: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (1_893_456_000, "seconds since the Unix epoch, multiply it by 1_000_000_000"),
        (1_893_456_000_000, "milliseconds since the Unix epoch, multiply it by 1_000_000"),
        (1_893_456_000_000_000, "microseconds since the Unix epoch, multiply it by 1_000"),
        (3600 * 10**9, "duration"),
        (1, "time.time_ns() + 3600 * 10**9"),
        (1_893_456_000.5, "is a float"),
        (float("nan"), "is a float"),
        (AT.replace(tzinfo=None), "has no time zone: give value.astimezone()"),
        (AT.replace(tzinfo=Vague()), "has no time zone"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=23))), "outside the years"),
        (datetime(2300, 1, 1, tzinfo=UTC), "outside the years 1970 to 2262"),
        (timedelta.max, "outside the years"),
        (timedelta.min, "outside the years"),
        ("2030-05-06", "is a str"),
        (True, "is a bool"),
        (None, "is a NoneType"),
        (2**63, "above"),
        (-1, "below 0"),
    ],
)
def test_an_expiry_in_another_unit_or_without_a_time_zone_is_refused_with_a_recipe(value: Any, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        order(time_in_force="gtd", expire_ns=value)
    assert caught.value.code == "invalid_expiry"
    assert "nanoseconds since the Unix epoch" in caught.value.message
    assert word in caught.value.message


def test_an_expiry_may_be_nanoseconds_a_datetime_with_a_time_zone_or_a_timedelta() -> None:
    expected = 1_904_292_489_123_456_000
    assert checked_expiry(expected) == checked_expiry(AT) == checked_expiry(AT.astimezone(UTC)) == expected
    assert checked_expiry(timedelta(hours=1, microseconds=1), lambda: expected) == expected + 3600 * 10**9 + 1000
    assert order(time_in_force="gtd", expire_ns=AT)[8] == expected
    assert abs(order(time_in_force="gtd", expire_ns=timedelta(days=1))[8] - time.time_ns() - 86_400 * 10**9) < 10**10
    assert checked_expiry(0) == 0


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
    assert quoted("x" * 100, 5) == "'xxxx"
    assert quoted(HUGE) == "a value of type int that cannot be written"
