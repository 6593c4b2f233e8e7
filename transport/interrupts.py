"""Steps that Ctrl-C does not interrupt halfway, such as closing sockets and threads in order."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK_S = 0.2
"""Seconds between checks for a signal that the kernel delivered to another thread."""


def uninterrupted(step: Callable[[], object], *, on_interrupt: Callable[[], object] | None = None) -> None:
    """Run ``step`` on a thread of its own, where Python raises no KeyboardInterrupt, and wait for it.

    1. An exception of ``step`` is raised here.
    2. Ctrl-C calls ``on_interrupt``, which may make ``step`` hurry, and is raised once ``step`` is done.
    3. A second Ctrl-C is raised at once; ``step`` continues.

    On other threads Python never raises KeyboardInterrupt, so ``step`` is simply called; likewise if the system cannot
    start a thread.
    """
    if threading.current_thread() is not threading.main_thread():
        step()
        return
    failed: list[BaseException] = []
    done = threading.Event()

    def do() -> None:
        try:
            step()
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=do, name="uninterrupted", daemon=True).start()
    except RuntimeError:
        step()
        return
    try:
        _wait(done)
    except BaseException:
        if on_interrupt is not None:
            on_interrupt()
        _wait(done)
        raise
    if failed:
        raise failed[0]


def _wait(done: threading.Event) -> None:
    # Not by joining the thread: one whose join is interrupted counts as ended in Python 3.11, though it runs.
    while not done.wait(_LOOK_S):
        pass
