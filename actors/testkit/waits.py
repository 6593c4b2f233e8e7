"""How long tests wait for something to happen: a time factor for slow machines, and one wait for any condition."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from ...transport.numerals import float_of, written

TIME_FACTOR_VARIABLE: Final = "OPENOUTCRY_TEST_TIME_FACTOR"
HANDLED_S: Final = 3.0
"""How long an actor has to handle what it was sent, in seconds."""
POLL_S: Final = 0.005
"""How often a condition that is waited for is tried, in seconds."""

_T = TypeVar("_T")


def scaled(within: float) -> float:
    """Return ``within`` (seconds) times the time factor of this machine."""
    text = os.environ.get(TIME_FACTOR_VARIABLE, "1")
    factor = float_of(text)
    if factor is None or factor <= 0:
        raise ValueError(f"{TIME_FACTOR_VARIABLE}={text!r}: expected a number greater than 0")
    return within * factor


def eventually(condition: Callable[[], _T], what: str, within: float = 30.0) -> _T:
    """Wait up to ``within`` seconds (times the time factor) until ``condition()`` is true, and return what it returns.

    >>> import itertools
    >>> count = itertools.count()
    >>> eventually(lambda: next(count) > 2, "the count is above 2")
    True

    Raises:
        AssertionError: it was not true in time; ``what`` says what was waited for.
    """
    __tracebackhide__ = True
    deadline_s = time.monotonic() + scaled(within)
    pause = threading.Event()
    while not (found := condition()):
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {written(scaled(within))} s: {what}")
        pause.wait(POLL_S)
    return found
