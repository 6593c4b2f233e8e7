"""Faults that a node's process does to itself on command: its disk, its clock, its way to the coordinator.

Installed in the child before the node starts. They replace functions of the standard library under the node, and
default arguments that are bound when a module is imported; the node's own code runs unchanged.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

from openoutcry.actors.book.journal import Journal
from openoutcry.actors.book.shell import Setup
from openoutcry.transport import etcd, sqlite
from openoutcry.transport.coordinator import UNAVAILABLE_CODE, MarketRecord
from openoutcry.transport.errors import Unavailable


class Shims:
    """The faults of one process. Its methods may be called at any time, from any thread."""

    def __init__(self, *, segment_size: int | None = None, clock_off_by_s: float = 0) -> None:
        """``segment_size``: of the journal, where a test cannot write 64 MiB to see a second segment."""
        self._clock_ns = time.time_ns
        self._offset_ns = int(clock_off_by_s * 1e9)
        self._armed: dict[str, tuple[int, Callable[..., Any]]] = {}
        self._store_away = False
        self._die_in_swap = ""
        self._wrap("pwrite")
        self._wrap("fdatasync")
        time.time_ns = self._time_ns
        _default(Setup, "clock_ns", self._time_ns)
        if segment_size is not None:
            _default(Journal, "segment_size", segment_size)
        self._wrap_sqlite()
        self._wrap_etcd()

    # -- the disk -----------------------------------------------------------------------------------------------

    def fail(self, call: str, error: str, after: int = 0) -> None:
        """From the ``after``-th next ``call`` on (pwrite, fdatasync) the journal gets ``error``; nothing is done."""

        def refuse(*_: Any) -> None:
            raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

        self._armed[call] = (after, refuse)

    def tear(self, after: int = 0) -> None:
        """The process dies in the middle of the ``after``-th next write: half of it is there."""
        write = os.pwrite

        def half(fd: int, data: Any, offset: int) -> None:
            os.lseek(fd, offset, os.SEEK_SET)
            os.write(fd, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        assert write is os.pwrite
        self._armed["pwrite"] = (after, half)

    def limit_file_size(self, size: int) -> None:
        """No file of this process may grow beyond ``size`` bytes: as a full disk, with EFBIG for ENOSPC."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def _wrap(self, call: str) -> None:
        real = getattr(os, call)

        def wrapped(*args: Any) -> Any:
            if (armed := self._armed.get(call)) is not None:
                after, instead = armed
                if after <= 0:
                    return instead(*args)
                self._armed[call] = (after - 1, instead)
            return real(*args)

        setattr(os, call, wrapped)

    # -- the clock ----------------------------------------------------------------------------------------------

    def step_clock(self, seconds: float) -> None:
        """The wall clock jumps, forwards or backwards."""
        self._offset_ns += int(seconds * 1e9)

    def _time_ns(self) -> int:
        return self._clock_ns() + self._offset_ns

    # -- the coordinator ----------------------------------------------------------------------------------------

    def take_store_away(self) -> None:
        """This process alone cannot reach the coordinator any more."""
        self._store_away = True

    def give_store_back(self) -> None:
        """It can again."""
        self._store_away = False

    def die_in_swap(self, moment: str) -> None:
        """The process dies in its next swap: ``before_the_commit``, ``before_the_write`` or ``after_the_write``.

        The first is of the SQLite file, the others are of etcd, where the answer is lost with the process.
        """
        self._die_in_swap = moment

    def keep_lease_as_it_is(self) -> None:
        """From now on the process uses the coordinator for nothing but its markets."""
        sqlite.SqliteCoordinator.renew = lambda *_, **__: None  # type: ignore[method-assign, assignment]

    def _wrap_sqlite(self) -> None:
        connected, patiently = sqlite.SqliteCoordinator._connected, sqlite._patiently
        swap = sqlite.SqliteCoordinator.swap
        swapping = False

        def connected_unless_away(store: sqlite.SqliteCoordinator) -> Any:
            if self._store_away:
                raise Unavailable("the store is away", code=UNAVAILABLE_CODE)
            return connected(store)

        def dying(store: sqlite.SqliteCoordinator, expected: MarketRecord, **change: Any) -> MarketRecord | None:
            nonlocal swapping
            swapping = self._die_in_swap == "before_the_commit"
            return swap(store, expected, **change)

        def dying_at_the_second_step(step: Callable[[], Any]) -> Any:
            # An operation takes two patient steps: to begin, and to commit.
            if swapping and "COMMIT" in step.__code__.co_consts:
                os.kill(os.getpid(), signal.SIGKILL)
            return patiently(step)

        sqlite.SqliteCoordinator._connected = connected_unless_away  # type: ignore[method-assign]
        sqlite.SqliteCoordinator.swap = dying  # type: ignore[method-assign]
        sqlite._patiently = dying_at_the_second_step

    def _wrap_etcd(self) -> None:
        operation, write = etcd.EtcdCoordinator._operation, etcd.EtcdCoordinator._write

        def unless_away(store: etcd.EtcdCoordinator) -> Any:
            if self._store_away:
                raise Unavailable("the store is away", code=UNAVAILABLE_CODE)
            return operation(store)

        def dying(store: etcd.EtcdCoordinator, *args: Any, repeatable: bool, **more: Any) -> bool:
            if repeatable or not self._die_in_swap:
                return write(store, *args, repeatable=repeatable, **more)
            if self._die_in_swap == "after_the_write":
                write(store, *args, repeatable=repeatable, **more)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("the process is dead")

        etcd.EtcdCoordinator._operation = unless_away  # type: ignore[method-assign]
        etcd.EtcdCoordinator._write = dying  # type: ignore[method-assign]


def _default(kind: type, argument: str, value: Any) -> None:
    defaults: dict[str, Any] = kind.__init__.__kwdefaults__  # type: ignore[misc]
    assert argument in defaults, f"{kind.__name__} has no argument {argument} with a default"
    defaults[argument] = value
