"""What a node's process tells the service manager that has started it: systemd's notification protocol (sd_notify(3)).

=================  ================================================================================================
READY=1            the node has recovered what is on its disk, is announced, and answers the command line
STATUS=…           the state of its markets in words, for ``systemctl status``
WATCHDOG=1         the process works; without this in time, systemd ends and restarts it
EXTEND_TIMEOUT…    while it recovers, however long that takes
STOPPING=1         it was asked to shut down, hands over and closes
=================  ================================================================================================
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final

from ...transport.numerals import whole_of
from ...transport.plain import plain

EXTEND_S: Final = 60
"""Seconds by which a running start extends its timeout; repeated every quarter of that."""


class ServiceManager:
    """Reports the state of the process to the service manager; does nothing if there is none."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """``environment``: of the process: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = environment.get("WATCHDOG_USEC", "") if mine else ""
        self.watchdog_s = (whole_of(period) or 0) / 1e6
        """Seconds without a report after which the service manager ends the process; 0: never."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, **states: object) -> bool:
        """Send states such as ``READY=1``; return whether they were received."""
        if not self._address:
            return False
        # A name that begins with @ is in the kernel's namespace of its own.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        lines = [f"{key}={plain(' '.join(str(value).splitlines()))}" for key, value in states.items()]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.settimeout(1.0)
            to.sendto("\n".join(lines).encode(), address)
            return True
        return False

    def begin(self, condition: Callable[[], tuple[bool, str]] | None) -> None:
        """Report the state of the process from now on, on a thread.

        ``condition`` returns whether it works, and its state in words; None while it starts, however long that takes.
        """
        self.end()
        if not self._address:
            return
        self._ended = ended = threading.Event()
        every_s = EXTEND_S / 4 if condition is None else min(self.watchdog_s / 3 or 5.0, 5.0)

        def go_on() -> None:
            while True:
                if condition is None:
                    self.tell(STATUS="recovering", EXTEND_TIMEOUT_USEC=EXTEND_S * 1_000_000)
                else:
                    at_work, words = condition()
                    self.tell(STATUS=words, **({"WATCHDOG": 1} if at_work and self.watchdog_s else {}))
                if ended.wait(every_s):
                    return

        self._thread = threading.Thread(target=go_on, name="service-manager", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop reporting. Idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
