"""Where tests run beside each other (pytest-xdist), those that measure what the machine does have it to themselves.

A test marked ``alone`` begins when the tests of the other workers have ended, and they begin when it has ended. Without
pytest-xdist nothing is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SOAK: Final = os.environ.get("OPENOUTCRY_FAULT_ROUNDS", "1") != "1"
"""Whether faults are tried many times, to learn how long nobody is answered: then each has the machine to itself."""


def is_alone(item: pytest.Item) -> bool:
    """Return whether a test must not share the machine, though it does not say so itself."""
    return SOAK and item.path.stem == "test_faults"


class Turns:
    """The turns of one worker's tests among those of all workers: locks on two files that the workers share.

    A test asks for its turn at the gate, and holds the gate until it has its turn: so one that waits to be alone is
    not overtaken by tests that come later.
    """

    def __init__(self, folder: Path) -> None:
        self._gate = folder / "gate.lock"
        self._turn = folder / "turn.lock"

    @contextlib.contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Hold a turn: with others, or alone. A worker that is killed gives its turn back."""
        with self._turn.open("a") as turn:
            with self._gate.open("a") as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
                fcntl.flock(gate, fcntl.LOCK_UN)
            try:
                yield
            finally:
                fcntl.flock(turn, fcntl.LOCK_UN)  # also where a process that a test forked still has the file
