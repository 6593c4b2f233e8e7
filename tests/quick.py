"""The inner loop: ``-m "not slow"`` runs the tests that start no node, and a guard sees to it that they do not.

Every test is marked ``slow`` but those of the modules in :data:`QUICK`, and of these all that use a fixture of
:data:`SLOW_FIXTURES` or are marked by hand. The guard fails a test that is left if it opens a socket, starts a process
or sleeps, so a mark that is missing is found by the first run of the test.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from multiprocessing.process import BaseProcess
from typing import Any, Final

import pynng
import pytest

# fmt: off
QUICK: Final = frozenset((
    "actor", "balance", "border", "challenge", "cme", "config", "coordinator", "directory", "docs", "errors",
    "force", "history", "identity", "inspection", "invariants", "journal", "kit", "logs", "model", "numerals",
    "remote", "replication", "rules", "scenarios", "schema", "snapshot", "starts", "submission", "testing",
))
# fmt: on
"""The modules of tests, without ``test_``, most of which need nothing but the processor."""
SLOW_FIXTURES: Final = frozenset(
    {"cluster", "exchange", "exchange_processes", "pair", "rendezvous", "stack", "start_exchange"}
)
"""Fixtures that start nodes, or an etcd."""
_NNG: Final = "openoutcry.tests.nng"
_PROCESS: Final = "openoutcry.tests.process"
_SLEEP: Final = "openoutcry.tests.sleep"
_REFUSED: Final = {
    "socket.__new__": "opens a socket",
    _NNG: "opens a socket of nng",
    "subprocess.Popen": "starts a process",
    _PROCESS: "starts a process",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    _SLEEP: "sleeps",
}


def is_slow(item: pytest.Item) -> bool:
    """Return whether a test is to be marked: by its module, or by what it uses."""
    return item.path.stem.removeprefix("test_") not in QUICK or bool(
        SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ()))
    )


class Guard:
    """Refuses what a quick test must not do, while one runs. Make one only: an audit hook cannot be taken back."""

    def __init__(self) -> None:
        self._quick = False
        self._others: frozenset[int | None] = frozenset()
        self._refused: list[str] = []
        _announce(pynng.Socket, "__init__", _NNG)
        _announce(BaseProcess, "__init__", _PROCESS)
        _announce(time, "sleep", _SLEEP)
        sys.addaudithook(self._refuse)

    def _refuse(self, event: str, args: tuple[Any, ...]) -> None:
        # Threads that were there before are a slow test's, which are ending.
        if not self._quick or event not in _REFUSED or threading.get_ident() in self._others:
            return
        if event == _SLEEP and args == (0,):
            return  # it lets other threads run
        self._refused.append(_REFUSED[event])
        raise AssertionError(f"a quick test {_REFUSED[event]}: mark it slow, or let it do without")

    def watch(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Watch one step of a test: whatever was refused fails it, also in a thread and where the error is caught."""
        if item.get_closest_marker("slow") is not None:
            return (yield)
        self._others = frozenset([each.ident for each in threading.enumerate()]) - {threading.get_ident()}
        self._refused.clear()
        self._quick = True
        try:
            result = yield
        finally:
            self._quick = False
        if self._refused:
            pytest.fail(f"a quick test {self._refused[0]}: mark it slow, or let it do without", pytrace=False)
        return result


def _announce(owner: Any, name: str, event: str) -> None:
    """Make each call of ``owner.name`` an audit event: Python announces no use of nng, and sleeps only of late."""
    original = getattr(owner, name)

    def announced(*args: Any, **kwargs: Any) -> Any:
        sys.audit(event, *args)
        return original(*args, **kwargs)

    setattr(owner, name, announced)
