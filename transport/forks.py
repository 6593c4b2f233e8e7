"""What a child of ``fork()`` inherits: sockets, locks and threads that are still its parent's, and that it must let go.

A fork copies memory and descriptors, but no thread, so nothing in the child serves the inherited objects. nng cannot be
used at all: its first call in a child ends the process. So in a child, before any code of the program runs:

1. The descriptors of nng's connections and listeners are closed, and every object given to :func:`guard` releases its
   resources: an orphan that outlives its parent keeps no port, no connection and no data directory.
2. Every object that :func:`guard` was given refuses all calls at once by :class:`Closed`, code ``forked``. ``close``
   does nothing, so that ``with`` and ``finally`` of the parent's code end in order.
3. nng's functions refuse, too, by :class:`ConfigurationError`, code ``forked``, instead of ending the process;
   functions that free something do nothing. pynng calls one of those at exit, and would hang.

A child of a process that has not used nng yet may use it. Only ``os.fork`` and what is made of it (``multiprocessing``
with the start method ``fork``) is seen here; a program that is executed inherits nothing.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import socket
import stat
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

from .errors import Closed, ConfigurationError
from .log import get_logger

logger = get_logger(__name__)

CODE: Final = "forked"
_FREES: Final = ("_close", "_free", "_fini")
"""Endings of the names of nng's functions that free something: in a child there is nothing to free."""

_T = TypeVar("_T")
_guarded: weakref.WeakKeyDictionary[Any, tuple[Callable[[Any], object] | None, bool]] = weakref.WeakKeyDictionary()
_nng_sockets: weakref.WeakSet[Any] = weakref.WeakSet()
_nng: dict[str, Any] = {}
"""What is known of nng: ``pid`` of the process that uses it, in a child of it ``forked_from``."""
_addresses: set[Any] = set()
"""Local addresses of nng's connections and listeners when the process was forked last."""
_refusing: dict[type, type] = {}
_forking = threading.local()
"""Whether the garbage collector was on when the thread began to fork."""
unforked: Final = threading.RLock()
"""While a thread holds it no other forks: hold it, briefly, from opening what a child must let go to guarding it."""


def guard(holder: _T, let_go: Callable[[_T], object] | None = None, *, refuse: bool = True) -> None:
    """Have ``holder`` refuse every call in a child of this process, unless told otherwise.

    The child first calls ``let_go(holder)`` to close its resources. It must not wait for anything: a lock, such as
    that of a buffered file, may be held by a thread that the child does not have.
    """
    with unforked:
        _guarded[holder] = let_go, refuse


def guard_nng(opened: Any) -> None:
    """Note a socket of nng, whose descriptors a child closes."""
    with unforked:
        _nng["pid"] = os.getpid()
        _nng_sockets.add(opened)


def check_nng() -> None:
    """Check that nng can be used in this process.

    Raises:
        ConfigurationError: its parent used it before this process was forked (code ``forked``).
    """
    if "forked_from" in _nng:
        raise ConfigurationError(
            f"process {os.getpid()} was forked from process {_nng['forked_from']}, which had opened sockets of nng: a "
            "child cannot use nng. Start it by multiprocessing.get_context('spawn') or subprocess, or fork before the "
            "parent makes its first node",
            code=CODE,
        )


def _before() -> None:
    """Note where nng's sockets are: the child cannot ask it any more."""
    unforked.acquire()
    _forking.collects = gc.isenabled()
    gc.disable()  # in the child it might come upon a socket before nng is out of reach
    _addresses.clear()
    for opened in list(_nng_sockets):
        for end in (*opened.listeners, *opened.pipes):
            with contextlib.suppress(Exception):  # it was closed a moment ago, or has no address
                _addresses.add(str(end.local_address))


def _in_parent() -> None:
    if _forking.collects:
        gc.enable()
    unforked.release()


def _in_child() -> None:
    try:
        _let_go()
    finally:
        _in_parent()


def _let_go() -> None:
    parent = os.getppid()
    if "pid" in _nng:
        _nng["forked_from"] = _nng.pop("pid")
    if "forked_from" in _nng:
        _refuse_nng()
        _close_nng_descriptors()
    holders = list(_guarded.items())
    _guarded.clear()
    for holder, (let_go, refuse) in holders:
        if let_go is not None:
            try:
                let_go(holder)
            except Exception:
                logger.exception("fork_not_let_go", holder=type(holder).__name__)
        if refuse:
            holder.__class__ = _refusing_kind(type(holder), parent)


def _refusing_kind(kind: type, parent: int) -> type:
    """Return a subclass of ``kind`` whose instances refuse every call except ``close`` and ``repr``."""
    if kind in _refusing:
        return _refusing[kind]
    text = f"{kind.__name__} of process {parent}, inherited by a fork"

    def refuse(self: Any, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        if name == "close":
            return _close_async if inspect.iscoroutinefunction(kind.__dict__.get("close")) else _close
        raise Closed(
            f"{text}: {name} cannot be used in process {os.getpid()}: sockets and threads stay with the parent. Use it "
            "there, or start a process that makes its own by multiprocessing.get_context('spawn')",
            code=CODE,
        )

    members: dict[str, Any] = {"__slots__": (), "__getattribute__": refuse, "__repr__": lambda _: f"<{text}>"}
    made = _refusing[kind] = type(kind.__name__, (kind,), members)
    return made


def _close() -> None:
    """Do nothing: the parent closes it."""


async def _close_async() -> None:
    """Do nothing: the parent closes it."""


class _NoNng:
    """Takes the place of nng's library in a child."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        if not callable(found) or name == "nng_strerror":
            return found
        if name == "nng_ctx_id":
            return lambda *_: -1  # what pynng takes for one that was closed
        if name.endswith(_FREES):
            return lambda *_: 0
        return lambda *_: check_nng()


def _refuse_nng() -> None:
    pynng = sys.modules["pynng"]
    library = pynng.lib
    if isinstance(library, _NoNng):
        return
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "pynng" and getattr(module, "lib", None) is library:
            module.lib = _NoNng(library)  # type: ignore[attr-defined]


def _close_nng_descriptors() -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"):
            with contextlib.suppress(OSError):
                fd = int(name)
                if stat.S_ISSOCK(os.fstat(fd).st_mode) and _is_nng(fd):
                    os.close(fd)


def _is_nng(fd: int) -> bool:
    looked_at = socket.socket(fileno=fd)
    try:
        if looked_at.type != socket.SOCK_STREAM:
            return False
        if looked_at.family == getattr(socket, "AF_UNIX", None):
            ends = [looked_at.getsockname()]
            with contextlib.suppress(OSError):  # a listener has no other end
                ends.append(looked_at.getpeername())
            return any([str(end) in _addresses for end in ends if end])
        host, port = looked_at.getsockname()[:2]
        return f"{host}:{port}" in _addresses or f"[{host}]:{port}" in _addresses
    finally:
        looked_at.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child, after_in_parent=_in_parent)
