"""Steps that Ctrl-C does not cut in two: what closes sockets and threads in order is done whole."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK_S = 0.2
"""How often it is looked, in seconds, whether a signal came that the kernel gave to another thread."""


def uninterrupted(step: Callable[[], object], *, on_interrupt: Callable[[], object] | None = None) -> None:
    """Do ``step`` on a thread of its own, where Python raises no KeyboardInterrupt, and wait for it.

    1. What ``step`` raises is raised here.
    2. Ctrl-C meanwhile calls ``on_interrupt``, which may have ``step`` hurry, and is raised once ``step`` is done.
    3. A second Ctrl-C is raised at once; ``step`` goes on then.

    On other threads Python raises no KeyboardInterrupt: there ``step`` is simply called. So it is where the system has
    no thread left.
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
